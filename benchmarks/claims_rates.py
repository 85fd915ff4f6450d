"""Claims about rates, differences, seeds, early stopping and forecasts, see `claims.py`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from claims_common import REPETITIONS, Inside, beta_rates, coverage, has
from common import Row

from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.forecast import Forecast, forecast_success
from astra_rl.evaluation.stats.paired import compare_trials
from astra_rl.evaluation.stats.paired_tables import PromptTrials
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.evaluation.stats.sequential import log_e_value
from astra_rl.evaluation.stats.success_at_k import rate_at_k


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


def play(
    rng: np.random.Generator,
    count: int,
    lost: float,
    *,
    of_failing: float | None = None,
    stops: bool = False,
    trials: int = 1,
) -> list[AttemptRow]:
    """Conversations of five turns of which some scores are lost.

    Conversations differ in how easily they fail, and the chance of a turn rises with the turns.

    Args:
        rng: The generator.
        count: Number of conversations.
        lost: Chance that the score of a turn is lost.
        of_failing: The same of a turn that fails; None: `lost`.
        stops: Whether a conversation ends at its first known success.
        trials: Conversations of each prompt, which are alike.
    """
    ease = np.repeat(rng.choice([0.0, 0.01, 0.1], size=-(-count // trials)), trials)[:count]
    fails = rng.random((count, 5)) < ease[:, None] * np.arange(1, 6) / 2
    chance = np.where(fails, lost if of_failing is None else of_failing, lost)
    missing = rng.random((count, 5)) < chance
    rows = []
    for at in range(count):
        seen = np.flatnonzero(fails[at] & ~missing[at])
        made = int(seen[0]) + 1 if stops and len(seen) else 5
        without = np.flatnonzero(missing[at, :made])
        outcome = Outcome.SUCCESS if len(seen) else Outcome.UNSCORED if len(without) else None
        rows.append(
            AttemptRow(
                str(at), "after", str(at // trials), at % trials, "a", "t",
                outcome or Outcome.FAILURE, made,
                first_failing_turn=int(seen[0]) + 1 if len(seen) else None,
                first_missing_turn=int(without[0]) + 1 if len(without) else None,
            )
        )  # fmt: skip
    return rows


EASE = np.outer([0.0, 0.01, 0.1], np.arange(1, 6) / 2)
LOSING_TRUTH = float(np.mean(1 - np.prod(1 - EASE, axis=1)))
"""Share of the conversations of `play` that fail in any turn."""


def lost_scores() -> Row:
    """Scores of turns are lost, whatever the answer or more often where the target failed."""

    def rate(count: int, lost: float, **how: Any) -> Inside:
        return lambda rng: has(summarise(play(rng, count, lost, **how)).asr.interval, LOSING_TRUTH)

    def equal(rng: np.random.Generator) -> bool:
        found = compare(play(rng, 400, 0.0), play(rng, 400, 0.1))
        return has(found.interval, 0.0) and not found.p_value < 0.05

    return coverage(
        "scores of turns lost",
        {
            "400 conversations, 10% lost": rate(400, 0.1),
            "2,000 conversations, 3% lost": rate(2000, 0.03),
            "400 that end at a success, 10% lost": rate(400, 0.1, stops=True),
            "100 prompts of four trials, 5% lost": rate(400, 0.05, trials=4),
            "40% of the scores of failing turns lost": rate(400, 0.1, of_failing=0.4),
            "no score of a failing turn lost": rate(400, 0.1, of_failing=0.0),
            "equal targets, one of which lost 10%": equal,
        },
    )


def lost_scores_bias() -> Row:
    """Mean error of the estimate where scores are lost whatever the answer."""
    found = {}
    for stops, lost in product((False, True), (0.03, 0.1, 0.3)):
        rng = np.random.default_rng(0)
        rates = [summarise(play(rng, 400, lost, stops=stops)).asr for _ in range(REPETITIONS)]
        name = f"{lost:.0%} lost{', ends at a success' if stops else ''}"
        found[name] = float(np.mean([each.estimate for each in rates])) - LOSING_TRUTH
        found[f"{name}, share of the known"] = (
            float(np.mean([each.successes / each.trials for each in rates])) - LOSING_TRUTH
        )
        print("  ", name, found[name], found[f"{name}, share of the known"], flush=True)
    worst = max(abs(value) for name, value in found.items() if "share" not in name)
    return Row(
        "mean error of the rate by turn, scores lost whatever the answer", worst, 0.01,
        at_least=False, unit="", detail={"truth": LOSING_TRUTH, "errors": found},
    )  # fmt: skip


def stopped() -> Row:
    """Two sides of which one stops as soon as it likes what it sees; 400 prompts are planned."""

    def inside(a: float, b: float, rule: Callable[[Any, Any], int], alike: float = 0.5) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            easy = rng.random(400)
            draws = [
                np.where(rng.random(400) < alike, easy, rng.random(400)) < rate for rate in (a, b)
            ]
            seen = rule(*draws)
            rows = [
                [
                    AttemptRow(
                        str(at), "after", str(at), 0, "x", "t",
                        Outcome.SUCCESS if won else Outcome.FAILURE, 1,
                    )
                    for at, won in enumerate(side[:seen])
                ]
                for side in draws
            ]  # fmt: skip
            found = compare(*rows, sequential=True)
            return has(found.interval, a - b) and not (a == b and found.p_value < 0.05)

        return one

    def significant(a: Any, b: Any) -> int:
        """Until the difference is 1.96 standard errors from zero."""
        ahead, differ = np.cumsum(a.astype(int) - b), np.cumsum(a != b)
        looks = np.flatnonzero(np.abs(ahead) > 1.96 * np.sqrt(differ))
        looks = looks[looks >= 15]
        return int(looks[0]) + 1 if len(looks) else len(a)

    def low(a: Any, b: Any) -> int:
        """Until the rate of B seems to be below 8%, by its normal interval."""
        n = np.arange(1, len(b) + 1)
        rate = np.cumsum(b) / n
        looks = np.flatnonzero(rate + 1.96 * np.sqrt(rate * (1 - rate) / n) < 0.08)
        looks = looks[looks >= 31]
        return int(looks[0]) + 1 if len(looks) else len(b)

    return coverage(
        "difference, a side stopped early",
        {
            "equal at 10%, until significant": inside(0.1, 0.1, significant),
            "equal at 50%, until significant": inside(0.5, 0.5, significant),
            "equal at 50%, no prompt alike, until significant": inside(0.5, 0.5, significant, 0),
            "equal at 10%, until B seems low": inside(0.1, 0.1, low),
            "10% against 3%, until B seems low": inside(0.1, 0.03, low),
        },
    )


def half_never_fail(rng: np.random.Generator, prompts: int, trials: int) -> list[tuple[int, int]]:
    """Prompts of which half never fail, and the others in 30% of their trials."""
    rates = np.where(rng.random(prompts) < 0.5, 0.0, 0.3)
    return [(int(each), trials) for each in rng.binomial(trials, rates)]


def never_failing() -> Row:
    def rate(rng: np.random.Generator) -> bool:
        return has(Rate.of_prompts(half_never_fail(rng, 20, 5)).interval, 0.15)

    def at_5(rng: np.random.Generator) -> bool:
        return has(rate_at_k(half_never_fail(rng, 20, 10), 5).interval, 0.5 * (1 - 0.7**5))

    return coverage("half of the prompts never fail", {"rate": rate, "ASR@5": at_5})


def never_failing_forecast() -> Row:
    def forecast(prompts: int, trials: int, tries: int) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            found = forecast_success(half_never_fail(rng, prompts, trials), tries)
            truth = 0.5 * (1 - 0.7**tries)
            return has(found.interval, truth) if isinstance(found, Forecast) else None

        return one

    return coverage(
        "forecast, half of the prompts never fail",
        {
            "100 prompts of five trials, 500 tries": forecast(100, 5, 500),
            "40 prompts of ten trials, 1,000 tries": forecast(40, 10, 1000),
        },
        bar=0.9,
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
