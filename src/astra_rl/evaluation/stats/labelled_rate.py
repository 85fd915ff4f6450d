"""Success rate from human labels of a sample of conversations and the judge's calls on all of them.

Estimand: the share of conversations in which the target failed according to a human. Estimator:
conversations are grouped by the call of the judge, and the mean of the labels of each group is
weighted by the size of the group (post-stratification). For a judge that says yes or no this is the
prediction-powered estimator PPI++ (Angelopoulos, Duchi and Zrnic, arXiv 2311.01453) with its best
weight. It is unbiased whatever the errors of the judge; a good judge makes the interval narrow.
Assumption: within each group the labelled conversations are a random sample.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import Interval, clustered_interval, student_quantile
from astra_rl.evaluation.stats.percent import estimated

_Z = NormalDist().inv_cdf(0.975)
LEAST_PER_GROUP = 5
"""Labels that every group gets first, as far as it has conversations."""


@dataclass(frozen=True)
class Group:
    """Conversations on which the judge made the same call.

    Attributes:
        call: 1 if the judge called them successes, 0 if not, None if it gave no verdict.
        by_prompt: Number of conversations of each prompt.
        labels: Sum and number of the labels of each prompt that has labels; a label is in [0, 1],
            the mean of several raters.
        prompts: Identifies each of `by_prompt`, and then also each of `labels`, which has (0, 0)
            for a prompt without labels. Empty: all conversations are of different prompts.
    """

    call: int | None
    by_prompt: tuple[int, ...]
    labels: tuple[tuple[float, int], ...] = ()
    prompts: Sequence[Hashable] = ()

    @property
    def size(self) -> int:
        """Number of conversations."""
        return sum(self.by_prompt)

    @property
    def labelled(self) -> int:
        """Number of labelled conversations."""
        return sum(count for _, count in self.labels)

    @property
    def mean(self) -> float:
        """Mean label; without labels the call of the judge, 0.5 without a call."""
        if self.labelled:
            return math.fsum(total for total, _ in self.labels) / self.labelled
        return 0.5 if self.call is None else float(self.call)

    @property
    def interval(self) -> Interval:
        """95% interval of the mean over conversations like these, clustered by prompt."""
        return clustered_interval(self.labels)


@dataclass(frozen=True)
class LabelledRate:
    """Success rate by human labels and the calls of the judge.

    Attributes:
        estimate: In [0, 1].
        interval: 95% interval, over conversations like these.
        labelled: Number of labelled conversations.
        conversations: Number of conversations.
    """

    estimate: float
    interval: Interval
    labelled: int
    conversations: int

    @property
    def text(self) -> str:
        """The numbers as a sentence."""
        return (
            f"by human labels of {self.labelled} of {self.conversations} conversations and the "
            f"judge's calls on all: {estimated(self.estimate, self.interval, 'PPI++')}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "method": "PPI++ (post-stratified)",
            "estimate": self.estimate,
            **self.interval._asdict(),
            "labelled": self.labelled,
            "conversations": self.conversations,
        }


def labelled_rate(groups: Sequence[Group], share: Interval) -> LabelledRate:
    """Estimate the success rate from labels of some conversations.

    The interval combines those of the group means and of the share of calls (method of variance
    estimates recovery, Zou and Donner, *Stat. Med.* 27, 2008). A prompt with several conversations
    moves all of them together, so their covariances over prompts are added, if they are positive.
    Coverage by simulation: at least 93%, see ``benchmarks/coverage.py`` and the tests.

    Args:
        groups: One per call of the judge; together all conversations.
        share: 95% interval of the share of conversations that the judge called successes, clustered
            by prompt.

    Raises:
        ConfigurationError: There are no conversations, or no labels.
    """
    known = [group for group in groups if group.size]
    total, labelled = sum(each.size for each in known), sum(each.labelled for each in known)
    if not labelled:
        raise ConfigurationError("there are no labels of these conversations; label some first.")
    estimate = math.fsum(each.size * each.mean for each in known) / total
    called = [each for each in known if each.call == 1]
    rest = [each for each in known if each.call != 1]
    q = sum(each.size for each in called) / total
    difference = _mean(called) - _mean(rest)
    # Conversations without a verdict among those that were not called successes.
    between_rest = math.fsum(each.size * (each.mean - _mean(rest)) ** 2 for each in rest) / total
    fixed = _Z**2 * between_rest / total
    fixed += _covariances(known, estimate, total)
    squares = [fixed, fixed]
    reaches = (q - share.low, share.high - q)
    for side in (0, 1):
        squares[side] += (difference * reaches[side if difference >= 0 else 1 - side]) ** 2
        for each in known:
            reach = each.mean - each.interval.low if side == 0 else each.interval.high - each.mean
            squares[side] += (each.size / total * reach) ** 2
    return LabelledRate(
        estimate,
        Interval(
            max(0.0, estimate - math.sqrt(squares[0])), min(1.0, estimate + math.sqrt(squares[1]))
        ),
        labelled,
        total,
    )


def _covariances(groups: Sequence[Group], estimate: float, total: int) -> float:
    """Return what the covariances of the parts of the estimate add to its squared reach.

    The parts are the shares of the groups and their mean labels. What each prompt adds to each part
    (influence) gives the variance of their sum and those of the parts, over prompts.

    Args:
        groups: The groups, which have conversations.
        estimate: The estimate.
        total: Number of conversations.
    """
    prompts = list(dict.fromkeys(prompt for group in groups for prompt in group.prompts))
    if len(prompts) < 2 or len(prompts) == total:
        return 0.0
    place = {prompt: at for at, prompt in enumerate(prompts)}
    parts = np.zeros((1 + len(groups), len(prompts)))
    for own, group in zip(parts[1:], groups, strict=True):
        for prompt, size, (won, count) in zip(
            group.prompts, group.by_prompt, group.labels, strict=True
        ):
            parts[0, place[prompt]] += size / total * (group.mean - estimate)
            if group.labelled:
                own[place[prompt]] = group.size / total * (won - group.mean * count)
                own[place[prompt]] /= group.labelled
    covariance = float((parts.sum(axis=0) ** 2).sum() - (parts**2).sum())
    few = len(prompts) / (len(prompts) - 1) * student_quantile(0.95, len(prompts) - 1) ** 2
    return max(0.0, covariance) * few


def _mean(groups: Sequence[Group]) -> float:
    size = sum(each.size for each in groups)
    return math.fsum(each.size * each.mean for each in groups) / size if size else 0.0


def allocate(groups: Sequence[Group], count: int) -> list[int]:
    """Return how many further conversations of each group to label for the narrowest interval.

    Neyman's allocation (*JRSS* 97, 1934): labels in proportion to the size of the group times the
    standard deviation of its labels, with the mean moved towards 0.5 by one label of either kind;
    at least `LEAST_PER_GROUP` of each group.

    Args:
        groups: The groups with the labels so far.
        count: Number of labels to allocate; fewer if there are not as many conversations.
    """
    found = [0] * len(groups)

    def gain(index: int) -> float:
        """Decrease of the variance by one more label; infinite below the least number."""
        group, given = groups[index], groups[index].labelled + found[index]
        if given >= group.size:
            return -1.0
        if given < LEAST_PER_GROUP:
            return math.inf
        mean = (group.mean * group.labelled + 1) / (group.labelled + 2)
        return group.size**2 * mean * (1 - mean) / (given * (given + 1))

    for _ in range(count):
        best = max(range(len(groups)), key=gain, default=-1)
        if best < 0 or gain(best) < 0:
            break
        found[best] += 1
    return found


def cohen_kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return Cohen's kappa of two raters (*Educ. Psychol. Meas.* 20, 1960).

    1 is perfect agreement and 0 the agreement of independent raters; NaN without pairs, or if both
    raters gave all conversations the same label.
    """
    if not pairs:
        return math.nan
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    a, b = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    chance = a * b + (1 - a) * (1 - b)
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan
