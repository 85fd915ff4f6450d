"""Actor-critic algorithms, whose baseline is a value function: A2C and PPO."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Unpack

import torch
from torch import Tensor

from astra_rl.algorithms.gae import GAE
from astra_rl.algorithms.losses import ClipHigh, ClipLow, PolicyLoss, masked_mean, value_loss
from astra_rl.algorithms.options import CLIP, CRITIC, POLICY
from astra_rl.algorithms.options import GAE as GAE_OPTIONS
from astra_rl.algorithms.policy_gradient import PolicyGradient, PolicyOptions
from astra_rl.algorithms.policy_steps import PolicyBatch, PolicyStep, ScoredStep, like
from astra_rl.core.common import Metrics
from astra_rl.core.problem import Problem, ValueFunctionProblem
from astra_rl.core.row_scoring import score_rows
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Decay, Positive, Range, Share, check_ranges
from astra_rl.infra.registry import named


class CriticOptions(PolicyOptions, total=False):
    """Options of all actor-critic algorithms."""

    value_coef: float
    value_clip: float


@document_options(CRITIC, POLICY)
class ActorCritic(PolicyGradient):
    """Policy gradient whose baseline is a value function, trained together with the attacker.

    Args:
        problem: A `ValueFunctionProblem` with as many value heads as `values_needed` returns.
        estimator: Computes advantages.
        loss: Configuration of the loss.

    Raises:
        ConfigurationError: The problem estimates no returns, or a value is out of range.
    """

    problem: ValueFunctionProblem[str, str]

    def __init__(
        self,
        problem: Problem[str, str],
        estimator: GAE,
        loss: PolicyLoss,
        /,
        *,
        value_coef: Positive = 0.5,
        value_clip: Annotated[float, Range(gt=0, finite=False)] = 0.2,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(problem, estimator, loss, **options)
        check_ranges(ActorCritic, {"value_coef": value_coef, "value_clip": value_clip})
        self.value_coef, self.value_clip = value_coef, value_clip
        self.value_count = 1

    def check_problem(self, problem: Problem[str, str]) -> None:
        """Raise unless the problem samples exactly and estimates returns.

        Raises:
            ConfigurationError: It does not.
        """
        super().check_problem(problem)
        if not isinstance(problem, ValueFunctionProblem):
            raise ConfigurationError(
                f"{type(self).__name__} needs a problem with a value function, and "
                f"{type(problem).__name__} is no ValueFunctionProblem. Use HFValueProblem in place "
                "of HFASTProblem, or an algorithm without a value function, such as GRPO."
            )

    @classmethod
    def values_needed(cls, **options: Any) -> int:
        """Return 1: the value of the reward."""
        return 1

    def with_values(self, steps: Sequence[ScoredStep]) -> Sequence[ScoredStep]:
        """Add the value estimates before the update, also those of states after truncated turns."""
        rows = [row for row, step in enumerate(steps) if step.old_logprobs]
        if not rows:
            return steps
        with torch.no_grad():
            values = score_rows(
                self._values,
                [steps[row].context for row in rows],
                [steps[row].attack for row in rows],
            )
        out = list(steps)
        for row, estimates in zip(rows, values.cpu(), strict=True):
            count = len(steps[row].old_logprobs)
            if len(estimates) < count:
                raise ContractError(
                    f"{type(self.problem).__name__} estimated {len(estimates)} values for an "
                    f"attack of {count} tokens. Return one per token, padded on the right."
                )
            heads = tuple(map(tuple, estimates[:count].T.tolist()))
            out[row] = replace(steps[row], values=heads)
        return self._with_next_values(out)

    def _with_next_values(self, steps: Sequence[ScoredStep]) -> Sequence[ScoredStep]:
        """Add the value estimates of the states after truncated turns."""
        out = list(steps)
        after = {
            row: step.next_context
            for row, step in enumerate(steps)
            if step.next_context is not None and step.old_logprobs
        }
        if after:
            with torch.no_grad():
                # The value at the first token does not depend on it, so any attack does.
                attacks = [steps[row].attack for row in after]
                values = score_rows(self._values, list(after.values()), attacks)
            for row, estimates in zip(after, values.cpu(), strict=True):
                out[row] = replace(steps[row], next_values=tuple(estimates[0].tolist()))
        return out

    def batched_with(self, step: PolicyStep) -> Hashable:
        """Shuffle each step alone: no siblings are compared, and mixed batches learn faster.

        In the letter game of `astra_rl.testing.games`, PPO with several optimizer steps per
        experience reaches a reward of 0.82 after ten training steps so, and of 0.76 otherwise.
        """
        return None

    def with_objectives(
        self, tokens: Tensor, batch: PolicyBatch, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Add the value loss to the policy loss of each token."""
        if batch.values is None or batch.returns is None:
            raise ContractError("a batch without values came to step. Call prepare first.")
        values = like(self._values(batch.contexts, batch.attacks), tokens)
        old, returns = like(batch.values, tokens), like(batch.returns, tokens)
        errors = value_loss(values, old, returns, clip=self.value_clip).sum(dim=-1)
        clipped = ((values - old).abs() > self.value_clip).any(dim=-1)
        logs = {
            "policy_loss": float(masked_mean(tokens.detach(), mask)),
            "value_loss": float(masked_mean(errors.detach(), mask)),
            "value/clip_ratio": float(masked_mean(clipped.float(), mask)),
        }
        return tokens + self.value_coef * errors, logs

    def _values(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        values = self.problem.values(contexts, attacks).float()
        rows = (len(contexts), self.value_count)
        if values.ndim != 3 or (values.shape[0], values.shape[2]) != rows:
            raise ContractError(
                f"{type(self.problem).__name__}.values returned shape {tuple(values.shape)}; "
                f"{type(self).__name__} needs ({rows[0]}, T, {rows[1]}), one estimate per token "
                "and return."
            )
        return values


@named("a2c")
@document_options(GAE_OPTIONS, CRITIC, POLICY)
class A2C(ActorCritic):
    """Advantage actor-critic with a KL penalty, as Perez et al. used it for red-teaming.

    Mnih et al. 2016, arXiv 1602.01783; Perez et al. 2022, arXiv 2202.03286, sec. 3.1: the loss is
    ``(1 - alpha) * A2C + alpha * KL(pi || reference)``.

    Args:
        problem: A `ValueFunctionProblem` with one value head.
        alpha: Weight of the KL in the loss, in [0, 1); sets ``kl_in_loss``. Perez et al. used 0.3
            to 0.4 for an unbounded reward; a reward in [0, 1] needs less.

    Raises:
        ConfigurationError: A value is out of range.
    """

    has_ratio = False

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        alpha: Decay = 0.05,
        gamma: Share = 1.0,
        gae_lambda: Share = 1.0,
        **options: Unpack[CriticOptions],
    ) -> None:
        A2C.check_options(alpha=alpha, **options)
        super().__init__(
            problem,
            GAE(gamma, gae_lambda, normalise=False),
            PolicyLoss(surrogate="reinforce"),
            **(options | CriticOptions(kl_in_loss=alpha)),
        )
        self.alpha = alpha

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and do not exclude each other."""
        super().check_options(**options)
        if options.get("kl_in_loss"):
            raise ConfigurationError("A2C sets kl_in_loss to alpha; give alpha instead.")

    @classmethod
    def uses_reference(cls, **options: Any) -> bool:
        """Whether there is a KL penalty, in the loss by `alpha` or in the reward."""
        return bool(options.get("alpha")) or super().uses_reference(**options)

    def with_objectives(
        self, tokens: Tensor, batch: PolicyBatch, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Add the value loss, and multiply both by ``1 - alpha``."""
        tokens, logs = super().with_objectives(tokens, batch, mask)
        return (1 - self.alpha) * tokens, logs


@named("ppo")
@document_options(CLIP, GAE_OPTIONS, CRITIC, POLICY, epochs=4)
class PPO(ActorCritic):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) with a value function.

    Advantages are estimated with GAE over the attacker's tokens, see `tree_gae`, and whitened over
    the experience.

    Args:
        problem: A `ValueFunctionProblem` with one value head.
    """

    epochs = 4

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.2,
        gamma: Share = 1.0,
        gae_lambda: Share = 0.95,
        **options: Unpack[CriticOptions],
    ) -> None:
        super().__init__(
            problem,
            GAE(gamma, gae_lambda),
            PolicyLoss(clip_low=clip_low, clip_high=clip_high),
            **(CriticOptions(epochs=self.epochs) | options),
        )
