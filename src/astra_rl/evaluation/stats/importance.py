"""Estimate a small probability of failure in ordinary use by importance sampling.

Plain sampling from a baseline of ordinary use needs about ``100 / P`` conversations for a relative
error of 10%. Importance sampling draws most conversations from the attacker, which fails far more
often, and weighs each by how much likelier it is in ordinary use:

    weight = p / (share * p + (1 - share) * q)

with ``p`` and ``q`` the probabilities of the attacks under baseline and attacker, and ``share`` the
part of the conversations drawn from the baseline itself: a *defensive mixture* (Hesterberg,
*Technometrics* 37, 1995; Owen and Zhou, *JASA* 95, 2000), under which no weight exceeds
``1 / share``. The probabilities of the target's responses are the same in both and cancel. The
estimate is self-normalised: the weighted share of failures.

The interval covers the failure modes that occur in the sample. `Evidence.unseen` bounds the
probability of failure modes that do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.evaluation.stats.intervals import Array, Interval, student_quantile
from astra_rl.evaluation.stats.rates import Rate

MIN_EFFECTIVE_FAILURES = 10.0
"""Minimum number of effective failures for an estimate; with fewer, its interval is unreliable."""


class Sample(NamedTuple):
    """One conversation.

    Attributes:
        fails: Whether the target failed.
        baseline: Log-probability of its attacks under the baseline; minus infinity if impossible.
        attacker: The same under the attacker.
        from_baseline: Whether they were sampled from the baseline, and not from the attacker.
        prompt: Identifies the opening; samples of one prompt are not independent.
    """

    fails: bool
    baseline: float
    attacker: float
    from_baseline: bool
    prompt: Hashable = None


@dataclass(frozen=True)
class Evidence:
    """Sample sizes behind an estimate.

    Attributes:
        samples: Number of conversations with a known outcome.
        failures: Number of those in which the target failed.
        effective_samples: Effective sample size of the conversations (Kish).
        effective_failures: Effective sample size of the failures.
        plain: Failure rate among the conversations of the baseline alone. It needs no weights and
            must agree with the estimate; with few or no failures it only gives an upper bound.
        left_out: Number of excluded conversations, whose outcome or likelihood is not known.
    """

    samples: int
    failures: int
    effective_samples: float
    effective_failures: float
    plain: Rate
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name, as JSON values."""
        return {
            "samples": self.samples,
            "failures": self.failures,
            "effective_samples": self.effective_samples,
            "effective_failures": self.effective_failures,
            "left_out": self.left_out,
            "plain": self.plain.as_dict(),
            "unseen": self.unseen,
        }

    @property
    def unseen(self) -> float:
        """95% upper bound of the probability of failure modes not seen in this sample.

        It is the exact upper bound of a rate with no failure among the baseline's conversations.
        """
        return 1 - 0.05 ** (1 / self.plain.trials) if self.plain.trials else 1.0


@dataclass(frozen=True)
class Probability:
    """The probability of failure in ordinary use.

    Attributes:
        estimate: In [0, 1].
        interval: 95% interval, for the failure modes in the sample.
        error: Standard error of the estimate.
        evidence: Sample sizes behind the estimate.
    """

    estimate: float
    interval: Interval
    error: float
    evidence: Evidence

    @property
    def plain_conversations(self) -> float:
        """Number of conversations that plain sampling would need for the same standard error."""
        return self.estimate * (1 - self.estimate) / self.error**2 if self.error else math.inf

    @property
    def text(self) -> str:
        """The estimate as a sentence."""
        low, high = self.interval
        return (
            f"{self.estimate:.2g} (95% interval {low:.2g} to {high:.2g}) of conversations in "
            f"ordinary use fail; {self.evidence.samples} conversations, "
            f"{self.evidence.effective_failures:.0f} effective failures, worth "
            f"{self.plain_conversations:,.0f} of plain sampling"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate and its evidence as JSON values."""
        return {
            "estimate": self.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "error": self.error,
            "plain_conversations": self.plain_conversations,
            "reason": None,
            "evidence": self.evidence.as_dict(),
        }


@dataclass(frozen=True)
class NoProbability:
    """The result if the data do not support an estimate.

    Attributes:
        reason: Why not, and what to do.
        evidence: Sample sizes; the `plain` rate may still bound the probability.
    """

    reason: str
    evidence: Evidence

    @property
    def text(self) -> str:
        """The reason as a sentence."""
        return f"no number: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the reason and the evidence as JSON values; the estimate is None."""
        return {
            "estimate": None,
            "low": None,
            "high": None,
            "error": None,
            "plain_conversations": None,
            "reason": self.reason,
            "evidence": self.evidence.as_dict(),
        }


def failure_probability(
    samples: Sequence[Sample],
    *,
    left_out: int = 0,
    min_effective_failures: float = MIN_EFFECTIVE_FAILURES,
) -> Probability | NoProbability:
    """Estimate the probability that the target fails in conversations led by the baseline.

    The interval uses the delta method on the logit, with the variance of a ratio estimator
    clustered by prompt, and Student's t with ``min(effective failures, prompts) - 1`` degrees of
    freedom. With a single prompt the conversations are independent, and the estimate is for that
    prompt. A bootstrap costs a thousand times as much and is no more accurate: with few failures
    it cannot draw weights that were not observed either.

    Args:
        samples: Conversations of the baseline and of the attacker, with the same openings. The
            share of the baseline among them is the share of the mixture.
        left_out: Number of conversations excluded because outcome or likelihood is not known.
        min_effective_failures: Minimum number of effective failures for an estimate.

    Returns:
        The estimate, or the reason why there is none.

    Raises:
        ConfigurationError: A sample is impossible under both models.
    """
    weights = _weights(samples)
    fails = np.array([sample.fails for sample in samples], dtype=np.float64)
    evidence = Evidence(
        samples=len(samples),
        failures=int(fails.sum()),
        effective_samples=effective_size(weights),
        effective_failures=effective_size(weights * fails),
        plain=_plain_rate(samples),
        left_out=left_out,
    )
    reason = _reason_against(evidence, min_effective_failures)
    if reason is not None:
        return NoProbability(reason, evidence)
    total = float(weights.sum())
    estimate = float((weights * fails).sum()) / total
    if estimate >= 1:
        return NoProbability(
            "every conversation failed, so the distance to a probability of 1 "
            "cannot be estimated; the plain rate bounds it",
            evidence,
        )
    prompts = _prompts(samples)
    error = _standard_error(weights * (fails - estimate), prompts) / total
    known = min(evidence.effective_failures, len(set(prompts)))
    half = student_quantile(0.95, known - 1) * error
    spread = half / (estimate * (1 - estimate))
    logit = math.log(estimate / (1 - estimate))
    interval = Interval(_logistic(logit - spread), _logistic(logit + spread))
    return Probability(estimate, interval, error, evidence)


def failure_probability_of(
    attempts: Iterable[Attempt],
    *,
    baseline: str,
    min_effective_failures: float = MIN_EFFECTIVE_FAILURES,
) -> Probability | NoProbability:
    """Estimate the probability of failure from recorded attempts.

    Each turn must hold the log-probability of its attack under ``attacker`` and ``baseline`` (see
    `Turn.logprobs`). Only the turns up to the first failure count: later turns do not change the
    outcome.

    Args:
        attempts: Attempts of the attacker and of the baseline against one target.
        baseline: Name of the attacker in the attempts of the baseline.
        min_effective_failures: See `failure_probability`.

    Raises:
        ConfigurationError: Attacker and baseline tokenize an attack differently, so that their
            probabilities cannot be compared.
    """
    samples, left_out = [], 0
    for attempt in attempts:
        p, q = attempt.logprob("baseline"), attempt.logprob("attacker")
        if attempt.outcome not in KNOWN_OUTCOMES or p is None or q is None:
            left_out += 1
            continue
        _check_same_tokens(attempt, p, q)
        failed = attempt.outcome is Outcome.SUCCESS
        by_baseline = attempt.attacker == baseline
        samples.append(Sample(failed, p.total, q.total, by_baseline, attempt.prompt_id))
    return failure_probability(
        samples, left_out=left_out, min_effective_failures=min_effective_failures
    )


def effective_size(weights: Array) -> float:
    """Return the effective sample size ``(sum w)**2 / sum w**2`` (Kish, 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _weights(samples: Sequence[Sample]) -> Array:
    share = sum(sample.from_baseline for sample in samples) / len(samples) if samples else 0.0
    p = np.array([sample.baseline for sample in samples], dtype=np.float64)
    q = np.array([sample.attacker for sample in samples], dtype=np.float64)
    if np.isnan(p).any() or np.isnan(q).any() or (np.isneginf(p) & np.isneginf(q)).any():
        raise ConfigurationError(
            "a sample has no log-probability, or is impossible under both attacker and baseline; "
            "leave it out and count it in left_out."
        )
    with np.errstate(divide="ignore"):
        mixture = np.logaddexp(np.log(share) + p, np.log(1 - share) + q)
    weights: Array = np.exp(p - mixture)
    return weights


def _plain_rate(samples: Sequence[Sample]) -> Rate:
    by_prompt: dict[Hashable, list[bool]] = defaultdict(list)
    for prompt, sample in zip(_prompts(samples), samples, strict=True):
        if sample.from_baseline:
            by_prompt[prompt].append(sample.fails)
    return Rate.of_prompts((sum(fails), len(fails)) for fails in by_prompt.values())


def _reason_against(evidence: Evidence, least: float) -> str | None:
    if not evidence.plain.trials:
        return (
            "no conversation was sampled from the baseline, so the weights are unbounded; sample a "
            "part of them, for instance half, from the baseline"
        )
    if not evidence.failures:
        bound = evidence.plain.interval.high
        return (
            f"no failure was seen; the {evidence.plain.trials} conversations of the baseline only "
            f"show that its probability is below {bound:.2g}"
        )
    if evidence.effective_failures < least:
        return (
            f"{evidence.failures} failures weigh as much as {evidence.effective_failures:.1f} "
            f"equally weighted ones, and {least:g} are needed: a few conversations decide the "
            "number. Draw more, or train the attacker to stay closer to the baseline"
        )
    return None


def _prompts(samples: Sequence[Sample]) -> list[Hashable]:
    """Return the cluster of each sample: its prompt, or itself if all have the same prompt."""
    keys: list[Hashable] = [
        index if sample.prompt is None else ("prompt", sample.prompt)
        for index, sample in enumerate(samples)
    ]
    return keys if len(set(keys)) > 1 else list(range(len(samples)))


def _standard_error(influences: Array, prompts: Sequence[Hashable]) -> float:
    """Standard error of a sum of influences that are independent between prompts."""
    sums: dict[Hashable, float] = defaultdict(float)
    for prompt, influence in zip(prompts, influences, strict=True):
        sums[prompt] += float(influence)
    count = len(sums)
    if count < 2:
        return math.inf
    return math.sqrt(count / (count - 1) * math.fsum(each**2 for each in sums.values()))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _check_same_tokens(attempt: Attempt, p: LogProb, q: LogProb) -> None:
    if p.tokens != q.tokens:
        raise ConfigurationError(
            f"attempt {attempt.id}: the baseline counts {p.tokens} tokens and the attacker "
            f"{q.tokens}. Their probabilities can only be compared for the same tokens: use a "
            "baseline with the attacker's tokenizer."
        )
