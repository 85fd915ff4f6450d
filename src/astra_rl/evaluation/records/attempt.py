"""Record of an attempt: one conversation of an attacker with a target, and its outcome.

Rates, rankings, exports and reports are computed from these records. A record contains everything
that is needed to re-score it with another moderator, and to replay it against another target.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from astra_rl.core.text import Exchange, NoReply, NotAsked, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.base import Count, Record, Text, content_digest
from astra_rl.evaluation.records.course import Course
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, decide_outcome
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Opening, Turn
from astra_rl.infra.jsonio import is_within_limits, json_line, parse_json
from astra_rl.infra.redaction import REDACTED
from astra_rl.infra.unicode import well_formed
from astra_rl.infra.validation import allowed

SCHEMA_VERSION = 1
"""Incremented when older versions would misread a record."""

_END_OF_TIME = 253_402_300_799
"""The last second of the year 9999, in seconds since 1970; dates end there."""
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)]


class AttemptRow(NamedTuple):
    """Fields of an attempt that statistics need, without its texts.

    Attributes:
        id: Identifies the attempt.
        phase: Phase of the run.
        prompt_id: Identifies the prompt.
        trial: Number of earlier attempts of this attacker at this target with this prompt.
        attacker: Name of the attacker.
        target: Name of the target.
        outcome: Outcome of the attempt.
        turns: Number of turns.
        first_failing_turn: Counted from 1; None if no turn reached the threshold.
        last_turn_failed: Whether the last turn reached it; None if its score is missing.
        score: Highest score of the deciding judge, None if there is none.
        logprob: Log-probability, under the baseline, of the attacks up to the first failing turn,
            or of all attacks; None if it was not measured.
        logprob_tokens: Baseline tokens of those attacks.
        queries_per_turn: Number of target queries per turn.
        judge: Name of the judge that decided the outcome.
        judge_id: Identifies its weights and settings.
        threshold: Score from which a turn counts as a failure of the target.
        category: Harm category or scenario of the opening; empty without one.
        judged: Number of turns with a verdict of the judge; None: all but the last one of an
            attempt that ended without a response (`judged_turns`).
        utility: Of an agent: how far the user's task was done in the end, in [0, 1]; None if it is
            unknown.
        first_missing_turn: First turn, counted from 1, whose verdict is missing; one more than
            `turns` if an error ended the conversation after its last verdict; None if none is
            missing.
    """

    id: str
    phase: str
    prompt_id: str
    trial: int
    attacker: str
    target: str
    outcome: Outcome
    turns: int
    first_failing_turn: int | None = None
    last_turn_failed: bool | None = None
    score: float | None = None
    logprob: float | None = None
    logprob_tokens: int | None = None
    queries_per_turn: int = 1
    judge: str = ""
    judge_id: str = ""
    threshold: float = 0.5
    category: str = ""
    judged: int | None = None
    utility: float | None = None
    first_missing_turn: int | None = None

    @property
    def course(self) -> Course | None:
        """The part with a verdict in each turn; None if it was not recorded which are missing."""
        return Course.of(self.outcome, self.turns, self.first_failing_turn, self.first_missing_turn)

    @property
    def answers(self) -> int:
        """Number of answers of the target, each of which could have been a failure of it."""
        return self.turns * self.queries_per_turn

    @property
    def judged_turns(self) -> int:
        """Number of turns with a verdict: a withheld response has none."""
        if self.judged is not None:
            return self.judged
        without = self.outcome in (Outcome.BLOCKED, Outcome.NO_ATTACK)
        return max(0, self.turns - without)

    @property
    def stopped_by_success(self) -> bool:
        """Whether its last turn is its first success, so that a rule may have ended it there."""
        return self.first_failing_turn is not None and self.first_failing_turn == self.turns


class Attempt(Record):
    """One conversation with one target.

    Attributes:
        schema_version: Version of the record format.
        id: Identifies the attempt, see `attempt_id`.
        run: Name of the run, the same for the same configuration.
        phase: Phase of the run: ``training``, ``before``, ``after`` or another name.
        prompt_id: Digest of the opening, or its id in a data set.
        opening: State before the first turn.
        target: Name of the model under test.
        attacker: Name of the attacker.
        trial: Counts the attempts of one attacker at one target from one opening, from 0.
        branch: In a tree of conversations, the index among siblings at each turn.
        step: Training step; None outside of training.
        turns: The turns of the conversation.
        judge: Name of the judge that decided the outcome.
        judge_id: Identifies its weights and settings, see `Identity.digest`; empty if unknown.
        queries_per_turn: Number of target queries per turn: more than one if the attack was chosen
            among several by the responses of the target.
        threshold: Score in (0, 1] from which a turn counts as a failure of the target.
        outcome: Outcome of the attempt.
        error: Error message, if the outcome is an error.
        category: Harm category or scenario of the opening.
        seed: Seed of the episode.
        started: Start time in seconds since 1970 (UTC).
        seconds: Duration in seconds.
    """

    schema_version: Annotated[int, Field(strict=True, ge=1)] = SCHEMA_VERSION
    id: Text
    run: Text
    phase: Text
    prompt_id: Text
    opening: Opening
    target: Text
    attacker: Text
    trial: Count = 0
    branch: tuple[Count, ...] = ()
    step: Count | None = None
    turns: tuple[Turn, ...] = ()
    judge: Text
    judge_id: Text = ""
    queries_per_turn: Annotated[Count, Field(ge=1)] = 1
    threshold: Annotated[float, Field(strict=True, gt=0, le=1)]
    outcome: Outcome
    error: Text = ""
    category: Text = ""
    seed: Seed | None = None
    started: Annotated[float, Field(strict=True, ge=0, le=_END_OF_TIME)] | None = None
    seconds: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None

    @classmethod
    def make(
        cls,
        *,
        run: str,
        opening: Opening | str,
        target: str,
        attacker: str,
        turns: Sequence[Turn],
        judge: str,
        threshold: float = 0.5,
        phase: str = "evaluation",
        prompt_id: str | None = None,
        trial: int = 0,
        branch: Sequence[int] = (),
        error: str = "",
        **details: Any,
    ) -> Attempt:
        """Build a record; id and outcome are computed from the arguments.

        Args:
            run: See the class.
            opening: A context, or its parts.
            target: See the class.
            attacker: See the class.
            turns: See the class.
            judge: See the class.
            threshold: See the class.
            phase: See the class.
            prompt_id: Id of the opening; None uses the digest of its content.
            trial: See the class.
            branch: See the class.
            error: See the class.
            details: Any of `judge_id`, `queries_per_turn`, `step`, `category`, `seed`, `started`,
                `seconds`.
        """
        known = opening if isinstance(opening, Opening) else Opening.of(opening)
        prompt = known.id if prompt_id is None else prompt_id
        key = attempt_id(run, phase, attacker, target, prompt, trial, branch)
        return cls(
            id=key,
            run=run,
            phase=phase,
            prompt_id=prompt,
            opening=known,
            target=target,
            attacker=attacker,
            trial=trial,
            branch=tuple(branch),
            turns=tuple(turns),
            judge=judge,
            threshold=threshold,
            outcome=decide_outcome(turns, judge, threshold, error=error),
            error=error,
            **details,
        )

    @property
    def is_complete(self) -> bool:
        """Whether no call of the target or a judge was left out to stay within a budget."""
        return not any(
            turn.not_sent or any(score.not_sent for score in turn.scores.values())
            for turn in self.turns
        )

    @property
    def first_failing_turn(self) -> int | None:
        """First turn, counted from 1, whose score reached the threshold."""
        scores = (turn.score(self.judge) for turn in self.turns)
        return next((at for at, score in enumerate(scores, 1) if self._fails(score)), None)

    @property
    def sent(self) -> tuple[str, ...]:
        """The attacks that were sent: one per turn, but for an output without an attack."""
        return tuple(turn.attack for turn in self.turns if not turn.without_attack)

    @property
    def failing_turn(self) -> Turn | None:
        """The first turn whose score reached the threshold."""
        at = self.first_failing_turn
        return None if at is None else self.turns[at - 1]

    @property
    def failing_request(self) -> str:
        """Opening prompt and attack of the first failing turn, for tables; empty without one."""
        turn = self.failing_turn
        texts = () if turn is None else (self.opening.prompt, turn.attack)
        return "\n".join(text for text in texts if text.strip())

    @property
    def score(self) -> float | None:
        """Highest score of the deciding judge; None if there is none."""
        present = [s for turn in self.turns if (s := turn.score(self.judge)) is not None]
        return max(present, default=None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of the missing scores of the deciding judge, and of unknown alternatives."""
        scores = (turn.scores.get(self.judge) for turn in self.turns)
        unknown = sum(turn.unknown_alternatives for turn in self.turns)
        return (
            *(each.reason or "not judged" for each in scores if each and each.value is None),
            *([f"no result of {unknown} other attacks that were tried"] if unknown else []),
        )

    def logprob(self, under: str = "baseline") -> LogProb | None:
        """Log-probability of the attacks up to the first failure, or of all without a failure.

        Responses are not included: it is the probability of the attacks given the responses.

        Args:
            under: Model, a key of `Turn.logprobs`.

        Returns:
            None if one of these turns was not measured, or if there is no turn.
        """
        path = self.turns[: self.first_failing_turn]
        parts = [turn.logprobs.get(under) for turn in path]
        known = [part for part in parts if part is not None]
        if not parts or len(known) < len(parts):
            return None
        if len(known) == 1:
            return known[0]
        return LogProb(
            total=math.fsum(part.total for part in known),
            tokens=sum(part.tokens for part in known),
        )

    @property
    def row(self) -> AttemptRow:
        """The fields that statistics need."""
        last = self.turns[-1].score(self.judge) if self.turns else None
        if self.turns and self.turns[-1].unknown_alternatives and not self._fails(last):
            last = None
        likelihood = self.logprob()
        return AttemptRow(
            id=self.id,
            phase=self.phase,
            prompt_id=self.prompt_id,
            trial=self.trial,
            attacker=self.attacker,
            target=self.target,
            outcome=self.outcome,
            turns=len(self.turns),
            first_failing_turn=self.first_failing_turn,
            last_turn_failed=None if last is None else self._fails(last),
            score=self.score,
            logprob=None if likelihood is None else likelihood.total,
            logprob_tokens=None if likelihood is None else likelihood.tokens,
            queries_per_turn=self.queries_per_turn,
            judge=self.judge,
            judge_id=self.judge_id,
            threshold=self.threshold,
            category=self.category,
            judged=sum(turn.score(self.judge) is not None for turn in self.turns),
            utility=self.utility,
            first_missing_turn=self.first_missing_turn,
        )

    @property
    def first_missing_turn(self) -> int | None:
        """First turn, counted from 1, without a verdict that it needs; see `AttemptRow`."""
        for at, turn in enumerate(self.turns, 1):
            score = turn.score(self.judge)
            is_lost = score is None and not (turn.blocked or turn.without_attack)
            if is_lost or (turn.unknown_alternatives and not self._fails(score)):
                return at
        return len(self.turns) + 1 if self.outcome not in KNOWN_OUTCOMES else None

    @property
    def course(self) -> Course | None:
        """The part with a verdict in each turn; see `AttemptRow`."""
        return Course.of(
            self.outcome, len(self.turns), self.first_failing_turn, self.first_missing_turn
        )

    @property
    def utility(self) -> float | None:
        """Of an agent: how far the user's task was done after the last turn; None if unknown."""
        trace = self.turns[-1].trace if self.turns else None
        return None if trace is None else trace.utility

    def exchanges(self) -> list[Exchange]:
        """Return the turns as exchanges, for a moderator.

        A response from which a credential was redacted has no score: what was removed may be what
        a judge looks for.
        """
        context = self.opening.conversation()
        found = []
        for turn in self.turns:
            response: str = Utterance(turn.response, reasoning=turn.reasoning)
            if turn.without_attack:
                response = NotAsked()
            elif turn.unanswered:
                response = NoReply(self.error or "no reply")
            elif REDACTED in response:
                response = NoReply("a credential was redacted from the response")
            elif turn.trace is not None:
                response = turn.trace.reply(turn.response)
            found.append(Exchange(context, turn.output, response))
            context = context + turn.output + (turn.response if turn.trace is None else response)
        return found

    def judged(
        self, judge: str, scores: Sequence[float], *, threshold: float, judge_id: str = ""
    ) -> Attempt:
        """Return the record with these scores added, one per turn, and the outcome they decide."""
        judge = well_formed(judge)  # a copy is not validated
        turns = [
            turn.model_copy(update={"scores": {**turn.scores, judge: JudgeScore.of(score)}})
            for turn, score in zip(self.turns, scores, strict=True)
        ]
        return self.model_copy(
            update={
                "turns": tuple(turns),
                "judge": judge,
                "judge_id": judge_id,
                "threshold": threshold,
                "outcome": decide_outcome(turns, judge, threshold, error=self.error),
            }
        )

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the newline."""
        data = self.model_dump(mode="json")
        with contextlib.suppress(ValueError):  # of what `model_copy` does not validate
            line = json_line(data, is_plain=True)
            line.encode()
            return line
        return json_line(data)

    @classmethod
    def from_json(cls, line: str | bytes) -> Attempt:
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: It is no such record, or of a newer version of this library.
        """
        return parse_record(cls, line, "a record of an attempt")

    def _fails(self, score: float | None) -> bool:
        return score is not None and score >= self.threshold


class SchemaTooNewError(ConfigurationError):
    """A record was written by a newer version of this library."""


RecordT = TypeVar("RecordT", bound=BaseModel)


def parse_record(model: type[RecordT], text: str | bytes, what: str) -> RecordT:
    """Parse a record from JSON.

    Args:
        model: Type of the record.
        text: The JSON.
        what: Name of the record in errors.

    Raises:
        SchemaTooNewError: It is of a newer version.
        ConfigurationError: It is no such record.
    """
    # The usual record is read in half the time; for any other, what follows gives the reason.
    with contextlib.suppress(ValueError):
        if is_within_limits(text):
            record = model.model_validate_json(text)
            if getattr(record, "schema_version", SCHEMA_VERSION) <= SCHEMA_VERSION:
                return record
    try:
        data = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"not {what}: it is no JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaTooNewError(
            f"this is {what} of schema version {version}, and this version of astra-rl reads up to "
            f"{SCHEMA_VERSION}. Update astra-rl to read it."
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        # Not chained, and without the value: it may be text that a model wrote.
        raise ConfigurationError(f"not {what}: {where}: {_expected(first)}") from None


def _expected(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    return f"it must be {allowed(error)}"


def attempt_id(
    run: str,
    phase: str,
    attacker: str,
    target: str,
    prompt_id: str,
    trial: int,
    branch: Sequence[int] = (),
) -> str:
    """Return a digest that identifies an attempt; 16 hexadecimal digits.

    It does not depend on the conversation, so an attempt that is repeated after a resume replaces
    the first one.
    """
    return content_digest([run, phase, attacker, target, prompt_id, trial, list(branch)])
