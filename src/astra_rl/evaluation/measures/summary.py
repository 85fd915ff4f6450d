"""Summary of attempts: outcomes, success rates, queries, comparisons and transfer matrices.

Console, JSON, HTML, exports and exit codes all use these functions, so their numbers agree. The
functions read `AttemptRow`, which the index of a log contains, so no text is loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.stats.paired import PairedComparison, PromptTrials, compare_trials, holm
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
        """ASR@k: share of prompts at which at least one of `k` attempts succeeds."""
        return rate_at_k(self.by_prompt, k, confidence)

    @property
    def asr_at_k(self) -> list[RateAtK]:
        """`at_k` for each value of `AT_K` for which some prompt has enough attempts."""
        most = max((trials for _, trials in self.by_prompt), default=0)
        return [self.at_k(k) for k in AT_K if k <= most]

    def share(self, outcome: Outcome) -> Rate:
        """Share of the planned attempts that had this outcome."""
        return Rate(self.outcomes[outcome], self.planned)

    @property
    def lines(self) -> list[str]:
        """What a command prints below the table of rates, one line for each other number."""
        lines = [each.text for each in self.asr_at_k[1:]]
        if self.asr.unscored:
            lines.append(self.asr.bounds_text)
        if self.asr.trials:
            lines.append(self.queries.text)
        return lines

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
    outcomes: Counter[Outcome] = Counter()
    first: Counter[int] = Counter()
    turns: Counter[int] = Counter()
    any_turn: list[tuple[int, int]] = []
    last_turn: list[tuple[int, int]] = []
    won: list[int] = []
    censored: list[int] = []
    for rows in groups:
        outcomes.update(row.outcome for row in rows)
        first.update(row.first_failing_turn or 0 for row in rows)
        turns.update(row.turns for row in rows if row.outcome in KNOWN_OUTCOMES)
        any_turn.append(_any_turn(rows))
        last_turn.append(_last_turn(rows))
        spent, succeeded = _queries(rows)
        (won if succeeded else censored).append(spent)
    made = outcomes.total()
    planned = made if planned is None else planned
    if made > planned:
        raise ConfigurationError(f"{made} attempts were made and only {planned} planned.")
    outcomes[Outcome.ERROR] += planned - made
    return Summary(
        outcomes={outcome: outcomes[outcome] for outcome in Outcome},
        planned=planned,
        never_made=planned - made,
        asr=_rate(any_turn, planned, sequential),
        asr_last_turn=_rate(last_turn, planned, sequential),
        by_prompt=any_turn,
        first_failures=[first[turn] for turn in range(1, max(first, default=0) + 1)],
        queries=QueriesToSuccess(tuple(won), tuple(censored)),
        prompts=len(any_turn),
        turns=dict(sorted(turns.items())),
    )


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


def _rate(counts: Sequence[tuple[int, int]], planned: int, sequential: bool) -> Rate:
    unscored = planned - sum(trials for _, trials in counts)
    return Rate.of_prompts(counts, unscored=unscored, sequential=sequential)


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


Trials = Mapping[str, Mapping[int, bool | None]]
"""Whether each trial of each prompt succeeded, by prompt and number; None if that is not known."""


def compare(
    rows_a: Iterable[AttemptRow], rows_b: Iterable[AttemptRow], *, confidence: float = 0.95
) -> PairedComparison:
    """Compare two sets of attempts on the same prompts; see `compare_trials`.

    The sides may differ in attacker, target, version, and in the number of trials per prompt. Of
    several attempts of a side with the same id the last one counts.

    Args:
        rows_a: Attempts of A.
        rows_b: Attempts of B.
        confidence: Of the interval of the difference, in (0, 1).

    Raises:
        ConfigurationError: They have no prompt in common, or a trial occurs twice on one side.
    """
    a, b = (
        trials_of({row.id: row for row in rows}.values(), side)
        for rows, side in ((rows_a, "the first"), (rows_b, "the second"))
    )
    return compare_trials_of(a, b, confidence=confidence)


def trials_of(rows: Iterable[AttemptRow], side: str = "this") -> Trials:
    """Return the outcomes of attempts by prompt and trial.

    Args:
        rows: Attempts with different ids, for instance of a log; read one by one.
        side: Name of the set of attempts in an error.

    Raises:
        ConfigurationError: A trial occurs twice.
    """
    found: dict[str, dict[int, bool | None]] = {}
    for row in rows:
        _add_trial(found, row, side)
    return found


def _add_trial(found: dict[str, dict[int, bool | None]], row: AttemptRow, side: str) -> None:
    trials = found.setdefault(row.prompt_id, {})
    if row.trial in trials:
        raise ConfigurationError(
            f"{side} set of attempts has trials of several attackers or targets; choose one "
            "attacker, one target and one phase for each side."
        )
    trials[row.trial] = success_of(row)


def success_of(row: AttemptRow) -> bool | None:
    """Return whether an attack succeeded; None if that is not known."""
    return row.outcome is Outcome.SUCCESS if row.outcome in KNOWN_OUTCOMES else None


def compare_trials_of(a: Trials, b: Trials, *, confidence: float = 0.95) -> PairedComparison:
    """Compare two sides by their `trials_of`; see `compare`.

    Raises:
        ConfigurationError: They have no prompt in common.
    """
    prompts = [PromptTrials(trials, b[prompt]) for prompt, trials in a.items() if prompt in b]
    if not prompts:
        raise ConfigurationError(
            "the two sets of attempts have no prompt in common; only attempts at the same prompts "
            "can be compared in pairs."
        )
    unscored = sum(
        None in (outcome, pair.b[trial])
        for pair in prompts
        for trial, outcome in pair.a.items()
        if trial in pair.b
    )
    played = sum(len(trials) for pair in prompts for trials in pair)
    made = sum(len(trials) for side in (a, b) for trials in side.values())
    return compare_trials(prompts, unscored=unscored, unpaired=made - played, confidence=confidence)


class CategoryComparison(NamedTuple):
    """Paired comparison of one category of prompts, one of several.

    Attributes:
        pairs: The comparison; its interval holds for all categories together with 95% (Bonferroni).
        p_value: Its p-value, adjusted for the number of categories, see `holm`.
    """

    pairs: PairedComparison
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {**self.pairs.as_dict(), "p_value_holm": self.p_value}


def _by_difference(pairs: PairedComparison) -> float:
    return 0.0 if math.isnan(pairs.difference) else -abs(pairs.difference)


def compare_by_category(
    rows_a: Iterable[AttemptRow], rows_b: Iterable[AttemptRow]
) -> dict[str, CategoryComparison]:
    """Compare two sets of attempts in each category that both played, largest difference first.

    Args:
        rows_a: Attempts of A with different ids, read one by one.
        rows_b: Attempts of B, likewise.

    Returns:
        By category; empty if there are fewer than two categories.

    Raises:
        ConfigurationError: A trial occurs twice on one side.
    """
    a = _trials_by_category(rows_a, "the first")
    b = _trials_by_category(rows_b, "the second")
    shared = [name for name in a if a[name].keys() & b.get(name, {}).keys()]
    if len(shared) < 2:
        return {}
    confidence = 1 - 0.05 / len(shared)
    found = [compare_trials_of(a[name], b[name], confidence=confidence) for name in shared]
    adjusted = holm([each.p_value for each in found])
    named = {
        name: CategoryComparison(each, p_value)
        for name, each, p_value in zip(shared, found, adjusted, strict=True)
    }
    return dict(sorted(named.items(), key=lambda item: _by_difference(item[1].pairs)))


def _trials_by_category(rows: Iterable[AttemptRow], side: str) -> Mapping[str, Trials]:
    found: dict[str, dict[str, dict[int, bool | None]]] = {}
    for row in rows:
        _add_trial(found.setdefault(row.category, {}), row, side)
    return found


@dataclass(frozen=True)
class TransferMatrix:
    """Success rate of each attacker against each target.

    Attributes:
        attackers: Names, in order of appearance.
        targets: Names, in order of appearance.
        summaries: By attacker and target, for the pairs that were evaluated.
    """

    attackers: Sequence[str]
    targets: Sequence[str]
    summaries: Mapping[tuple[str, str], Summary]

    @classmethod
    def of(cls, summaries: Mapping[tuple[str, str], Summary]) -> TransferMatrix:
        """Make the matrix of summaries by attacker and target."""
        return cls(
            attackers=list(dict.fromkeys(attacker for attacker, _ in summaries)),
            targets=list(dict.fromkeys(target for _, target in summaries)),
            summaries=summaries,
        )

    @property
    def rates(self) -> Mapping[tuple[str, str], Rate]:
        """The attack success rate by attacker and target."""
        return {pair: summary.asr for pair, summary in self.summaries.items()}

    def as_dict(self) -> list[dict[str, Any]]:
        """Return one row per pair that was evaluated.

        `simultaneous_low` and `simultaneous_high` are intervals that hold for all pairs together
        with 95% (Bonferroni), whatever the unknown outcomes are.
        """
        found = []
        for (attacker, target), rate in self.rates.items():
            low, high = rate.covering(1 - 0.05 / len(self.rates))
            simultaneous = {"simultaneous_low": low, "simultaneous_high": high}
            found.append({"attacker": attacker, "target": target, **rate.as_dict(), **simultaneous})
        return found


def transfer_matrix(
    rows: Iterable[AttemptRow], *, planned: Mapping[tuple[str, str], int] | None = None
) -> TransferMatrix:
    """Compute the rate of every attacker at every target.

    Args:
        rows: The attempts.
        planned: Number of planned attempts by attacker and target; a missing pair has made all.
    """
    cells: dict[tuple[str, str], list[AttemptRow]] = {pair: [] for pair in planned or {}}
    for row in rows:
        cells.setdefault((row.attacker, row.target), []).append(row)
    return TransferMatrix.of(
        {pair: summarise(each, planned=(planned or {}).get(pair)) for pair, each in cells.items()}
    )
