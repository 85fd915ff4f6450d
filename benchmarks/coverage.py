"""Coverage of the intervals by simulation and enumeration: the table of docs/evidence.md.

    python benchmarks/coverage.py [NAME...]

Each row is the lowest coverage over its scenarios, so with few repetitions it is below the true one
by chance: by up to about 2.5 standard errors of a scenario. Everything is seeded. With names only
these simulations are run, and their rows in the results are replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from common import Row, save_parts

from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.gate import check, fail_on
from astra_rl.evaluation.stats.classification import Confusion
from astra_rl.evaluation.stats.forecast import Forecast, forecast_largest
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.evaluation.stats.intervals import (
    Interval,
    clustered_interval,
    proportion_interval,
)
from astra_rl.evaluation.stats.judge_errors import Corrected, correct_rate
from astra_rl.evaluation.stats.labelled_rate import Group, allocate, labelled_rate
from astra_rl.evaluation.stats.paired_tests import newcombe_interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.sequential import log_e_value
from astra_rl.evaluation.stats.splitting import rare_probability, split_once

RATES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)
JUDGES = tuple(product((0.6, 0.8, 0.95, 1.0), repeat=2))
UP = 0.07516714899953648
"""Probability of a step up with which a walk of ten turns reaches height 6 once in a million."""


def lowest(name: str, found: Sequence[tuple[float, str]], repetitions: int, bar: float) -> Row:
    """Return a row with the lowest coverage over scenarios."""
    value, scenario = min(found)
    detail = {"scenario": scenario, "scenarios": len(found), "repetitions": repetitions}
    return Row(name, value, bar, unit="", detail=detail)


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def independent() -> Row:
    """Success rate with one trial per prompt, by enumeration of all counts."""
    found = []
    for trials in (5, 10, 30, 100, 300):
        intervals = [proportion_interval(k, trials) for k in range(trials + 1)]
        logs = np.cumsum(np.log(np.arange(1, trials + 1)))
        choose = logs[-1] - np.append(0, logs) - np.append(0, logs)[::-1]
        for rate in np.linspace(0.001, 0.999, 999):
            counts = np.arange(trials + 1)
            chances = np.exp(choose + counts * np.log(rate) + (trials - counts) * np.log1p(-rate))
            inside = [holds(each, rate) for each in intervals]
            found.append((float(chances @ inside), f"{trials} trials, rate {rate:.3f}"))
    return lowest("coverage: success rate, one trial per prompt (enumerated)", found, 1, 0.93)


def clustered(repetitions: int = 500) -> Row:
    """Success rate with several correlated trials per prompt (beta-binomial)."""
    rng, found = np.random.default_rng(0), []
    for prompts, trials, rate, icc in product((10, 40), (5,), (0.05, 0.3, 0.9), (0.1, 0.4)):
        size = 1 / icc - 1
        rates = rng.beta(rate * size, (1 - rate) * size, size=(repetitions, prompts))
        won = rng.binomial(trials, rates)
        inside = [
            holds(clustered_interval([(int(each), trials) for each in row]), rate) for row in won
        ]
        found.append((float(np.mean(inside)), f"{prompts} prompts, rate {rate}, correlation {icc}"))
    return lowest("coverage: success rate, five trials per prompt", found, repetitions, 0.93)


def paired(repetitions: int = 2000) -> Row:
    """Difference of two rates on the same prompts."""
    rng, found = np.random.default_rng(0), []
    for pairs, a, b, both in product((30, 200), (0.1, 0.5), (0.05, 0.5, 0.9), (0.3, 0.9)):
        together = both * min(a, b) + (1 - both) * a * b
        law = [together, a - together, b - together, 1 - a - b + together]
        inside = [
            holds(newcombe_interval(*map(int, counts)), a - b)
            for counts in rng.multinomial(pairs, law, size=repetitions)
        ]
        found.append((float(np.mean(inside)), f"{pairs} pairs, rates {a} and {b}"))
    return lowest("coverage: difference of paired rates", found, repetitions, 0.93)


def sequential(repetitions: int = 2000) -> Iterator[Row]:
    """Confidence sequence under looks at any time, and the conversations that it saves."""
    looks = [*range(8, 200, 8), *range(200, 1000, 40)]
    limit = np.log(20)
    found = []
    for rate in (0.02, 0.1, 0.5):
        paths = (np.random.default_rng(0).random((repetitions, looks[-1])) < rate).cumsum(axis=1)
        missed = np.zeros(repetitions, dtype=bool)
        for of in looks:
            counts, where = np.unique(paths[:, of - 1], return_inverse=True)
            against = [log_e_value([1.0] * k + [0.0] * (of - k), rate) for k in counts.tolist()]
            missed |= (np.array(against) >= limit)[where]
        found.append((1 - float(missed.mean()), f"rate {rate}"))
    name = f"coverage: confidence sequence at {len(looks)} looks together"
    yield lowest(name, found, repetitions, 0.95)
    fixed = ((1.96 * np.sqrt(0.05 * 0.95) + 1.28 * np.sqrt(0.025 * 0.975)) / 0.025) ** 2
    looks = np.arange(16, fixed, 16, dtype=int).tolist()
    for rate in (0.05 / 3, 0.15):
        paths = (np.random.default_rng(1).random((500, looks[-1])) < rate).cumsum(axis=1)
        needed = []
        for path in paths:
            needed.append(fixed)
            for of in looks:
                won = int(path[of - 1])
                if log_e_value([1.0] * won + [0.0] * (of - won), 0.05) >= limit:
                    needed[-1] = of
                    break
        yield Row(
            f"conversations saved by --until at a gate of 5%, rate {rate:.1%}",
            1 - float(np.mean(needed)) / float(fixed),
            0.4,
            unit="",
            detail={"mean": float(np.mean(needed)), "fixed": float(fixed)},
        )


def rogan_gladen(repetitions: int = 1000) -> Row:
    """Rate corrected with 50 labels of either class and 200 conversations."""
    rng, found = np.random.default_rng(0), []
    for (sensitivity, specificity), rate in product(JUDGES, RATES):
        measured = rate * sensitivity + (1 - rate) * (1 - specificity)
        inside = []
        for _ in range(repetitions):
            tp, tn = int(rng.binomial(50, sensitivity)), int(rng.binomial(50, specificity))
            counts = Confusion(tp, 50 - tn, tn, 50 - tp)
            each = correct_rate(Rate(int(rng.binomial(200, measured)), 200), counts)
            if isinstance(each, Corrected):
                inside.append(holds(each.interval, rate))
        scenario = f"sensitivity {sensitivity}, specificity {specificity}, rate {rate}"
        found.append((float(np.mean(inside)), scenario))
    return lowest("coverage: rate corrected by Rogan-Gladen", found, repetitions, 0.93)


def prediction_powered(repetitions: int = 300) -> Iterator[Row]:
    """Rate from 60 labels of 500 conversations, allocated as `astra-rl label` does."""
    rng, found = np.random.default_rng(0), []
    for (sensitivity, specificity), rate in product(JUDGES, RATES):
        inside = []
        for _ in range(repetitions if rate not in (0.0, 1.0) else repetitions // 3):
            each, _ = labelled(rng, rate, sensitivity, specificity, 500, 60)
            inside.append(holds(each, rate))
        scenario = f"sensitivity {sensitivity}, specificity {specificity}, rate {rate}"
        found.append((float(np.mean(inside)), scenario))
    yield lowest("coverage: rate from labels and calls (PPI++)", found, repetitions, 0.93)
    pairs = [labelled(rng, 0.5, 0.99, 0.99, 2000, 100) for _ in range(100)]
    ratio = float(np.mean([np.ptp(a) for a, _ in pairs]) / np.mean([np.ptp(b) for _, b in pairs]))
    name = "width by labels and a judge with 1% errors / by 100 labels alone, rate 50%"
    yield Row(name, ratio, 0.5, at_least=False, unit="")


def labelled(
    rng: np.random.Generator,
    rate: float,
    sensitivity: float,
    specificity: float,
    size: int,
    labels: int,
) -> tuple[Interval, Interval]:
    """Return the interval by labels and calls, and that of the labels alone."""
    truth, right = rng.random(size) < rate, rng.random(size)
    calls = np.where(truth, right < sensitivity, right >= specificity).astype(int)
    empty = [Group(call, (1,) * int((calls == call).sum())) for call in (1, 0)]
    groups = [
        Group(
            group.call,
            group.by_prompt,
            tuple((float(each), 1) for each in truth[calls == group.call][:count]),
        )
        for group, count in zip(empty, allocate(empty, labels), strict=True)
    ]
    found = labelled_rate(groups, proportion_interval(int(calls.sum()), size))
    return found.interval, proportion_interval(int(truth[:labels].sum()), labels)


def importance(repetitions: int = 300) -> Row:
    """A mode of 1e-5 that the attacker finds, and one of 1e-3 that it never visits."""
    inside = []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        laws = np.array([1e-5, 1e-3, 1 - 1.01e-3]), np.array([0.3, 0.0, 0.7])
        with np.errstate(divide="ignore"):
            p, q = np.log(laws[0]), np.log(laws[1])
        samples = [
            Sample(mode < 2, float(p[mode]), float(q[mode]), which == 0, kind=int(mode))
            for which, law in enumerate(laws)
            for mode in rng.choice(3, size=500, p=law)
        ]
        inside.append(holds(failure_probability(samples).interval, 1.01e-3))
    found = [(float(np.mean(inside)), "modes 1e-5 and 1e-3")]
    return lowest("coverage: importance sampling with a missed mode", found, repetitions, 0.93)


def walk(rng: np.random.Generator) -> Callable[[Any], Any]:
    """Ten turns in which the target gives in (height + 1) or recovers; failure at height 6."""

    def step(states: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], float, bool]]:
        ups = rng.random(len(states)) < UP
        heights = [h + 1 if up else max(0, h - 1) for (_, h), up in zip(states, ups, strict=True)]
        return [
            ((turn + 1, h), h / 6, turn + 1 >= 10)
            for (turn, _), h in zip(states, heights, strict=True)
        ]

    return step


def splitting(repetitions: int = 200) -> Iterator[Row]:
    """A failure of one in a million, known by enumeration."""
    found = []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        runs = [
            split_once([(0, 0)] * 200, walk(rng), threshold=1.0, generator=rng) for _ in range(10)
        ]
        found.append(rare_probability(runs))
    errors = np.array([each.estimate for each in found]) / 1e-6 - 1
    inside = float(np.mean([holds(each.seen, 1e-6) for each in found]))
    name = "splitting, one in a million"
    yield lowest(f"coverage: {name}", [(inside, "10 runs of 200")], repetitions, 0.93)
    rmse = float(np.sqrt(np.mean(errors**2)))
    yield Row(f"relative RMSE: {name}", rmse, 0.3, at_least=False, unit="")
    calls = float(np.mean([each.turns for each in found]))
    yield Row(f"target calls: {name}", calls, 100_000, at_least=False, unit="")


def forecasts(repetitions: int = 100) -> Iterator[Row]:
    """Likeliest failure of 90,000 held-out queries, from 900; a new population of each seed."""

    def mixed(rng: np.random.Generator, size: int) -> Any:
        """One query in a hundred is of a dangerous kind."""
        kinds = rng.random(size) < 0.01
        return np.exp(np.where(kinds, rng.normal(-8, 1.5, size), rng.normal(-16, 2, size)))

    shapes: dict[str, Callable[[np.random.Generator, int], Any]] = {
        "log-normal, narrow": lambda rng, size: np.exp(rng.normal(-12, 2, size)),
        "log-normal, wide": lambda rng, size: np.exp(rng.normal(-20, 4, size)),
        "beta": lambda rng, size: rng.beta(0.2, 50, size),
        "power law": lambda rng, size: 1e-7 * rng.pareto(1.2, size),
        "logit-normal": lambda rng, size: 1 / (1 + np.exp(-rng.normal(-9, 2, size))),
        "mixture": mixed,
    }
    near: dict[str, list[bool]] = {name: [] for name in shapes}
    for (name, shape), seed in product(shapes.items(), range(repetitions)):
        rng = np.random.default_rng(seed)
        sample, held_out = (np.clip(shape(rng, n), 1e-300, 0.999) for n in (900, 90_000))
        found = forecast_largest(sample, 90_000)
        if isinstance(found, Forecast):
            near[name].append(bool(abs(np.log10(found.estimate / held_out.max())) <= 1))
    by_shape = {name: float(np.mean(each)) for name, each in near.items() if each}
    every = [each for trials in near.values() for each in trials]
    name = "forecasts within one order of magnitude, 900 to 90,000 queries"
    yield Row(name, float(np.mean(every)), 0.86, unit="", detail={"trials": len(every), **by_shape})


def gates(repetitions: int = 300) -> Row:
    """Families of 20 results at exactly the limit in which ``lower(asr)>0.05`` holds somewhere."""
    condition = fail_on("lower(asr)>0.05")
    counts = np.random.default_rng(0).binomial(100, 0.05, size=(repetitions, 20))
    summaries = {
        k: summarise(
            AttemptRow(
                id=str(n), phase="p", prompt_id=str(n), trial=0, attacker="a", target="t",
                outcome=Outcome.SUCCESS if n < k else Outcome.FAILURE, turns=1,
            )
            for n in range(100)
        )
        for k in range(int(counts.max()) + 1)
    }  # fmt: skip
    alarms = [
        any(each.fails for each in check([condition], [summaries[int(k)] for k in row]))
        for row in counts
    ]
    return Row("false alarms of a gate on 20 results", float(np.mean(alarms)), 0.05, False, "")


PARTS: tuple[Callable[[], Row | Iterator[Row]], ...] = (
    independent,
    clustered,
    paired,
    sequential,
    rogan_gladen,
    prediction_powered,
    importance,
    splitting,
    forecasts,
    gates,
)


def main() -> None:
    parts = {each.__name__: each for each in PARTS}
    for name in sys.argv[1:] or parts:
        if name not in parts:
            sys.exit(f"no simulation {name!r}; known: {', '.join(parts)}")
        found = parts[name]()
        rows = [found] if isinstance(found, Row) else list(found)
        for row in rows:
            print(row.name, row.value, dict(row.detail), flush=True)
        save_parts("coverage", {name: rows}, list(parts))


if __name__ == "__main__":
    main()
