"""GFlowNet objectives: trajectory balance, and contrastive balance without log Z."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Unpack

import torch
from torch import Tensor

from astra_rl.algorithms.balance import (
    BalanceAlgorithm,
    BalanceBatch,
    BalanceOptions,
    BalanceStep,
)
from astra_rl.algorithms.losses import balance_residual, contrastive_loss
from astra_rl.algorithms.options import BALANCE
from astra_rl.core.contracts import mean_of_present
from astra_rl.core.problem import Problem
from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import context_key
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Range
from astra_rl.infra.registry import named

MAX_CONTEXTS = 10_000
"""Maximum number of contexts whose log Z is kept; the least recently used are dropped."""


@named("trajectory_balance")
@document_options(BALANCE)
class TrajectoryBalance(BalanceAlgorithm):
    """Trajectory balance with a learned log Z per context (Malkin et al. 2022, arXiv 2201.13259).

    In eq. 14 log Z is a trained parameter. Here it follows the same gradient with its own learning
    rate, once per experience; for a new context it starts at the estimate from its attacks instead
    of an arbitrary zero. That of a single attack would make its own residual zero, so there it
    starts at the mean over the other contexts, of which only the very first has none.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        log_z_lr: Learning rate of log Z: share of its error corrected per experience, in (0, 1].

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        log_z_lr: Annotated[float, Range(gt=0, le=1)] = 0.2,
        **options: Unpack[BalanceOptions],
    ) -> None:
        super().__init__(problem, **options)
        TrajectoryBalance.check_options(log_z_lr=log_z_lr)
        self.log_z_lr = log_z_lr
        self._log_z: dict[Hashable, tuple[str, float]] = {}

    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Update log Z and return one step per attack."""
        if not steps:
            return []
        whole = self.collate_fn(steps)
        logprobs = self._totals(
            self.problem.get_attacker_logprobs, whole.contexts, whole.attacks, grad=False
        )
        errors = (
            whole.log_rewards - logprobs.cpu()
        )  # the log Z for which each residual would be zero
        singles = []
        guesses = [float(errors[whole.groups == row].mean()) for row in range(len(steps))]
        known = [value for _, value in self._log_z.values()]
        for row, (step, guess) in enumerate(zip(steps, guesses, strict=True)):
            key = context_key(step.context)
            first = guess
            if len(step.attacks) == 1:
                others = known or [*guesses[:row], *guesses[row + 1 :]]
                first = statistics.fmean(others) if others else guess
            _, before = self._log_z.pop(key, (step.context, first))
            after = before + self.log_z_lr * (guess - before)
            self._log_z[key] = (step.context, after)
            singles += [
                BalanceStep(step.context, (attack,), (reward,), (log_reward,), after)
                for attack, reward, log_reward in zip(
                    step.attacks, step.rewards, step.log_rewards, strict=True
                )
            ]
        while len(self._log_z) > MAX_CONTEXTS:
            self._log_z.pop(next(iter(self._log_z)))
        self._metrics["log_z"] = mean_of_present(value for _, value in self._log_z.values())
        return singles

    def loss(self, logprobs: Tensor, batch: BalanceBatch) -> Tensor:
        """See `astra_rl.algorithms.losses.balance_residual`; the mean of its squares."""
        return (balance_residual(logprobs, batch.log_rewards, batch.log_z) ** 2).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return the replay buffer and log Z of every context."""
        log_z = [[to_record(context), value] for context, value in self._log_z.values()]
        return {**super().state_dict(), "log_z": log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        contexts = [(from_record(context), value) for context, value in state["log_z"]]
        self._log_z = {context_key(context): (context, value) for context, value in contexts}


@named("contrastive_balance")
@document_options(BALANCE)
class ContrastiveBalance(BalanceAlgorithm):
    """Balance between pairs of attacks of one context, which needs no log Z.

    The mean over pairs is twice the variance of the log Z estimates of trajectory balance (Richter
    et al. 2020, VarGrad, arXiv 2010.10436); noisy pairs are dropped (Stable-GFN, arXiv 2605.00553).

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        min_log_gap: Minimum difference of log-rewards of a pair, in nats; a smaller one is noise of
            the target's sampling. 0 keeps all pairs.
        huber: Threshold of the Huber loss, in nats; None is the squared error.
        max_group: Maximum number of attacks that are paired with each other; larger sets are split.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        min_log_gap: Annotated[float, Range(ge=0, finite=False)] = 0.1,
        huber: Annotated[float, Range(gt=0, finite=False)] | None = None,
        max_group: Annotated[int, Range(ge=2)] = 16,
        **options: Unpack[BalanceOptions],
    ) -> None:
        super().__init__(problem, **options)
        ContrastiveBalance.check_options(min_log_gap=min_log_gap, huber=huber, max_group=max_group)
        self.min_log_gap = min_log_gap
        self.huber = huber
        self.max_group = max_group

    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Split large groups, and drop groups without any pair."""
        groups = []
        for step in steps:
            count = math.ceil(len(step.attacks) / self.max_group)
            # Every count-th attack, so that each part has new and replayed attacks.
            groups += [
                BalanceStep(
                    step.context,
                    step.attacks[start::count],
                    step.rewards[start::count],
                    step.log_rewards[start::count],
                )
                for start in range(count)
            ]
        pairs = [self._count(step.log_rewards) for step in groups]
        possible = sum(len(step.attacks) * (len(step.attacks) - 1) // 2 for step in groups)
        self._metrics["pairs"] = float(sum(pairs))
        self._metrics["pairs/pruned"] = float(possible - sum(pairs))
        return [step for step, count in zip(groups, pairs, strict=True) if count]

    def loss(self, logprobs: Tensor, batch: BalanceBatch) -> Tensor:
        """See `astra_rl.algorithms.losses.contrastive_loss`."""
        return contrastive_loss(
            balance_residual(logprobs, batch.log_rewards),
            self._pairs(batch),
            huber=self.huber,
        )

    def weight(self, batch: BalanceBatch) -> float:
        """Return the number of pairs, the denominator of the loss."""
        return float(self._pairs(batch).sum())

    def _pairs(self, batch: BalanceBatch) -> Tensor:
        gaps = (batch.log_rewards[:, None] - batch.log_rewards[None, :]).abs()
        together = batch.groups[:, None] == batch.groups[None, :]
        return torch.triu(together & (gaps >= self.min_log_gap), diagonal=1)

    def _count(self, log_rewards: Sequence[float]) -> int:
        return sum(
            abs(a - b) >= self.min_log_gap
            for index, a in enumerate(log_rewards)
            for b in log_rewards[:index]
        )
