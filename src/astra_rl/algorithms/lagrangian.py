"""PPO-Lagrangian: maximise the reward subject to constraints on reward terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from astra_rl.algorithms.actor_critic import ActorCritic, CriticOptions
from astra_rl.algorithms.gae import GAE
from astra_rl.algorithms.losses import ClipHigh, ClipLow, PolicyLoss
from astra_rl.algorithms.options import CLIP, CRITIC, POLICY
from astra_rl.algorithms.options import GAE as GAE_OPTIONS
from astra_rl.algorithms.policy_steps import PolicyStep, PreparedStep, ScoredStep
from astra_rl.algorithms.weighting import weighted_mean_of_present
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_terms, is_missing
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Decay, NotNegative, Positive, Share
from astra_rl.infra.registry import named


@dataclass
class Constraint:
    """A bound on the mean of a reward term over the turns, and its Lagrange multiplier.

    The mean is weighted like the loss: by default it is that of the turns of a conversation.

    Attributes:
        term: Name of the term, see `Node.reward_terms`.
        sign: 1 bounds it from above, -1 from below: the cost is ``sign * term``.
        limit: The bound.
        log_multiplier: Logarithm of the multiplier.
        velocity: Running sum of the gradients of `log_multiplier`, for momentum.
    """

    term: str
    sign: int
    limit: float
    log_multiplier: float = 0.0
    velocity: float = 0.0

    @classmethod
    def parse(cls, term: str, bound: Mapping[str, float]) -> Constraint:
        """Read ``{"at_most": 0.1}`` or ``{"at_least": 0.5}``.

        Raises:
            ConfigurationError: It is neither.
        """
        signs = {"at_most": 1, "at_least": -1}
        if not isinstance(bound, Mapping) or len(bound) != 1 or not set(bound) <= set(signs):
            raise ConfigurationError(
                f"constraints.{term}={bound!r}; give {{at_most: NUMBER}} or {{at_least: NUMBER}}."
            )
        ((kind, limit),) = bound.items()
        if isinstance(limit, bool) or not isinstance(limit, int | float) or is_missing(limit):
            raise ConfigurationError(f"constraints.{term}.{kind}={limit!r}; it must be a number.")
        return cls(term, signs[kind], float(limit))

    @property
    def multiplier(self) -> float:
        """The Lagrange multiplier: weight of a unit of cost against a unit of reward."""
        return math.exp(self.log_multiplier)

    def update(
        self, mean: float, *, lr: float, most: float, least: float = 0.0, momentum: float = 0.0
    ) -> None:
        """Raise the multiplier if the mean of the term violates the bound, else lower it.

        ``v = momentum * v + (mean cost - bound) * exp(u)`` and ``u += lr * v``, the gradient ascent
        on the Lagrangian by ``u = log multiplier`` (Zhao et al. 2024, DiveR-CT, arXiv 2405.19026).
        The steps are proportional to the multiplier, so one near zero takes very long to rise
        again; `least` bounds that.
        """
        if not is_missing(mean):
            slope = self.sign * (mean - self.limit) * self.multiplier
            self.velocity = momentum * self.velocity + slope
            low = math.log(least) if least else -math.inf
            moved = self.log_multiplier + lr * self.velocity
            self.log_multiplier = min(max(moved, low), math.log(most))


class ConstrainedGAE(GAE):
    """Advantages of the Lagrangian: of the reward minus the costs times their multipliers.

    ``(A_reward - sum_i multiplier_i * A_cost_i) / (1 + sum_i multiplier_i)``; each advantage has
    its own value head and is whitened separately.

    Args:
        constraints: The constraints.
        gamma: Discount per token, in [0, 1].
        lam: Lambda of GAE, in [0, 1].
        lr: Learning rate of the logarithms of the multipliers.
        most: Upper bound of the multipliers.
        least: Lower bound of the multipliers.
        momentum: Momentum of their updates.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        gamma: float,
        lam: float,
        *,
        lr: float,
        most: float,
        least: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(gamma, lam)
        self.constraints = list(constraints)
        self.lr, self.most, self.least, self.momentum = lr, most, least, momentum

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """Update the multipliers, then estimate advantages."""
        measured: Metrics = {}
        for constraint in self.constraints:
            mean = weighted_mean_of_present(
                (_value(step, constraint.term) for step in steps), (step.weight for step in steps)
            )
            if steps:
                known = {name for step in steps for name in step.terms}
                check_terms([constraint.term], known, source="constraints")
            constraint.update(
                mean, lr=self.lr, most=self.most, least=self.least, momentum=self.momentum
            )
            measured[f"constraint/{constraint.term}/mean"] = mean
            measured[f"constraint/{constraint.term}/multiplier"] = constraint.multiplier
        estimated = super().estimate(steps)
        self._metrics |= measured
        return estimated

    def outcomes(self, step: ScoredStep) -> list[float]:
        """Return the reward and the costs."""
        return [step.reward, *(each.sign * _value(step, each.term) for each in self.constraints)]

    def combine(self, advantages: Sequence[float]) -> float:
        """Return the advantage of the Lagrangian."""
        reward, *costs = advantages
        multipliers = [each.multiplier for each in self.constraints]
        paid = math.fsum(m * cost for m, cost in zip(multipliers, costs, strict=True))
        return (reward - paid) / (1 + math.fsum(multipliers))

    def state_dict(self) -> dict[str, Any]:
        """Return the multipliers and their velocities."""
        return {
            "log_multipliers": {each.term: each.log_multiplier for each in self.constraints},
            "velocities": {each.term: each.velocity for each in self.constraints},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the multipliers; states of earlier versions have no velocities."""
        for each in self.constraints:
            each.log_multiplier = state["log_multipliers"][each.term]
            each.velocity = state.get("velocities", {}).get(each.term, 0.0)


@named("ppo_lagrangian")
@document_options(CLIP, GAE_OPTIONS, CRITIC, POLICY, epochs=4)
class PPOLagrangian(ActorCritic):
    """PPO with constraints and learned Lagrange multipliers, as in DiveR-CT.

    Zhao et al. 2024, arXiv 2405.19026. For instance: maximise novelty, subject to a minimum success
    rate and a minimum fluency. The multiplier of a satisfied constraint falls, so that its term is
    not optimised beyond the bound.

    Args:
        problem: A `ValueFunctionProblem` with one value head plus one per constraint.
        constraints: Bounds on the means of terms of the reward, for instance
            ``{"harm_response": {"at_least": 0.5}}``. Give a term weight 0 in the reward if it is
            to be constrained only. Required.
        multiplier_lr: Learning rate of the logarithms of the multipliers.
        first_multiplier: Initial value of the multipliers, positive.
        max_multiplier: Upper bound of the multipliers.
        min_multiplier: Lower bound of the multipliers; 0 is none. After a bound was satisfied for
            long, it takes about ``(1 / min_multiplier - 1) / (multiplier_lr * violation)``
            experiences of a violation for its multiplier to be back at 1.
        multiplier_momentum: Momentum of the updates of the multipliers, in [0, 1).

    Raises:
        ConfigurationError: No constraints, or a value out of range.
    """

    epochs = 4

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        constraints: Mapping[str, Mapping[str, float]],
        multiplier_lr: Positive = 0.2,
        first_multiplier: Positive = 1.0,
        max_multiplier: Positive = 10.0,
        min_multiplier: NotNegative = 0.1,
        multiplier_momentum: Decay = 0.0,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        gamma: Share = 1.0,
        gae_lambda: Share = 0.95,
        **options: Unpack[CriticOptions],
    ) -> None:
        PPOLagrangian.check_options(
            constraints=constraints,
            multiplier_lr=multiplier_lr,
            first_multiplier=first_multiplier,
            max_multiplier=max_multiplier,
            min_multiplier=min_multiplier,
            multiplier_momentum=multiplier_momentum,
        )
        bounds = [Constraint.parse(term, bound) for term, bound in constraints.items()]
        for each in bounds:
            each.log_multiplier = math.log(first_multiplier)
        super().__init__(
            problem,
            ConstrainedGAE(
                bounds,
                gamma,
                gae_lambda,
                lr=multiplier_lr,
                most=max_multiplier,
                least=min_multiplier,
                momentum=multiplier_momentum,
            ),
            PolicyLoss(clip_low=clip_low, clip_high=clip_high),
            **(CriticOptions(epochs=self.epochs) | options),
        )
        self.value_count = 1 + len(bounds)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range, and every constraint is a bound."""
        super().check_options(**options)
        least, first, most = (
            options.get(f"{name}_multiplier", default)
            for name, default in (("min", 0.1), ("first", 1.0), ("max", 10.0))
        )
        if not least <= first <= most:
            raise ConfigurationError(
                f"min_multiplier={least}, first_multiplier={first} and max_multiplier={most}; the "
                "first must be between the bounds."
            )
        if "constraints" not in options:  # set by a subclass
            return
        constraints = options["constraints"]
        if not isinstance(constraints, Mapping) or not constraints:
            raise ConfigurationError(
                f"constraints={constraints!r}; give at least one, for instance "
                "{harm_response: {at_least: 0.5}}. Without any, use PPO."
            )
        for term, bound in constraints.items():
            Constraint.parse(term, bound)

    @classmethod
    def values_needed(cls, **options: Any) -> int:
        """Return 1, for the reward, plus the number of constraints."""
        constraints = options.get("constraints")
        return 1 + (len(constraints) if isinstance(constraints, Mapping) else 0)

    @classmethod
    def terms_needed(cls, **options: Any) -> Sequence[str]:
        """Return the names of the constrained terms."""
        constraints = options.get("constraints")
        return list(constraints) if isinstance(constraints, Mapping) else []


def _value(step: PolicyStep, term: str) -> float:
    return step.terms.get(term, math.nan)
