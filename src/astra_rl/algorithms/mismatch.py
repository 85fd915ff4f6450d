"""Correction of the mismatch between the sampler's policy and the policy that is trained.

An inference engine rounds differently from the model that is trained, or runs at another precision,
so attacks are sampled from ``mu`` and not from ``pi_old``, the policy that their log-probabilities
are scored under. Multiplying the policy loss by ``pi_old / mu`` makes its expected gradient that of
``pi_old`` again; bounding the ratio trades variance for bias (Yao et al. 2025, *Your efficient RL
framework secretly brings you off-policy RL training*; TRL's ``vllm_importance_sampling_mode``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from astra_rl.algorithms.losses import MAX_LOG_RATIO
from astra_rl.algorithms.policy_steps import ScoredStep, pad
from astra_rl.core.common import Metrics
from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Positive, check_fields

OldLogprobs = Literal["sampled", "scored", "corrected"]
"""Where the log-probabilities under the sampling policy come from, see `PolicyGradient`."""
Correction = Literal["sequence_mask", "token_truncation"]
DEFAULT_CAPS: Mapping[Correction, float] = {"sequence_mask": 3.0, "token_truncation": 2.0}


@dataclass(frozen=True, kw_only=True)
class MismatchCorrection:
    """How the ratio ``pi_old / mu`` of an attack weights its policy loss.

    Attributes:
        kind: ``"sequence_mask"`` weights all tokens of an attack by the ratio of the whole attack,
            and those of an attack whose ratio is above the cap by 0: unbiased but for the masked
            attacks. ``"token_truncation"`` weights each token by its own ratio, at most the cap:
            of lower variance for long attacks, and biased, because it omits the tokens before.
        cap: Largest ratio, positive; None is 3 for the mask and 2 for the truncation.

    Raises:
        ConfigurationError: A value is out of range.
    """

    kind: Correction = "sequence_mask"
    cap: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in get_args(Correction):
            raise ConfigurationError(
                f"correction={self.kind!r}; choose from {list(get_args(Correction))}."
            )

    @property
    def limit(self) -> float:
        """The cap, with the default of the kind."""
        return DEFAULT_CAPS[self.kind] if self.cap is None else self.cap


def correction_of(
    old_logprobs: OldLogprobs, kind: Correction, cap: float | None, *, is_whole: bool = False
) -> MismatchCorrection | None:
    """Return the correction that the options of an algorithm ask for; None for none.

    Args:
        old_logprobs: The option ``old_logprobs``.
        kind: The option ``correction``.
        cap: The option ``correction_cap``.
        is_whole: Whether the loss has one ratio per attack, the product of those of its tokens.

    Raises:
        ConfigurationError: A value is out of range or has no effect, or the kind does not fit the
            loss.
    """
    if old_logprobs not in get_args(OldLogprobs):
        raise ConfigurationError(
            f"old_logprobs={old_logprobs!r}; choose from {list(get_args(OldLogprobs))}."
        )
    correction = MismatchCorrection(kind=kind, cap=cap)
    if old_logprobs != "corrected":
        if correction != MismatchCorrection():
            raise ConfigurationError(
                f"correction={kind!r}, correction_cap={cap} with old_logprobs={old_logprobs!r}; "
                "they need old_logprobs='corrected'."
            )
        return None
    if is_whole and kind == "token_truncation":
        raise ConfigurationError(
            f"correction={kind!r}; the loss of this algorithm is one of whole attacks. Use "
            "'sequence_mask'."
        )
    return correction


def sampler_logprobs(attack: str) -> tuple[float, ...] | None:
    """Return the sampler's log-probabilities; None if they are not known, which NaN marks too."""
    known = attack.logprobs if isinstance(attack, Utterance) else None
    return None if known is None or any(map(math.isnan, known)) else known


def logprob_differences(
    sampled: Sequence[tuple[float, ...] | None], scored: Mapping[int, tuple[float, ...]]
) -> Metrics:
    """Absolute differences between the log-probabilities of the sampler and of the training.

    Args:
        sampled: Per step, those of the sampler; None if they are not known.
        scored: Those of the training, by index of the step.

    Returns:
        Mean and maximum, in nats per token, under TRL's names; empty if nothing was sampled.
    """
    differences = [
        abs(a - b)
        for index, row in scored.items()
        for a, b in zip(sampled[index] or (), row, strict=False)
    ]
    if not differences:
        return {}
    name = "sampling/sampling_logp_difference"
    return {
        f"{name}/mean": sum(differences) / len(differences),
        f"{name}/max": max(differences),
    }


def mismatch_ratios(scored: Tensor, sampled: Tensor, mask: Tensor, *, by_token: bool) -> Tensor:
    """``pi_old / mu``: (B, T) of tokens, or (B, 1) of whole attacks.

    Args:
        scored: Log-probabilities under the policy that is trained, (B, T).
        sampled: Log-probabilities under the sampler's policy, (B, T).
        mask: Tokens whose log-probabilities are known from both, (B, T), bool.
        by_token: Whether the ratio is that of each token.
    """
    log_ratio = torch.where(mask, scored - sampled, torch.zeros_like(scored))
    if not by_token:
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def mismatch_weights(ratios: Tensor, correction: MismatchCorrection) -> Tensor:
    """Weights of the policy loss, in the shape of the ratios."""
    if correction.kind == "token_truncation":
        return ratios.clamp(max=correction.limit)
    return torch.where(ratios > correction.limit, torch.zeros_like(ratios), ratios)


def correct_mismatch(
    steps: Sequence[ScoredStep],
    sampled: Sequence[tuple[float, ...] | None],
    correction: MismatchCorrection,
) -> tuple[list[ScoredStep], Metrics]:
    """Return the steps with `ScoredStep.corrections`, and metrics of the ratios.

    Args:
        steps: Steps with the log-probabilities of the policy that is trained.
        sampled: Log-probabilities of each step's tokens under the sampler's policy; None if it was
            not sampled, which gives the weight 1.
        correction: How the ratios become weights.

    Returns:
        The steps; and under TRL's names ``sampling/importance_sampling_ratio/...`` the minimum,
        mean and maximum of the ratios before the cap, ``ess``, the effective sample size of the
        weights as a share of their number (Kish 1965), and ``masked``, the share of weights that
        the cap changed. No metrics without a sampled step.
    """
    known = [
        step.old_logprobs if row is None else row[: len(step.old_logprobs)]
        for step, row in zip(steps, sampled, strict=True)
    ]
    width = max((len(step.old_logprobs) for step in steps), default=0)
    lengths = torch.tensor([len(row) for row in known], dtype=torch.long)
    mask = torch.arange(width) < lengths[:, None]
    by_token = correction.kind == "token_truncation"
    scored, old = pad([step.old_logprobs for step in steps], width), pad(known, width)
    ratios = mismatch_ratios(scored, old, mask, by_token=by_token)
    weights = mismatch_weights(ratios, correction)
    rows = weights.expand(-1, width).tolist()
    corrected = [
        step.corrected(tuple(row[: len(step.old_logprobs)]))
        for step, row in zip(steps, rows, strict=True)
    ]
    was_sampled = torch.tensor([bool(row) for row in sampled], dtype=torch.bool)[:, None]
    counted = was_sampled & (mask if by_token else mask.any(dim=1, keepdim=True))
    return corrected, _metrics(ratios[counted], weights[counted], correction.limit)


def _metrics(ratios: Tensor, weights: Tensor, limit: float) -> Metrics:
    if not len(ratios):
        return {}
    squares = float((weights**2).sum())
    values = {
        "min": float(ratios.min()),
        "mean": float(ratios.mean()),
        "max": float(ratios.max()),
        "ess": float(weights.sum()) ** 2 / (len(weights) * squares) if squares else 0.0,
        "masked": float((ratios > limit).float().mean()),
    }
    return {f"sampling/importance_sampling_ratio/{name}": each for name, each in values.items()}
