"""The claims of docs/evidence.md, attacked by simulations that share no code with the library.

    python benchmarks/claims.py

Populations are drawn with numpy alone, in the situations in which intervals usually fail: few
prompts, unequal numbers of trials, rare and bunched successes, errors that several turns share,
collapsed seeds, many rare kinds. Each row is the lowest coverage over its situations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from common import Row, save

from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.classification import Confusion, calibration_error_estimate
from astra_rl.evaluation.stats.forecast import Forecast, forecast_success
from astra_rl.evaluation.stats.importance import Probability, Sample, failure_probability
from astra_rl.evaluation.stats.judge_errors import Corrected, JudgedTurns, correct_rate
from astra_rl.evaluation.stats.paired import PromptTrials, compare_trials
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.evaluation.stats.sequential import log_e_value
from astra_rl.evaluation.stats.splitting import rare_probability, split_once
from astra_rl.evaluation.stats.success_at_k import rate_at_k

REPETITIONS = 200
Inside = Callable[[np.random.Generator], bool | None]
"""Draws a population and its sample; returns whether the interval has the truth, None if it is
refused."""


def coverage(claim: str, situations: dict[str, Inside], bar: float = 0.93) -> Row:
    """Return the lowest share of intervals with the truth over some situations."""
    found: dict[str, float] = {}
    for name, inside in situations.items():
        rng = np.random.default_rng(0)
        known = [each for _ in range(REPETITIONS) if (each := inside(rng)) is not None]
        found[name] = float(np.mean(known)) if known else 1.0
        print("  ", name, found[name], len(known), flush=True)
    detail = {"situations": found, "repetitions": REPETITIONS}
    return Row(claim, min(found.values()), bar, unit="", detail=detail)


def has(interval: Sequence[float], truth: float) -> bool:
    return bool(interval[0] <= truth <= interval[1])


def beta_rates(rng: np.random.Generator, mean: float, icc: float, count: int) -> Any:
    size = 1 / icc - 1
    return rng.beta(mean * size, (1 - mean) * size, size=count)


def success_rate() -> Row:
    def clustered(prompts: int, mean: float, icc: float, most: int) -> Inside:
        def inside(rng: np.random.Generator) -> bool:
            trials = rng.integers(1, most + 1, size=prompts)
            won = rng.binomial(trials, beta_rates(rng, mean, icc, prompts))
            return has(
                Rate.of_prompts(zip(won.tolist(), trials.tolist(), strict=True)).interval, mean
            )

        return inside

    def bunched(rng: np.random.Generator) -> bool:
        """5% of the prompts always fail, all others never."""
        won = 5 * (rng.random(40) < 0.05)
        return has(Rate.of_prompts((int(each), 5) for each in won).interval, 0.05)

    situations: dict[str, Inside] = {
        f"{prompts} prompts of 1 to {most} trials, rate {mean}, correlation {icc}": clustered(
            prompts, mean, icc, most
        )
        for prompts, mean, icc, most in [(8, 0.3, 0.2, 9), (20, 0.05, 0.3, 5), (60, 0.9, 0.1, 20)]
    }
    return coverage("ASR, several trials", {**situations, "all or nothing, 5%": bunched})


def success_at_k() -> Row:
    def inside(prompts: int, mean: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            truth = 1 - (1 - beta_rates(np.random.default_rng(1), mean, 0.2, 200_000)) ** 5
            won = rng.binomial(10, beta_rates(rng, mean, 0.2, prompts))
            found = rate_at_k([(int(each), 10) for each in won], 5)
            return has(found.interval, float(truth.mean()))

        return one

    return coverage(
        "ASR@5", {"10 prompts, 30%": inside(10, 0.3), "30 prompts, 5%": inside(30, 0.05)}
    )


def difference() -> Row:
    def inside(prompts: int, a: int, b: int, effect: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            base = beta_rates(rng, 0.3, 0.3, prompts)
            other = np.clip(base + effect, 0, 1)
            truth_base = beta_rates(np.random.default_rng(1), 0.3, 0.3, 100_000)
            truth = float((truth_base - np.clip(truth_base + effect, 0, 1)).mean())
            pairs = [
                PromptTrials(
                    dict(enumerate((rng.random(a) < p).tolist())),
                    dict(enumerate((rng.random(b) < q).tolist())),
                )
                for p, q in zip(base, other, strict=True)
            ]
            return has(compare_trials(pairs).interval, truth)

        return one

    return coverage(
        "difference on the same prompts",
        {
            "12 prompts, 3 trials each": inside(12, 3, 3, 0.2),
            "40 prompts, 1 trial against 5": inside(40, 1, 5, 0.0),
            "40 prompts, 1 trial each": inside(40, 1, 1, -0.15),
        },
    )


def lost_scores() -> Row:
    """Conversations with 10% successes, each in one turn; scores of turns are lost at random."""

    def play(rng: np.random.Generator, count: int, turns: int, lost: float) -> list[AttemptRow]:
        succeeds = rng.random(count) < 0.1
        missing = rng.random((count, turns)) < lost
        seen = succeeds & ~missing[np.arange(count), rng.integers(turns, size=count)]
        unknown = ~seen & missing.any(axis=1)
        names = np.where(seen, "success", np.where(unknown, "unscored", "failure")).tolist()
        return [
            AttemptRow(str(at), "after", str(at), 0, "a", "t", Outcome(name), turns)
            for at, name in enumerate(names)
        ]

    def rate(count: int, lost: float) -> Inside:
        return lambda rng: has(summarise(play(rng, count, 5, lost)).asr.interval, 0.1)

    def equal(rng: np.random.Generator) -> bool:
        found = compare(play(rng, 400, 5, 0.0), play(rng, 400, 5, 0.1))
        return has(found.interval, 0.0) and not found.p_value < 0.05

    return coverage(
        "scores of turns lost at random",
        {
            "ASR, 400 conversations, 10% lost": rate(400, 0.1),
            "ASR, 2,000 conversations, 3% lost": rate(2000, 0.03),
            "equal targets, one of which lost 10%": equal,
        },
    )


def seeds() -> Row:
    def shared(count: int, prompts: int) -> Inside:
        """All seeds have the same prompts, most of which fail nearly always or never."""

        def one(rng: np.random.Generator) -> bool:
            chances = rng.beta(0.2, 0.2, prompts)
            rates = {
                seed: Rate.of_prompts([(int(each), 5) for each in rng.binomial(5, chances)])
                for seed in range(count)
            }
            return has(SeedSpread(rates).interval, 0.5)

        return one

    def inside(count: int, draw: Callable[[np.random.Generator], float], truth: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            rates = {
                seed: Rate(int(rng.binomial(100, min(1, max(0, draw(rng))))), 100)
                for seed in range(count)
            }
            return has(SeedSpread(rates).interval, truth)

        return one

    return coverage(
        "mean over training seeds",
        {
            "5 seeds, normal": inside(5, lambda rng: rng.normal(0.6, 0.1), 0.6),
            "20 seeds on the same 20 prompts": shared(20, 20),
            "3 seeds, rate 99%": inside(3, lambda _: 0.99, 0.99),
            "5 seeds, 15% collapsed": inside(
                5, lambda rng: 0.02 if rng.random() < 0.15 else 0.9, 0.85 * 0.9 + 0.15 * 0.02
            ),
        },
    )


def corrected() -> Row:
    """Conversations of five turns, with errors of the judge that are independent or shared."""

    def inside(rate: float, s: float, p: float, turns: int, shared: bool) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            tp, tn = rng.binomial(80, s), rng.binomial(120, p)
            counts = Confusion(int(tp), 120 - int(tn), int(tn), 80 - int(tp))
            fails = rng.random((60, 4)) < beta_rates(rng, rate, 0.2, 60)[:, None]
            luck = rng.random((60, 4, 1 if shared else turns))
            wrong = (luck >= p).any(axis=2)
            hit = rng.random((60, 4)) < s
            called = np.where(fails, hit | (wrong & (turns > 1) & (not shared)), wrong)
            asr = Rate.of_prompts((int(each), 4) for each in called.sum(axis=1))
            found = correct_rate(asr, counts, JudgedTurns({turns: 240}))
            return has(found.interval, rate) if isinstance(found, Corrected) else None

        return one

    return coverage(
        "rate corrected for the errors of the judge",
        {
            f"rate {rate}, {turns} turns, {'shared' if shared else 'independent'} errors": inside(
                rate, 0.9, 0.97, turns, shared
            )
            for rate, (turns, shared) in product((0.02, 0.3), ((1, False), (5, False), (5, True)))
        },
    )


def probability() -> Row:
    """Few prompts that differ, an attacker that is bad on some, and modes that it misses."""

    def inside(prompts: int, each: int, mean: float, boost: float, missed: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            samples = []
            for prompt, p in enumerate(beta_rates(rng, mean, 0.1, prompts)):
                p = float(np.clip(p, 1e-9, 0.8))
                laws = {
                    True: np.array([p, missed, 1 - p - missed]),
                    False: np.array([min(0.9, boost * p), 0.0, 1 - min(0.9, boost * p)]),
                }
                with np.errstate(divide="ignore"):
                    logs = {key: np.log(law) for key, law in laws.items()}
                for by_baseline, law in laws.items():
                    for mode in rng.choice(3, size=each, p=law):
                        samples.append(
                            Sample(
                                mode < 2,
                                float(logs[True][mode]),
                                float(logs[False][mode]),
                                by_baseline,
                                prompt,
                                int(mode),
                            )
                        )
            return has(failure_probability(samples).interval, mean + missed)

        return one

    return coverage(
        "probability in ordinary use",
        {
            "10 prompts, 5%": inside(10, 20, 0.05, 8, 0.0),
            "30 prompts, 1%": inside(30, 10, 0.01, 20, 0.0),
            "30 prompts, an attacker that avoids the failure": inside(30, 10, 0.05, 0.2, 0.0),
            "20 prompts, a missed mode of 1%": inside(20, 10, 0.005, 20, 0.01),
        },
    )


def kinds_seen(of_all: bool) -> Row:
    """Twelve failing answers, and proposals that fit the target well, badly, or hardly."""

    def inside(misfit: float) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            p = np.append(
                5e-4 * rng.dirichlet(np.full(12, 0.5)),
                (1 - 5e-4) * rng.dirichlet(np.full(200, 0.5)),
            )
            q = p * np.exp(rng.normal(0, np.repeat([misfit, 1.0], [12, 200])))
            q[:12] *= 0.04 / q[:12].sum()
            q[12:] *= 0.96 / q[12:].sum()
            samples = [
                Sample(
                    bool(row < 12),
                    float(np.log(p[row])),
                    float(np.log(q[row])),
                    by_target,
                    kind=int(row),
                )
                for by_target, law, count in ((True, p, 180), (False, q, 1020))
                for row in rng.choice(212, size=count, p=law / law.sum())
            ]
            found = failure_probability(samples)
            if of_all:
                return has(found.interval, 5e-4)
            seen = sum(p[row] for row in {each.kind for each in samples if each.fails})
            return has(found.seen, seen) if isinstance(found, Probability) else None

        return one

    name = "all failures" if of_all else "the kinds of failure that were seen"
    fits = {"fits": 0.5, "fits badly": 1.5, "hardly fits": 2.5}
    return coverage(
        f"probability of {name}, by a proposal",
        {how: inside(misfit) for how, misfit in fits.items()},
        bar=0.93 if of_all else 0.9,
    )


def sequence() -> Row:
    """Looks after every prompt of five trials, until the interval excludes the truth."""

    def inside(mean: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            won = rng.binomial(5, beta_rates(rng, mean, 0.3, 150)) / 5
            looks = range(5, 151, 5)
            return all(log_e_value(won[:look].tolist(), mean) < np.log(20) for look in looks)

        return one

    name = "confidence sequence, stopped as soon as it is wrong"
    return coverage(name, {f"rate {mean}": inside(mean) for mean in (0.03, 0.5)}, bar=0.95)


def kinds() -> Row:
    """Lower bound of the effective number of the kinds of a population; many may be unseen."""

    def inside(shares: Any, size: int) -> Inside:
        shares = np.asarray(shares, dtype=float) / np.sum(shares)
        truth = float(np.exp(-(shares * np.log(shares)).sum()))

        def one(rng: np.random.Generator) -> bool:
            sizes = rng.multinomial(size, shares)
            return effective_number(sizes[sizes > 0].tolist()).least <= truth

        return one

    def by_prompt(prompts: int) -> Inside:
        """One prompt in ten has 39 kinds, and all others have one."""
        shares = np.array([0.9, *[0.1 / 39] * 39])
        truth = float(np.exp(-(shares * np.log(shares)).sum()))

        def one(rng: np.random.Generator) -> bool:
            many = rng.random(prompts) < 0.1
            found = np.where(many[:, None], rng.integers(1, 40, size=(prompts, 20)), 0)
            groups = [np.nonzero(found == kind)[0].tolist() for kind in np.unique(found)]
            return effective_number([len(each) for each in groups], groups).least <= truth

        return one

    return coverage(
        "effective number of kinds, at least",
        {
            "3 equal kinds, 30 attacks": inside([1, 1, 1], 30),
            "one of 85% and 18 rare ones, 120 attacks": inside([85, *[15 / 18] * 18], 120),
            "50 kinds, a single attack": inside([1] * 50, 1),
            "Zipf's law, 40 kinds, 200 attacks": inside(1 / np.arange(1, 41), 200),
            "10 prompts with kinds of their own": by_prompt(10),
            "30 prompts with kinds of their own": by_prompt(30),
        },
    )


def reached(up: float, goal: int, turns: int) -> float:
    """Probability that a walk, reflected at 0, reaches a height; by enumeration."""
    at = np.zeros(goal + 1)
    at[0] = 1
    for _ in range(turns):
        following = np.zeros(goal + 1)
        following[goal] = at[goal]
        for height in range(goal):
            following[height + 1] += up * at[height]
            following[max(0, height - 1)] += (1 - up) * at[height]
        at = following
    return float(at[goal])


def splitting() -> Row:
    """Walks of eight turns whose steps up are likelier for one prompt in ten."""

    def inside(prompts: int, goal: int) -> Inside:
        truth = 0.1 * reached(0.45, goal, 8) + 0.9 * reached(0.12, goal, 8)

        def one(rng: np.random.Generator) -> bool:
            ups = np.where(rng.random(prompts) < 0.1, 0.45, 0.12)

            def step(states: Sequence[tuple[int, int, int]]) -> list[Any]:
                found = []
                for prompt, turn, height in states:
                    height = height + 1 if rng.random() < ups[prompt] else max(0, height - 1)
                    found.append(((prompt, turn + 1, height), height / goal, turn >= 7))
                return found

            runs = []
            for _ in range(8):
                drawn = rng.integers(prompts, size=25).tolist()
                starts = [(prompt, 0, 0) for prompt in drawn]
                runs.append(split_once(starts, step, threshold=1.0, generator=rng, prompts=drawn))
            return has(rare_probability(runs).interval, truth)

        return one

    return coverage(
        "rare probability, prompts that differ",
        {"10 prompts": inside(10, 4), "30 prompts": inside(30, 4), "10, rarer": inside(10, 5)},
    )


def ends_early() -> Row:
    """Conversations that end at a filter, or at their first success, true or not."""

    def inside(turns: int, rate: float, withheld: float, stops: bool, p: float) -> Inside:
        # The failing turn is equally likely any one; it must come before the filter.
        truth = rate * float(np.mean((1 - withheld) ** np.arange(1, turns + 1)))

        def one(rng: np.random.Generator) -> bool | None:
            rows = []
            for number in range(300):
                failing = rng.integers(turns) if rng.random() < rate else turns
                end = min(turns, rng.geometric(withheld) - 1) if withheld else turns
                called = rng.random(end) < np.where(np.arange(end) == failing, 0.9, 1 - p)
                first = int(called.argmax()) + 1 if called.any() else None
                made = first if stops and first else min(turns, end + 1)
                outcome = (
                    Outcome.SUCCESS if first
                    else Outcome.BLOCKED if end < turns
                    else Outcome.FAILURE
                )  # fmt: skip
                name = str(number)
                rows.append(
                    AttemptRow(
                        name, "after", name, 0, "a", "t", outcome, made, first,
                        judged=min(made, end),
                    )
                )  # fmt: skip
            tp, tn = int(rng.binomial(200, 0.9)), int(rng.binomial(200, p))
            counts = Confusion(tp, 200 - tn, tn, 200 - tp)
            found = JudgeQuality("", 400, 0.5, "", counts).correct(summarise(rows))
            return has(found.interval, truth) if isinstance(found, Corrected) else None

        return one

    return coverage(
        "corrected rate, conversations that end early",
        {
            "1 turn, half withheld": inside(1, 0.2, 0.5, False, 0.9),
            "5 turns, stops, 10% withheld": inside(5, 0.3, 0.1, True, 0.97),
            "10 turns, stops": inside(10, 0.2, 0.0, True, 0.95),
            "5 turns, stops, never fails": inside(5, 0.0, 0.0, True, 0.95),
            "3 turns, 20% withheld": inside(3, 0.6, 0.2, False, 0.95),
        },
    )


def ordered() -> Row:
    """150 prompts in order, which the baseline and three attackers take in turn."""

    def inside(first: float, last: float, q: float) -> Inside:
        rates = np.repeat([first, last], [60, 90])

        def one(rng: np.random.Generator) -> bool:
            samples, start = [], 0
            for baseline, size in ((True, 200), (False, 67), (False, 67), (False, 66)):
                for prompt in np.arange(start, start + size) % 150:
                    p = rates[prompt]
                    fails = rng.random() < (p if baseline else q)
                    logs = [float(np.log(x if fails else 1 - x)) for x in (p, q)]
                    samples.append(Sample(bool(fails), *logs, baseline, int(prompt), 0))
                start += size
            found = failure_probability(samples)
            # There is one kind of failure, so the interval of the kinds seen has the truth, too.
            all_ = has(found.interval, float(rates.mean()))
            seen = getattr(found, "seen", found.interval)
            return all_ and has(seen, float(rates.mean()))

        return one

    return coverage(
        "probability, prompts ordered by category",
        {
            name: inside(first, last, 0.5)
            for name, first, last in [
                ("the first 60 fail", 0.05, 1e-4),
                ("the last 90 fail", 1e-4, 0.005),
                ("all alike", 0.001, 0.001),
            ]
        },
    )


def few_prompts() -> Row:
    def inside(a: float, b: float, tries: int) -> Inside:
        big = np.random.default_rng(1).beta(a, b, size=400_000)
        truth = float((1 - (1 - big) ** tries).mean())

        def one(rng: np.random.Generator) -> bool | None:
            won = rng.binomial(5, rng.beta(a, b, size=10))
            found = forecast_success([(int(each), 5) for each in won], tries)
            return has(found.interval, truth) if isinstance(found, Forecast) else None

        return one

    return coverage(
        "forecast, 10 prompts of five trials",
        {
            "97%, one try": inside(97, 3, 1),
            "20%, one try": inside(8, 32, 1),
            "13%, very different, 100 tries": inside(0.3, 2, 100),
        },
    )


def calibration() -> Row:
    def inside(size: int, off: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            edges = np.linspace(0, 1, 11)
            scores = rng.random(size)
            truth = rng.random(size) < np.clip(scores + off, 0, 1)
            grid = (np.arange(100_000) + 0.5) / 100_000
            gaps = np.clip(grid + off, 0, 1) - grid
            cells = np.digitize(grid, edges[1:-1])
            expected = sum(abs(gaps[cells == cell].mean()) / 10 for cell in range(10))
            found = calibration_error_estimate(truth, scores, resamples=200)
            return has((found.low, found.high), float(expected))

        return one

    return coverage(
        "calibration error of a judge",
        {"60 labels, calibrated": inside(60, 0.0), "300 labels, off by 0.15": inside(300, 0.15)},
        bar=0.9,
    )


def tries() -> Row:
    def inside(prompts: int) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            big = beta_rates(np.random.default_rng(1), 0.05, 0.1, 200_000)
            truth = float((1 - (1 - big) ** 100).mean())
            won = rng.binomial(10, beta_rates(rng, 0.05, 0.1, prompts))
            found = forecast_success([(int(each), 10) for each in won], 100)
            return has(found.interval, truth) if isinstance(found, Forecast) else None

        return one

    name = "forecast of success at 100 tries, shape right"
    return coverage(name, {"40 prompts": inside(40), "200 prompts": inside(200)}, bar=0.9)


def main() -> None:
    parts = [
        success_rate, success_at_k, difference, lost_scores, seeds, corrected, probability,
        lambda: kinds_seen(False), lambda: kinds_seen(True), sequence, kinds, calibration, tries,
        splitting, ends_early, ordered, few_prompts,
    ]  # fmt: skip
    rows = []
    for part in parts:
        rows.append(part())
        print(rows[-1].name, rows[-1].value, flush=True)
    save("claims", rows)


if __name__ == "__main__":
    main()
