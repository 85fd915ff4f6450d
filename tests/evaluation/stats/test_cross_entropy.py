"""A game of ten turns that fails once in a million, by enumeration, and a proposal fitted to it."""

import math
from itertools import product

import numpy as np
import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.cross_entropy import cross_entropy, weighted_samples
from astra_rl.evaluation.stats.importance import NoProbability, Probability, failure_probability
from astra_rl.testing.walk import ONE_IN_A_MILLION, RareWalk

ORDINARY = RareWalk()
UP, TURNS, TOP = ONE_IN_A_MILLION, RareWalk.turns, RareWalk.top


def truth():
    """Probability of reaching the top, over all sequences of steps."""
    chance = {0: 1.0}
    for _ in range(TURNS):
        after: dict[int, float] = {}
        for height, p in chance.items():
            moves = (
                ((height + 1, UP), (max(0, height - 1), 1 - UP)) if height < TOP else ((TOP, 1),)
            )
            for to, q in moves:
                after[to] = after.get(to, 0.0) + p * q
        chance = after
    return chance[TOP]


def estimate(seed):
    generator = np.random.default_rng(seed)
    calls = []

    def played(steps):
        calls.append(RareWalk.calls(steps))
        return RareWalk.score(steps)

    fitted = cross_entropy(
        ORDINARY, played, threshold=1.0, generator=generator,
        conversations=60, elite=0.1, refine=2,
    )  # fmt: skip
    samples = weighted_samples(
        ORDINARY, fitted.policy, played, threshold=1.0, generator=generator,
        conversations=200, share=0.3,
    )  # fmt: skip
    assert fitted.levels[-3:] == (1.0, 1.0, 1.0)
    return failure_probability(samples), sum(calls)


def test_the_game_fails_once_in_a_million():
    assert truth() == pytest.approx(1e-6, rel=1e-6)
    # The same over all sequences; a walk that reached the top at turn t stands for 2^(10 - t).
    everything = np.array(list(product((0, 1), repeat=TURNS)))
    reached = RareWalk.heights(everything) == TOP
    copies = 2.0 ** np.where(reached.any(axis=1), TURNS - reached.argmax(axis=1), 0)
    chances = np.exp(ORDINARY.logprobs(everything)) / copies
    assert chances.sum() == pytest.approx(1.0)
    assert chances[reached.any(axis=1)].sum() == pytest.approx(1e-6, rel=1e-6)


def test_a_fitted_proposal_finds_one_in_a_million_with_ten_thousand_turns():
    found, calls = zip(*(estimate(seed) for seed in range(12)), strict=True)
    assert all(isinstance(each, Probability) for each in found)
    errors = np.array([each.estimate for each in found]) / 1e-6 - 1
    assert math.sqrt((errors**2).mean()) <= 0.3
    assert np.mean(calls) <= 10_000  # plain sampling needs a hundred million
    assert sum(each.seen.low <= 1e-6 <= each.seen.high for each in found) >= 10
    assert all(each.interval.low <= 1e-6 <= each.interval.high for each in found)


class Lines:
    """Conversations of one word out of 1,002; two of them fail."""

    def __init__(self, law):
        self.law = np.asarray(law)

    def sample(self, count, generator):
        return generator.choice(len(self.law), size=(count, 1), p=self.law)

    def logprobs(self, conversations):
        with np.errstate(divide="ignore"):
            return np.log(self.law[conversations[:, 0]])

    def fitted(self, conversations, weights):
        counts = np.bincount(conversations[:, 0], weights, minlength=len(self.law))
        return Lines(0.9 * counts / counts.sum() + 0.1 * self.law)


def test_a_mode_that_the_rounds_lost_is_within_the_bound():
    """The score leads to word 0, of 1e-5; word 1, of 2e-3, fails without a sign and is lost."""
    law = np.array([1e-5, 2e-3, *np.full(1000, (1 - 1e-5 - 2e-3) / 1000)])
    ordinary = Lines(law)
    below = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        lost = Lines(np.where(np.arange(1002) == 1, 0.0, 0.5 * law + 0.5 * (np.arange(1002) == 0)))
        lost.law /= lost.law.sum()
        samples = weighted_samples(
            ordinary, lost, lambda words: (words[:, 0] < 2).astype(float), threshold=1.0,
            generator=generator, conversations=400,
        )  # fmt: skip
        samples = [
            sample._replace(kind=("low" if sample.baseline < math.log(1e-4) else "high"))
            for sample in samples
        ]
        below += failure_probability(samples).interval.high < law[:2].sum()
    assert below <= 2


@pytest.mark.parametrize("used", [cross_entropy, weighted_samples])
def test_a_missing_score_is_refused_and_not_safe(used):
    models = [ORDINARY] if used is cross_entropy else [ORDINARY, ORDINARY]
    options = {"threshold": 2.0, "generator": np.random.default_rng(0), "conversations": 20}

    def score(rows):
        return np.where(np.arange(len(rows)) == 0, np.nan, 1.0)

    with pytest.raises(ConfigurationError, match="1 of 20 scores are missing"):
        used(*models, score, **options)


def test_a_score_that_leads_nowhere_is_refused():
    """And one that reaches no failure is no estimate of zero."""
    with pytest.raises(ConfigurationError, match="no failure after 30 rounds"):
        cross_entropy(
            ORDINARY, lambda steps: np.zeros(len(steps)), threshold=1.0,
            generator=np.random.default_rng(0), conversations=10,
        )  # fmt: skip
    with pytest.raises(ConfigurationError, match="at least one each"):
        weighted_samples(
            ORDINARY, ORDINARY, RareWalk.score, threshold=1.0,
            generator=np.random.default_rng(0), conversations=10, share=0.0,
        )  # fmt: skip
    with pytest.raises(ConfigurationError, match="elite=1"):
        cross_entropy(
            ORDINARY, RareWalk.score, threshold=1.0, generator=np.random.default_rng(0), elite=1
        )
    nothing = weighted_samples(
        ORDINARY, ORDINARY, RareWalk.score, threshold=1.0,
        generator=np.random.default_rng(0), conversations=100,
    )  # fmt: skip
    assert isinstance(failure_probability(nothing), NoProbability)
