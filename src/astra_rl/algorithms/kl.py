"""Staying near the frozen reference: what divergence costs, and where it is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from astra_rl.algorithms.losses import KLEstimator, kl_estimate, kl_penalty
from astra_rl.algorithms.policy_steps import PolicyStep
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.errors import ConfigurationError

MAX_ERROR = 0.2
"""A controller reacts no more strongly than to a divergence that is off by this share."""


class Coefficient:
    """What a nat of divergence costs: always the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, divergence: float, count: int) -> None:
        """Take note of what was measured."""

    def state_dict(self) -> dict[str, Any]:
        """Return the price."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the price."""
        self.value = state["value"]


class AdaptiveCoefficient(Coefficient):
    """A price that rises while the divergence is above its target and falls while it is below.

    Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2.

    Args:
        value: The first price, positive.
        target: Divergence of a whole attack to aim at, in nats.
        horizon: Attacks until the price reacted fully; larger is slower.

    Raises:
        ConfigurationError: A value is not positive.
    """

    def __init__(self, value: float, target: float, horizon: float = 10_000) -> None:
        for name, number in (("kl_in_reward", value), ("target", target), ("horizon", horizon)):
            if not number > 0:
                raise ConfigurationError(
                    f"{name}={number}; an adaptive price of divergence needs a positive one."
                )
        super().__init__(value)
        self.target, self.horizon = target, horizon

    def update(self, divergence: float, count: int) -> None:
        """Move the price, after `count` attacks that diverged by so many nats on average."""
        if is_missing(divergence):
            return
        error = min(max(divergence / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.value *= 1 + error * count / self.horizon


class KLControl:
    """Where divergence from the reference is charged, and how it is estimated.

    Args:
        in_reward: What a nat costs of the reward.
        in_loss: Weight of the divergence per token in the loss.
        estimator: k1, k2 or k3, see `kl_estimate`. None is the best for its place: k1 in the
            reward, whose policy gradient is exactly that of the divergence, and k3 in the loss.
        corrected: See `kl_penalty`.
        target: The price in the reward adapts until attacks diverge by so many nats; None keeps
            the price.
        horizon: See `AdaptiveCoefficient`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        *,
        in_reward: float = 0.0,
        in_loss: float = 0.0,
        estimator: KLEstimator | None = None,
        corrected: bool = True,
        target: float | None = None,
        horizon: float = 10_000,
    ) -> None:
        for name, value in (("kl_in_reward", in_reward), ("kl_in_loss", in_loss)):
            if not value >= 0:
                raise ConfigurationError(f"{name}={value}; it must be 0 (off) or positive.")
        if estimator is not None and estimator not in get_args(KLEstimator):
            raise ConfigurationError(
                f"kl_estimator={estimator!r}; choose from {list(get_args(KLEstimator))}."
            )
        self.price = (
            Coefficient(in_reward)
            if target is None
            else AdaptiveCoefficient(in_reward, target, horizon)
        )
        self.in_loss = in_loss
        self.reward_estimator: KLEstimator = estimator or "k1"
        self.loss_estimator: KLEstimator = estimator or "k3"
        self.corrected = corrected

    @property
    def needs_reference(self) -> bool:
        """Whether the reference must be run at all."""
        return bool(self.price.value or self.in_loss)

    def charge(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """Add to each step what its divergence costs of the reward, then adapt the price.

        Raises:
            ConfigurationError: Tokens must be compared and the reference has other ones.
        """
        if not self.price.value:
            return list(steps)
        estimates = [self._estimates(step) for step in steps]
        totals = [self._total(step, each) for step, each in zip(steps, estimates, strict=True)]
        price = self.price.value
        charged = [
            replace(
                step,
                penalty=price * total,
                penalties=None if each is None else tuple(price * value for value in each),
            )
            for step, each, total in zip(steps, estimates, totals, strict=True)
        ]
        if steps:
            self.price.update(mean_of_present(totals), len(steps))
        return charged

    def tokens(self, logprobs: Tensor, reference: Tensor, old: Tensor) -> Tensor:
        """Return the penalty of each token in the loss, (B, T), before it is weighted."""
        return kl_penalty(
            logprobs, reference, old, estimator=self.loss_estimator, corrected=self.corrected
        )

    def metrics(self) -> Metrics:
        """Return the price, if it can change."""
        return {"kl_coef": self.price.value} if type(self.price) is not Coefficient else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the price."""
        return self.price.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the price."""
        self.price.load_state_dict(state)

    def _estimates(self, step: PolicyStep) -> list[float] | None:
        """Nats of each token; None if the reference has other tokens."""
        reference = step.reference_logprobs or ()
        if len(reference) != len(step.old_logprobs):
            return None
        old, ref = (
            torch.tensor(row, dtype=torch.float64) for row in (step.old_logprobs, reference)
        )
        values: list[float] = kl_estimate(old, ref, self.reward_estimator).tolist()
        return values

    def _total(self, step: PolicyStep, estimates: list[float] | None) -> float:
        if self.reward_estimator == "k1":  # needs no token of one to be a token of the other
            return sum(step.old_logprobs) - sum(step.reference_logprobs or ())
        if estimates is None:
            raise ConfigurationError(
                f"kl_estimator={self.reward_estimator!r} compares token by token, and the "
                "baseline has another tokenizer than the attacker. Use 'k1', or a baseline with "
                "the same tokenizer."
            )
        return sum(estimates)
