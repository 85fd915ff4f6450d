"""The objectives of GFlowNets: trajectory balance, and contrastive balance without log Z."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from astra_rl.algorithms.balance import (
    BalanceAlgorithm,
    BalanceBatch,
    BalanceOptions,
    BalanceStep,
)
from astra_rl.algorithms.losses import balance_residual, contrastive_loss
from astra_rl.core.contracts import mean_of_present
from astra_rl.core.problem import Problem
from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import context_key
from astra_rl.errors import ConfigurationError

MAX_CONTEXTS = 10_000
"""Contexts whose log Z is remembered; the longest unseen are forgotten."""


class TrajectoryBalance(BalanceAlgorithm):
    """Trajectory balance with a learned log Z per context (Malkin et al. 2022, arXiv 2201.13259).

    In eq. 14 log Z is a parameter like others. Here it follows the same gradient at a rate of its
    own, once per experience; a new context begins at the best guess from its attacks, so that
    attacks are not pushed up or down by an arbitrary zero.

    Args:
        problem: Gives log-probabilities of the attacker and of the frozen reference.
        log_z_lr: Share of its error that log Z makes up for in an experience, in (0, 1].
        options: Of `BalanceAlgorithm`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        log_z_lr: float = 0.2,
        **options: Unpack[BalanceOptions],
    ) -> None:
        super().__init__(problem, **options)
        if not 0 < log_z_lr <= 1:
            raise ConfigurationError(f"log_z_lr={log_z_lr}; it must be in (0, 1].")
        self.log_z_lr = log_z_lr
        self._log_z: dict[Hashable, tuple[str, float]] = {}

    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Move log Z and return one step per attack."""
        if not steps:
            return []
        whole = self.collate_fn(steps)
        logprobs = self._totals(
            self.problem.get_attacker_logprobs, whole.contexts, whole.attacks, grad=False
        )
        errors = whole.log_rewards - logprobs.cpu()  # what log Z would have to be
        singles = []
        for row, step in enumerate(steps):
            guess = float(errors[whole.groups == row].mean())
            key = context_key(step.context)
            _, before = self._log_z.pop(key, (step.context, guess))
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
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        contexts = [(from_record(context), value) for context, value in state["log_z"]]
        self._log_z = {context_key(context): (context, value) for context, value in contexts}


class ContrastiveBalance(BalanceAlgorithm):
    """Balance between pairs of attacks of one context, which needs no log Z.

    The mean over pairs is twice the variance of what trajectory balance calls log Z (Richter et al.
    2020, VarGrad, arXiv 2010.10436); noisy pairs are left out (Stable-GFN, arXiv 2605.00553).

    Args:
        problem: Gives log-probabilities of the attacker and of the frozen reference.
        min_log_gap: Pairs whose log-rewards differ by less are left out: the difference is noise
            of the target's sampling. 0 leaves none out.
        huber: Errors beyond it, in nats, count linearly; None squares all.
        max_group: Most attacks that are compared with each other; more are cut into groups.
        options: Of `BalanceAlgorithm`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        min_log_gap: float = 0.1,
        huber: float | None = None,
        max_group: int = 16,
        **options: Unpack[BalanceOptions],
    ) -> None:
        super().__init__(problem, **options)
        if not min_log_gap >= 0:
            raise ConfigurationError(f"min_log_gap={min_log_gap}; it must be 0 or more.")
        if huber is not None and not huber > 0:
            raise ConfigurationError(f"huber={huber}; it must be positive, or null.")
        if max_group < 2:
            raise ConfigurationError(f"max_group={max_group}; it must be 2 or more.")
        self.min_log_gap = min_log_gap
        self.huber = huber
        self.max_group = max_group

    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Cut large groups, and leave out those without a pair that says something."""
        groups = []
        for step in steps:
            count = math.ceil(len(step.attacks) / self.max_group)
            # Every count-th attack, so that fresh ones and remembered ones are mixed.
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
        """Return the number of pairs, which the loss is a mean over."""
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
