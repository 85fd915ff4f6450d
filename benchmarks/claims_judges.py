"""Claims about the errors of judges, human labels and calibration, see `claims.py`."""

from __future__ import annotations

from itertools import product

import numpy as np
from claims_common import Inside, beta_rates, coverage, has
from common import Row

from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.classification import Confusion
from astra_rl.evaluation.stats.judge_errors import Corrected, JudgedTurns, correct_rate
from astra_rl.evaluation.stats.labelled_rate import Group, labelled_rate
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.score_calibration import calibration_error_estimate


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


def labels_of_prompts() -> Row:
    """Calibration on 20 prompts of ten labels of each class, whose errors are alike."""

    def inside(rate: float, turns: int, s: float, p: float) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            hits = rng.binomial(10, beta_rates(rng, s, 0.3, 20))
            clear = rng.binomial(10, beta_rates(rng, p, 0.3, 20))
            groups = [Confusion(int(k), 0, 0, 10 - int(k)) for k in hits]
            groups += [Confusion(0, 10 - int(k), int(k), 0) for k in clear]
            counts = Confusion(int(hits.sum()), 200 - int(clear.sum()), int(clear.sum()),
                               200 - int(hits.sum()))  # fmt: skip
            fails = rng.random(400) < rate
            false = 1 - p**turns
            called = rng.random(400) < np.where(fails, 1 - (1 - s) * p ** (turns - 1), false)
            asr = Rate(int(called.sum()), 400)
            found = correct_rate(asr, counts, JudgedTurns({turns: 400}), by_group=groups)
            return has(found.interval, rate) if isinstance(found, Corrected) else None

        return one

    return coverage(
        "corrected rate, labels of one prompt err alike",
        {
            "never fails, 3 turns": inside(0.0, 3, 0.9, 0.95),
            "5%": inside(0.05, 1, 0.9, 0.95),
            "30%, a poor judge": inside(0.3, 1, 0.75, 0.8),
            "90%": inside(0.9, 1, 0.9, 0.9),
        },
    )


def guessing() -> Row:
    """Judges that know next to nothing, of whom the labels may say otherwise."""

    def inside(s: float, p: float, positives: int, negatives: int, rate: float) -> Inside:
        def one(rng: np.random.Generator) -> bool | None:
            tp, tn = int(rng.binomial(positives, s)), int(rng.binomial(negatives, p))
            counts = Confusion(tp, negatives - tn, tn, positives - tp)
            called = int(rng.binomial(1000, rate * s + (1 - rate) * (1 - p)))
            found = correct_rate(Rate(called, 1000), counts)
            return has(found.interval, rate) if isinstance(found, Corrected) else None

        return one

    return coverage(
        "corrected rate, a judge near guessing, where it is given",
        {
            f"sensitivity {s}, specificity {p}, {n} and {m} labels, rate {rate}": inside(
                s, p, n, m, rate
            )
            for s, p, n, m in (
                (0.5, 0.52, 200, 20), (0.02, 1.0, 100, 100), (1.0, 0.05, 20, 200),
                (0.7, 0.35, 100, 100), (0.55, 0.55, 50, 50),
            )
            for rate in (0.1, 0.9)
        },
    )  # fmt: skip


def human_labels() -> Row:
    """60 labels of 300 conversations on 60 prompts; a tenth of the calls are missing.

    Calls are lost more often where the target failed, and the errors of the judge are not known.
    """

    def inside(rate: float, s: float, p: float, icc: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            fails = rng.random((60, 5)) < beta_rates(rng, rate, icc, 60)[:, None]
            luck = rng.random((60, 5))
            calls = np.where(fails, luck < s, luck >= p).astype(int)
            calls[rng.random((60, 5)) < np.where(fails, 0.2, 0.05)] = -1
            groups = []
            for call in (1, 0, -1):
                where = np.argwhere(calls == call)
                chosen = where[rng.permutation(len(where))[:20]]
                labels = np.zeros((60, 2))
                for prompt, trial in chosen:
                    labels[prompt] += fails[prompt, trial], 1
                sizes = (calls == call).sum(axis=1)
                played = np.flatnonzero(sizes)
                groups.append(
                    Group(
                        None if call < 0 else call,
                        tuple(int(n) for n in sizes[played]),
                        tuple((float(a), int(b)) for a, b in labels[played]),
                        tuple(int(prompt) for prompt in played),
                    )
                )
            share = Rate.of_prompts((int(n), 5) for n in (calls == 1).sum(axis=1)).interval
            return has(labelled_rate(groups, share).interval, rate)

        return one

    return coverage(
        "rate by human labels, calls missing, prompts that differ",
        {
            f"rate {rate}, sensitivity {s}, specificity {p}": inside(rate, s, p, 0.2)
            for rate, s, p in (
                (0.05, 0.9, 0.95),
                (0.3, 0.7, 0.8),
                (0.3, 0.99, 0.99),
                (0.8, 0.5, 0.9),
            )
        },
    )
