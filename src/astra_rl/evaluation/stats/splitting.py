"""Probability of a rare failure by adaptive multilevel splitting.

A failure that happens once in a million conversations is reached in stages. Many conversations are
played side by side, each with a level: the highest score of the judge so far. The lowest ones are
given up again and again, and replaced by copies of others, cut where they first exceeded that
level and continued with new random numbers. Each stage multiplies the estimate by the share that
was kept (Cérou and Guyader, *Stochastic Analysis and Applications* 25, 2007). For discrete levels,
with ties, all conversations at the lowest level are given up together, which keeps the estimate
unbiased (Bréhier et al., *Ann. Appl. Probab.* 26, 2016).

It needs a score that rises on the way to the failure. A mode of failure that rises from a level
which most conversations never reach may be missed; the runs of `rare_probability` are independent,
so a mode that some of them find widens the interval. The runs share their prompts: how much these
differ is estimated from what the descendants of each prompt add to the estimate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import Interval, student_quantile
from astra_rl.evaluation.stats.rates import Rate

StateT = TypeVar("StateT")

Step = Callable[[Sequence[StateT]], Sequence[tuple[StateT, float, bool]]]
"""Plays one turn of every state, with fresh random numbers: next state, score of the turn, and
whether the conversation has ended."""
MAX_STAGES = 10_000


@dataclass(frozen=True)
class Path(Generic[StateT]):
    """A conversation so far.

    Attributes:
        states: The opening, and the state after each turn.
        levels: Highest score up to each state; minus infinity for the opening.
        ended: Whether it has ended.
    """

    states: tuple[StateT, ...]
    levels: tuple[float, ...]
    ended: bool = False

    @property
    def level(self) -> float:
        """Highest score of the conversation."""
        return self.levels[-1]

    def cut_above(self, level: float) -> Path[StateT]:
        """Return the conversation up to the first state above a level, which it has reached."""
        at = next(index for index, each in enumerate(self.levels) if each > level)
        last = at == len(self.levels) - 1
        return Path(self.states[: at + 1], self.levels[: at + 1], self.ended and last)


class OfPrompt(NamedTuple):
    """What one run found from one prompt.

    Attributes:
        failures: Failures among its conversations at the start.
        conversations: Number of its conversations at the start.
        part: What the failures that descend from these add to the estimate.
    """

    failures: int
    conversations: int
    part: float


@dataclass(frozen=True)
class SplitRun(Generic[StateT]):
    """One run of the algorithm.

    Attributes:
        estimate: Unbiased estimate of the probability of failure; 0 if no conversation failed.
        turns: Number of turns that were played, target calls.
        stages: Number of stages.
        failures: Conversations at the end whose level reached the threshold.
        plain: Failures among the conversations at the start, before anything was given up.
        prompts: The same by prompt. Empty: all conversations are independent.
    """

    estimate: float
    turns: int
    stages: int
    failures: Sequence[Path[StateT]]
    plain: Rate
    prompts: Mapping[Hashable, OfPrompt] = field(default_factory=dict)


@dataclass(frozen=True)
class RareProbability:
    """Probability of a rare failure from independent runs.

    It is about prompts like these, or about the prompt if there is a single one.

    Attributes:
        estimate: Mean of the runs.
        seen: 95% interval of failures like those that the runs reached, over the choice of prompts
            and over sampling; its upper end is NaN with one run, and that of `plain` if no run
            failed. It is none of all failures: with few prompts, those that fail easily may all be
            missing.
        relative_error: Standard error divided by the estimate, for these prompts; NaN without
            failures.
        runs: Estimate of each run.
        turns: Number of turns that all runs played.
        stages: Mean number of stages; 0 if the scores have no levels below the threshold.
        plain: Failures among the conversations at the start of all runs, by prompt. They are plain
            sampling, so its upper end also bounds failures whose score does not rise on the way.
    """

    estimate: float
    seen: Interval
    relative_error: float
    runs: tuple[float, ...]
    turns: int
    stages: float
    plain: Rate

    @property
    def interval(self) -> Interval:
        """95% interval of all failures, also of other prompts, or without a score that rises."""
        return Interval(
            min(self.seen.low, self.plain.interval.high),
            max(self.seen.high, self.plain.interval.high),
        )

    @property
    def text(self) -> str:
        """The estimate as a sentence."""
        if not self.estimate:
            return (
                f"no run reached a failure: at most {self.plain.interval.high:.2g} by the "
                f"{self.plain.trials} conversations at the start"
            )
        plain = self.plain_calls
        more = "" if math.isnan(plain) else f", {plain:.2g} by plain sampling"
        return (
            f"about {self.estimate:.2g} (95% interval {self.interval.low:.2g} to "
            f"{self.interval.high:.2g}) from {len(self.runs)} runs and {self.turns} target calls"
            f"{more}; without failures that no run reached, of other prompts or with a score that "
            f"does not rise on the way: {self.seen.low:.2g} to {self.seen.high:.2g}"
        )

    @property
    def plain_calls(self) -> float:
        """Conversations of plain sampling with the same relative error.

        NaN without failures, with one run, and if all runs have the same estimate.
        """
        error = self.estimate * self.relative_error**2
        return (1 - self.estimate) / error if error else math.nan

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RareProbability:
        """Return the estimate of `as_dict`.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """
        plain = data["plain"]
        return cls(
            float(data["estimate"]),
            Interval(*(_number(data[end]) for end in ("seen_low", "seen_high"))),
            _number(data["relative_error"]),
            tuple(float(each) for each in data["runs"]),
            int(data["target_calls"]),
            float(data["stages"]),
            Rate(
                int(plain["successes"]),
                int(plain["trials"]),
                by_prompt=tuple((int(won), int(n)) for won, n in data.get("plain_by_prompt", ())),
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "method": "adaptive multilevel splitting",
            "estimate": self.estimate,
            **self.interval._asdict(),
            "relative_error": self.relative_error,
            "runs": list(self.runs),
            "target_calls": self.turns,
            "stages": self.stages,
            "plain": self.plain.as_dict(),
            "plain_by_prompt": [list(each) for each in self.plain.by_prompt],
            "seen_low": self.seen.low,
            "seen_high": self.seen.high,
        }


def split_once(
    openings: Sequence[StateT],
    step: Step[StateT],
    *,
    threshold: float,
    generator: np.random.Generator,
    kill: float = 0.25,
    prompts: Sequence[Hashable] | None = None,
) -> SplitRun[StateT]:
    """Run adaptive multilevel splitting once.

    Args:
        openings: Opening of each conversation, drawn from ordinary use; at least two.
        step: Plays one turn of each of some states.
        threshold: Score from which a turn is a failure.
        generator: Chooses what is copied.
        kill: Share of the conversations that a stage gives up at least, in (0, 1).
        prompts: Identifies the prompt of each opening. None: equal openings are one prompt; they
            must be hashable.

    Raises:
        ConfigurationError: An argument is out of range, or a turn has no score.
    """
    if len(openings) < 2 or not 0 < kill < 1:
        raise ConfigurationError(
            f"{len(openings)} conversations, kill={kill}; at least two, and kill in (0, 1)."
        )
    count = len(openings)
    ancestors: list[Hashable] = list(openings if prompts is None else prompts)
    if len(ancestors) != count:
        raise ConfigurationError(
            f"{len(ancestors)} prompts for {count} openings; give one for each."
        )
    paths, turns = _play([Path((each,), (-math.inf,)) for each in openings], step, threshold)
    started, failed = Counter(ancestors), _failures(paths, ancestors, threshold)
    plain = Rate(failed.total(), count)

    def found(estimate: float) -> SplitRun[StateT]:
        failures = [path for path in paths if path.level >= threshold]
        descend = _failures(paths, ancestors, threshold)
        whole = estimate * len(failures) / count
        parts = {
            prompt: OfPrompt(failed[prompt], size, estimate * descend[prompt] / count)
            for prompt, size in started.items()
        }
        return SplitRun(whole, turns, stages, failures, plain, parts)

    estimate, stages = 1.0, 0
    while stages < MAX_STAGES:
        levels = np.array([path.level for path in paths])
        level = float(np.sort(levels)[max(0, math.ceil(kill * count) - 1)])
        if level >= threshold:
            break
        survivors = np.flatnonzero(levels > level)
        if not len(survivors):  # all are at the same level: it cannot be exceeded from here
            return found(0.0)
        estimate *= len(survivors) / count
        given_up = np.flatnonzero(levels <= level)
        parents = generator.choice(survivors, size=len(given_up))
        copies = [paths[parent].cut_above(level) for parent in parents]
        played, more = _play(copies, step, threshold)
        turns += more
        stages += 1
        for index, parent, path in zip(given_up, parents, played, strict=True):
            paths[index], ancestors[index] = path, ancestors[parent]
    return found(estimate)


def _failures(
    paths: Sequence[Path[StateT]], ancestors: Sequence[Hashable], threshold: float
) -> Counter[Hashable]:
    """Return the number of failures by the prompt from which they descend."""
    return Counter(
        prompt for path, prompt in zip(paths, ancestors, strict=True) if path.level >= threshold
    )


def _play(
    paths: Sequence[Path[StateT]], step: Step[StateT], threshold: float
) -> tuple[list[Path[StateT]], int]:
    """Continue conversations until they fail or end; return them and the turns played."""
    done, turns = list(paths), 0
    going = [index for index, path in enumerate(done) if not path.ended and path.level < threshold]
    while going:
        results = step([done[index].states[-1] for index in going])
        turns += len(going)
        for index, (state, score, ended) in zip(going, results, strict=True):
            if math.isnan(score):
                raise ConfigurationError(
                    "a turn has the score NaN, and a score that is not known is not safe; give the "
                    "score of every turn, or minus infinity where there was nothing to judge."
                )
            path = done[index]
            highest = max(path.level, score)
            done[index] = Path((*path.states, state), (*path.levels, highest), ended)
        going = [
            index for index in going if not done[index].ended and done[index].level < threshold
        ]
    return done, turns


def rare_probability(runs: Sequence[SplitRun[Any]]) -> RareProbability:
    """Combine independent runs.

    The mean is unbiased. The estimates are skewed, so the interval is that of Student's t for their
    logarithms, moved to the mean, if all runs failed; otherwise Student's t for the estimates
    themselves. With several prompts the interval also covers their choice, see `_over_prompts`.

    Args:
        runs: At least one.
    """
    if not runs:
        raise ConfigurationError("no runs were given; give at least one.")
    values = np.array([run.estimate for run in runs])
    turns = sum(run.turns for run in runs)
    stages = float(np.mean([run.stages for run in runs]))
    plain, prompts = _plain(runs), _pooled(runs)
    mean, count = float(values.mean()), len(values)
    if count < 2 or not mean:
        high = math.nan if count < 2 else plain.interval.high
        return RareProbability(
            mean, Interval(0.0, high), math.nan, tuple(values.tolist()), turns, stages, plain
        )
    error = float(values.std(ddof=1)) / math.sqrt(count)
    quantile = student_quantile(0.95, count - 1)
    if values.all():
        logs = np.log(values)
        # Log-normal mean: the mean of the logs, plus half their variance (Cox's method, see Zhou
        # and Gao, Stat. Med. 16, 1997).
        variance = float(logs.var(ddof=1))
        centre = float(logs.mean()) + variance / 2
        reach = quantile * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
        interval = Interval(math.exp(centre - reach), min(1.0, math.exp(centre + reach)))
    else:
        interval = Interval(max(0.0, mean - quantile * error), min(1.0, mean + quantile * error))
    interval = _over_prompts(interval, mean, prompts)
    if not error or not stages:  # nothing was split, or equal runs: their spread says nothing
        low, high = plain.interval
        interval = Interval(min(interval.low, low), max(interval.high, high))
    return RareProbability(
        mean, interval, error / mean, tuple(values.tolist()), turns, stages, plain
    )


def _pooled(runs: Sequence[SplitRun[Any]]) -> list[OfPrompt]:
    """Return what all runs found from each prompt; empty with one prompt, or without prompts."""
    found: dict[Hashable, list[OfPrompt]] = defaultdict(list)
    for run in runs:
        for prompt, of_run in run.prompts.items():
            found[prompt].append(of_run)
    if len(found) < 2 or not all(run.prompts for run in runs):
        return []
    sums = [[sum(column) for column in zip(*each, strict=True)] for each in found.values()]
    return [OfPrompt(int(won), int(size), part / len(runs)) for won, size, part in sums]


def _plain(runs: Sequence[SplitRun[Any]]) -> Rate:
    """Return the failures of all conversations at the start, clustered by prompt."""
    prompts = _pooled(runs)
    if prompts:
        return Rate.of_prompts((each.failures, each.conversations) for each in prompts)
    return Rate(sum(run.plain.successes for run in runs), sum(run.plain.trials for run in runs))


def _over_prompts(interval: Interval, mean: float, prompts: Sequence[OfPrompt]) -> Interval:
    """Widen the interval of these prompts to one of prompts like these.

    The parts of the prompts add up to the estimate, and each is an unbiased estimate of what its
    prompt adds to the probability. Leaving out one prompt at a time (jackknife of a ratio) gives
    the error of their choice, which is added to that of the runs, on the logarithmic scale.
    """
    count = len(prompts)
    if not count:
        return interval
    parts = np.array([each.part for each in prompts])
    sizes = np.array([each.conversations for each in prompts], dtype=np.float64)
    others = (parts.sum() - parts) / (1 - sizes / sizes.sum())
    error = math.sqrt((count - 1) / count * float(((others - others.mean()) ** 2).sum()))
    reach = student_quantile(0.95, count - 1) * error / mean
    low, high = interval
    down = math.hypot(math.log(mean / low), reach) if low else math.inf
    up = math.hypot(math.log(max(high, mean) / mean), reach)
    # The exponent stays in range: nothing is further from the estimate than 1.
    return Interval(mean * math.exp(-down), min(1.0, mean * math.exp(min(up, -math.log(mean)))))


def _number(value: Any) -> float:
    """Return a number; NaN for None, which is how JSON stores it."""
    return math.nan if value is None else float(value)
