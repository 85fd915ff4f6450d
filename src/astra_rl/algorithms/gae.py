"""Generalised advantage estimation as an estimator of the policy-gradient family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from astra_rl.algorithms.advantages import explained_variance, is_tied, whiten
from astra_rl.algorithms.credit import tree_gae
from astra_rl.algorithms.estimators import AdvantageEstimator, token_penalties
from astra_rl.algorithms.policy_steps import PreparedStep, ScoredStep, episodes_of
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError


class GAE(AdvantageEstimator):
    """Generalised advantage estimation with a value function, see `tree_gae`.

    Args:
        gamma: Discount per token, in [0, 1].
        lam: Lambda of GAE, in [0, 1]: 0 is the one-step TD error, 1 the Monte Carlo return.
        normalise: Whether advantages are whitened (mean 0, standard deviation 1), separately for
            each value head.

    Raises:
        ConfigurationError: A value is out of [0, 1].
    """

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, *, normalise: bool = True) -> None:
        for name, value in (("gamma", gamma), ("gae_lambda", lam)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name}={value}; it must be in [0, 1].")
        self.gamma, self.lam, self.normalise = gamma, lam, normalise
        self._metrics: Metrics = {}

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`; also sets the returns that values are fitted to."""
        outcomes = [self.outcomes(step) for step in steps]
        by_head = [
            self._advantages(steps, rewards, head)
            for head, rewards in enumerate(zip(*outcomes, strict=True))
        ]
        by_step = list(zip(*by_head, strict=True))
        known = [not any(map(is_missing, chain(*heads))) for heads in by_step]
        returns = [_returns(step, heads) for step, heads in zip(steps, by_step, strict=True)]
        self._measure(steps, returns, known)
        if self.normalise:
            weights = [step.weight * is_known for step, is_known in zip(steps, known, strict=True)]
            rewards = list(zip(*outcomes, strict=True))
            whitened = [
                whiten(
                    rows,
                    weights,
                    measured=self._measured(steps, rewards[head], rows, head),
                    # Where all rewards (or costs) tie, the advantages are the error of the value
                    # function, which is no signal to scale up.
                    least=1.0 if is_tied([r for r in rewards[head] if not is_missing(r)]) else 0.0,
                )
                for head, rows in enumerate(by_head)
            ]
            by_step = list(zip(*whitened, strict=True))
        return [
            step.prepared(tuple(map(self.combine, zip(*heads, strict=True))), targets)
            for step, heads, targets, is_known in zip(steps, by_step, returns, known, strict=True)
            if is_known and step.old_logprobs
        ]

    def outcomes(self, step: ScoredStep) -> list[float]:
        """Return the quantities that the value heads predict the returns of; first the reward."""
        return [step.reward]

    def combine(self, advantages: Sequence[float]) -> float:
        """Return the advantage of a token from its advantages for each value head."""
        return advantages[0]

    def metrics(self) -> Metrics:
        """Return the explained variance and the mean of the value estimates."""
        return dict(self._metrics)

    def _measured(
        self,
        steps: Sequence[ScoredStep],
        rewards: Sequence[float],
        rows: Sequence[Sequence[float]],
        head: int,
    ) -> Sequence[Sequence[float]]:
        """Return the values whose standard deviation whitens `rows`: without the KL penalty."""
        if head or not any(step.penalty for step in steps):
            return rows
        plain = [replace(step, penalty=0.0, penalties=None) for step in steps]
        return self._advantages(plain, rewards, head)

    def _advantages(
        self, steps: Sequence[ScoredStep], rewards: Sequence[float], head: int
    ) -> list[Sequence[float]]:
        out: list[Sequence[float]] = [()] * len(steps)
        for rows, parents in episodes_of(steps):
            found = tree_gae(
                [_token_rewards(steps[row], rewards[row], head) for row in rows],
                [_values(steps[row], head) for row in rows],
                parents,
                gamma=self.gamma,
                lam=self.lam,
                how=[steps[row].place.continuation for row in rows],
                after=[_next_value(steps[row], head) for row in rows],
            )
            for row, advantages in zip(rows, found, strict=True):
                out[row] = advantages
        return out

    def _measure(
        self,
        steps: Sequence[ScoredStep],
        returns: Sequence[tuple[tuple[float, ...], ...]],
        known: Sequence[bool],
    ) -> None:
        pairs = [
            pair
            for step, targets, is_known in zip(steps, returns, known, strict=True)
            if is_known and targets
            for pair in zip(_values(step, 0), targets[0], strict=True)
        ]
        values, outcomes = [value for value, _ in pairs], [outcome for _, outcome in pairs]
        self._metrics = {"explained_variance": explained_variance(values, outcomes)}
        if values:
            self._metrics["value/mean"] = math.fsum(values) / len(values)


def _values(step: ScoredStep, head: int) -> tuple[float, ...]:
    return () if step.values is None else step.values[head]


def _next_value(step: ScoredStep, head: int) -> float:
    return math.nan if step.next_values is None else step.next_values[head]


def _returns(
    step: ScoredStep, advantages: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """Targets of the value heads: value plus advantage of each token."""
    return tuple(
        tuple(a + v for a, v in zip(mine, _values(step, head), strict=True))
        for head, mine in enumerate(advantages)
    )


def _token_rewards(step: ScoredStep, outcome: float, head: int) -> list[float]:
    """Return the reward of each token: minus its KL penalty, plus the outcome at the last token."""
    if not step.old_logprobs:
        return [outcome]
    charged = (
        token_penalties(step) if head == 0 and step.penalty else (0.0,) * len(step.old_logprobs)
    )
    rewards = [-penalty for penalty in charged]
    rewards[-1] += outcome
    return rewards
