"""Claims about rare failures and kinds of attack, see `claims.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from claims_common import Inside, beta_rates, coverage, has
from common import Row

from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.stats.importance import Probability, Sample, failure_probability
from astra_rl.evaluation.stats.splitting import rare_probability, split_once


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


def all_kinds() -> Row:
    return _kinds_of_answers(of_all=True)


def kinds_seen() -> Row:
    return _kinds_of_answers(of_all=False)


def _kinds_of_answers(*, of_all: bool) -> Row:
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


def checkpoints() -> Row:
    """Attackers of three steps of a training, each of which leads a part of the conversations.

    One visits no failure, one both kinds, and the last has collapsed to one kind; with one of four
    kinds of failure that nobody finds.
    """
    law = np.array([5e-3, 1e-3, 1e-4, 0.0, 0.0])
    attackers = np.array(
        [
            [1e-4, 1e-4, 1e-4, 0.0, 1 - 3e-4],
            [0.2, 0.2, 0.01, 0.0, 0.59],
            [0.0, 0.9, 0.0, 0.0, 0.1],
        ]
    )

    def inside(prompts: int, missed: float) -> Inside:
        p = law.copy()
        p[3:] = missed, 1 - p[:3].sum() - missed

        def one(rng: np.random.Generator) -> bool:
            # Every prompt has samples of the baseline and of all, so one mixture holds for all.
            mixture = attackers.mean(axis=0)
            samples = []
            for prompt in range(prompts):
                tilt = np.exp(rng.normal(0, 0.5))
                own = np.append(p[:4] * tilt, 1 - (p[:4] * tilt).sum())
                for by_baseline, each, size in (
                    (True, own, 6), *((False, q, 2) for q in attackers)
                ):  # fmt: skip
                    for mode in rng.choice(5, size=size, p=each):
                        with np.errstate(divide="ignore"):
                            logs = np.log([own[mode], mixture[mode]])
                        samples.append(
                            Sample(
                                bool(mode < 4), float(logs[0]), float(logs[1]), by_baseline,
                                prompt, int(mode),
                            )
                        )  # fmt: skip
            truth = float(p[:4].sum() * np.exp(0.125))
            return has(failure_probability(samples).interval, truth)

        return one

    return coverage(
        "probability, three checkpoints",
        {
            "60 prompts": inside(60, 0.0),
            "60 prompts, a kind of 1% that nobody finds": inside(60, 0.01),
            "20 prompts, a kind of 1% that nobody finds": inside(20, 0.01),
        },
    )


def withheld() -> Row:
    """Answers of a target of which a filter withholds some or an endpoint loses some.

    A withheld answer is no failure. A lost one is left out; failing ones are lost twice as often.
    """

    def inside(misfit: float, blocked: float, lost: float) -> Inside:
        def one(rng: np.random.Generator) -> bool:
            p = np.append(
                0.01 * rng.dirichlet(np.full(12, 0.5)), 0.99 * rng.dirichlet(np.full(60, 0.5))
            )
            q = p * np.exp(rng.normal(0, misfit, 72))
            q[:12] *= 0.2 / q[:12].sum()
            q[12:] *= 0.8 / q[12:].sum()
            samples, left_out, of_target = [], 0, 0
            for by_target, law, size in ((True, p, 300), (False, q, 300)):
                for row in rng.choice(72, size=size, p=law / law.sum()):
                    fails = row < 12 and rng.random() >= blocked
                    if rng.random() < (2 * lost if fails else lost):
                        left_out, of_target = left_out + 1, of_target + by_target
                        continue
                    samples.append(
                        Sample(
                            bool(fails), float(np.log(p[row])), float(np.log(q[row])), by_target,
                            kind=int(row),
                        )
                    )  # fmt: skip
            found = failure_probability(
                samples, left_out=left_out, left_out_of_baseline=int(of_target)
            )
            return has(found.interval, 0.01 * (1 - blocked))

        return one

    return coverage(
        "probability of an answer, some withheld or lost",
        {
            "half of the failing ones withheld": inside(0.5, 0.5, 0.0),
            "3% lost": inside(0.5, 0.0, 0.03),
            "half withheld, 3% lost, a proposal that fits badly": inside(1.5, 0.5, 0.03),
        },
    )
