"""Base of GFlowNet algorithms, which sample attacks in proportion to a reward.

The attacker is trained so that its probabilities are proportional to R, with

    ``log R(attack) = reward / temperature + log ref(attack) / reference_temperature``

so it keeps all modes of the reward instead of the best attack only. The objective is off-policy, so
that attacks of a replay buffer and of other sampling temperatures can be used (Lee et al. 2024,
arXiv 2405.18540).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from astra_rl.algorithms.exploration import Exploration
from astra_rl.algorithms.losses import sequence_logprob
from astra_rl.algorithms.options import BALANCE
from astra_rl.algorithms.replay import Replay, ReplayEntry
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
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count, CountOrZero, Decay, Positive, Range, Share


@dataclass(frozen=True)
class BalanceStep:
    """Attacks of one context.

    Attributes:
        context: State before the attacks.
        attacks: The attacks.
        rewards: Their rewards.
        log_rewards: Their log R, see the module; set by `BalanceAlgorithm.prepare`.
        log_z: Estimated logarithm of the sum of R over all attacks.
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
        attacks: The attacks.
        log_rewards: log R of each attack, float32.
        log_z: log Z of the context of each attack, float32.
        groups: Index of the group of each attack, int64; pairs are made within a group.
    """

    contexts: Sequence[str]
    attacks: Sequence[str]
    log_rewards: Tensor
    log_z: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.contexts)


class BalanceOptions(TypedDict, total=False):
    """Options of all GFlowNet algorithms."""

    temperature: float
    reference_temperature: float | None
    replay: int
    replay_share: float
    replay_similarity: float
    replay_min_reward: float
    replay_temperature: float | None
    tempered_share: float
    temperatures: tuple[float, float]
    annealing: float
    annealing_experiences: int


@document_options(BALANCE)
class BalanceAlgorithm(Algorithm[str, str, BalanceStep, BalanceBatch]):
    """Base of GFlowNet algorithms: log-reward, replay buffer and temperature exploration.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.

    Attributes:
        memory: The replay buffer.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        temperature: Positive = 0.1,
        reference_temperature: Positive | None = 1.0,
        replay: CountOrZero = 1000,
        replay_share: Decay = 0.5,
        replay_similarity: Annotated[float, Range(gt=0, le=1)] = 0.8,
        replay_min_reward: float = -math.inf,
        replay_temperature: Annotated[float, Range(gt=0, finite=False)] | None = None,
        tempered_share: Share = 0.0,
        temperatures: tuple[float, float] = (0.5, 2.0),
        annealing: Annotated[float, Range(ge=1)] = 1.0,
        annealing_experiences: Count = 1000,
    ) -> None:
        super().__init__(problem)
        BalanceAlgorithm.check_options(
            temperature=temperature,
            reference_temperature=reference_temperature,
            replay_share=replay_share,
            replay_temperature=replay_temperature,
            annealing=annealing,
            annealing_experiences=annealing_experiences,
        )
        self.temperature = temperature
        self.annealing, self.annealing_experiences = annealing, annealing_experiences
        self.reference_temperature = reference_temperature
        self.replay_share = replay_share
        self.replay_temperature = temperature if replay_temperature is None else replay_temperature
        self.memory = Replay(replay, replay_similarity, replay_min_reward, rank=self._log_reward)
        self.collector = Exploration(tempered_share, *temperatures)
        self.collector.check_problem(problem)
        self._experiences = 0
        self._metrics: Metrics = {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range."""
        super().check_options(**options)
        Exploration.check_options(options)

    @abstractmethod
    def loss(self, logprobs: Tensor, batch: BalanceBatch) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logprobs: Log-probability of each attack, (B,), with gradient.
            batch: The attacks; its tensors are on the device of `logprobs`.
        """

    @abstractmethod
    def complete(self, steps: Sequence[BalanceStep]) -> Sequence[BalanceStep]:
        """Turn steps with log-rewards into those that are collated to batches."""

    def flatten(self, graph: Graph[str, str]) -> Sequence[BalanceStep]:
        """Return one step per set of siblings; attacks with a missing reward are left out."""
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
        """Join steps of the same context, add replayed attacks, and compute log-rewards."""
        random = Random(self._experiences)
        divisor = self._divisor()
        self._experiences += 1
        groups: dict[Hashable, list[ReplayEntry]] = {}
        for step in steps:
            rows = groups.setdefault(context_key(step.context), [])
            rows += [
                ReplayEntry(step.context, attack, reward)
                for attack, reward in zip(step.attacks, step.rewards, strict=True)
            ]
        fresh = self._with_reference([row for rows in groups.values() for row in rows])
        remaining = iter(fresh)
        joined = []
        for rows in groups.values():
            mine = [next(remaining) for _ in rows]
            wanted = round(len(mine) * self.replay_share / (1 - self.replay_share))
            mine += self.memory.sample(
                mine[0].context, wanted, random, temperature=self.replay_temperature
            )
            joined.append(
                BalanceStep(
                    mine[0].context,
                    tuple(row.attack for row in mine),
                    tuple(row.reward for row in mine),
                    tuple(self._log_reward(row) / divisor for row in mine),
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
        """Collate the attacks of all steps to a batch."""
        counts = [len(step.attacks) for step in steps]
        return BalanceBatch(
            [step.context for step in steps for _ in step.attacks],
            [attack for step in steps for attack in step.attacks],
            torch.tensor([value for step in steps for value in step.log_rewards]),
            torch.tensor([step.log_z for step in steps]).repeat_interleave(torch.tensor(counts)),
            torch.arange(len(steps)).repeat_interleave(torch.tensor(counts)),
        )

    def halves(self, batch: BalanceBatch) -> tuple[BalanceBatch, BalanceBatch] | None:
        """Split between two groups, because pairs are made within a group."""
        starts = (batch.groups.diff() != 0).nonzero().flatten() + 1
        if not len(starts):
            return None
        middle = len(batch.attacks) / 2
        halves: tuple[BalanceBatch, BalanceBatch] | None = halves_by_row(
            batch, min(starts.tolist(), key=lambda start: abs(start - middle))
        )
        return halves

    def step(self, batch: BalanceBatch) -> tuple[Tensor, Metrics]:
        """Return the loss, and the mean log-probability of the attacks."""
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
        """Return the mean log-reward of new attacks, and the number of replayed ones."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the replay buffer, and the number of experiences, which seeds its draws."""
        return {"experiences": self._experiences, "replay": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._experiences = state["experiences"]
        self.memory.load_state_dict(state["replay"])

    def _divisor(self) -> float:
        left = max(0.0, 1 - self._experiences / self.annealing_experiences)
        return 1 + (self.annealing - 1) * left

    def _log_reward(self, row: ReplayEntry) -> float:
        value = row.reward / self.temperature
        if self.reference_temperature is None or row.reference is None:
            return value
        return value + row.reference / self.reference_temperature

    def _with_reference(self, rows: Sequence[ReplayEntry]) -> list[ReplayEntry]:
        if self.reference_temperature is None or not rows:
            return list(rows)
        # str drops the attacker's token ids: the baseline may have another vocabulary.
        totals = self._totals(
            self.problem.get_baseline_logprobs,
            [row.context for row in rows],
            [row.attack for row in rows],
            grad=False,
            texts=[str(row.attack) for row in rows],
        ).tolist()
        return [
            ReplayEntry(row.context, row.attack, row.reward, total)
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
