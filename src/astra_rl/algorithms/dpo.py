"""Learning from pairs of siblings: DPO and IPO."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from astra_rl.algorithms.advantages import TIE_TOLERANCE
from astra_rl.algorithms.losses import dpo_loss, ipo_loss, sequence_logprob
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_loss, checked_logprobs, is_missing, token_mask
from astra_rl.core.graph import Graph, Node
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError

Reduce = Literal["sum", "mean"]


@dataclass(frozen=True)
class DPOStep:
    """One preference: after `context`, `suffix_pos` was rewarded more than `suffix_neg`.

    Attributes:
        context: State before the attack.
        suffix_pos: The chosen attack.
        suffix_neg: The rejected attack.
        reference_margin: ``log ref(chosen) - log ref(rejected)``; None until it is computed.
    """

    context: str
    suffix_pos: str
    suffix_neg: str
    reference_margin: float | None = None


@dataclass(frozen=True)
class DPOBatch:
    """Several preferences, index-aligned."""

    contexts: Sequence[str]
    suffix_pos: Sequence[str]
    suffix_neg: Sequence[str]
    reference_margins: Sequence[float | None]

    def __len__(self) -> int:
        return len(self.contexts)


class PairwiseAlgorithm(Algorithm[str, str, DPOStep, DPOBatch]):
    """Best against worst sibling at every node of the tree.

    Args:
        problem: Gives log-probabilities of the attacker and of the frozen reference.
        beta: See the loss.
        reduce: Whether a text's log-probability is the sum or the mean over its tokens.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self, problem: Problem[str, str], *, beta: float = 0.1, reduce: Reduce = "sum"
    ) -> None:
        super().__init__(problem)
        if not beta > 0:
            raise ConfigurationError(f"beta={beta}; it must be positive.")
        if reduce not in ("sum", "mean"):
            raise ConfigurationError(f"reduce={reduce!r}; choose 'sum' or 'mean'.")
        self.beta = beta
        self.reduce = reduce

    @abstractmethod
    def loss(self, margin: Tensor) -> Tensor:
        """Loss of each pair, (B,), given its margin over the reference, (B,)."""

    def flatten(self, graph: Graph[str, str]) -> Sequence[DPOStep]:
        """Return one pair per set of siblings that has a best and a worst."""
        pairs = (preference_pair(siblings) for siblings in graph.sibling_groups())
        return [pair for pair in pairs if pair is not None]

    def prepare(self, steps: Sequence[DPOStep]) -> Sequence[DPOStep]:
        """Score all pairs under the reference, once per experience."""
        if not steps:
            return steps
        batch = self.collate_fn(steps)
        margins = self._baseline_margins(batch).tolist()
        return [
            replace(step, reference_margin=margin)
            for step, margin in zip(steps, margins, strict=True)
        ]

    def collate_fn(self, steps: Sequence[DPOStep]) -> DPOBatch:
        """Return the pairs side by side."""
        return DPOBatch(
            [step.context for step in steps],
            [step.suffix_pos for step in steps],
            [step.suffix_neg for step in steps],
            [step.reference_margin for step in steps],
        )

    def step(self, batch: DPOBatch) -> tuple[Tensor, Metrics]:
        """Return the mean loss over the pairs, and rewards under TRL's metric names."""
        logprobs = self._logprobs(batch, self.problem.get_attacker_logprobs, grad=True)
        policy = self._margins(logprobs, [*batch.suffix_pos, *batch.suffix_neg])
        margin = policy - self._reference_margins(batch, policy)
        loss = self.loss(margin).mean()
        check_loss(loss, source=type(self).__name__)
        implicit = self.beta * margin.detach()
        return loss, {
            "loss": float(loss.detach()),
            "rewards/margins": float(implicit.mean()),
            "rewards/accuracies": float((implicit > 0).float().mean()),
        }

    def _reference_margins(self, batch: DPOBatch, like: Tensor) -> Tensor:
        known = [margin for margin in batch.reference_margins if margin is not None]
        if len(known) < len(batch):  # a batch that did not come through prepare
            return self._baseline_margins(batch)
        return torch.tensor(known, dtype=like.dtype, device=like.device)

    def _baseline_margins(self, batch: DPOBatch) -> Tensor:
        logprobs = self._logprobs(batch, self.problem.get_baseline_logprobs, grad=False)
        # The ids an attack remembers may be of another vocabulary than the baseline's.
        return self._margins(
            logprobs, [str(text) for text in (*batch.suffix_pos, *batch.suffix_neg)]
        )

    def _logprobs(
        self,
        batch: DPOBatch,
        score: Callable[[Sequence[str], Sequence[str]], Tensor],
        *,
        grad: bool,
    ) -> Tensor:
        # Chosen and rejected in one call: both begin with the same context, read once.
        contexts = [*batch.contexts, *batch.contexts]
        return checked_logprobs(score, contexts, [*batch.suffix_pos, *batch.suffix_neg], grad=grad)

    def _margins(self, logprobs: Tensor, suffixes: Sequence[str]) -> Tensor:
        totals = sequence_logprob(logprobs, token_mask(logprobs, suffixes), reduce=self.reduce)
        chosen, rejected = totals.chunk(2)
        return chosen - rejected


def preference_pair(siblings: Sequence[Node[str, str]]) -> DPOStep | None:
    """Best against worst sibling; None if they tie, or say the same, which teaches nothing."""
    present = [node for node in siblings if not is_missing(node.reward)]
    if len(present) < 2:
        return None
    best = max(present, key=lambda node: node.reward)
    worst = min(present, key=lambda node: node.reward)
    if best.reward - worst.reward < TIE_TOLERANCE or best.attack == worst.attack:
        return None
    return DPOStep(best.context, best.attack, worst.attack)


class DPO(PairwiseAlgorithm):
    """Direct preference optimisation on siblings (Rafailov et al. 2023, arXiv 2305.18290)."""

    def loss(self, margin: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.dpo_loss`."""
        return dpo_loss(margin, self.beta)


class IPO(PairwiseAlgorithm):
    """Identity preference optimisation on siblings (Azar et al. 2023, arXiv 2310.12036).

    Log-probabilities are means per token, as its authors confirmed; ``reduce="sum"`` gives the
    behaviour of ASTPrompter's code.
    """

    def __init__(
        self, problem: Problem[str, str], *, beta: float = 0.1, reduce: Reduce = "mean"
    ) -> None:
        super().__init__(problem, beta=beta, reduce=reduce)

    def loss(self, margin: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.ipo_loss`."""
        return ipo_loss(margin, self.beta)
