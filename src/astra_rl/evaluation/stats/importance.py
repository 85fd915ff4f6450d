"""Probability of failure in ordinary use, by importance sampling.

Plain sampling from a baseline of ordinary use needs about ``100 / P`` conversations for a relative
error of 10%. Importance sampling draws a part of the conversations from the attacker, which fails
far more often, and weights each by its likelihood in ordinary use:

    weight = p / (share * p + (1 - share) * q)

with ``p`` and ``q`` the probabilities of the attacks under baseline and attacker, and ``share`` the
part of the conversations drawn from the baseline itself: a *defensive mixture* (Hesterberg,
*Technometrics* 37, 1995), under which no weight exceeds ``1 / share``. The responses of the target
have the same probability under both and cancel. The mean of ``weight * fails`` is corrected by the
control variate ``weight - 1``, whose expectation is 0; with it, the variance is asymptotically at
most that of the baseline's conversations alone (Owen and Zhou, *JASA* 95, 2000, theorem 2). Several
attackers, for instance the checkpoints of a run, are one mixture (`mixture_logprob`): its density
is that of the balance heuristic (Veach and Guibas, SIGGRAPH 1995).

Importance sampling says nothing of failures that no conversation reached. Their probability is
bounded with the conversations of the baseline (`unseen_failures`), and this bound is part of every
upper limit.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.evaluation.stats.importance_results import (
    ANSWERS,
    CONVERSATIONS,
    Evidence,
    NoProbability,
    Probability,
    Terms,
    interval_width,
)
from astra_rl.evaluation.stats.intervals import Array, Interval, student_quantile
from astra_rl.evaluation.stats.rates import Rate

__all__ = [
    "ANSWERS",
    "CONVERSATIONS",
    "Evidence",
    "NoProbability",
    "Probability",
    "Sample",
    "Terms",
    "effective_size",
    "failure_probability",
    "failure_probability_of",
    "mixture_logprob",
    "under_mixture",
    "unseen_failures",
]
MIN_EFFECTIVE_FAILURES = 10.0
"""Effective failures below which no estimate is given: its interval would not have 95% coverage."""


class Sample(NamedTuple):
    """One conversation.

    Attributes:
        fails: Whether the target failed.
        baseline: Log-probability of its attacks under the baseline; minus infinity if impossible.
        attacker: The same under the attacker; of several attackers, `mixture_logprob`.
        from_baseline: Whether they were sampled from the baseline, not from an attacker.
        prompt: Identifies the opening; samples of one prompt are not independent.
        kind: Kind of failure, for `unseen_failures`; None: a kind of its own.
    """

    fails: bool
    baseline: float
    attacker: float
    from_baseline: bool
    prompt: Hashable = None
    kind: Hashable = None


MOST_LEFT_OUT = 0.1
"""Largest share of conversations that may be left out, and of prompts without an attacker."""


def failure_probability(
    samples: Sequence[Sample],
    *,
    left_out: int = 0,
    left_out_of_baseline: int | None = None,
    min_effective_failures: float = MIN_EFFECTIVE_FAILURES,
    terms: Terms = CONVERSATIONS,
) -> Probability | NoProbability:
    """Estimate the probability of failure if the baseline writes the attacks.

    The interval of the kinds seen is a Student t interval on the logit scale. Its standard error is
    that of the jackknife over prompts (over conversations if there is one prompt: then the result
    is about that prompt), and at least that of a Poisson number of failures, so that an attacker
    which always says the same does not seem to be exact. The upper bound of unseen failures is
    added to its upper end. Its lower end for all failures has a level of 1.25% instead of 2.5%,
    because the larger one of it and that of the baseline's conversations is taken: together they
    are above the truth in at most 3.75% (Bonferroni). Conversations that are left out may all have
    been no failures at this end.

    If the baseline has a sample of every prompt, all prompts weigh the same, and the mixture of
    each is that of its own samples: then neither their order nor unequal numbers of samples matter.
    The attackers need one of nearly every prompt, too (`MOST_LEFT_OUT`): rare failures of the
    others are not seen. Prompts without a sample of the baseline are left out if they are few
    (`MOST_LEFT_OUT`). Otherwise the mixture is that of all samples, which needs prompts in random
    order.

    Args:
        samples: Conversations of the baseline and of the attacker, with the same openings. The
            share of the baseline is the share of the mixture.
        left_out: Number of conversations that are missing because something of them is not known.
            The upper ends of the intervals include that those of the baseline failed.
        left_out_of_baseline: Number of those that the baseline led; None: all.
        min_effective_failures: Fewer effective failures give no estimate.
        terms: What the samples are called.

    Returns:
        The estimate, or why there is none.

    Raises:
        ConfigurationError: A sample is impossible under both models.
    """
    unknown = left_out if left_out_of_baseline is None else left_out_of_baseline
    made, samples = len(samples), _of_prompts_with_baseline(samples)
    left_out += made - len(samples)
    weights, sizes = _weights(samples)
    fails = np.array([sample.fails for sample in samples], dtype=np.float64)
    prompts = _prompts(samples)
    failing = [sample.fails for sample in samples]
    evidence = Evidence(
        samples=len(samples),
        failures=int(fails.sum()),
        effective_samples=effective_size(sizes * weights),
        effective_failures=effective_size(sizes * weights * fails),
        plain=replace(_rate_of_baseline(samples, prompts, failing), unscored=unknown),
        unseen_rate=_rate_of_baseline(samples, prompts, unseen_failures(samples), unknown),
        left_out=left_out,
        terms=terms,
    )
    reason = _why_not(evidence, min_effective_failures, _one_sided(samples, terms))
    if reason is not None:
        return NoProbability(reason, evidence)
    estimate, error, groups = _estimate(weights, sizes, fails, prompts)
    if not 0 < estimate < 1:
        return NoProbability(
            "failure is too frequent for weights; the plain rate is the better estimate", evidence
        )
    error = max(error, estimate / math.sqrt(evidence.effective_failures))
    degrees = min(evidence.effective_failures, groups) - 1
    seen = _logit_interval(estimate, student_quantile(0.95, degrees) * error)
    # The kinds that were seen are a part of all: their lower end is one of all failures, too.
    low = _logit_interval(estimate, student_quantile(0.975, degrees) * error).low
    low *= evidence.samples / (evidence.samples + left_out)
    interval = Interval(low, min(1.0, seen.high + evidence.unseen))
    plain = evidence.baseline_alone
    if interval_width(plain) <= interval_width(interval) and plain.low <= estimate <= plain.high:
        interval = Interval(max(plain.low, low), plain.high)
    return Probability(estimate, interval, seen, error, evidence)


def mixture_logprob(logprobs: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Return the log-probability of attacks under several attackers together.

    Args:
        logprobs: Log-probability of the attacks under each attacker.
        counts: Number of conversations that each attacker leads: its weight in the mixture.

    Raises:
        ConfigurationError: No attacker leads a conversation.
    """
    total = sum(counts.values())
    if not total:
        raise ConfigurationError("no attacker leads a conversation; give at least one to one.")
    parts = [logprobs[name] + math.log(count / total) for name, count in counts.items() if count]
    return float(np.logaddexp.reduce(parts))


def under_mixture(
    samples: Sequence[Sample], logprobs: Sequence[Mapping[str, float]], players: Sequence[str]
) -> list[Sample]:
    """Return the samples with the log-probability under all attackers together.

    The mixture is that of the samples of the prompt if the baseline has one of each prompt, and
    otherwise that of all, see `failure_probability`.

    Args:
        samples: The samples; their `attacker` is not read.
        logprobs: Log-probability of each under each attacker.
        players: Attacker that drew each; not read for those of the baseline.
    """
    by_prompt = _is_by_prompt(samples)
    keys = [sample.prompt if by_prompt else None for sample in samples]
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, sample, player in zip(keys, samples, players, strict=True):
        if not sample.from_baseline:
            counts[key][player] += 1
    # Where no attacker drew anything nothing is weighed, and any density does.
    return [
        sample._replace(attacker=mixture_logprob(each, counts[key] or dict.fromkeys(each, 1)))
        for sample, each, key in zip(samples, logprobs, keys, strict=True)
    ]


def unseen_failures(samples: Sequence[Sample]) -> list[bool]:
    """Return for each sample whether it is a failure of a kind that no other prompt found.

    This is Good-Turing's estimator (*Biometrika* 40, 1953) for groups: the expected share of such
    failures among the baseline's conversations is at least the probability, in a new prompt, of
    failures of kinds that no conversation found. A failure without a kind is a kind of its own.
    With one prompt, or without prompts, each conversation is a group.
    """
    prompts = _prompts(samples)
    found: dict[Hashable, set[Hashable]] = defaultdict(set)
    for sample, prompt in zip(samples, prompts, strict=True):
        if sample.fails and sample.kind is not None:
            found[sample.kind].add(prompt)
    return [sample.fails and len(found.get(sample.kind, ())) <= 1 for sample in samples]


def failure_probability_of(
    attempts: Iterable[Attempt],
    *,
    baseline: str,
    checkpoints: Sequence[str] = (),
    kind_of: Callable[[str], Hashable] | None = None,
    min_effective_failures: float = MIN_EFFECTIVE_FAILURES,
) -> Probability | NoProbability:
    """Estimate the probability of failure from recorded attempts.

    Each turn must hold the log-probability of its attack under ``baseline``, ``attacker`` and all
    `checkpoints` (see `Turn.logprobs`). Only the turns up to the first failure are weighted: later
    turns cannot change the outcome.

    Args:
        attempts: Attempts of the attackers and of the baseline against one target.
        baseline: Name of the attacker in the attempts of the baseline.
        checkpoints: Names of further attackers, in the attempts and the log-probabilities.
        kind_of: Returns the kind of failure of an attack that succeeded, for instance
            `GreedyClusters.add`. None: each is a kind of its own, which is the most cautious.
        min_effective_failures: See `failure_probability`.

    Raises:
        ConfigurationError: Attacker and baseline tokenize an attack differently, so that their
            probabilities cannot be compared.
    """
    names = ("attacker", *checkpoints)
    samples: list[Sample] = []
    logprobs: list[dict[str, float]] = []
    players: list[str] = []
    prompts: dict[str, str] = {}  # each id once: those of a log are strings of their own
    left_out = of_baseline = 0
    for attempt in attempts:
        p = attempt.logprob("baseline")
        found = {name: q for name in names if (q := attempt.logprob(name)) is not None}
        if attempt.outcome not in KNOWN_OUTCOMES or p is None or len(found) < len(names):
            left_out += 1
            of_baseline += attempt.attacker == baseline
            continue
        for q in found.values():
            _check_same_tokens(attempt, p, q)
        by_baseline = attempt.attacker == baseline
        prompt = prompts.setdefault(attempt.prompt_id, attempt.prompt_id)
        turn = attempt.failing_turn
        kind = None if turn is None or kind_of is None else kind_of(turn.attack)
        failed = attempt.outcome is Outcome.SUCCESS
        samples.append(Sample(failed, p.total, math.nan, by_baseline, prompt, kind))
        logprobs.append({name: q.total for name, q in found.items()})
        players.append(attempt.attacker if attempt.attacker in checkpoints else "attacker")
    return failure_probability(
        under_mixture(samples, logprobs, players),
        left_out=left_out,
        left_out_of_baseline=of_baseline,
        min_effective_failures=min_effective_failures,
    )


def effective_size(weights: Array) -> float:
    """Return ``(sum w)**2 / sum w**2``: as how many equal weights they count (Kish, 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _is_by_prompt(samples: Sequence[Sample]) -> bool:
    """Whether there are several prompts, nearly all with a sample of the baseline."""
    every = {sample.prompt for sample in samples}
    with_baseline = {each.prompt for each in samples if each.from_baseline}
    without = len(every) - len(with_baseline)
    return len(with_baseline) > 1 and without <= MOST_LEFT_OUT * len(every)


def _of_prompts_with_baseline(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Leave out the few prompts without a sample of the baseline, see `_is_by_prompt`.

    Such a prompt has no defensive mixture. If one conversation of the baseline is missing, all
    other prompts keep theirs.
    """
    if not _is_by_prompt(samples):
        return samples
    kept = {each.prompt for each in samples if each.from_baseline}
    return [each for each in samples if each.prompt in kept]


def _one_sided(samples: Sequence[Sample], terms: Terms) -> str | None:
    """Return why prompts without a sample of an attacker prevent an estimate, if they do."""
    if not _is_by_prompt(samples):
        return None
    every = {sample.prompt for sample in samples}
    without = len(every) - len({each.prompt for each in samples if not each.from_baseline})
    if without <= MOST_LEFT_OUT * len(every):
        return None
    return (
        f"{without} of {len(every)} prompts have {terms.samples} of {terms.source} only, so their "
        f"rare failures are not seen; give every prompt some of {terms.proposals}, too"
    )


def _weights(samples: Sequence[Sample]) -> tuple[Array, Array]:
    """Return the importance weight of each sample, and its size, which makes prompts equal.

    The sizes add up to the number of samples.
    """
    by_prompt = _is_by_prompt(samples)
    keys = [sample.prompt if by_prompt else None for sample in samples]
    counts, of_baseline = Counter(keys), Counter[Hashable]()
    for key, sample in zip(keys, samples, strict=True):
        of_baseline[key] += sample.from_baseline
    share = np.array([of_baseline[key] / counts[key] for key in keys])
    sizes = np.array([len(samples) / len(counts) / counts[key] for key in keys])
    p = np.array([sample.baseline for sample in samples], dtype=np.float64)
    q = np.array([sample.attacker for sample in samples], dtype=np.float64)
    if np.isnan(p).any() or np.isnan(q).any() or (np.isneginf(p) & np.isneginf(q)).any():
        raise ConfigurationError(
            "a sample has no log-probability, or is impossible under both attacker and baseline; "
            "leave it out and count it in left_out."
        )
    with np.errstate(divide="ignore"):
        mixture = np.logaddexp(np.log(share) + p, np.log(1 - share) + q)
    return np.exp(p - mixture), sizes


def _rate_of_baseline(
    samples: Sequence[Sample],
    prompts: Sequence[Hashable],
    counted: Sequence[bool],
    also: int = 0,
) -> Rate:
    """Return the share of the baseline's samples that counts, and of `also` more that all do."""
    by_prompt: dict[Hashable, list[bool]] = defaultdict(list)
    for sample, prompt, counts in zip(samples, prompts, counted, strict=True):
        if sample.from_baseline:
            by_prompt[prompt].append(counts)
    if not by_prompt:
        return Rate(0, 0)
    rates = [(sum(counts), len(counts)) for counts in by_prompt.values()]
    return Rate.of_prompts([*rates, *[(1, 1)] * also])


def _why_not(evidence: Evidence, least: float, one_sided: str | None) -> str | None:
    samples, _, source, proposals = evidence.terms
    if not evidence.plain.trials:
        return (
            f"none of the {samples} was drawn from {source}, so nothing limits the weights; draw a "
            f"part of them, for instance half, from {source}"
        )
    if not evidence.failures:
        bound = evidence.plain.interval.high
        return (
            f"no failure was seen; the {evidence.plain.trials} {samples} of {source} say "
            f"only that its probability is below {bound:.2g}"
        )
    if evidence.left_out > MOST_LEFT_OUT * (evidence.left_out + evidence.samples):
        return (
            f"the outcome or the likelihood of {evidence.left_out} of "
            f"{evidence.left_out + evidence.samples} {samples} is not known, too many for weights"
        )
    if one_sided is not None:
        return one_sided
    if evidence.effective_failures < least:
        return (
            f"{evidence.failures} failures weigh as much as {evidence.effective_failures:.1f} "
            f"equally weighted ones, and {least:g} are needed: a few {samples} decide the "
            f"number. Draw more, or bring {proposals} closer to {source}"
        )
    return None


def _prompts(samples: Sequence[Sample]) -> list[Hashable]:
    """Return the group of each sample: its prompt, or itself if all have the same prompt."""
    keys: list[Hashable] = [
        index if sample.prompt is None else ("prompt", sample.prompt)
        for index, sample in enumerate(samples)
    ]
    return keys if len(set(keys)) > 1 else list(range(len(samples)))


def _estimate(
    weights: Array, sizes: Array, fails: Array, prompts: Sequence[Hashable]
) -> tuple[float, float, int]:
    """Return the estimate with its control variate, the jackknife error, and the number of groups.

    The jackknife leaves out one group at a time. All it needs are sums per group, shape (G, 5).
    """
    index = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    value, control = weights * fails, weights - 1
    columns = np.stack([np.ones_like(value), value, control, value * control, control**2], axis=1)
    columns *= sizes[:, None]
    sums = np.zeros((len(index), columns.shape[1]))
    np.add.at(sums, [index[prompt] for prompt in prompts], columns)
    total = sums.sum(axis=0)
    estimate = float(_controlled_mean(total[None])[0])
    groups = len(index)
    if groups < 2:
        return estimate, math.inf, groups
    others = _controlled_mean(total - sums)
    spread = float(((others - others.mean()) ** 2).sum())
    return estimate, math.sqrt((groups - 1) / groups * spread), groups


def _controlled_mean(sums: Array) -> Array:
    """Mean of the values minus its regression on the control variate, from rows of sums (G, 5)."""
    count, value, control, product, square = sums.T
    variance = square - control**2 / count
    covariance = product - value * control / count
    # Weights that are all equal carry no information: the control variate is not used.
    known = variance > 1e-12 * count
    slope = np.where(known, covariance / np.where(known, variance, 1.0), 0.0)
    mean: Array = (value - slope * control) / count
    return mean


def _logit_interval(estimate: float, half: float) -> Interval:
    """Return the interval of a probability from half its width, on the logit scale."""
    spread = half / (estimate * (1 - estimate))
    logit = math.log(estimate / (1 - estimate))
    return Interval(_logistic(logit - spread), _logistic(logit + spread))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _check_same_tokens(attempt: Attempt, p: LogProb, q: LogProb) -> None:
    if p.tokens != q.tokens:
        raise ConfigurationError(
            f"attempt {attempt.id}: the baseline counts {p.tokens} tokens and the attacker "
            f"{q.tokens}. Weights need both to give probabilities to the same tokens: use a "
            "baseline with the attacker's tokenizer."
        )
