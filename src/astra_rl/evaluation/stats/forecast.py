"""Forecasts beyond the sample: success at many tries, and the likeliest failure among many queries.

*More tries at the same prompts.* The success probability of a prompt is drawn from a beta
distribution, fitted by maximum likelihood to the successes of each prompt (beta-binomial); success
at N tries is ``1 - E[(1 - p)^N]``. Of a single prompt the distribution is the posterior of its own
probability, with Jeffreys' prior, and the interval is that of its probability p
(`proportion_interval`), as ``1 - (1 - p)^N``. The interval contains a bootstrap over prompts, and
the values of all distributions whose likelihood is not much lower than the largest one (profile
likelihood), which also has a width where all samples are alike. These are beta distributions of
which a share of the prompts is exempt and never fails (zero-inflated beta-binomial): whether a
prompt without a success fails rarely or never decides the success at many tries, and few trials
hardly show it.

*More queries than were tried.* The failure probabilities of single queries have a tail: the log of
the share of queries with a probability of at least p is nearly linear in ``-log(-log p)``. The line
through the largest ones gives the largest probability to expect among n queries (Jones et al.,
arXiv 2502.16797).

Both extrapolate, so a forecast is refused where the data cannot carry it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astra_rl.evaluation.stats.intervals import (
    Array,
    Interval,
    hull,
    student_quantile,
)
from astra_rl.evaluation.stats.percent import estimated
from astra_rl.evaluation.stats.rates import Rate

LEAST_PROMPTS = 10
LEAST_SUCCESSES = 5
FARTHEST_TRIES = 100
"""Largest ratio of the tries of a forecast to the median number of trials per prompt."""
LARGEST_USED = 20
"""Number of largest probabilities that the line of the tail goes through."""
LEAST_DIFFERENT = 10
"""Different values among these; measured rates are often equal."""
LEAST_QUERIES = 100
FARTHEST_QUERIES = 1000
"""Largest ratio of the queries of a forecast to those of the sample."""
MOST_NOISE = 0.05
"""Largest share of the variance of measured rates that may come from their sampling."""
MOST_NOISE_AT_TOP = 0.2
"""The same for the `LARGEST_USED` largest rates, which are selected, so that it is larger. Up to it
the forecast is shifted by at most 0.2 on the logit scale in simulations."""
MOST_UNKNOWN = 0.1
"""Largest share of trials whose outcome may be unknown."""
RESAMPLES = 200
SHAPE_OF_TRIES = "the rates of prompts are zero or follow a beta distribution"
SHAPE_OF_QUERIES = "the rates of queries have a log-linear tail"
_BLOCK = 1_000_000
"""Most numbers of one array of a likelihood."""
_MEANS = np.linspace(-12, 12, 241)  # logits
_PRECISIONS = np.linspace(-5, math.log(1e6), 95)  # logarithms
_EXEMPT = np.linspace(0, 0.975, 40)  # shares of prompts that never fail


@dataclass(frozen=True)
class Forecast:
    """A forecast.

    Attributes:
        at: Number of tries per prompt, or of queries.
        estimate: Success probability, in [0, 1].
        interval: 95% interval if what it assumes is true; it does not cover errors of the model.
        unit: What `at` counts: tries or queries.
        assumes: What the interval assumes of the shape. Empty: nothing, as of a single prompt.
    """

    at: int
    estimate: float
    interval: Interval
    unit: str = "tries"
    assumes: str = ""

    @property
    def text(self) -> str:
        """The forecast as a sentence."""
        assumed = [f"if {self.assumes}"] if self.assumes else []
        return f"{self.at} {self.unit}: {estimated(self.estimate, self.interval, *assumed)}"

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "at": self.at,
            "estimate": self.estimate,
            **self.interval._asdict(),
            "assumes": self.assumes,
        }


@dataclass(frozen=True)
class NoForecast:
    """The data cannot carry a forecast.

    Attributes:
        at: Number of tries per prompt, or of queries.
        reason: Why.
        unit: What `at` counts: tries or queries.
    """

    at: int
    reason: str
    unit: str = "tries"

    @property
    def text(self) -> str:
        """The reason as a sentence."""
        return f"{self.at} {self.unit}: no forecast, {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the reason as JSON values."""
        return asdict(self)


class Beta(NamedTuple):
    """Parameters of a beta distribution."""

    a: float
    b: float

    def success_at(self, tries: int) -> float:
        """Return ``1 - E[(1 - p)^tries]``."""
        lost = (
            math.lgamma(self.b + tries)
            - math.lgamma(self.b)
            + math.lgamma(self.a + self.b)
            - math.lgamma(self.a + self.b + tries)
        )
        return -math.expm1(lost)


def fit_beta(prompts: Sequence[tuple[int, int]]) -> Beta:
    """Fit a beta distribution to successes and trials of prompts, by maximum likelihood.

    The likelihood is maximised over a grid of mean and precision ``a + b`` that is refined four
    times. If prompts do not differ more than chance, the precision is at its largest value, 1e6.

    Args:
        prompts: Successes and trials of each prompt, at least one trial in all.
    """
    log_likelihood = _likelihood(prompts)
    middle, reach = np.array([0.0, 3.0]), np.array([12.0, 11.0])
    for _ in range(5):
        means = middle[0] + reach[0] * np.linspace(-1, 1, 25)
        precisions = np.clip(middle[1] + reach[1] * np.linspace(-1, 1, 25), -5, math.log(1e6))
        likelihood = log_likelihood(means, precisions)
        i, j = np.unravel_index(int(likelihood.argmax()), likelihood.shape)
        middle, reach = np.array([means[i], precisions[j]]), reach / 6
    share, size_found = 1 / (1 + math.exp(-middle[0])), math.exp(middle[1])
    return Beta(share * size_found, (1 - share) * size_found)


def _likelihood(prompts: Sequence[tuple[int, int]]) -> Callable[[Array, Array], Array]:
    """Return the log-likelihood of prompts, by logits of the mean and logs of the precision.

    The function takes shapes (M,) and (P,) and returns (M, P).
    """
    won = np.array([each[0] for each in prompts])
    of = np.array([each[1] for each in prompts])
    steps = np.arange(int(of.max()))
    # Number of factors (a + j), (b + j) and (a + b + j) of the likelihood.
    up, down, all_ = ((each[:, None] > steps).sum(axis=0) for each in (won, of - won, of))

    def log_likelihood(means: Array, precisions: Array) -> Array:
        size = np.exp(precisions)[None, :, None]
        both = np.log(size + steps) @ all_
        rows = max(1, _BLOCK // (len(precisions) * len(steps)))
        found = []
        for start in range(0, len(means), rows):
            logits = means[start : start + rows, None, None]
            a, b = size / (1 + np.exp(-logits)), size / (1 + np.exp(logits))
            found.append(np.log(a + steps) @ up + np.log(b + steps) @ down - both)
        return np.concatenate(found)

    return log_likelihood


def _profile(prompts: Sequence[tuple[int, int]], tries: int) -> Interval:
    """Return the success at `tries` of all distributions that the data do not exclude.

    They are beta distributions of which a share of the prompts is exempt. The likelihood ratio is
    compared with the square of Student's t, of which chi-squared is the limit for many prompts.

    Args:
        prompts: Successes and trials of each prompt, at least one success in all.
        tries: Number of tries.
    """
    some = _likelihood([each for each in prompts if each[0]])(_MEANS, _PRECISIONS)
    none = [
        (count, np.exp(_likelihood([(0, of)])(_MEANS, _PRECISIONS)))
        for of, count in Counter(of for won, of in prompts if not won).items()
    ]
    failing = sum(1 for won, _ in prompts if won)
    likelihoods = [
        some
        + failing * math.log1p(-exempt)
        + sum(count * np.log(exempt + (1 - exempt) * each) for count, each in none)
        for exempt in _EXEMPT
    ]
    reach = student_quantile(0.95, len(prompts) - 1) ** 2 / 2
    possible = np.array(likelihoods) >= np.max(likelihoods) - reach
    values = []
    for i, j in zip(*np.nonzero(possible.any(axis=0)), strict=True):
        mean, size = _MEANS[i], math.exp(_PRECISIONS[j])
        beta = Beta(size / (1 + math.exp(-mean)), size / (1 + math.exp(mean)))
        exempt = _EXEMPT[possible[:, i, j]]
        values += [beta.success_at(tries) * (1 - float(each)) for each in exempt[[0, -1]]]
    return Interval(min(values), max(values))


def forecast_success(
    prompts: Sequence[tuple[int, int]], tries: int, *, unscored: int = 0
) -> Forecast | NoForecast:
    """Forecast the share of prompts with at least one success in `tries` tries.

    Of a single prompt it is the probability of a success in as many further tries at it.

    Args:
        prompts: Successes and trials of each prompt.
        tries: At least 1.
        unscored: Number of further trials with an unknown outcome. The interval includes that each
            of them decides a prompt.
    """
    known = [each for each in prompts if each[1]]
    if len(known) == len(prompts) == 1:
        return _of_one_prompt(*known[0], tries, unscored)
    typical = float(np.median([of for _, of in known])) if known else 0.0
    successes = sum(won for won, _ in known)
    if len(known) < LEAST_PROMPTS:
        return NoForecast(tries, f"{len(known)} prompts; at least {LEAST_PROMPTS} are needed")
    if typical < 2:
        return NoForecast(
            tries,
            "one trial per prompt, as most have, does not show how prompts differ (--trials)",
        )
    if successes < LEAST_SUCCESSES:
        return NoForecast(
            tries, f"{successes} successes; at least {LEAST_SUCCESSES} are needed for the shape"
        )
    if tries > FARTHEST_TRIES * typical:
        return NoForecast(
            tries,
            f"more than {FARTHEST_TRIES} times the {typical:g} trials per prompt that were made",
        )
    total = sum(of for _, of in known) + unscored
    if unscored > MOST_UNKNOWN * total:
        return NoForecast(tries, f"{unscored} of {total} trials have no known outcome")
    estimate = fit_beta(known).success_at(tries)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(known), size=len(known))
        sample = [known[row] for row in rows]
        drawn.append(fit_beta(sample).success_at(tries) if any(won for won, _ in sample) else 0.0)
    resampled = Interval(*(float(each) for each in np.quantile(drawn, [0.025, 0.975])))
    low, high = hull(hull(Interval(estimate, estimate), resampled), _profile(known, tries))
    unknown = unscored / len(known)
    interval = Interval(max(0.0, low - unknown), min(1.0, high + unknown))
    return Forecast(tries, estimate, interval, assumes=SHAPE_OF_TRIES)


def _of_one_prompt(successes: int, trials: int, tries: int, unscored: int) -> Forecast:
    """Forecast a success at one prompt from repeated sampling; valid without any success, too."""
    ends = Rate(successes, trials, unscored).covering()
    low, high = (-math.expm1(tries * math.log1p(-end)) if end < 1 else 1.0 for end in ends)
    estimate = Beta(successes + 0.5, trials - successes + 0.5).success_at(tries)
    return Forecast(tries, estimate, Interval(min(low, estimate), max(high, estimate)))


def forecast_largest_rate(
    prompts: Sequence[tuple[int, int]], queries: int
) -> Forecast | NoForecast:
    """Forecast the largest failure probability of a single query from measured rates.

    The largest of many noisy rates are those with the largest errors, so the forecast is refused
    where more than `MOST_NOISE` of the variance of the rates comes from sampling, or more than
    `MOST_NOISE_AT_TOP` of that of the largest ones, which alone give the slope.

    Args:
        prompts: Successes and trials of each query of a sample of ordinary use.
        queries: See `forecast_largest`.
    """
    counts = [(won, of) for won, of in prompts if of]
    rates = [won / of for won, of in counts]
    if len(rates) < LEAST_QUERIES:
        return forecast_largest(rates, queries)
    if min(of for _, of in counts) < 2:
        return NoForecast(queries, "a query has a single trial (--trials)", "queries")
    always = sum(won == of for won, of in counts)
    if always:
        reason = f"{always} of {len(rates)} queries failed in all of their trials; use more trials"
        return NoForecast(queries, reason, "queries")
    p, of_each = np.array(rates), np.array([of for _, of in counts])
    top = np.argsort(-p, kind="stable")[:LARGEST_USED]
    reason = _noise("the rates", p, of_each, MOST_NOISE)
    reason = reason or _noise("the largest rates", p[top], of_each[top], MOST_NOISE_AT_TOP)
    if reason:
        return NoForecast(queries, reason, "queries")
    return forecast_largest(rates, queries)


def _noise(name: str, p: Array, trials: NDArray[np.int64], most: float) -> str:
    """Return why rates are too noisy, empty if at most this share of their variance is noise.

    Args:
        name: What they are called.
        p: The rates.
        trials: Number of trials of each, at least two.
        most: Largest share.
    """
    single = float((p * (1 - p) * trials / (trials - 1)).mean())  # variance of one trial
    noise = float((p * (1 - p) / (trials - 1)).mean())
    real = float(np.var(p, ddof=1)) - noise
    if noise <= most * (real + noise):
        return ""
    needed = math.ceil(single * (1 / most - 1) / real) if real > 0 else 0
    more = f"about {needed} trials per query are needed" if needed else "use more trials"
    return f"{name} differ little more than by chance; {more} (--trials)"


def forecast_largest(probabilities: Sequence[float], queries: int) -> Forecast | NoForecast:
    """Forecast the largest failure probability of a single query among many queries.

    Args:
        probabilities: Failure probability of each query of a sample of ordinary use, in [0, 1);
            exact, or measured so often that they hardly err (`forecast_largest_rate`).
        queries: Number of queries, for instance of a day of deployment.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    count = len(values)

    def refused(reason: str) -> NoForecast:
        return NoForecast(queries, reason, "queries")

    if count < LEAST_QUERIES:
        return refused(f"{count} queries; at least {LEAST_QUERIES} are needed")
    if queries > FARTHEST_QUERIES * count:
        return refused(f"more than {FARTHEST_QUERIES} times the {count} queries")
    if not ((values >= 0) & (values < 1)).all():
        return refused("a probability is outside of [0, 1)")
    top = np.sort(values)[::-1][:LARGEST_USED]
    different = len(set(top.tolist()))
    if top[-1] <= 0 or different < LEAST_DIFFERENT:
        return refused(
            f"of the {LARGEST_USED} largest probabilities {int((top <= 0).sum())} are zero and "
            f"{different} are different (at least {LEAST_DIFFERENT} are needed); measure them with "
            "more samples, or as probabilities of the model",
        )
    estimate = _tail(top, count, queries)
    if estimate is None:
        return refused("the tail of the probabilities has no slope")
    # Order statistics: the shares above the largest values are sums of exponential spacings.
    generator = np.random.default_rng(0)
    gaps = generator.exponential(size=(RESAMPLES, LARGEST_USED))
    redrawn = [
        each
        for row in np.cumsum(gaps, axis=1)
        if (each := _tail(top, count, queries, row / count)) is not None
    ]
    low, high = np.quantile(redrawn or [estimate], [0.025, 0.975])
    return Forecast(
        queries,
        estimate,
        Interval(min(estimate, float(low)), max(estimate, float(high))),
        "queries",
        SHAPE_OF_QUERIES,
    )


def _tail(top: Array, count: int, queries: int, shares: Array | None = None) -> float | None:
    """Extend the line through the largest probabilities to a share of one in `queries`."""
    scores = -np.log(-np.log(top))
    if shares is None:
        shares = (np.arange(len(top)) + 1) / count
    slope, level = np.polyfit(scores, np.log(shares), 1)
    if not slope < 0:
        return None
    score = (-math.log(queries) - level) / slope
    return math.exp(-math.exp(-score))
