"""Group-relative policy optimisation over the siblings of a tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from astra_rl.algorithms.advantages import (
    RunningBaseline,
    Scale,
    group_advantages,
    scale_by_batch,
)
from astra_rl.algorithms.losses import (
    clipped_policy_loss,
    kl_penalty,
    masked_mean,
    probability_ratio,
)
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_loss, checked_logprobs, is_missing, token_mask
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError


@dataclass(frozen=True)
class GRPOStep:
    """One attack and how it compares with its siblings.

    Attributes:
        context: State before the attack.
        attack: What the attacker said.
        reward: Its reward.
        advantage: Relative to its siblings; None until `prepare` if it has none.
        old_logprobs: Per token, under the policy that sampled it; None until `prepare`.
        reference_logprobs: Per token, under the frozen reference; None if nothing needs them.
    """

    context: str
    attack: str
    reward: float
    advantage: float | None = None
    old_logprobs: tuple[float, ...] | None = None
    reference_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class GRPOBatch:
    """Several attacks, index-aligned. Tensors are (B,) and (B, T), float32."""

    contexts: Sequence[str]
    attacks: Sequence[str]
    advantages: Tensor
    old_logprobs: Tensor | None
    reference_logprobs: Tensor | None
    token_counts: Sequence[int]

    def __len__(self) -> int:
        return len(self.contexts)


class GRPO(Algorithm[str, str, GRPOStep, GRPOBatch]):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    Siblings of a tree are the group. Two departures from the paper, both common since: the loss is
    a mean over tokens (Yu et al. 2025, DAPO, arXiv 2503.14476), so that a long attack does not
    count less per token; and the gradient of the divergence is the right one (see
    `astra_rl.algorithms.losses.kl_penalty`). An attack without siblings (a tree of width 1) is
    compared with a running average of rewards instead.

    Args:
        problem: Gives log-probabilities of the attacker and of the frozen reference.
        clip_low: The probability ratio counts down to ``1 - clip_low``.
        clip_high: The probability ratio counts up to ``1 + clip_high``.
        scale: What advantages are divided by: the standard deviation of their ``"group"``, their
            root mean square over the ``"batch"``, or ``"none"``.
        kl_in_reward: Nats of divergence from the reference, of the whole attack, cost this much
            reward each. The best policy is then the reference reweighted by
            ``exp(reward / kl_in_reward)``: it keeps every kind of attack that works, in proportion
            to how likely it is in ordinary use. 0 is off.
        kl_in_loss: Weight of a divergence penalty per token in the loss. 0 is off; with both off
            the reference is never run.
        baseline_decay: Of the running average.

    Raises:
        ConfigurationError: A value is out of range, or the problem does not sample attacks from
            the distribution that it scores.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        scale: Scale = "group",
        kl_in_reward: float = 0.0,
        kl_in_loss: float = 0.0,
        baseline_decay: float = 0.9,
    ) -> None:
        super().__init__(problem)
        for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
            if not value > 0:
                raise ConfigurationError(f"{name}={value}; it must be positive.")
        for name, value in (("kl_in_reward", kl_in_reward), ("kl_in_loss", kl_in_loss)):
            if not value >= 0:
                raise ConfigurationError(f"{name}={value}; it must be 0 (off) or positive.")
        if scale not in get_args(Scale):
            raise ConfigurationError(f"scale={scale!r}; choose from {list(get_args(Scale))}.")
        if not problem.samples_exactly:
            raise ConfigurationError(
                "GRPO needs attacks sampled from the very distribution it trains: temperature 1, "
                "no top_k, no top_p. Change the attacker's sampling, or use DPO or IPO."
            )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.scale: Scale = scale
        self.kl_in_reward = kl_in_reward
        self.kl_in_loss = kl_in_loss
        self.baseline = RunningBaseline(baseline_decay)

    def flatten(self, graph: Graph[str, str]) -> Sequence[GRPOStep]:
        """Return one step per node whose reward is present, siblings side by side."""
        return [
            # One object for all siblings, by which `prepare` knows them again.
            GRPOStep(siblings[0].context, node.attack, node.reward)
            for siblings in graph.sibling_groups()
            for node in siblings
            if not is_missing(node.reward)
        ]

    def prepare(self, steps: Sequence[GRPOStep]) -> Sequence[GRPOStep]:
        """Add old and reference log-probabilities and advantages, once per experience.

        An attack without tokens teaches nothing and is left out.
        """
        steps = [step for step in self._with_old_logprobs(steps) if step.old_logprobs]
        if self.kl_in_reward or self.kl_in_loss:
            steps = self._with_reference_logprobs(steps)
        return self._with_advantages(steps)

    def collate_fn(self, steps: Sequence[GRPOStep]) -> GRPOBatch:
        """Return the steps side by side, padded on the right."""
        return GRPOBatch(
            [step.context for step in steps],
            [step.attack for step in steps],
            torch.tensor([step.advantage or 0.0 for step in steps]),
            _pad([step.old_logprobs for step in steps]),
            _pad([step.reference_logprobs for step in steps]),
            [len(step.old_logprobs or ()) for step in steps],
        )

    def weight(self, batch: GRPOBatch) -> float:
        """Number of tokens: the loss is a mean over tokens."""
        return float(sum(batch.token_counts)) or float(len(batch))

    def step(self, batch: GRPOBatch) -> tuple[Tensor, Metrics]:
        """Return the mean loss over tokens, and diagnostics under TRL's metric names."""
        logprobs = checked_logprobs(
            self.problem.get_attacker_logprobs, batch.contexts, batch.attacks, grad=True
        )
        mask = token_mask(logprobs, batch.attacks)
        old = _like(batch.old_logprobs, logprobs) if batch.old_logprobs is not None else None
        if old is None:  # a batch that did not come through prepare is on-policy
            old = logprobs.detach()
        advantages = batch.advantages.to(logprobs.device)[:, None]
        objective = clipped_policy_loss(
            logprobs, old, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
        loss = masked_mean(objective, mask)
        ratio = probability_ratio(logprobs.detach(), old)
        logs = {
            "clip_ratio/region_mean": float(masked_mean(self._is_clipped(ratio, advantages), mask)),
            "importance_sampling/ratio_max": float(ratio[mask].max()) if mask.any() else 1.0,
        }
        if batch.reference_logprobs is not None:
            reference = _like(batch.reference_logprobs, logprobs)
            penalty = masked_mean(kl_penalty(logprobs, reference, old), mask)
            logs["kl"] = float(masked_mean(logprobs.detach() - reference, mask))
            if self.kl_in_loss:
                loss = loss + self.kl_in_loss * penalty
        check_loss(loss, source="GRPO")
        return loss, {"loss": float(loss.detach()), **logs}

    def state_dict(self) -> dict[str, Any]:
        """Return the running baseline."""
        return {"baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the running baseline."""
        self.baseline.load_state_dict(state["baseline"])

    def _with_old_logprobs(self, steps: Sequence[GRPOStep]) -> list[GRPOStep]:
        # The sampler's log-probabilities are the old ones: no second pass where they were kept.
        unknown = [index for index, step in enumerate(steps) if _sampled(step.attack) is None]
        unscored = [steps[index] for index in unknown]
        scored = self._score(
            self.problem.get_attacker_logprobs, unscored, [step.attack for step in unscored]
        )
        known = dict(zip(unknown, scored, strict=True))
        return [
            replace(step, old_logprobs=known.get(index, _sampled(step.attack)))
            for index, step in enumerate(steps)
        ]

    def _with_reference_logprobs(self, steps: Sequence[GRPOStep]) -> list[GRPOStep]:
        # The ids an attack remembers may be of another vocabulary than the baseline's.
        scored = self._score(
            self.problem.get_baseline_logprobs, steps, [str(step.attack) for step in steps]
        )
        for step, values in zip(steps, scored, strict=True):
            if self.kl_in_loss and len(values) != len(step.old_logprobs or ()):
                raise ConfigurationError(
                    "kl_in_loss compares token by token, and the baseline has another tokenizer "
                    "than the attacker. Use kl_in_reward, or a baseline with the same tokenizer."
                )
        return [
            replace(step, reference_logprobs=values)
            for step, values in zip(steps, scored, strict=True)
        ]

    def _score(
        self, score: Any, steps: Sequence[GRPOStep], texts: Sequence[str]
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the steps' attacks; `texts` says how many tokens each has."""
        if not steps:
            return []
        logprobs = checked_logprobs(
            score, [step.context for step in steps], [step.attack for step in steps], grad=False
        )
        mask = token_mask(logprobs, texts)
        return [
            tuple(row[: int(real.sum())].tolist()) for row, real in zip(logprobs, mask, strict=True)
        ]

    def _with_advantages(self, steps: Sequence[GRPOStep]) -> list[GRPOStep]:
        rewards = [step.reward - self.kl_in_reward * _divergence(step) for step in steps]
        advantages: list[float] = [math.nan] * len(steps)
        groups: dict[int, list[int]] = {}
        for index, step in enumerate(steps):
            # Siblings have the very same object, see `flatten`.
            groups.setdefault(id(step.context), []).append(index)
        alone = [rows[0] for rows in groups.values() if len(rows) == 1]
        for rows in groups.values():
            if len(rows) > 1:
                values = group_advantages([rewards[row] for row in rows], scale=self.scale)
                for row, value in zip(rows, values, strict=True):
                    advantages[row] = value
        for row, value in zip(
            alone, self.baseline.advantages([rewards[row] for row in alone]), strict=True
        ):
            advantages[row] = value
        if self.scale == "batch":
            advantages = scale_by_batch(advantages)
        return [
            replace(step, advantage=advantage)
            for step, advantage in zip(steps, advantages, strict=True)
            if not is_missing(advantage)
        ]

    def _is_clipped(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        low = (ratio < 1 - self.clip_low) & (advantages < 0)
        high = (ratio > 1 + self.clip_high) & (advantages > 0)
        return (low | high).float()


def _sampled(attack: str) -> tuple[float, ...] | None:
    return attack.logprobs if isinstance(attack, Utterance) else None


def _divergence(step: GRPOStep) -> float:
    """Estimate, from one sample, of the nats between policy and reference over a whole attack."""
    if step.reference_logprobs is None or step.old_logprobs is None:
        return 0.0
    return sum(step.old_logprobs) - sum(step.reference_logprobs)


def _pad(rows: Sequence[tuple[float, ...] | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    if len(present) < len(rows):
        return None
    width = max((len(row) for row in present), default=0)
    out = torch.zeros(len(present), width)
    for index, row in enumerate(present):
        out[index, : len(row)] = torch.tensor(row)
    return out


def _like(values: Tensor, logprobs: Tensor) -> Tensor:
    """Cut or pad (B, T') to the width of `logprobs` and move it to its device."""
    out = torch.zeros_like(logprobs)
    width = min(values.shape[1], logprobs.shape[1])
    out[:, :width] = values[:, :width].to(logprobs.device)
    return out
