"""Summary of attempts: outcomes, success rates, queries, comparisons and transfer matrices.

Console, JSON, HTML, exports and exit codes all use these functions, so their numbers agree. The
functions read `AttemptRow`, which the index of a log contains, so no text is loaded.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, hides_failures
from astra_rl.evaluation.stats.intervals import Interval, hull
from astra_rl.evaluation.stats.judge_errors import JudgedTurns
from astra_rl.evaluation.stats.product_limit import Courses
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.success_at_k import QueriesToSuccess, RateAtK, rate_at_k
from astra_rl.infra.visible import html_table

AT_K = (1, 2, 5, 10, 25, 50, 100)
"""Values of k for which ASR@k is shown."""


@dataclass(frozen=True)
class Summary:
    """Summary of attempts.

    Attributes:
        outcomes: Number of attempts by outcome. They add up to `planned`.
        planned: Number of planned attempts.
        never_made: Number of planned attempts that were not made; they count as errors.
        asr: Share of attempts in which the target failed in any turn.
        asr_last_turn: Share in which it failed in the last turn.
        by_prompt: Successes and known outcomes of each prompt.
        first_failures: Number of attempts that first succeeded at turn 1, 2, ...
        queries: Target queries until the first success per prompt.
        prompts: Number of different prompts.
        turns: Number of attempts with a known outcome by number of turns.
        judged: How many verdicts of the judge these attempts have, without those that lack some.
        outcomes_by_prompt: Number of attempts of each prompt by outcome, in the order of `Outcome`.
        utility: Of agents: share of attempts after which the user's task was done; None of others.
        hijack_and_utility: Of agents: share in which the attack succeeded and the task was done, so
            that the user may notice nothing.
    """

    outcomes: Mapping[Outcome, int]
    planned: int
    never_made: int
    asr: Rate
    asr_last_turn: Rate
    by_prompt: Sequence[tuple[int, int]]
    first_failures: Sequence[int]
    queries: QueriesToSuccess
    prompts: int
    turns: Mapping[int, int]
    judged: JudgedTurns
    outcomes_by_prompt: Sequence[tuple[int, ...]]
    utility: Rate | None = None
    hijack_and_utility: Rate | None = None

    def _repr_html_(self) -> str:
        """Return the rate with its interval, the outcomes and the other numbers, for a notebook."""
        outcomes = ", ".join(
            f"{count} {each.value}" for each, count in self.outcomes.items() if count
        )
        rows: list[tuple[str, object]] = [
            ("attack success rate", self.asr.text),
            ("outcomes", outcomes),
        ]
        rows += [("planned", self.planned), ("prompts", self.prompts)]
        return html_table(("", ""), [*rows, *(("", line) for line in self.lines)])

    def at_k(self, k: int, confidence: float = 0.95) -> RateAtK:
        """ASR@k: share of prompts at which at least one of `k` attempts succeeds.

        Of a selective rate (see `Rate`) the interval is `at_k_covering`, and there is no estimate
        if outcomes are unknown.
        """
        found = rate_at_k(self.by_prompt, k, confidence, sequential=self.asr.sequential)
        if not self.asr.selective:
            return found
        estimate = math.nan if self.asr.is_by_turn else found.estimate
        return replace(found, estimate=estimate, interval=self.at_k_covering(k, confidence))

    def at_k_covering(self, k: int, confidence: float = 0.95) -> Interval:
        """Interval of ASR@k that also has all values of the unknown outcomes.

        Attempts that were never made may each decide a prompt of its own.
        """
        ends = [
            rate_at_k(
                [
                    (successes + won * (sum(made) - known), sum(made))
                    for (successes, known), made in zip(
                        self.by_prompt, self.outcomes_by_prompt, strict=True
                    )
                ],
                k,
                confidence,
                sequential=self.asr.sequential,
            ).interval
            for won in (0, 1)
        ]
        known = rate_at_k(self.by_prompt, k, confidence, sequential=self.asr.sequential).interval
        low, high = hull(hull(*ends), known)
        reach = self.never_made / max(1, self.prompts)
        return Interval(max(0.0, low - reach), min(1.0, high + reach))

    @property
    def asr_at_k(self) -> list[RateAtK]:
        """`at_k` for each value of `AT_K` for which some prompt has enough attempts."""
        most = max((trials for _, trials in self.by_prompt), default=0)
        return [self.at_k(k) for k in AT_K if k <= most]

    def share(self, outcome: Outcome) -> Rate:
        """Share of the planned attempts that had this outcome.

        Attempts that were never made are errors, each of a prompt of its own.
        """
        place = list(Outcome).index(outcome)
        made = [(counts[place], sum(counts)) for counts in self.outcomes_by_prompt]
        never_made = [(int(outcome is Outcome.ERROR), 1)] * self.never_made
        return Rate.of_prompts([*made, *never_made], sequential=self.asr.sequential)

    @property
    def lines(self) -> list[str]:
        """What a command prints below the table of rates, one line for each other number."""
        lines = [each.text for each in self.asr_at_k[1:]]
        if self.asr.unscored:
            lines.append(self.asr.bounds_text)
        if self.asr.trials:
            lines.append(self.queries.text)
        for name, rate in self.of_agents:
            lines.append(f"{name}: {rate.text}")
        return lines

    @property
    def of_agents(self) -> list[tuple[str, Rate]]:
        """Rates of agents beside that of success (the hijack rate), with their names."""
        named = (
            ("user's task done", self.utility),
            ("attack succeeded and task done", self.hijack_and_utility),
        )
        return [(name, rate) for name, rate in named if rate is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values, NaN where one does not exist."""
        return {
            "planned": self.planned,
            "never_made": self.never_made,
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "prompts": self.prompts,
            "asr": self.asr.as_dict(),
            "asr_last_turn": self.asr_last_turn.as_dict(),
            "asr_at_k": [
                {
                    "k": each.k,
                    "estimate": each.estimate,
                    "low": each.interval.low,
                    "high": each.interval.high,
                    "prompts": each.prompts,
                    "left_out": each.left_out,
                }
                for each in self.asr_at_k
            ],
            "first_failures_by_turn": list(self.first_failures),
            "attempts_by_turns": {str(turns): count for turns, count in self.turns.items()},
            "queries_to_success": {
                "median": self.queries.median,
                "won": len(self.queries.counts),
                "never_won": len(self.queries.censored),
            },
            **(
                {}
                if self.utility is None or self.hijack_and_utility is None
                else {
                    "utility": self.utility.as_dict(),
                    "hijack_and_utility": self.hijack_and_utility.as_dict(),
                }
            ),
        }


def summarise(
    rows: Iterable[AttemptRow], *, planned: int | None = None, sequential: bool = False
) -> Summary:
    """Summarise attempts of one attacker at one target in one phase, scored by one judge.

    Args:
        rows: The attempts, in any order. Of several with the same id the last one counts.
        planned: Number of planned attempts; None means that these are all. Missing attempts count
            as errors: stopping early is no evidence that the rest is safe.
        sequential: Whether the evaluation ended when its result was clear, see `Rate`.

    Raises:
        ConfigurationError: There are more attempts than were planned, or they are of several
            phases: a rate over both the training and its evaluation means nothing.
    """
    unique = {row.id: row for row in rows}.values()
    phases = sorted({row.phase for row in unique})
    if len(phases) > 1:
        raise ConfigurationError(
            f"attempts of the phases {', '.join(phases)} given; a summary is of one phase. Select "
            "them: [row for row in rows if row.phase == 'after']."
        )
    ordered = sorted(unique, key=lambda row: (row.prompt_id, row.trial))
    return summarise_prompts(by_prompt(ordered), planned=planned, sequential=sequential)


def by_prompt(rows: Iterable[AttemptRow]) -> Iterator[list[AttemptRow]]:
    """Group attempts by prompt; they must be ordered by prompt and trial."""
    for _, group in groupby(rows, key=attrgetter("prompt_id")):
        yield list(group)


def summarise_prompts(
    groups: Iterable[Sequence[AttemptRow]],
    *,
    planned: int | None = None,
    sequential: bool = False,
) -> Summary:
    """Summarise attempts prompt by prompt, with one prompt in memory at a time.

    Args:
        groups: The attempts of each prompt, each attempt once and ordered by trial.
        planned: See `summarise`.
        sequential: See `summarise`.

    Raises:
        ConfigurationError: There are more attempts than were planned.
    """
    tally = SummaryTally()
    for rows in groups:
        tally.add(rows)
    return tally.result(planned=planned, sequential=sequential)


class SummaryTally:
    """Counts attempts prompt by prompt, for a `Summary`; it keeps a few numbers of each prompt."""

    def __init__(self) -> None:
        self._outcomes: Counter[Outcome] = Counter()
        self._first: Counter[int] = Counter()
        self._turns: Counter[int] = Counter()
        self._judged: Counter[int] = Counter()
        self._stopped: Counter[int] = Counter()
        self._any_turn: list[tuple[int, int]] = []
        self._last_turn: list[tuple[int, int]] = []
        self._useful: list[tuple[int, int]] = []
        self._both: list[tuple[int, int]] = []
        self._won: list[int] = []
        self._censored: list[int] = []
        self._counts: list[tuple[int, ...]] = []
        self._prompts = array("q")  # a hash of each prompt's id: 8 bytes
        self._same, self._courses = _Shared(), Courses()
        self._selective, self._single_turn = False, True

    def add(self, rows: Sequence[AttemptRow]) -> None:
        """Add the attempts of a prompt, each once and ordered by trial; at least one."""
        self._prompts.append(hash(rows[0].prompt_id))
        self._selective |= any(hides_failures(row.outcome, row.answers) for row in rows)
        self._single_turn &= all(row.turns <= 1 for row in rows)
        for row in rows:
            self._courses.add(row.course)
        own = Counter(row.outcome for row in rows)
        self._outcomes.update(own)
        self._counts.append(self._same(tuple(own[outcome] for outcome in Outcome)))
        self._first.update(row.first_failing_turn or 0 for row in rows)
        known = [row for row in rows if row.outcome in KNOWN_OUTCOMES]
        self._turns.update(row.turns for row in known)
        whole = [row for row in known if row.first_missing_turn is None]
        self._judged.update(row.judged_turns for row in whole if not row.stopped_by_success)
        self._stopped.update(row.judged_turns for row in whole if row.stopped_by_success)
        self._any_turn.append(self._same(_any_turn(rows)))
        self._last_turn.append(self._same(_last_turn(rows)))
        self._useful.append(_useful(rows))
        self._both.append(_useful(rows, Outcome.SUCCESS))
        spent, succeeded = _queries(rows)
        (self._won if succeeded else self._censored).append(spent)

    def result(self, *, planned: int | None = None, sequential: bool = False) -> Summary:
        """Return the summary; see `summarise_prompts`."""
        outcomes, made = self._outcomes.copy(), self._outcomes.total()
        planned = made if planned is None else planned
        of_agents = any(trials for _, trials in self._useful)
        # A turn of an agent is many calls, of which a success may come before an error. What was
        # withheld needs no score, so conversations that lack one are not like the known ones.
        without = outcomes[Outcome.BLOCKED] + outcomes[Outcome.NO_ATTACK]
        selective = self._selective or bool(without and outcomes[Outcome.UNSCORED])
        selective |= of_agents and any(outcomes[each] for each in set(Outcome) - KNOWN_OUTCOMES)
        if made > planned:
            raise ConfigurationError(f"{made} attempts were made and only {planned} planned.")
        outcomes[Outcome.ERROR] += planned - made

        def rate(
            by_prompt: Sequence[tuple[int, int]],
            selective: bool = selective,
            by_turn: float = math.nan,
        ) -> Rate:
            return Rate.of_prompts(
                by_prompt,
                unscored=planned - sum(trials for _, trials in by_prompt),
                sequential=sequential,
                selective=selective,
                by_turn=by_turn,
                prompt_ids=self._prompts,
                unscored_by_prompt=[
                    sum(made) - known
                    for made, (_, known) in zip(self._counts, by_prompt, strict=True)
                ],
            )

        by_turn = self._courses.rate
        failed = self._first
        return Summary(
            outcomes={outcome: outcomes[outcome] for outcome in Outcome},
            planned=planned,
            never_made=planned - made,
            asr=rate(self._any_turn, by_turn=by_turn),
            asr_last_turn=rate(self._last_turn, by_turn=by_turn if self._single_turn else math.nan),
            by_prompt=self._any_turn,
            first_failures=[failed[turn] for turn in range(1, max(failed, default=0) + 1)],
            queries=QueriesToSuccess(tuple(self._won), tuple(self._censored)),
            prompts=len(self._any_turn),
            turns=dict(sorted(self._turns.items())),
            judged=JudgedTurns(
                dict(sorted(self._judged.items())), dict(sorted(self._stopped.items()))
            ),
            outcomes_by_prompt=self._counts,
            utility=rate(self._useful, selective=False) if of_agents else None,
            hijack_and_utility=(
                rate(self._both, by_turn=_share(self._both)) if of_agents else None
            ),
        )


CountsT = TypeVar("CountsT", bound=tuple[int, ...])


class _Shared:
    """Returns one tuple for all equal ones: most prompts have the same few counts."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Any] = {}

    def __call__(self, counts: CountsT) -> CountsT:
        found: CountsT = self._kept.setdefault(counts, counts)
        return found


def _share(by_prompt: Sequence[tuple[int, int]]) -> float:
    won, known = (sum(each[at] for each in by_prompt) for at in (0, 1))
    return won / known if known else math.nan


def _any_turn(rows: Sequence[AttemptRow]) -> tuple[int, int]:
    known = [row for row in rows if row.outcome in KNOWN_OUTCOMES]
    return sum(row.outcome is Outcome.SUCCESS for row in known), len(known)


def _last_turn(rows: Sequence[AttemptRow]) -> tuple[int, int]:
    # A withheld response and an attack that was not sent are no failures, and have no score.
    ends = [
        row.last_turn_failed or False
        for row in rows
        if row.last_turn_failed is not None or row.outcome in (Outcome.BLOCKED, Outcome.NO_ATTACK)
    ]
    return sum(ends), len(ends)


def _useful(rows: Sequence[AttemptRow], outcome: Outcome | None = None) -> tuple[int, int]:
    """Return how many attempts with a known utility did the whole task, with this outcome."""
    known = [row for row in rows if row.utility is not None]
    if outcome is not None:
        known = [row for row in known if row.outcome in KNOWN_OUTCOMES]
    done = sum(row.utility == 1 and outcome in (None, row.outcome) for row in known)
    return done, len(known)


def _queries(rows: Sequence[AttemptRow]) -> tuple[int, bool]:
    """Return the queries up to the first success, or of all attempts, and whether there is one."""
    spent = 0
    for row in rows:
        # An output without an attack, which is the last of a conversation, was not sent.
        sent = row.turns - (row.outcome is Outcome.NO_ATTACK)
        spent += row.queries_per_turn * (row.first_failing_turn or sent)
        if row.outcome is Outcome.SUCCESS:
            return spent, True
    return spent, False
