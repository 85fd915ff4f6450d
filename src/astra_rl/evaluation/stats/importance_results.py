"""Results of importance sampling: the estimate, or why there is none, and the data behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.rates import Rate


class Terms(NamedTuple):
    """What the samples and their sources are called in sentences.

    Attributes:
        samples: The samples.
        population: All of which the probability is a share.
        source: The model under which the probability is meant.
        proposals: The other models that were sampled.
    """

    samples: str = "conversations"
    population: str = "conversations in ordinary use"
    source: str = "the baseline"
    proposals: str = "the attacker"


CONVERSATIONS = Terms()
ANSWERS = Terms("answers", "answers to these messages", "the target", "the proposals")
"""Terms of answers of a target, with less safe copies of it as proposals."""


@dataclass(frozen=True)
class Evidence:
    """Data that an estimate is based on.

    Attributes:
        samples: Number of conversations with a known outcome.
        failures: Number of those in which the target failed.
        effective_samples: Effective sample size of the conversations (Kish).
        effective_failures: Effective sample size of the failures.
        plain: Failure rate of the baseline's conversations alone, those left out as unscored. It
            needs no weights.
        unseen_rate: Share of the baseline's conversations that are left out, or are failures of a
            kind which no other conversation found, see `unseen_failures`.
        left_out: Number of conversations without a known outcome or likelihood. They are no
            samples.
        terms: What the samples are called.
    """

    samples: int
    failures: int
    effective_samples: float
    effective_failures: float
    plain: Rate
    unseen_rate: Rate
    left_out: int = 0
    terms: Terms = CONVERSATIONS

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
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
    def baseline_alone(self) -> Interval:
        """95% interval of the baseline's conversations alone, whatever those left out are."""
        return self.plain.covering()

    @property
    def unseen(self) -> float:
        """Upper 97.5% bound of the probability of failures of kinds that were not seen.

        It includes conversations that are left out. 1 without conversations of the baseline.
        """
        return self.unseen_rate.interval.high


@dataclass(frozen=True)
class Probability:
    """Probability of failure in ordinary use.

    Attributes:
        estimate: In [0, 1], of the kinds of failure that were seen.
        interval: 95% interval of the probability of all failures: its upper end includes
            `Evidence.unseen`. If that is wider than the interval of the baseline's conversations
            alone, its upper end is that of the latter, and its lower end the larger of both, so
            importance sampling never loses. Its lower end is below `seen.low`, because of two
            lower ends the larger one is taken.
        seen: 95% interval of the probability of the kinds of failure that were seen. It is none of
            all failures: kinds that the attacker hardly ever reaches are not in it.
        error: Standard error of the estimate.
        evidence: What it is based on.
    """

    estimate: float
    interval: Interval
    seen: Interval
    error: float
    evidence: Evidence

    @property
    def plain_conversations(self) -> float:
        """Number of plain conversations for the same standard error, for the kinds seen."""
        return self.estimate * (1 - self.estimate) / self.error**2

    @property
    def gain(self) -> float:
        """Width of the interval of the baseline's conversations alone, divided by this one's."""
        return interval_width(self.evidence.baseline_alone) / interval_width(self.interval)

    @property
    def text(self) -> str:
        """The estimate as a sentence."""
        low, high = self.interval
        samples, population, source, proposals = self.evidence.terms
        plain = f"the {self.evidence.plain.trials} {samples} of {source} alone"
        gained = (
            f"the interval is {self.gain:.1f} times narrower than that of {plain}"
            if self.gain > 1.05
            else f"the interval is not narrower than that of {plain}: the {samples} of "
            f"{proposals} do not lower the upper bound"
        )
        return (
            f"{self.estimate:.2g} (95% interval {low:.2g} to {high:.2g}) of {population} fail; "
            f"{self.evidence.samples} {samples}, "
            f"{self.evidence.effective_failures:.0f} effective failures. Failures of kinds that "
            f"were not seen may add up to {self.evidence.unseen:.2g}, included in the interval; "
            f"{gained}. The kinds that were seen have {self.seen.low:.2g} to {self.seen.high:.2g}, "
            f"as precisely as by {self.plain_conversations:,.0f} {samples} of {source}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate and its evidence as JSON values."""
        return {
            "estimate": self.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "seen_low": self.seen.low,
            "seen_high": self.seen.high,
            "error": self.error,
            "plain_conversations": self.plain_conversations,
            "gain": self.gain,
            "reason": None,
            "evidence": self.evidence.as_dict(),
        }


@dataclass(frozen=True)
class NoProbability:
    """No estimate is possible.

    Attributes:
        reason: Why, and what would help.
        evidence: The data.
    """

    reason: str
    evidence: Evidence

    @property
    def interval(self) -> Interval:
        """`Evidence.baseline_alone`; (0, 1) without a conversation of the baseline."""
        return self.evidence.baseline_alone

    @property
    def text(self) -> str:
        """The reason and the interval as a sentence."""
        low, high = self.interval
        terms = self.evidence.terms
        return (
            f"no number: {self.reason}. The {terms.samples} of {terms.source} alone give a 95% "
            f"interval of {low:.2g} to {high:.2g}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return reason, interval and evidence as JSON values; the estimate is None."""
        return {
            "estimate": None,
            "low": self.interval.low,
            "high": self.interval.high,
            "seen_low": None,
            "seen_high": None,
            "error": None,
            "plain_conversations": None,
            "gain": None,
            "reason": self.reason,
            "evidence": self.evidence.as_dict(),
        }


def interval_width(interval: Interval) -> float:
    """Return the distance of the ends."""
    return interval.high - interval.low
