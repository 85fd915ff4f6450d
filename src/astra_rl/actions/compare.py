"""Compare two runs on the same prompts, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary, compare
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.runs.folder import file_stem, open_run_folder
from astra_rl.runs.phases import Recorded


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: Name in tables.
        summary: Summary of all its attempts, also those without a partner.
    """

    name: str
    summary: Summary


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two runs, or of two phases, on the same prompts.

    Attributes:
        a: The first side.
        b: The second.
        pairs: Statistics of the pairs.
        only_a: Attempts that succeeded on the first side and failed on the second.
        only_b: Attempts that succeeded on the second side and failed on the first.
        default_path: File in the folder of the first run.
    """

    a: Side
    b: Side
    pairs: PairedComparison
    only_a: Sequence[Attempt]
    only_b: Sequence[Attempt]
    default_path: Path

    @property
    def names(self) -> tuple[str, str]:
        """Names of both sides."""
        return self.a.name, self.b.name

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, and the failures of one side only, in JSON's types."""
        return {
            "a": {"name": self.a.name, **self.a.summary.as_dict()},
            "b": {"name": self.b.name, **self.b.summary.as_dict()},
            "pairs": self.pairs.as_dict(),
            "only_a": [_brief(attempt) for attempt in self.only_a],
            "only_b": [_brief(attempt) for attempt in self.only_b],
        }


def _brief(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "prompt_id": attempt.prompt_id,
        "trial": attempt.trial,
        "target": attempt.target,
        "score": attempt.score,
        "attacks": [turn.attack for turn in attempt.turns[: attempt.first_failing_turn]],
        "response": attempt.failing_turn.response if attempt.failing_turn else None,
    }


def compare_runs(
    run_a: str | Path,
    run_b: str | Path,
    *,
    phase: str = "after",
    phase_b: str | None = None,
) -> Comparison:
    """Compare two runs on the prompts that both played, pair by pair.

    Args:
        run_a: Folder of a run.
        run_b: Folder of another run, or of the same run with another phase.
        phase: Phase of both runs.
        phase_b: Phase of the second run; None uses `phase`.

    Raises:
        ConfigurationError: They have no prompt in common, or different judges or thresholds.
    """
    phase_b = phase if phase_b is None else phase_b
    folders = open_run_folder(run_a), open_run_folder(run_b)
    with Recorded(folders[0], phase) as a, Recorded(folders[1], phase_b) as b:
        rows_a, rows_b = list(a.rows()), list(b.rows())
        names = f"{folders[0].path.name} {phase}", f"{folders[1].path.name} {phase_b}"
        check_judged_alike(dict(zip(names, (rows_a, rows_b), strict=True)))
        pairs = compare(rows_a, rows_b)
        return Comparison(
            Side(names[0], a.summary()),
            Side(names[1], b.summary()),
            pairs,
            list(_only(a, rows_b)),
            list(_only(b, rows_a)),
            folders[0].path
            / "comparisons"
            / f"{file_stem('-'.join(names).replace(' ', '-'))}.json",
        )


def _only(side: Recorded, others: Sequence[AttemptRow]) -> Iterator[Attempt]:
    """Yield the successful attempts of a side whose partner is known to have failed."""
    withstood = {
        (row.prompt_id, row.trial)
        for row in others
        if row.outcome in (Outcome.FAILURE, Outcome.REFUSED, Outcome.BLOCKED)
    }
    for attempt in side.attempts(outcome=Outcome.SUCCESS):
        if (attempt.prompt_id, attempt.trial) in withstood:
            yield attempt


def check_judged_alike(sides: dict[str, Sequence[AttemptRow]]) -> None:
    """Check that all outcomes were decided by one judge at one threshold.

    Raises:
        ConfigurationError: They were not.
    """
    rules = {
        name: {(row.judge, row.judge_id, row.threshold) for row in rows}
        for name, rows in sides.items()
    }
    different = set().union(*rules.values())
    # Old records have no judge_id; then only the names are compared.
    named = {(judge, threshold) for judge, _, threshold in different}
    known = {judge_id for _, judge_id, _ in different if judge_id}
    if len(named) <= 1 and len(known) <= 1:
        return
    said = "; ".join(
        f"{name} by "
        + ", ".join(sorted(f"{j} ({i or 'settings unknown'}) from {t:g} on" for j, i, t in rule))
        for name, rule in rules.items()
    )
    raise ConfigurationError(
        f"these were not judged alike: {said}. Rates of different judges or thresholds cannot be "
        "compared. Judge them again with one judge ('astra-rl score'), and compare those parts "
        "with --phase."
    )
