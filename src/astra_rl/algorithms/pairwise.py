"""Learning from pairs of siblings: what all algorithms that prefer one attack to another share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from astra_rl.algorithms.losses import sequence_logprob
from astra_rl.algorithms.options import PAIR_LOSS, PAIRS
from astra_rl.algorithms.pairing import Matching, Pairs
from astra_rl.algorithms.weighting import SharedNodes, normalised
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_loss, checked_logprobs, token_mask
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.text import context_key
from astra_rl.errors import ConfigurationError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import NotNegative, Positive, Share, check_ranges

Reduce = Literal["sum", "mean"]
"""How the log-probabilities of the tokens of an attack are combined."""


class PairScores(NamedTuple):
    """Log-probabilities of one pair: (chosen, rejected).

    Attributes:
        sums: Sums over the tokens.
        reduced: Sums or means, as the loss takes them.
    """

    sums: tuple[float, float]
    reduced: tuple[float, float]


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities of the chosen and the rejected attack of each pair, (B,) each."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """How much more likely the chosen attack is than the rejected one, in nats, (B,)."""
        return self.chosen - self.rejected

    def over(self, reference: PairLogprobs) -> PairLogprobs:
        """Return the log-ratios to a reference."""
        return PairLogprobs(
            self.chosen - reference.chosen.to(self.chosen),
            self.rejected - reference.rejected.to(self.rejected),
        )


@dataclass(frozen=True)
class ReducedLogprobs:
    """Log-probabilities of the pairs of a batch, as `PairScores` has them of one pair."""

    sums: PairLogprobs
    reduced: PairLogprobs

    @classmethod
    def of_rows(cls, logprobs: Tensor) -> ReducedLogprobs:
        """Split (2, 2B): sums and reduced; all chosen attacks, then all rejected ones."""
        (sums, rejected_sums), (chosen, rejected) = logprobs.reshape(2, 2, -1)
        return cls(PairLogprobs(sums, rejected_sums), PairLogprobs(chosen, rejected))

    @classmethod
    def of_scores(cls, scores: Sequence[PairScores]) -> ReducedLogprobs:
        """Collate the scores of single pairs."""
        return cls(*(PairLogprobs(*torch.tensor(rows).T) for rows in zip(*scores, strict=True)))

    def scores(self) -> list[PairScores]:
        """Return the scores of each pair."""
        sums = zip(self.sums.chosen.tolist(), self.sums.rejected.tolist(), strict=True)
        reduced = zip(self.reduced.chosen.tolist(), self.reduced.rejected.tolist(), strict=True)
        return [PairScores(*each) for each in zip(sums, reduced, strict=True)]


class PairOptions(TypedDict, total=False):
    """Options of all pairwise algorithms, see `Pairs`."""

    pairs: str | Matching
    min_gap: float
    credit: str
    gamma: float
    shared_nodes: SharedNodes


@dataclass(frozen=True)
class DPOStep:
    """One preference: after `context`, `suffix_pos` was rewarded more than `suffix_neg`.

    Attributes:
        context: State before the attack.
        suffix_pos: The chosen attack.
        suffix_neg: The rejected attack.
        gap: Difference of their rewards.
        reference: Log-probabilities of both under the frozen reference; None if the loss needs no
            reference, or for a step that did not come through `PairwiseAlgorithm.prepare`.
        weight: Weight in the loss: the mean of the weights of both attacks, see `SharedNodes`.
            `PairwiseAlgorithm.prepare` scales the weights to a mean of 1.
    """

    context: str
    suffix_pos: str
    suffix_neg: str
    gap: float = 1.0
    reference: PairScores | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class DPOBatch:
    """Several preferences, index-aligned; `weights` None is 1 each."""

    contexts: Sequence[str]
    suffix_pos: Sequence[str]
    suffix_neg: Sequence[str]
    gaps: Sequence[float]
    references: Sequence[PairScores | None]
    weights: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.contexts)

    @property
    def suffixes(self) -> list[str]:
        """All chosen attacks, then all rejected ones."""
        return [*self.suffix_pos, *self.suffix_neg]


@document_options(PAIR_LOSS, PAIRS)
class PairwiseAlgorithm(Algorithm[str, str, DPOStep, DPOBatch]):
    """Base of pairwise algorithms: pairs of siblings, and a loss of the margin of each pair.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.

    Attributes:
        needs_reference: Whether the loss uses log-probabilities under the frozen reference.

    Raises:
        ConfigurationError: A value is out of range.
    """

    needs_reference = True

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        beta: Positive = 0.1,
        reduce: Reduce = "sum",
        pairs: str | Matching = "best_worst",
        min_gap: NotNegative = 0.0,
        credit: str = "turn",
        gamma: Share = 0.9,
        shared_nodes: SharedNodes = "expected_return",
    ) -> None:
        super().__init__(problem)
        check_ranges(PairwiseAlgorithm, {"beta": beta})
        if reduce not in ("sum", "mean"):
            raise ConfigurationError(f"reduce={reduce!r}; choose 'sum' or 'mean'.")
        self.beta = beta
        self.reduce = reduce
        self.pairs = Pairs(pairs, min_gap, credit, gamma, shared_nodes)
        self._metrics: Metrics = {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and names are known."""
        super().check_options(**options)
        Pairs(options.get("pairs", "best_worst"), credit=options.get("credit", "turn"))

    @abstractmethod
    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """Loss of each pair, (B,).

        Args:
            margin: Log-probability of the chosen minus the rejected attack, minus the same under
                the reference if the loss has one, (B,).
            gap: Reward of the chosen minus the rejected attack, (B,).
        """

    def flatten(self, graph: Graph[str, str]) -> Sequence[DPOStep]:
        """Return the pairs of every set of siblings."""
        return [
            DPOStep(
                better.context,
                better.attack,
                worse.attack,
                gap,
                weight=(better.weight + worse.weight) / 2,
            )
            for better, worse, gap in self.pairs(graph)
        ]

    def prepare(self, steps: Sequence[DPOStep]) -> Sequence[DPOStep]:
        """Scale the weights to a mean of 1, and score the pairs under the reference if needed."""
        self._metrics = {
            "pairs": float(self.pairs.found),
            "pairs/tied": float(self.pairs.tied),
            "pairs/missing": float(self.pairs.missing),
        }
        self.pairs.reset()
        weights = normalised([step.weight for step in steps])
        steps = [replace(step, weight=weight) for step, weight in zip(steps, weights, strict=True)]
        if not steps or not self.needs_reference:
            return steps
        scores = self._score_reference(self.collate_fn(steps)).scores()
        return [replace(step, reference=pair) for step, pair in zip(steps, scores, strict=True)]

    def experience_metrics(self) -> Metrics:
        """Return the numbers of pairs, of tied pairs, and of turns without a reward."""
        return self._metrics

    def collate_fn(self, steps: Sequence[DPOStep]) -> DPOBatch:
        """Collate pairs to a batch."""
        return DPOBatch(
            [step.context for step in steps],
            [step.suffix_pos for step in steps],
            [step.suffix_neg for step in steps],
            [step.gap for step in steps],
            [step.reference for step in steps],
            [step.weight for step in steps],
        )

    def step(self, batch: DPOBatch) -> tuple[Tensor, Metrics]:
        """Return the weighted mean loss over the pairs, and metrics under TRL's names."""
        # One call for both attacks of a pair: they share their context, which is encoded once.
        contexts = [*batch.contexts, *batch.contexts]
        score = self.problem.get_attacker_logprobs
        policy = ReducedLogprobs.of_rows(
            self._logprobs(score, contexts, batch.suffixes, batch.suffixes, grad=True)
        )
        # TRL logs sums, also for IPO; SimPO, without a reference, logs what its loss takes.
        if self.needs_reference:
            reference = self._reference(batch)
            margin = policy.reduced.over(reference.reduced).margin
            logged, implicit = policy.sums, policy.sums.over(reference.sums)
        else:
            margin = policy.reduced.margin
            logged = implicit = policy.reduced
        losses = self.loss(margin, torch.tensor(batch.gaps).to(margin))
        if batch.weights is not None:
            losses = losses * torch.tensor(batch.weights).to(losses)
        loss = losses.mean()
        check_loss(loss, source=type(self).__name__)
        chosen = self.beta * implicit.chosen.detach()
        rejected = self.beta * implicit.rejected.detach()
        return loss, {
            "loss": float(loss.detach()),
            "rewards/chosen": float(chosen.mean()),
            "rewards/rejected": float(rejected.mean()),
            "rewards/margins": float((chosen - rejected).mean()),
            "rewards/accuracies": float((chosen > rejected).float().mean()),
            "logps/chosen": float(logged.chosen.detach().mean()),
            "logps/rejected": float(logged.rejected.detach().mean()),
        }

    def _reference(self, batch: DPOBatch) -> ReducedLogprobs:
        """Scores under the reference: those of `prepare`, or computed now."""
        known = [pair for pair in batch.references if pair is not None]
        if len(known) < len(batch):  # a batch that did not come through prepare
            return self._score_reference(batch)
        return ReducedLogprobs.of_scores(known)

    def _score_reference(self, batch: DPOBatch) -> ReducedLogprobs:
        """Run the reference on the attacks of a batch; one that is in several pairs is run once."""
        rows = list(zip([*batch.contexts, *batch.contexts], batch.suffixes, strict=True))
        keys = [(context_key(context), id(suffix)) for context, suffix in rows]
        once = dict(zip(keys, rows, strict=True))
        contexts, suffixes = zip(*once.values(), strict=True)
        # str drops the attacker's token ids: the baseline may have another vocabulary.
        texts = [str(suffix) for suffix in suffixes]
        score = self.problem.get_reference_logprobs
        scores = self._logprobs(score, contexts, suffixes, texts, grad=False)
        positions = {key: row for row, key in enumerate(once)}
        return ReducedLogprobs.of_rows(scores[:, [positions[key] for key in keys]])

    def _logprobs(
        self,
        score: Callable[[Sequence[str], Sequence[str]], Tensor],
        contexts: Sequence[str],
        suffixes: Sequence[str],
        texts: Sequence[str],
        *,
        grad: bool,
    ) -> Tensor:
        """Log-probabilities of attacks, (2, N): sums, then reduced as the loss takes them.

        `texts` determines the token count of each.
        """
        logprobs = checked_logprobs(score, contexts, suffixes, grad=grad)
        mask = token_mask(logprobs, texts)
        reductions = ("sum", self.reduce)
        return torch.stack([sequence_logprob(logprobs, mask, reduce=each) for each in reductions])
