"""GFlowNets: an attacker that says each attack as often as it is worth, not only the best one.

The attacker is trained until its probabilities are in proportion to a reward

    ``log R(attack) = reward / temperature + log ref(attack) / reference_temperature``

so every kind of attack that works stays, the more the likelier it is under the reference. Where it
was sampled from does not matter, so attacks of a replay buffer and of a hotter sampler are learned
from as well (Lee et al. 2024, arXiv 2405.18540).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from astra_rl.algorithms.losses import balance_residual, contrastive_loss, sequence_logprob
from astra_rl.algorithms.replay import Remembered, Replay
from astra_rl.algorithms.tempered import Tempered
from astra_rl.core.algorithm import Algorithm, halves_by_row
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import (
    check_loss,
    checked_logprobs,
    is_missing,
    mean_of_present,
    token_mask,
)
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.text import context_key
from astra_rl.core.text_records import from_record, to_record
from astra_rl.errors import ConfigurationError


@dataclass(frozen=True)
class BalanceStep:
    """Attacks of one context that are learned from together.

    Attributes:
        context: State before the attacks.
        attacks: What the attacker said.
        rewards: Of each, NaN where it is missing.
        log_rewards: Of each, see the module; `prepare` computes them.
        log_z: Logarithm of the sum of R over all attacks, as far as it is known.
    """

    context: str
    attacks: tuple[str, ...]
    rewards: tuple[float, ...]
    log_rewards: tuple[float, ...] = ()
    log_z: float = 0.0


@dataclass(frozen=True)
class BalanceBatch:
    """Attacks, index-aligned; tensors have shape (B,).

    Attributes:
        contexts: States before the attacks.
        attacks: What the attacker said.
        log_rewards: See `BalanceStep`.
        log_z: See `BalanceStep`.
        groups: Attacks of the same number are compared, int64.
    """

    contexts: Sequence[str]
    attacks: Sequence[str]
    log_rewards: Tensor
    log_z: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.contexts)


class BalanceOptions(TypedDict, total=False):
    """Options of all GFlowNet algorithms, see `BalanceAlgorithm`."""

    temperature: float
    reference_temperature: float | None
    replay: int
    replay_share: float
    replay_similarity: float
    replay_min_reward: float
    tempered_share: float
    temperatures: tuple[float, float]


class BalanceAlgorithm(Algorithm[str, str, BalanceStep, BalanceBatch]):
    """What GFlowNet objectives have in common: the reward, the replay and the sampler.

    Args:
        problem: Gives log-probabilities of the attacker and of the frozen reference.
        temperature: A reward of 1 makes an attack ``exp(1 / temperature)`` times as likely.
        reference_temperature: See the module; None leaves the reference out.
        replay: Attacks that are remembered; 0 is none.
        replay_share: Of what an experience is learned from, in [0, 1): so much is remembered.
        replay_similarity: See `Replay`.
        replay_min_reward: See `Replay`.
        tempered_share: Share of experiences with another sampling temperature; see `Tempered`.
        temperatures: The least and the largest of these temperatures.

    Attributes:
        memory: The replay buffer.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        temperature: float = 0.1,
        reference_temperature: float | None = 1.0,
        replay: int = 1000,
        replay_share: float = 0.5,
        replay_similarity: float = 0.8,
        replay_min_reward: float = -math.inf,
        tempered_share: float = 0.0,
        temperatures: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__(problem)
        if not 0 < temperature < math.inf:
            raise ConfigurationError(f"temperature={temperature}; it must be positive.")
        if reference_temperature is not None and not 0 < reference_temperature < math.inf:
            raise ConfigurationError(
                f"reference_temperature={reference_temperature}; it must be positive, or null to "
                "leave the reference out."
            )
        if not 0 <= replay_share < 1:
            raise ConfigurationError(f"replay_share={replay_share}; it must be in [0, 1).")
        self.temperature = temperature
        self.reference_temperature = reference_temperature
        self.replay_share = replay_share
        self.memory = Replay(replay, replay_similarity, replay_min_reward)
        self.collector = Tempered(tempered_share, *temperatures)
        self._experiences = 0
        self._metrics: Metrics = {}

    @abstractmethod
    def loss(self, logprobs: Tensor, batch: BalanceBatch) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logprobs: Of each attack, (B,), with gradient.
            batch: The attacks; its tensors are on the device of `logprobs`.
        """

    @abstractmethod
    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Cut steps with log-rewards into those that are batched, and add what else they need."""

    def flatten(self, graph: Graph[str, str]) -> Sequence[BalanceStep]:
        """Return one step per set of siblings; missing rewards are left out."""
        steps = []
        for siblings in graph.sibling_groups():
            known = [node for node in siblings if not is_missing(node.reward)]
            if known:
                steps.append(
                    BalanceStep(
                        known[0].context,
                        tuple(node.attack for node in known),
                        tuple(float(node.reward) for node in known),
                    )
                )
        return steps

    def prepare(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Join what has the same context, add what is remembered of it, and compute rewards."""
        random = Random(self._experiences)
        self._experiences += 1
        groups: dict[Hashable, list[Remembered]] = {}
        for step in steps:
            rows = groups.setdefault(context_key(step.context), [])
            rows += [
                Remembered(step.context, attack, reward)
                for attack, reward in zip(step.attacks, step.rewards, strict=True)
            ]
        fresh = self._with_reference([row for rows in groups.values() for row in rows])
        remaining = iter(fresh)
        joined = []
        for rows in groups.values():
            mine = [next(remaining) for _ in rows]
            wanted = round(len(mine) * self.replay_share / (1 - self.replay_share))
            mine += self.memory.sample(
                mine[0].context, wanted, random, temperature=self.temperature
            )
            joined.append(
                BalanceStep(
                    mine[0].context,
                    tuple(row.attack for row in mine),
                    tuple(row.reward for row in mine),
                    tuple(map(self._log_reward, mine)),
                )
            )
        self.memory.add(fresh)
        self._metrics = {
            "log_reward": mean_of_present(self._log_reward(row) for row in fresh),
            "replay/size": float(len(self.memory)),
            "replay/used": float(sum(len(step.attacks) for step in joined) - len(fresh)),
        }
        return self.complete(joined)

    def collate_fn(self, steps: Sequence[BalanceStep]) -> BalanceBatch:
        """Return the attacks of all steps side by side."""
        counts = [len(step.attacks) for step in steps]
        return BalanceBatch(
            [step.context for step in steps for _ in step.attacks],
            [attack for step in steps for attack in step.attacks],
            torch.tensor([value for step in steps for value in step.log_rewards]),
            torch.tensor([step.log_z for step in steps]).repeat_interleave(torch.tensor(counts)),
            torch.arange(len(steps)).repeat_interleave(torch.tensor(counts)),
        )

    def halves(self, batch: BalanceBatch) -> tuple[BalanceBatch, BalanceBatch] | None:
        """Cut between two groups, whose attacks are compared with each other."""
        starts = (batch.groups.diff() != 0).nonzero().flatten() + 1
        if not len(starts):
            return None
        middle = len(batch.attacks) / 2
        halves: tuple[BalanceBatch, BalanceBatch] | None = halves_by_row(
            batch, min(starts.tolist(), key=lambda start: abs(start - middle))
        )
        return halves

    def step(self, batch: BalanceBatch) -> tuple[Tensor, Metrics]:
        """Return the loss, and how far probabilities are from being in proportion."""
        logprobs = self._totals(
            self.problem.get_attacker_logprobs, batch.contexts, batch.attacks, grad=True
        )
        moved = BalanceBatch(
            batch.contexts,
            batch.attacks,
            batch.log_rewards.to(logprobs),
            batch.log_z.to(logprobs),
            batch.groups.to(logprobs.device),
        )
        loss = self.loss(logprobs, moved)
        check_loss(loss, source=type(self).__name__)
        return loss, {
            "loss": float(loss.detach()),
            "logps": float(logprobs.detach().mean()),
        }

    def experience_metrics(self) -> Metrics:
        """Return the mean log-reward of what was played, and how much was replayed."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the replay buffer and the state of its draws."""
        return {"experiences": self._experiences, "replay": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._experiences = state["experiences"]
        self.memory.load_state_dict(state["replay"])

    def _log_reward(self, row: Remembered) -> float:
        value = row.reward / self.temperature
        if self.reference_temperature is None or row.reference is None:
            return value
        return value + row.reference / self.reference_temperature

    def _with_reference(self, rows: Sequence[Remembered]) -> list[Remembered]:
        if self.reference_temperature is None or not rows:
            return list(rows)
        # The ids an attack remembers may be of another vocabulary than the baseline's.
        totals = self._totals(
            self.problem.get_baseline_logprobs,
            [row.context for row in rows],
            [row.attack for row in rows],
            grad=False,
            texts=[str(row.attack) for row in rows],
        ).tolist()
        return [
            Remembered(row.context, row.attack, row.reward, total)
            for row, total in zip(rows, totals, strict=True)
        ]

    def _totals(
        self,
        score: Callable[[Sequence[str], Sequence[str]], Tensor],
        contexts: Sequence[str],
        attacks: Sequence[str],
        *,
        grad: bool,
        texts: Sequence[str] | None = None,
    ) -> Tensor:
        """Log-probabilities of whole attacks, (B,)."""
        logprobs = checked_logprobs(score, contexts, attacks, grad=grad)
        mask = token_mask(logprobs, attacks if texts is None else texts)
        return sequence_logprob(logprobs, mask, reduce="sum")


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
