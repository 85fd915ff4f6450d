"""KTO: preference optimisation from unpaired desirable and undesirable attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from astra_rl.algorithms.advantages import TIE_TOLERANCE
from astra_rl.algorithms.losses import kto_loss, sequence_logprob
from astra_rl.algorithms.options import WEIGHTING
from astra_rl.algorithms.weighting import (
    SharedNodes,
    check_shared_nodes,
    node_weights,
    normalised,
    weighted_mean_of_present,
)
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import (
    check_loss,
    checked_logprobs,
    is_missing,
    token_mask,
)
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.errors import ContractError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Positive, Range
from astra_rl.infra.registry import named

MAX_IMBALANCE = 20.0
"""Maximum ratio of the class weights, so that a single success does not dominate the loss."""


@dataclass(frozen=True)
class KTOStep:
    """One attack with its label.

    Attributes:
        context: State before the attack.
        attack: The attack.
        reward: Its reward.
        desirable: Label; set by `KTO.prepare`.
        weight: Weight of the turn, see `SharedNodes`. `KTO.prepare` scales the weights to a mean of
            1 and multiplies them by the weight of the class.
        reference: Log-probability under the frozen reference, in nats; set by `KTO.prepare`.
        divergence: KL of the experience from the reference, in nats per attack; set by
            `KTO.prepare`.
    """

    context: str
    attack: str
    reward: float
    desirable: bool = False
    weight: float = 1.0
    reference: float | None = None
    divergence: float = 0.0


@dataclass(frozen=True)
class KTOBatch:
    """Several attacks, index-aligned; tensors have shape (B,)."""

    contexts: Sequence[str]
    attacks: Sequence[str]
    desirable: Tensor
    weights: Tensor
    references: Tensor
    divergences: Tensor

    def __len__(self) -> int:
        return len(self.contexts)


@named("kto")
@document_options(WEIGHTING)
class KTO(Algorithm[str, str, KTOStep, KTOBatch]):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306).

    Attacks are labelled one by one, so it needs no siblings and suits binary moderators. The paper
    estimates the KL from mismatched pairs of a fixed data set; here attacks are sampled from the
    attacker, so the KL is estimated from them, once per experience. An experience of one class only
    has no learning signal and is left out, as ties are by other algorithms: raising (or lowering)
    everything that the attacker sampled does not depend on the reward, and at the reference its
    expected gradient is zero.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        beta: Strength of the KL regularisation: how fast gains and losses saturate; positive.
        threshold: Minimum reward of a desirable attack. None: the mean reward of the experience;
            attacks whose reward equals it are left out.
        desirable_weight: Weight of desirable attacks, positive. None balances the total weights of
            the two classes, within a factor of 20 per attack.
        undesirable_weight: Weight of undesirable attacks, positive.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        beta: Positive = 0.1,
        threshold: Annotated[float, Range()] | None = 0.5,
        desirable_weight: Positive | None = None,
        undesirable_weight: Positive = 1.0,
        shared_nodes: SharedNodes = "expected_return",
    ) -> None:
        super().__init__(problem)
        KTO.check_options(
            beta=beta,
            threshold=threshold,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        check_shared_nodes(shared_nodes)
        self.shared_nodes = shared_nodes
        self.beta = beta
        self.threshold = threshold
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self._metrics: Metrics = {}

    def flatten(self, graph: Graph[str, str]) -> Sequence[KTOStep]:
        """Return one step per turn whose reward is known."""
        return [
            KTOStep(node.context, node.attack, node.reward, weight=weight)
            for node, weight in zip(
                graph.nodes(), node_weights(graph, self.shared_nodes), strict=True
            )
            if not is_missing(node.reward)
        ]

    def prepare(self, steps: Sequence[KTOStep]) -> Sequence[KTOStep]:
        """Label the attacks, and compute their log-probabilities under the reference, once."""
        if not steps:
            self._metrics = {}
            return steps
        bar, tolerance = self.threshold, 0.0
        weights = [step.weight for step in steps]
        if bar is None:
            bar = weighted_mean_of_present((step.reward for step in steps), weights)
            tolerance = TIE_TOLERANCE
        ours = self._totals(self.problem.get_attacker_logprobs, steps, [s.attack for s in steps])
        theirs = self._totals(
            # str drops the attacker's token ids: the baseline may have another vocabulary.
            self.problem.get_reference_logprobs,
            steps,
            [str(step.attack) for step in steps],
        )
        ratios = (ours - theirs).tolist()
        divergence = max(0.0, weighted_mean_of_present(ratios, weights))
        kept = [
            (step, step.reward >= bar, reference)
            for step, reference in zip(steps, theirs.tolist(), strict=True)
            if abs(step.reward - bar) >= tolerance
        ]
        if len({good for _, good, _ in kept}) == 1:
            # Nothing is told from anything: the gradient does not depend on the reward.
            self._metrics = {"kl": divergence, "desirable": float(kept[0][1])}
            return []
        weights = normalised([step.weight for step, _, _ in kept])
        share = weighted_mean_of_present((float(good) for _, good, _ in kept), weights)
        self._metrics = {"kl": divergence, "desirable": share}
        wanted = self.desirable_weight
        if wanted is None:
            ratio = (1 - share) / share if share else 1.0
            wanted = self.undesirable_weight * min(max(ratio, 1 / MAX_IMBALANCE), MAX_IMBALANCE)
        return [
            replace(
                step,
                desirable=good,
                weight=weight * (wanted if good else self.undesirable_weight),
                reference=reference,
                divergence=divergence,
            )
            for (step, good, reference), weight in zip(kept, weights, strict=True)
        ]

    def collate_fn(self, steps: Sequence[KTOStep]) -> KTOBatch:
        """Collate attacks to a batch.

        Raises:
            ContractError: A step did not come through `prepare`.
        """
        references = [step.reference for step in steps if step.reference is not None]
        if len(references) < len(steps):
            raise ContractError(
                "collate_fn received a step without a label. Call prepare on the steps of a whole "
                "experience first, as Harness does."
            )
        return KTOBatch(
            [step.context for step in steps],
            [step.attack for step in steps],
            torch.tensor([step.desirable for step in steps]),
            torch.tensor([step.weight for step in steps]),
            torch.tensor(references),
            torch.tensor([step.divergence for step in steps]),
        )

    def step(self, batch: KTOBatch) -> tuple[Tensor, Metrics]:
        """Return the mean loss over the attacks, and implicit rewards under TRL's metric names."""
        logprobs = checked_logprobs(
            self.problem.get_attacker_logprobs, batch.contexts, batch.attacks, grad=True
        )
        mask = token_mask(logprobs, batch.attacks)
        totals = sequence_logprob(logprobs, mask, reduce="sum")
        ratio = totals - batch.references.to(totals)
        good = batch.desirable.to(ratio.device)
        losses = kto_loss(ratio, good, batch.divergences.to(ratio), self.beta)
        loss = (batch.weights.to(ratio) * losses).mean()
        check_loss(loss, source=type(self).__name__)
        implicit = self.beta * ratio.detach()
        logs = {"loss": float(loss.detach())}
        for name, rows in (("chosen", good), ("rejected", ~good)):
            if rows.any():
                logs[f"rewards/{name}"] = float(implicit[rows].mean())
                logs[f"logps/{name}"] = float(totals[rows].detach().mean())
        if good.any() and not good.all():
            logs["rewards/margins"] = logs["rewards/chosen"] - logs["rewards/rejected"]
        return loss, logs

    def experience_metrics(self) -> Metrics:
        """Return the KL from the reference, and the share of desirable attacks."""
        return self._metrics

    def _totals(
        self,
        score: Callable[[Sequence[str], Sequence[str]], Tensor],
        steps: Sequence[KTOStep],
        texts: Sequence[str],
    ) -> Tensor:
        logprobs = checked_logprobs(
            score, [step.context for step in steps], [step.attack for step in steps], grad=False
        )
        return sequence_logprob(logprobs, token_mask(logprobs, texts), reduce="sum")
