"""Result of hardening a target: leak rates and refusals of every round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.measures.transfer_matrix import TransferMatrix, transfer_matrix
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.evaluation.stats.zero_sum import (
    Equilibrium,
    equilibrium,
    exploitability,
    exploitability_interval,
)


@dataclass(frozen=True)
class Hardening:
    """Attack success and over-refusal of a target before and after each round of fine-tuning.

    Attributes:
        matrix: Success rate of the attacker of each round against the target of each round, on the
            same held-out prompts.
        refusals: Refusals of benign requests, by target; success means that it refused.
        attack_changes: Paired difference of the success rate, by attacker and later target: the
            rate against that target minus the rate against the first one.
        refusal_changes: The same difference of refusals, by later target.
    """

    matrix: TransferMatrix
    refusals: Mapping[str, Summary]
    attack_changes: Mapping[tuple[str, str], PairedComparison]
    refusal_changes: Mapping[str, PairedComparison]

    @property
    def attackers(self) -> Sequence[str]:
        """Names of the attackers, in order of the rounds."""
        return self.matrix.attackers

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets, in order of the rounds."""
        return list(self.refusals)

    @property
    def rates(self) -> list[list[float]]:
        """Success rate by attacker (rows) and target (columns); NaN where there is none."""
        rates = self.matrix.rates
        return [[rates[one, other].estimate for other in self.targets] for one in self.attackers]

    @property
    def exploitability(self) -> float:
        """Exploitability of the uniform mixtures of the measured attackers and targets."""
        return exploitability(self.rates)

    @property
    def intervals(self) -> list[list[Interval]]:
        """Intervals of `rates` that hold together with 95% (Bonferroni)."""
        rates = self.matrix.rates
        confidence = 1 - 0.05 / len(rates)
        return [
            [rates[one, other].covering(confidence) for other in self.targets]
            for one in self.attackers
        ]

    @property
    def exploitability_interval(self) -> Interval:
        """95% interval of the exploitability; the estimate is too high on average."""
        return exploitability_interval(self.intervals)

    @property
    def equilibrium_interval(self) -> Interval | None:
        """95% interval of the success rate at the equilibrium of the true rates.

        None if a rate is unknown.
        """
        if self.equilibrium is None:
            return None
        low, high = (
            equilibrium([[each[end] for each in row] for row in self.intervals]).value
            for end in (0, 1)
        )
        return Interval(low, high)

    @property
    def equilibrium(self) -> Equilibrium | None:
        """Equilibrium of the measured rates; None if a rate is unknown."""
        rates = self.rates
        is_known = all(math.isfinite(rate) for row in rates for rate in row)
        return equilibrium(rates) if is_known else None

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values, NaN where one does not exist."""
        return {
            "exploitability": self.exploitability,
            "exploitability_low": self.exploitability_interval.low,
            "exploitability_high": self.exploitability_interval.high,
            "equilibrium": self._equilibrium_as_dict(),
            "attacks": [
                {**cell, "change": _change(self.attack_changes.get(pair))}
                for pair, cell in zip(self.matrix.rates, self.matrix.as_dict(), strict=True)
            ],
            "refusals": [
                {
                    "target": target,
                    **summary.asr.as_dict(),
                    "change": _change(self.refusal_changes.get(target)),
                }
                for target, summary in self.refusals.items()
            ],
        }

    def _equilibrium_as_dict(self) -> dict[str, Any] | None:
        found, interval = self.equilibrium, self.equilibrium_interval
        if found is None or interval is None:
            return None
        return {
            "value": found.value,
            **interval._asdict(),
            "attackers": dict(zip(self.attackers, found.attackers, strict=True)),
            "targets": dict(zip(self.targets, found.targets, strict=True)),
        }


def _change(found: PairedComparison | None) -> dict[str, Any] | None:
    return None if found is None else found.as_dict()


def hardening_of(
    attacks: Mapping[tuple[str, str], Sequence[AttemptRow]],
    refusals: Mapping[str, Sequence[AttemptRow]],
) -> Hardening:
    """Compute the result from attempts.

    Args:
        attacks: Attempts by attacker and target, in order of the rounds.
        refusals: Attempts at benign requests by target, in order of the rounds.
    """
    first, *later = refusals
    matrix = transfer_matrix(row for rows in attacks.values() for row in rows)
    return Hardening(
        matrix,
        {target: summarise(rows) for target, rows in refusals.items()},
        {
            (attacker, target): compare(rows, attacks[attacker, first])
            for (attacker, target), rows in attacks.items()
            if target != first and (attacker, first) in attacks
        },
        {target: compare(refusals[target], refusals[first]) for target in later},
    )
