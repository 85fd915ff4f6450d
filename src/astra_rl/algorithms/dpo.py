"""Preference optimisation on pairs of siblings: DPO and its relatives."""

from __future__ import annotations

from typing import Annotated, Unpack

from torch import Tensor

from astra_rl.algorithms.losses import dpo_loss, hinge_loss, ipo_loss, simpo_loss
from astra_rl.algorithms.options import PAIR_LOSS, PAIRS
from astra_rl.algorithms.pairwise import DPOBatch as DPOBatch
from astra_rl.algorithms.pairwise import DPOStep as DPOStep
from astra_rl.algorithms.pairwise import PairLogprobs as PairLogprobs
from astra_rl.algorithms.pairwise import PairOptions as PairOptions
from astra_rl.algorithms.pairwise import PairScores as PairScores
from astra_rl.algorithms.pairwise import PairwiseAlgorithm as PairwiseAlgorithm
from astra_rl.algorithms.pairwise import Reduce
from astra_rl.algorithms.pairwise import ReducedLogprobs as ReducedLogprobs
from astra_rl.core.problem import Problem
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import NotNegative, Positive, Range, check_ranges
from astra_rl.infra.registry import named


@named("dpo")
@document_options(PAIR_LOSS, PAIRS)
class DPO(PairwiseAlgorithm):
    """Direct preference optimisation on siblings (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.dpo_loss`."""
        return dpo_loss(margin, self.beta)


@named("cdpo")
@document_options(PAIR_LOSS, PAIRS)
class CDPO(PairwiseAlgorithm):
    """Conservative DPO, for noisy preferences (Mitchell 2023).

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        label_smoothing: Assumed probability that the preference of a pair is inverted, in
            [0, 0.5).

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.1,
        beta: Positive = 0.1,
        reduce: Reduce = "sum",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(problem, beta=beta, reduce=reduce, **options)
        check_ranges(CDPO, {"label_smoothing": label_smoothing})
        self.label_smoothing = label_smoothing

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.dpo_loss`."""
        return dpo_loss(margin, self.beta, self.label_smoothing)


@named("hinge")
@document_options(PAIR_LOSS, PAIRS)
class Hinge(PairwiseAlgorithm):
    """Hinge loss on siblings, as in SLiC-HF (Zhao et al. 2023, arXiv 2305.10425).

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.hinge_loss`."""
        return hinge_loss(margin, self.beta)


@named("ipo")
@document_options(PAIR_LOSS, PAIRS)
class IPO(PairwiseAlgorithm):
    """Identity preference optimisation on siblings (Azar et al. 2023, arXiv 2310.12036).

    Log-probabilities are means over tokens, as its authors confirmed; ``reduce="sum"`` is what the
    code of ASTPrompter does.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        beta: Positive = 0.1,
        reduce: Reduce = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(problem, beta=beta, reduce=reduce, **options)

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.ipo_loss`."""
        return ipo_loss(margin, self.beta)


@named("margin_ipo")
@document_options(PAIR_LOSS, PAIRS)
class MarginIPO(PairwiseAlgorithm):
    """IPO with a target margin proportional to the difference of rewards (MTSA, arXiv 2505.17147).

    With sums over tokens it converges to the reference reweighted by ``exp(reward / (2 * beta))``,
    the optimum of a KL coefficient of ``2 * beta`` in the reward. The paper's code uses 0.01.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        beta: Positive = 0.01,
        reduce: Reduce = "sum",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(problem, beta=beta, reduce=reduce, **options)

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.ipo_loss`."""
        return ipo_loss(margin, self.beta, gap)


@named("simpo")
@document_options(PAIR_LOSS, PAIRS)
class SimPO(PairwiseAlgorithm):
    """Simple preference optimisation on siblings (Meng et al. 2024, arXiv 2405.14734).

    It has no reference, so there is no KL regularisation towards ordinary language.

    Args:
        problem: Computes log-probabilities of the attacker.
        beta: Scale of the margin, positive; the paper uses 2 to 2.5.
        margin: Target of the scaled margin, called gamma in the paper, which uses 0.5 to 1.6; not
            negative.

    Raises:
        ConfigurationError: A value is out of range.
    """

    needs_reference = False

    def __init__(
        self,
        problem: Problem[str, str],
        *,
        beta: Positive = 2.0,
        margin: NotNegative = 1.0,
        reduce: Reduce = "mean",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(problem, beta=beta, reduce=reduce, **options)
        check_ranges(SimPO, {"margin": margin})
        self.margin = margin

    def loss(self, margin: Tensor, gap: Tensor) -> Tensor:
        """See `astra_rl.algorithms.losses.simpo_loss`."""
        return simpo_loss(margin, self.beta, self.margin)
