"""Evaluations side by side: paired comparison, by category, and the transfer matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.stats.paired import PairedComparison, PromptTrials, compare_trials, holm

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
