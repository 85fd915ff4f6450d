"""Compare two runs on the same prompts, pair by pair."""

from __future__ import annotations

import heapq
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.comparisons import (
    FIRST,
    SECOND,
    CategoryComparison,
    CategoryTally,
    PairTally,
    PromptSide,
    joined,
    side_of,
)
from astra_rl.evaluation.measures.summary import Summary, SummaryTally
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.runs.attempt_log import NumberedRow
from astra_rl.runs.evaluations import REPLAY_OF_FAILURES
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.recorded import Recorded

MOST_LISTED = 1000
"""Maximum number of listed attempts that succeeded on one side only."""
Rule = tuple[str, str, float]
"""Judge, its settings and threshold."""
_RULE = ("judge", "judge_id", "threshold")
"""Fields of a `Rule`."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: Name in tables: the letter, the folder and the phase, as in ``A (run after)``.
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
        by_category: The same by category of the prompt; empty with fewer than two categories.
        only_a: Attempts that succeeded on the first side and failed on the second, the first
            `MOST_LISTED`; `pairs.counts` has the number of all.
        only_b: Attempts that succeeded on the second side and failed on the first, likewise.
        default_path: File in the folder of the first run.
    """

    a: Side
    b: Side
    pairs: PairedComparison
    by_category: Mapping[str, CategoryComparison]
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
            "by_category": {name: each.as_dict() for name, each in self.by_category.items()},
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
        ConfigurationError: They have no prompt in common, different judges or thresholds, or only
            one of them was selected by outcome.
    """
    phase_b = phase if phase_b is None else phase_b
    folders = open_run_folder(run_a), open_run_folder(run_b)
    with Recorded(folders[0], phase) as a, Recorded(folders[1], phase_b) as b:
        parts = [
            f"{folder.path.resolve().name} {each}"
            for folder, each in zip(folders, (phase, phase_b), strict=True)
        ]
        # Folders of two checkouts often have the same name, so the sides are told apart by letter.
        name_a, name_b = f"A ({parts[0]})", f"B ({parts[1]})"
        check_judged_alike([(name_a, a.distinct(*_RULE)), (name_b, b.distinct(*_RULE))])
        _check_not_selected(_replays(a), _replays(b))
        if a.sequential and b.sequential:
            _check_same_order(a, b)
        sequential = a.sequential or b.sequential
        pairs, categories = PairTally(sequential=sequential), CategoryTally(sequential=sequential)
        tallies, only = (SummaryTally(), SummaryTally()), (_First(), _First())
        for of_a, of_b in _joined(a, b):
            rows_a, rows_b = [each.row for each in of_a], [each.row for each in of_b]
            side_a, side_b = side_of(rows_a, FIRST), side_of(rows_b, SECOND)
            pairs.add(side_a, side_b)
            categories.add(rows_a, rows_b)
            for tally, rows in zip(tallies, (rows_a, rows_b), strict=True):
                if rows:
                    tally.add(rows)
            only[0].add(of_a, side_b)
            only[1].add(of_b, side_a)
        return Comparison(
            Side(name_a, tallies[0].result(planned=a.planned, sequential=a.sequential)),
            Side(name_b, tallies[1].result(planned=b.planned, sequential=b.sequential)),
            pairs.result(),
            categories.result(),
            only[0].read(a),
            only[1].read(b),
            folders[0].path
            / "comparisons"
            / f"{file_stem('-'.join(parts).replace(' ', '-'))}-{_place(folders[1])}.json",
        )


def _place(folder: RunFolder) -> str:
    """Return digits that tell apart runs in folders of the same name."""
    return f"{zlib.crc32(os.fsencode(folder.path.resolve())):08x}"


def _replays(side: Recorded) -> set[str]:
    """Return the phases of a side that are replays of failures."""
    return {phase for (phase,) in side.distinct("phase") if phase.startswith(REPLAY_OF_FAILURES)}


def _joined(
    a: Recorded, b: Recorded
) -> Iterator[tuple[Sequence[NumberedRow], Sequence[NumberedRow]]]:
    """Yield the attempts of both sides prompt by prompt, see `joined`."""
    rows_a, rows_b = a.numbered(order="prompt"), b.numbered(order="prompt")
    return joined(rows_a, rows_b, prompt=lambda each: each.row.prompt_id)


class _First:
    """The first `MOST_LISTED` successes of a side whose partner failed, in the order written."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []  # a heap of negative numbers

    def add(self, rows: Sequence[NumberedRow], other: PromptSide) -> None:
        """Add the attempts at one prompt, given those of the other side at it."""
        for number, row in rows:
            if row.outcome is Outcome.SUCCESS and other.trials.get(row.trial) is False:
                entry = -number, row.id
                if len(self._found) < MOST_LISTED:
                    heapq.heappush(self._found, entry)
                else:
                    heapq.heappushpop(self._found, entry)

    def read(self, side: Recorded) -> list[Attempt]:
        """Return the attempts."""
        return [side.get(key) for _, key in sorted(self._found, reverse=True)]


def _check_not_selected(a: set[str], b: set[str]) -> None:
    """Refuse to compare a replay of failures with attempts that may contain those failures.

    The recorded side of such pairs has a rate of 100% by selection, so an unchanged target seems to
    improve (regression to the mean). Two replays of the same failures can be compared.

    Args:
        a: Phases of the first side that are replays of failures.
        b: Those of the second side.
    """
    if a != b:
        raise ConfigurationError(
            f"one side is a {min(a | b)!r}: it repeats only the attacks that "
            "succeeded, so the rate of the other side is 100% by selection and the difference "
            "has no meaning. Replay all attempts (astra-rl replay without --failures), or compare "
            "two replays of the same failures."
        )


def _check_same_order(a: Recorded, b: Recorded) -> None:
    """Refuse two evaluations that both stopped early and played their prompts in other orders.

    Which prompts they share then depends on the outcomes of both sides at other prompts, and no
    interval or test of the pairs is valid.
    """
    orders = [dict.fromkeys(row.prompt_id for row in side.rows()) for side in (a, b)]
    if any(one != other for one, other in zip(*orders, strict=False)):
        raise ConfigurationError(
            "both evaluations stopped early (--until), and played their prompts in different "
            "orders, so the prompts that they share were selected by the outcomes. Play both with "
            "one seed (--set seed=N), or one of them without --until."
        )


def rule_of(row: AttemptRow) -> Rule:
    """Return the judge that decided an attempt, its settings and the threshold."""
    return row.judge, row.judge_id, row.threshold


def check_judged_alike(sides: Sequence[tuple[str, AbstractSet[Rule]]]) -> None:
    """Check that all outcomes were decided by one judge at one threshold.

    Args:
        sides: Name of each side, and the `rule_of` its attempts. Names may repeat; every side is
            checked.

    Raises:
        ConfigurationError: They were not.
    """
    different = set().union(*(rules for _, rules in sides))
    # Old records have no judge_id; then only the names are compared.
    named = {(judge, threshold) for judge, _, threshold in different}
    known = {judge_id for _, judge_id, _ in different if judge_id}
    if len(named) <= 1 and len(known) <= 1:
        return
    listed = "; ".join(
        f"{name}: "
        + ", ".join(sorted(f"{j} ({i or 'settings unknown'}), threshold {t:g}" for j, i, t in rule))
        for name, rule in sides
    )
    raise ConfigurationError(
        f"the judges or thresholds differ: {listed}. Such rates cannot be compared. "
        "Re-score both with one judge (astra-rl score) and compare those phases with "
        "--phase."
    )
