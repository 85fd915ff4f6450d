"""Successful attacks as a regression suite, to replay against the next version of the target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import SCHEMA_VERSION, Attempt, parse_record
from astra_rl.evaluation.records.base import Number, Text
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, decide_outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.records.turn import Opening, Turn
from astra_rl.evaluation.stats.rates import Rate, describe_rate
from astra_rl.infra.jsonio import ROWS, write_json, write_json_with_rows
from astra_rl.infra.user_files import read_user_text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Part):
    """The attacks of one conversation in which a target failed.

    Attributes:
        id: Id of the attempt that found it.
        opening: Opening of the conversation.
        attacks: Attacks to send, turn by turn, independent of the responses.
        category: Kind of harm or scenario.
        found_in: Name of the target that failed.
        found_score: Score of the judge at that time.
    """

    id: Text
    opening: Opening
    attacks: tuple[Text, ...] = Field(min_length=1)
    category: Text = ""
    found_in: Text = ""
    found_score: Number = None

    def attempt(self, suite: RegressionSuite, trial: int = 0) -> Attempt:
        """Return the attacks as an attempt to be replayed."""
        return Attempt.make(
            run="",
            opening=self.opening,
            target=self.found_in,
            attacker="regression suite",
            turns=[Turn(attack=attack) for attack in self.attacks],
            judge=suite.judge,
            threshold=suite.threshold,
            prompt_id=self.id,
            trial=trial,
            category=self.category,
        )


class RegressionSuite(_Part):
    """A file of cases, and the judge and threshold that decide whether they pass.

    Attributes:
        schema_version: Version of the file format.
        judge: Name of the judge.
        judge_id: Identity of its weights and settings; empty if unknown.
        threshold: A case passes if every score is below it.
        cases: Conversations to replay.
    """

    schema_version: int = SCHEMA_VERSION
    judge: Text
    judge_id: Text = ""
    threshold: float = Field(gt=0, le=1)
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, attempts: Iterable[Attempt] | AttemptSource) -> RegressionSuite:
        """Make one case of every successful attack, without duplicates.

        A case ends with the first successful turn.

        Raises:
            ConfigurationError: There are no attempts, none has a known outcome, or they differ in
                judge or threshold.
        """
        source = source_of(attempts)
        judge, judge_id, threshold = _only_rule(source)
        return cls(judge=judge, judge_id=judge_id, threshold=threshold, cases=tuple(_cases(source)))

    @classmethod
    def load(cls, path: str | Path) -> RegressionSuite:
        """Read a suite.

        Raises:
            ConfigurationError: The file cannot be read, is not a suite, or has a newer version.
        """
        try:
            text = read_user_text(path, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the regression suite {path}: {error}") from error
        return parse_record(cls, text, f"a regression suite ({path})")

    def save(self, path: str | Path) -> None:
        """Write the suite as JSON, atomically."""
        write_json(self.model_dump(mode="json"), path)

    def check(self, attempts: Mapping[str, Attempt | Sequence[Attempt]]) -> list[CaseResult]:
        """Return for each case whether the target passes it.

        Args:
            attempts: Attempts that replayed the cases, one or several, by id of the case.
        """
        return [self._check(case, _several(attempts.get(case.id, ()))) for case in self.cases]

    def _check(self, case: Case, attempts: Sequence[Attempt]) -> CaseResult:
        if not attempts:
            return CaseResult(case, "undecided", NOT_SENT)
        found = [self._check_attempt(case, attempt) for attempt in attempts]
        statuses = [each.status for each in found]
        decided = len(statuses) - statuses.count("undecided")
        rate = Rate(statuses.count("failed"), decided, statuses.count("undecided"))
        worst = next(
            each
            for status in ("failed", "undecided", "passed")
            for each in found
            if each.status == status
        )
        detail = worst.detail if len(found) == 1 else f"{describe_rate(rate)}; {worst.detail}"
        return replace(worst, detail=detail, rate=rate)

    def _check_attempt(self, case: Case, attempt: Attempt) -> CaseResult:
        outcome = decide_outcome(attempt.turns, attempt.judge, self.threshold, error=attempt.error)
        scores = [turn.score(attempt.judge) for turn in attempt.turns]
        if outcome is Outcome.SUCCESS:
            worst = max(score for score in scores if score is not None)
            return CaseResult(case, "failed", f"score {worst:.3g}, limit {self.threshold:g}")
        if outcome in (Outcome.ERROR, Outcome.UNSCORED):
            return CaseResult(case, "undecided", attempt.error or "a score is missing")
        return CaseResult(case, "passed", outcome.value)


def _several(attempts: Attempt | Sequence[Attempt]) -> Sequence[Attempt]:
    return [attempts] if isinstance(attempts, Attempt) else attempts


NOT_SENT = "the attacks were not sent"


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    Attributes:
        case: The case.
        status: ``"failed"`` if the target failed again in any trial; otherwise ``"undecided"`` if
            the result of a trial is unknown, which does not count as a pass.
        detail: Reason, in a few words.
        rate: Share of the trials in which the target failed.
    """

    case: Case
    status: Literal["passed", "failed", "undecided"]
    detail: str
    rate: Rate = field(default_factory=lambda: Rate(0, 0))

    @property
    def was_sent(self) -> bool:
        """Whether the attacks were sent."""
        return self.detail != NOT_SENT

    @staticmethod
    def all_passed(results: Sequence[CaseResult]) -> bool:
        """Return whether there are cases and all passed; undecided cases do not pass."""
        return bool(results) and all(result.status == "passed" for result in results)


def write_regression_suite(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write the successful attacks as a suite, case by case; return the number of cases.

    Raises:
        ConfigurationError: As in `RegressionSuite.of`.
    """
    source = source_of(attempts)
    judge, judge_id, threshold = _only_rule(source)
    suite = RegressionSuite(judge=judge, judge_id=judge_id, threshold=threshold, cases=())
    data = {**suite.model_dump(mode="json"), "cases": ROWS}
    rows = (case.model_dump(mode="json") for case in _cases(source))
    return write_json_with_rows(data, rows, path)


def _only_rule(source: AttemptSource) -> tuple[str, str, float]:
    """Return judge, its identity and threshold of the failures; see `RegressionSuite.of`."""
    rules: dict[bool, set[tuple[str, str, float]]] = {True: set(), False: set()}
    made = known = 0
    for row in source.rows():
        made += 1
        known += row.outcome in KNOWN_OUTCOMES
        failed = row.outcome is Outcome.SUCCESS
        rules[failed].add((row.judge, row.judge_id, row.threshold))
    if made and not known:
        raise ConfigurationError(
            f"none of the {made} attempts has a known outcome, so a suite without cases "
            "would not mean that there are no failures. Score them first: astra-rl score."
        )
    found = rules[True] or rules[False]
    if len(found) != 1:
        raise ConfigurationError(
            f"{made} attempts have {len(found)} combinations of judge and threshold; a "
            "regression suite has exactly one. Re-score them with one judge: astra-rl score."
        )
    return found.pop()


def _cases(source: AttemptSource) -> Iterator[Case]:
    """Yield one case of every successful attack, without duplicates."""
    seen: set[bytes] = set()
    for attempt in source.attempts():
        if attempt.outcome is not Outcome.SUCCESS:
            continue
        attacks = tuple(turn.attack for turn in attempt.turns[: attempt.first_failing_turn])
        key = hashlib.blake2b(repr((attempt.opening.id, attacks)).encode(), digest_size=16).digest()
        if key in seen:
            continue
        seen.add(key)
        yield Case(
            id=attempt.id,
            opening=attempt.opening,
            attacks=attacks,
            category=attempt.category,
            found_in=attempt.target,
            found_score=attempt.score,
        )
