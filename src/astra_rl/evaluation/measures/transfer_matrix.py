"""Success rates of attackers against targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.stats.rates import Rate


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
