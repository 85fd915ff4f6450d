"""Rare failures, where the truth is known by enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import ASTEnvironment, ASTEvaluator, FunctionModerator
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.evaluation.stats.importance import (
    NoProbability,
    Probability,
    Sample,
    effective_size,
    failure_probability,
    failure_probability_of,
)
from astra_rl.methods.baseline_attacker import BaselineAttackerProblem
from astra_rl.testing import ToyProblem

LETTERS = 10
LENGTH = 4
FAILS = {(0, 0, 0, 1)}
"""Conversations of four of ten letters that make the target fail."""
BASELINE = np.array([0.1] * LETTERS)
ATTACKER = np.array([0.6, 0.2, *[0.025] * 8])
TRUTH = len(FAILS) * 0.1**LENGTH
"""1e-4 by enumeration: the baseline says every conversation equally often."""


def play(generator, letters, count, from_baseline):
    said = generator.choice(LETTERS, size=(count, LENGTH), p=letters)
    return [
        Sample(
            tuple(map(int, row)) in FAILS,
            float(np.log(BASELINE[row]).sum()),
            float(np.log(ATTACKER[row]).sum()),
            from_baseline,
        )
        for row in said
    ]


def mixture(seed, count=2000):
    generator = np.random.default_rng(seed)
    half = count // 2
    return [
        *play(generator, BASELINE, half, True),
        *play(generator, ATTACKER, count - half, False),
    ]


def test_failures_of_one_in_ten_thousand_are_found_with_a_twentieth_of_the_target_calls():
    """The spread of the estimate, and the conversations that plain sampling needs for the same."""
    found = [failure_probability(mixture(seed, 1000)) for seed in range(60)]
    assert all(isinstance(each, Probability) for each in found)
    estimates = np.array([each.estimate for each in found])
    assert estimates.mean() == pytest.approx(TRUTH, rel=0.05)
    plain = TRUTH * (1 - TRUTH) / estimates.var()
    assert plain > 20 * 1000  # target calls: one per conversation
    said = np.array([each.plain_conversations for each in found])
    assert np.median(said) == pytest.approx(plain, rel=0.5)  # what is shown of it is right


def test_the_interval_holds_the_truth():
    held = given = 0
    for seed in range(250):
        found = failure_probability(mixture(seed, 800))
        if isinstance(found, Probability):
            given += 1
            held += found.interval.low <= TRUTH <= found.interval.high
    assert given > 200
    assert held / given >= 0.93


def test_every_single_conversation_weighed_exactly_gives_the_truth():
    """As many samples of each conversation as the mixture would give on average: no noise left."""
    from itertools import product

    share = 0.5
    numerator = total = 0.0
    for said in product(range(LETTERS), repeat=LENGTH):
        p, q = BASELINE[list(said)].prod(), ATTACKER[list(said)].prod()
        density = share * p + (1 - share) * q
        weight = p / density
        numerator += density * weight * (said in FAILS)
        total += density * weight
    assert numerator / total == pytest.approx(TRUTH)


def test_the_attacker_alone_gives_no_number():
    samples = play(np.random.default_rng(0), ATTACKER, 500, False)
    found = failure_probability(samples)
    assert isinstance(found, NoProbability)
    assert "drawn from the baseline" in found.reason


def test_no_failure_gives_a_bound_and_no_number():
    samples = play(np.random.default_rng(0), np.array([0.0, 0.2, *[0.1] * 8]), 300, True)
    found = failure_probability(samples)
    assert isinstance(found, NoProbability)
    assert "says" in found.reason or "say" in found.reason
    assert found.evidence.plain.interval.high < 0.02
    assert found.evidence.unseen == pytest.approx(1 - 0.05 ** (1 / 300))


def test_a_few_conversations_that_decide_everything_give_no_number():
    samples = mixture(0, 60)
    found = failure_probability(samples)
    assert isinstance(found, NoProbability) or found.evidence.effective_failures >= 10
    heavy = [Sample(True, -1.0, -9.0, False), *play(np.random.default_rng(1), BASELINE, 200, True)]
    found = failure_probability(heavy)
    assert isinstance(found, NoProbability)
    assert "few conversations decide" in found.reason


def test_samples_of_one_prompt_count_as_one():
    generator = np.random.default_rng(3)
    samples = mixture(3, 400)
    bunched = [sample._replace(prompt=int(generator.integers(8))) for sample in samples]
    alone, together = failure_probability(samples), failure_probability(bunched)
    assert alone.estimate == pytest.approx(together.estimate)
    # Of one prompt the conversations are independent; of eight, eight groups are.
    single = failure_probability([sample._replace(prompt="p") for sample in samples])
    assert single.interval == alone.interval
    few = [sample._replace(prompt=index % 2) for index, sample in enumerate(samples)]
    assert failure_probability(few).interval.high > alone.interval.high


def test_weights_are_bounded_by_the_share_of_the_baseline():
    samples = [Sample(True, 0.0, -1000.0, True), Sample(False, -1000.0, 0.0, False)]
    found = failure_probability(samples, min_effective_failures=0.5)
    # weight of the first 1 / 0.5; of the second nothing
    assert found.evidence.effective_samples == pytest.approx(1.0)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_the_effective_size_is_at_most_the_number_and_equal_for_equal_weights(weights):
    size = effective_size(np.array(weights))
    assert 0 <= size <= len(weights) + 1e-9
    assert effective_size(np.full(len(weights), 0.3)) == pytest.approx(len(weights))


def test_an_impossible_sample_is_refused():
    for p, q in ((-math.inf, -math.inf), (math.nan, -1.0)):
        with pytest.raises(ConfigurationError, match="leave it out"):
            failure_probability([Sample(True, p, q, True)])


def recorded(attempt, turn, sample, index, **fields):
    logprobs = {
        "baseline": LogProb(total=sample.baseline, tokens=LENGTH),
        "attacker": LogProb(total=sample.attacker, tokens=LENGTH),
    }
    return attempt(
        turn(score=float(sample.fails), logprobs=logprobs),
        opening=f"opening {index}",
        attacker="ordinary" if sample.from_baseline else "trained",
        **fields,
    )


def test_it_is_computed_from_recorded_attempts(attempt, turn):
    samples = mixture(0)
    attempts = [recorded(attempt, turn, sample, index) for index, sample in enumerate(samples)]
    broken = [attempt(turn(score=None), opening="x"), attempt(turn(score=0.9), opening="y")]
    found = failure_probability_of([*attempts, *broken], baseline="ordinary")
    expected = failure_probability(samples)
    assert found.estimate == pytest.approx(expected.estimate)
    assert found.interval == pytest.approx(expected.interval, rel=0.05)
    assert found.evidence.left_out == 2


def test_models_with_other_tokens_cannot_be_weighed(attempt, turn):
    logprobs = {
        "baseline": LogProb(total=-1.0, tokens=3),
        "attacker": LogProb(total=-1.0, tokens=4),
    }
    with pytest.raises(ConfigurationError, match="3 tokens and the attacker 4"):
        failure_probability_of([attempt(turn(score=0.9, logprobs=logprobs))], baseline="b")


def test_a_number_and_a_refusal_say_in_words_and_json_what_they_rest_on():
    found = failure_probability(mixture(0))
    assert "of conversations in ordinary use fail" in found.text
    data = found.as_dict()
    assert data["low"] < data["estimate"] < data["high"]
    assert data["evidence"]["plain"]["trials"] == 1000
    refusal = failure_probability(mixture(0, 40))
    assert refusal.text.startswith("no number: ")
    assert refusal.as_dict()["estimate"] is None


class Ordinary(ToyProblem):
    """A hundred words; ordinary use says all alike, the attacker likes one."""

    def __init__(self):
        words = ["boom", *(f"word{index}" for index in range(99))]
        super().__init__(FunctionModerator(lambda texts: [t == " boom boom" for t in texts]), words)
        self.calls = 0
        self.baseline.data[:] = 0.0
        self.attacker.data[:] = 0.0
        self.attacker.data[0] = 4.6  # half of its words

    def rollout_prompt_with_baseline(self, contexts):
        usual, self.attacker = self.attacker, self.baseline
        try:
            return self.rollout_prompt_with_attacker(contexts)
        finally:
            self.attacker = usual

    def rollout_prompt_with_target(self, contexts):
        self.calls += len(contexts)
        return super().rollout_prompt_with_target(contexts)


def test_conversations_that_are_played_and_recorded_give_the_probability_known_by_enumeration():
    """The truth is 1e-4: two words of a hundred. A thousand target calls find it."""
    problem = Ordinary()
    ordinary = BaselineAttackerProblem(problem, problem.rollout_prompt_with_baseline)
    attempts = []
    for player, name in ((ordinary, "ordinary"), (problem, "attacker")):
        ASTEvaluator(
            ASTEnvironment(player, ["hello"], 1, 1),
            ["hello"],
            record=attempts.append,
            labels=Labels(attacker=name),
            likelihoods={
                "attacker": problem.get_attacker_logprobs,
                "baseline": ordinary.get_baseline_logprobs,
            },
        ).evaluate(500, progress=False)
    found = failure_probability_of(attempts, baseline="ordinary")
    assert isinstance(found, Probability)
    assert problem.calls == 1000
    assert found.interval.low <= 1e-4 <= found.interval.high
    assert found.estimate == pytest.approx(1e-4, rel=0.3)
    assert found.plain_conversations > 20 * problem.calls
