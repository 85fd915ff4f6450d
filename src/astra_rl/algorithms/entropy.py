"""Entropy bonus: keeps the attacker from becoming deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astra_rl.algorithms.kl import AdaptiveCoefficient, Coefficient
from astra_rl.algorithms.losses import KLGradient, kl_penalty
from astra_rl.algorithms.policy_steps import ScoredStep
from astra_rl.core.common import Metrics
from astra_rl.errors import ConfigurationError


class EntropyBonus:
    """Entropy of the attacker, times a coefficient, as a bonus in the loss.

    The bonus is estimated from the sampled tokens: minus the entropy is the KL penalty towards a
    reference of log-probability 0, see `kl_penalty`. So its expected gradient is exact without the
    distribution over the vocabulary.

    Args:
        coefficient: Coefficient of the entropy in nats per token; 0 is off.
        target: Target entropy in nats per token, for an adaptive coefficient; None keeps it
            constant.
        horizon: See `AdaptiveCoefficient`.
        gradient: Of what the bonus has the gradient: ``"token"``, the entropy of each token with
            the tokens before it held fixed, as in PPO; ``"sequence"``, that of the whole attack.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        coefficient: float = 0.0,
        target: float | None = None,
        horizon: float = 10_000,
        gradient: KLGradient = "token",
    ) -> None:
        if not coefficient >= 0:
            raise ConfigurationError(f"entropy_coef={coefficient}; it must be 0 (off) or positive.")
        self.coefficient = (
            Coefficient(coefficient)
            if target is None
            else AdaptiveCoefficient(coefficient, target, horizon, name="entropy_coef")
        )
        self.gradient: KLGradient = gradient

    @property
    def is_on(self) -> bool:
        """Whether there is a bonus."""
        return bool(self.coefficient.value)

    def adapt(self, steps: Sequence[ScoredStep]) -> None:
        """Adapt the coefficient to the entropy of an experience; it rises below the target.

        The entropy is a mean over tokens, weighted as in the loss.
        """
        if not self.is_on:
            return
        total = math.fsum(step.weight * math.fsum(step.old_logprobs) for step in steps)
        count = math.fsum(step.weight * len(step.old_logprobs) for step in steps)
        if count:
            self.coefficient.update(-total / count, len(steps), rises_above=False)

    def penalty(self, logprobs: Tensor, old: Tensor) -> Tensor:
        """Return minus the entropy of each token, (B, T), not yet times the coefficient.

        Args:
            logprobs: Under the policy, (B, T).
            old: Under the policy that sampled, (B, T).
        """
        nothing = torch.zeros_like(logprobs)
        return kl_penalty(logprobs, nothing, old, estimator="k1", gradient=self.gradient)

    def metrics(self) -> Metrics:
        """Return the coefficient, if it is adaptive."""
        is_adaptive = isinstance(self.coefficient, AdaptiveCoefficient)
        return {"entropy_coef": self.coefficient.value} if is_adaptive else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return self.coefficient.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient."""
        self.coefficient.load_state_dict(state)
