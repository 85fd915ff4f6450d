"""Base class of the policy-gradient family."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.entropy import EntropyBonus
from astra_rl.algorithms.estimators import AdvantageEstimator
from astra_rl.algorithms.format_masking import FormatMask
from astra_rl.algorithms.kl import DEFAULT_HORIZON, KLControl
from astra_rl.algorithms.losses import (
    KLEstimator,
    KLGradient,
    PolicyLoss,
    is_clipped,
    masked_mean,
    policy_loss,
    probability_ratio,
    reduce_tokens,
    sequence_logprob,
)
from astra_rl.algorithms.mismatch import (
    Correction,
    OldLogprobs,
    correct_mismatch,
    correction_of,
    logprob_differences,
    sampler_logprobs,
)
from astra_rl.algorithms.options import POLICY
from astra_rl.algorithms.policy_steps import (
    PolicyBatch,
    PolicyStep,
    PreparedStep,
    ScoredStep,
    collate,
    like,
    steps_of,
)
from astra_rl.algorithms.weighting import SharedNodes, check_shared_nodes, normalised
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import check_loss, checked_logprobs, token_mask
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.turns import give_way
from astra_rl.errors import ConfigurationError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count, NotNegative, Positive, check_ranges


class PolicyOptions(TypedDict, total=False):
    """Options of all policy-gradient algorithms."""

    kl_in_reward: float
    kl_in_loss: float
    kl_estimator: KLEstimator | None
    kl_corrected: bool
    kl_gradient: KLGradient
    kl_target: float | None
    kl_horizon: float
    entropy_coef: float
    entropy_target: float | None
    entropy_horizon: float
    epochs: int
    old_logprobs: OldLogprobs
    correction: Correction
    correction_cap: float | None
    shared_nodes: SharedNodes
    format_pattern: str | None


@document_options(POLICY)
class PolicyGradient(Algorithm[str, str, PolicyStep, PolicyBatch]):
    """Base of the policy-gradient algorithms: an advantage estimator and a loss.

    ``PolicyGradient(problem, MonteCarloReturn(Credit()), PolicyLoss(surrogate="reinforce"))``, for
    instance, is REINFORCE without a baseline.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        estimator: Computes advantages.
        loss: Configuration of the loss.

    Attributes:
        has_ratio: Whether the loss of the class corrects for a policy that has moved since it
            sampled, so that an experience can be used for several epochs.

    Raises:
        ConfigurationError: A value is out of range, or the problem does not sample attacks from
            the distribution that it scores.
    """

    needs_exact_sampling = True
    has_ratio: ClassVar[bool] = True

    def __init__(
        self,
        problem: Problem[str, str],
        estimator: AdvantageEstimator,
        loss: PolicyLoss,
        /,
        *,
        kl_in_reward: NotNegative = 0.0,
        kl_in_loss: NotNegative = 0.0,
        kl_estimator: KLEstimator | None = None,
        kl_corrected: bool = True,
        kl_gradient: KLGradient = "token",
        kl_target: Positive | None = None,
        kl_horizon: Positive = DEFAULT_HORIZON,
        entropy_coef: NotNegative = 0.0,
        entropy_target: Positive | None = None,
        entropy_horizon: Positive = DEFAULT_HORIZON,
        epochs: Count = 1,
        old_logprobs: OldLogprobs = "sampled",
        correction: Correction = "sequence_mask",
        correction_cap: Positive | None = None,
        shared_nodes: SharedNodes = "expected_return",
        format_pattern: str | None = None,
    ) -> None:
        super().__init__(problem)
        numbers = {
            "kl_in_reward": kl_in_reward,
            "kl_in_loss": kl_in_loss,
            "kl_target": kl_target,
            "kl_horizon": kl_horizon,
            "entropy_coef": entropy_coef,
            "entropy_target": entropy_target,
            "entropy_horizon": entropy_horizon,
            "epochs": epochs,
            "correction_cap": correction_cap,
        }
        check_ranges(PolicyGradient, numbers)
        self._check_epochs(epochs, has_ratio=loss.surrogate != "reinforce")
        self.correction = correction_of(
            old_logprobs, correction, correction_cap, is_whole=loss.ratio == "sequence_sum"
        )
        check_shared_nodes(shared_nodes)
        self.estimator = estimator
        self.loss = loss
        self.kl = KLControl(
            in_reward=kl_in_reward,
            in_loss=kl_in_loss,
            estimator=kl_estimator,
            corrected=kl_corrected,
            gradient=kl_gradient,
            target=kl_target,
            horizon=kl_horizon,
        )
        self.entropy = EntropyBonus(entropy_coef, entropy_target, entropy_horizon, kl_gradient)
        self.epochs = epochs
        self.old_logprobs = old_logprobs
        self.shared_nodes = shared_nodes
        self.format_tokens = None if format_pattern is None else FormatMask(format_pattern)
        self._mismatch: Metrics = {}

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and do not exclude each other."""
        super().check_options(**options)
        kl = {name: value for name, value in options.items() if name.startswith("kl_")}
        KLControl(**{name.removeprefix("kl_"): value for name, value in kl.items()})
        EntropyBonus(
            options.get("entropy_coef", 0.0),
            options.get("entropy_target"),
            options.get("entropy_horizon", DEFAULT_HORIZON),
        )
        correction_of(
            options.get("old_logprobs", "sampled"),
            options.get("correction", "sequence_mask"),
            options.get("correction_cap"),
        )
        if "credit" in options:
            Credit(options["credit"])
        if options.get("format_pattern") is not None:
            FormatMask(options["format_pattern"])
        cls._check_epochs(options.get("epochs", cls.epochs), has_ratio=cls.has_ratio)

    @classmethod
    def uses_reference(cls, **options: Any) -> bool:
        """Whether there is a KL penalty."""
        return any(options.get(name) for name in ("kl_in_reward", "kl_in_loss"))

    @classmethod
    def is_off_policy(cls, **options: Any) -> bool:
        """Whether the loss is corrected for the policy that sampled, see `mismatch`."""
        return options.get("old_logprobs") == "corrected"

    @classmethod
    def _check_epochs(cls, epochs: int, *, has_ratio: bool) -> None:
        if epochs > 1 and not has_ratio:
            raise ConfigurationError(
                f"epochs={epochs}; {cls.__name__} does not correct for a policy that has moved "
                "since it sampled. Use 1, or an algorithm with a ratio, such as RLOO or PPO."
            )

    def flatten(self, graph: Graph[str, str]) -> Sequence[PolicyStep]:
        """Return one step per node, siblings side by side.

        Nodes with a missing reward are included, because reward is passed back along the tree;
        `prepare` leaves out steps without a gradient.
        """
        return steps_of(graph, self.shared_nodes)

    def prepare(self, steps: Sequence[PolicyStep]) -> Sequence[PreparedStep]:
        """Add log-probabilities, KL penalties and advantages, once per experience.

        An attack without tokens or without an advantage is left out. The weights of the others are
        scaled to a mean of 1 over attacks, or over tokens if the loss is a mean over tokens.
        """
        scored = self._with_old_logprobs(steps)
        give_way()
        self.entropy.adapt(scored)
        if self.kl.needs_reference:
            scored = self.kl.with_penalties(self._with_reference_logprobs(scored))
        prepared = self._with_mean_weight_one(self.estimator.estimate(self.with_values(scored)))
        if self.format_tokens is None:
            return prepared
        return [self.format_tokens.apply(step, self.problem.token_ends) for step in prepared]

    def batched_with(self, step: PolicyStep) -> Hashable:
        """Keep the siblings of one episode together.

        Not all steps with one context: a batch of one prompt would be a poor sample of the
        experience where an experience makes several optimizer steps.
        """
        return step.place.group("siblings")

    def collate_fn(self, steps: Sequence[PolicyStep]) -> PolicyBatch:
        """Collate prepared steps to a batch, right-padded."""
        return collate(steps)

    def weight(self, batch: PolicyBatch) -> float:
        """Return the denominator of the loss: the number of tokens, or of attacks."""
        return float(sum(batch.token_counts) if self.loss.reduce == "token" else len(batch))

    def step(self, batch: PolicyBatch) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch, and diagnostics under TRL's metric names."""
        logprobs = checked_logprobs(
            self.problem.get_attacker_logprobs, batch.contexts, batch.attacks, grad=True
        )
        mask = token_mask(logprobs, batch.attacks)
        old, advantages = like(batch.old_logprobs, logprobs), like(batch.advantages, logprobs)
        tokens = policy_loss(logprobs, old, advantages, mask, self.loss)
        if batch.corrections is not None:
            tokens = tokens * like(batch.corrections, logprobs)
        logs = self._diagnostics(logprobs.detach(), old, advantages, mask)
        tokens, more = self.with_objectives(tokens, batch, mask)
        logs |= more
        if batch.reference_logprobs is not None:
            reference = like(batch.reference_logprobs, logprobs)
            logs["kl"] = float(masked_mean(logprobs.detach() - reference, mask))
            if self.kl.in_loss:
                penalty = self.kl.loss_penalty(logprobs, reference, old)
                tokens = tokens + self.kl.in_loss * self._per_token(penalty, mask)
        if self.entropy.is_on:
            penalty = self._per_token(self.entropy.penalty(logprobs, old), mask)
            tokens = tokens + self.entropy.coefficient.value * penalty
        loss = reduce_tokens(
            tokens,
            mask,
            batch.weights.to(logprobs.device),
            reduce=self.loss.reduce,
            divisor=self.loss.divisor,
        )
        check_loss(loss, source=type(self).__name__)
        return loss, {"loss": float(loss.detach()), **logs}

    def with_values(self, steps: Sequence[ScoredStep]) -> Sequence[ScoredStep]:
        """Return the steps with value estimates, if the algorithm has a value function."""
        return steps

    def with_objectives(
        self, tokens: Tensor, batch: PolicyBatch, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Return the loss of each token, (B, T), with further objectives, and metrics to log."""
        return tokens, {}

    def experience_metrics(self) -> Metrics:
        """Return metrics of the advantage estimator and of adaptive coefficients.

        Unless ``old_logprobs="sampled"`` also the difference from the sampler's log-probabilities,
        and with ``"corrected"`` the ratios, see `correct_mismatch`.
        """
        return {
            **self.estimator.metrics(),
            **self.kl.metrics(),
            **self.entropy.metrics(),
            **self._mismatch,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the advantage estimator and of the coefficients."""
        return {
            "estimator": self.estimator.state_dict(),
            "kl": self.kl.state_dict(),
            "entropy": self.entropy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.estimator.load_state_dict(state["estimator"])
        self.kl.load_state_dict(state["kl"])
        if "entropy" in state:  # not in states of earlier versions
            self.entropy.load_state_dict(state["entropy"])

    def _per_token(self, penalty: Tensor, mask: Tensor) -> Tensor:
        """Return a penalty of each token, (B, T), as one that is reduced like the policy loss.

        Where the policy loss of each token is that of the whole attack, so is the penalty, (B, 1).
        """
        if self.loss.ratio != "sequence_sum":
            return penalty
        return sequence_logprob(penalty, mask, reduce="sum")[:, None]

    def _diagnostics(
        self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> Metrics:
        # A one-sample estimate per token of the entropy of the sampling policy.
        logs = {"entropy": -float(masked_mean(old, mask))}
        if self.loss.surrogate == "reinforce":
            return logs
        ratio = probability_ratio(logprobs, old, mask, level=self.loss.ratio).expand_as(logprobs)
        low, high = is_clipped(ratio, advantages, self.loss)
        logs["ratio/mean"] = float(masked_mean(ratio, mask))
        logs["ratio/max"] = float(ratio[mask].max()) if mask.any() else 1.0
        if self.loss.surrogate == "cispo":
            return {**logs, "cispo_clip_ratio": float(masked_mean(high.float(), mask))}
        return {
            **logs,
            "clip_ratio/low_mean": float(masked_mean(low.float(), mask)),
            "clip_ratio/high_mean": float(masked_mean(high.float(), mask)),
            "clip_ratio/region_mean": float(masked_mean((low | high).float(), mask)),
        }

    def _with_mean_weight_one(self, steps: Sequence[PreparedStep]) -> list[PreparedStep]:
        by_token = self.loss.reduce == "token"
        sizes = [len(step.old_logprobs) if by_token else 1 for step in steps]
        weights = normalised([step.weight for step in steps], sizes)
        return [replace(step, weight=weight) for step, weight in zip(steps, weights, strict=True)]

    def _with_old_logprobs(self, steps: Sequence[PolicyStep]) -> list[ScoredStep]:
        sampled = [sampler_logprobs(step.attack) for step in steps]
        is_scored = self.old_logprobs != "sampled"
        # A forward pass only where the sampler's log-probabilities are unknown, or if asked for.
        unknown = [index for index, row in enumerate(sampled) if row is None or is_scored]
        unscored = [steps[index] for index in unknown]
        scored = _score(
            self.problem.get_attacker_logprobs, unscored, [step.attack for step in unscored]
        )
        known = dict(zip(unknown, scored, strict=True))
        self._mismatch = logprob_differences(sampled, known) if is_scored else {}
        found = [
            step.scored(known.get(index, row or ()))
            for index, (step, row) in enumerate(zip(steps, sampled, strict=True))
        ]
        if self.correction is not None:
            found, ratios = correct_mismatch(found, sampled, self.correction)
            self._mismatch |= ratios
        return found

    def _with_reference_logprobs(self, steps: Sequence[ScoredStep]) -> list[ScoredStep]:
        # str drops the attacker's token ids: the baseline may have another vocabulary.
        scored = _score(
            self.problem.get_reference_logprobs, steps, [str(step.attack) for step in steps]
        )
        for step, values in zip(steps, scored, strict=True):
            if self.kl.in_loss and len(values) != len(step.old_logprobs):
                raise ConfigurationError(
                    "kl_in_loss compares token by token, and the baseline has another tokenizer "
                    "than the attacker. Use kl_in_reward, or a baseline with the same tokenizer."
                )
        return [
            replace(step, reference_logprobs=values)
            for step, values in zip(steps, scored, strict=True)
        ]


def _score(
    score: Callable[[Sequence[Any], Sequence[Any]], Tensor],
    steps: Sequence[PolicyStep],
    texts: Sequence[str],
) -> list[tuple[float, ...]]:
    """Log-probabilities of the steps' attacks; `texts` determines the token count of each."""
    if not steps:
        return []
    logprobs = checked_logprobs(
        score, [step.context for step in steps], [step.attack for step in steps], grad=False
    )
    mask = token_mask(logprobs, texts)
    return [
        tuple(row[:count])
        for row, count in zip(logprobs.tolist(), mask.sum(dim=1).tolist(), strict=True)
    ]
