"""KL penalty towards the frozen reference: coefficient, estimator, and where it is applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from astra_rl.algorithms.losses import KLEstimator, KLGradient, kl_estimate, kl_penalty
from astra_rl.algorithms.policy_steps import ScoredStep
from astra_rl.algorithms.weighting import weighted_mean_of_present
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError

MAX_ERROR = 0.2
"""The relative error of the adaptive controller is clipped to this; Ziegler et al. 2019."""

DEFAULT_HORIZON = 10_000
"""Number of attacks over which the adaptive controller corrects the error; Ziegler et al. 2019."""

MAX_CHANGE = 100.0
"""An adaptive coefficient stays within this factor of its initial value."""


class Coefficient:
    """A constant KL coefficient (beta).

    Args:
        value: Reward per nat of divergence.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, measured: float, count: int, *, rises_above: bool = True) -> None:
        """Adapt the coefficient to what was measured in an experience; here it is constant."""

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient."""
        self.value = state["value"]


class AdaptiveCoefficient(Coefficient):
    """A coefficient that rises while a quantity is on one side of its target, and falls else.

    Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2, for the KL of a whole attack in nats. It stays
    within a factor of `MAX_CHANGE` of its initial value, so that it is not far from there when the
    quantity crosses the target after a long time.

    Args:
        value: Initial coefficient, positive.
        target: Target of the quantity, positive.
        horizon: Number of attacks over which the controller corrects the error; larger is slower.
        name: Name of the coefficient in errors.

    Raises:
        ConfigurationError: A value is not positive.
    """

    def __init__(
        self,
        value: float,
        target: float,
        horizon: float = DEFAULT_HORIZON,
        *,
        name: str = "kl_in_reward",
    ) -> None:
        for what, number in ((name, value), ("target", target), ("horizon", horizon)):
            if not number > 0:
                raise ConfigurationError(
                    f"{what}={number}; an adaptive coefficient needs a positive value."
                )
        super().__init__(value)
        self.target, self.horizon = target, horizon
        self.bounds = value / MAX_CHANGE, value * MAX_CHANGE

    def update(self, measured: float, count: int, *, rises_above: bool = True) -> None:
        """Adapt the coefficient to the mean of the quantity over `count` attacks.

        Args:
            measured: The mean; nothing changes if it is missing.
            count: Number of attacks.
            rises_above: Whether the coefficient rises above the target, or below it.
        """
        if is_missing(measured):
            return
        error = measured / self.target - 1 if rises_above else 1 - measured / self.target
        error = min(max(error, -MAX_ERROR), MAX_ERROR)
        low, high = self.bounds
        self.value = min(max(self.value * (1 + error * count / self.horizon), low), high)


class KLControl:
    """The KL penalty in the reward and in the loss.

    The penalty in the reward is k1, see `kl_estimate`: its policy gradient is exactly that of the
    KL of the attack. That of k2 or k3 in the reward is not (Tang and Munos 2025, arXiv 2506.09477).

    Args:
        in_reward: KL coefficient (beta) of the penalty in the reward.
        in_loss: KL coefficient (beta) of the penalty in the loss.
        estimator: Estimator of the penalty in the loss: k1, k2 or k3, see `kl_estimate`; None: k3.
        corrected: Whether the penalty in the loss is weighted by the probability ratio, see
            `kl_penalty`.
        gradient: Of what the penalty in the loss has the gradient, see `kl_penalty`.
        target: Target KL of a whole attack, in nats, for an adaptive coefficient in the reward;
            None keeps it constant.
        horizon: See `AdaptiveCoefficient`.

    Raises:
        ConfigurationError: A value is out of range, or two of them exclude each other.
    """

    def __init__(
        self,
        *,
        in_reward: float = 0.0,
        in_loss: float = 0.0,
        estimator: KLEstimator | None = None,
        corrected: bool = True,
        gradient: KLGradient = "token",
        target: float | None = None,
        horizon: float = DEFAULT_HORIZON,
    ) -> None:
        for name, value in (("kl_in_reward", in_reward), ("kl_in_loss", in_loss)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"{name}={value}; it must be 0 (off) or more.")
        _check_loss_options(estimator or "k3", gradient, corrected=corrected, in_loss=in_loss)
        if estimator in ("k2", "k3") and in_reward and not in_loss:
            raise ConfigurationError(
                f"kl_estimator={estimator!r} is the estimator of the penalty in the loss, and "
                "kl_in_loss is 0. The penalty in the reward is always k1; remove kl_estimator."
            )
        if not in_loss:
            given = {
                "kl_estimator": None if in_reward else estimator,
                "kl_corrected": None if corrected else corrected,
            }
            for name, setting in given.items():
                if setting is not None:
                    raise ConfigurationError(
                        f"{name}={setting!r} is for the penalty in the loss, and kl_in_loss is 0. "
                        f"Set kl_in_loss, or remove {name}."
                    )
        if target is None and horizon != DEFAULT_HORIZON:
            raise ConfigurationError(
                f"kl_horizon={horizon} is for an adaptive coefficient, and there is no kl_target. "
                "Set kl_target, or remove kl_horizon."
            )
        self.coefficient = (
            Coefficient(in_reward)
            if target is None
            else AdaptiveCoefficient(in_reward, target, horizon)
        )
        self.in_loss = in_loss
        self.estimator: KLEstimator = estimator or "k3"
        self.corrected, self.gradient = corrected, gradient

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the reference are needed."""
        return bool(self.coefficient.value or self.in_loss)

    def with_penalties(self, steps: Sequence[ScoredStep]) -> list[ScoredStep]:
        """Return the steps with the KL penalty of the reward, then adapt the coefficient.

        The KL that it adapts to is a mean over attacks, weighted as in the loss.
        """
        if not self.coefficient.value:
            return list(steps)
        estimates = [self._estimates(step) for step in steps]
        # A difference of sums: the reference may have another tokenizer.
        totals = [sum(step.old_logprobs) - sum(step.reference_logprobs or ()) for step in steps]
        beta = self.coefficient.value
        penalized = [
            replace(
                step,
                penalty=beta * total,
                penalties=None if each is None else tuple(beta * value for value in each),
            )
            for step, each, total in zip(steps, estimates, totals, strict=True)
        ]
        if steps:
            mean = weighted_mean_of_present(totals, [step.weight for step in steps])
            self.coefficient.update(mean, len(steps))
        return penalized

    def loss_penalty(self, logprobs: Tensor, reference: Tensor, old: Tensor) -> Tensor:
        """Return the penalty of each token in the loss, (B, T), not yet times the coefficient.

        Args:
            logprobs: Under the policy, (B, T).
            reference: Under the frozen reference, (B, T).
            old: Under the policy that sampled, (B, T).
        """
        return kl_penalty(
            logprobs,
            reference,
            old,
            estimator=self.estimator,
            corrected=self.corrected,
            gradient=self.gradient,
        )

    def metrics(self) -> Metrics:
        """Return the coefficient, if it is adaptive."""
        return (
            {"kl_coef": self.coefficient.value} if type(self.coefficient) is not Coefficient else {}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return self.coefficient.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient."""
        self.coefficient.load_state_dict(state)

    def _estimates(self, step: ScoredStep) -> list[float] | None:
        """Return k1 of each token, in nats; None if the reference has another tokenizer."""
        reference = step.reference_logprobs or ()
        if len(reference) != len(step.old_logprobs):
            return None
        old, ref = (
            torch.tensor(row, dtype=torch.float64) for row in (step.old_logprobs, reference)
        )
        values: list[float] = kl_estimate(old, ref, "k1").tolist()
        return values


def _check_loss_options(estimator: str, gradient: str, *, corrected: bool, in_loss: float) -> None:
    for name, value, kind in (
        ("kl_estimator", estimator, KLEstimator),
        ("kl_gradient", gradient, KLGradient),
    ):
        if value not in get_args(kind):
            raise ConfigurationError(f"{name}={value!r}; choose from {list(get_args(kind))}.")
    if not isinstance(corrected, bool):
        raise ConfigurationError(f"kl_corrected={corrected!r}; it must be True or False.")
    if estimator == "k1" and not corrected and in_loss:
        raise ConfigurationError(
            "kl_in_loss with kl_estimator='k1' and kl_corrected=False; the expected gradient of "
            "this penalty is zero. Use kl_corrected=True, or kl_estimator='k3'."
        )
    if gradient == "sequence" and estimator == "k2":
        raise ConfigurationError(
            "kl_gradient='sequence' with kl_estimator='k2'; the mean of k2 is not the KL, so its "
            "gradient would not be either. Use 'k3' or 'k1'."
        )
    if gradient == "sequence" and not corrected:
        raise ConfigurationError(
            "kl_gradient='sequence' with kl_corrected=False; the gradient of the KL of a whole "
            "attack needs the probability ratio. Use kl_corrected=True, or kl_gradient='token'."
        )
