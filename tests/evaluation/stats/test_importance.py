"""Rare failures, where the truth is known by enumeration."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit

from astra_rl import ASTEnvironment, ASTEvaluator, FunctionModerator
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.evaluation.stats.allocation import prompts_in_turn
from astra_rl.evaluation.stats.importance import (
    NoProbability,
    Probability,
    Sample,
    effective_size,
    failure_probability,
    failure_probability_of,
    mixture_logprob,
    unseen_failures,
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert found.evidence.unseen == found.evidence.plain.interval.high >= 1 - 0.05 ** (1 / 300)
    assert found.interval == found.evidence.plain.interval


def test_a_few_conversations_that_decide_everything_give_no_number():
    samples = mixture(0, 60)
    found = failure_probability(samples)
    assert isinstance(found, NoProbability) or found.evidence.effective_failures >= 10
    heavy = [Sample(True, -1.0, -9.0, False), *play(np.random.default_rng(1), BASELINE, 200, True)]
    found = failure_probability(heavy)
    assert isinstance(found, NoProbability)
    assert "few conversations decide" in found.reason


def test_samples_of_one_prompt_count_as_one():
    samples = mixture(3, 400)
    # As many of each prompt: with other numbers each prompt has a mixture of its own.
    bunched = [sample._replace(prompt=index % 8) for index, sample in enumerate(samples)]
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


def modes(seed, baseline, attacker, count, *, kinds=True):
    """Conversations of which mode i fails, with these probabilities; all others are safe."""
    generator = np.random.default_rng(seed)
    p, q = (np.append(law, 1 - np.sum(law)) for law in (baseline, attacker))
    drawn = [(True, mode) for mode in generator.choice(len(p), size=count // 2, p=p)]
    drawn += [(False, mode) for mode in generator.choice(len(q), size=count // 2, p=q)]
    with np.errstate(divide="ignore"):
        return [
            Sample(
                mode < len(baseline),
                float(np.log(p[mode])),
                float(np.log(q[mode])),
                from_baseline,
                kind=int(mode) if kinds else None,
            )
            for from_baseline, mode in drawn
        ]


def held(make, truth, repetitions):
    """Share of intervals that hold the truth, and share of upper ends at or above it."""
    found = [failure_probability(make(seed)).interval for seed in range(repetitions)]
    return (
        sum(low <= truth <= high for low, high in found) / repetitions,
        sum(truth <= high for _, high in found) / repetitions,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [True, False])
def test_a_mode_that_the_attacker_misses_is_within_the_interval(kinds):
    """Mode A of 1e-5 is found, mode B of 1e-3 is never visited by the attacker."""

    def make(seed):
        return modes(seed, [1e-5, 1e-3], [0.3, 0.0], 1000, kinds=kinds)

    covered, above = held(make, 1.01e-3, 100)
    assert covered >= 0.95
    assert above >= 0.95
    # Also where the baseline's conversations did find B, there is an interval that holds it.
    hit = [make(seed) for seed in range(30)]
    hit = [each for each in hit if any(s.from_baseline and s.fails for s in each)]
    assert len(hit) > 5
    for samples in hit:
        low, high = failure_probability(samples).interval
        assert low <= 1.01e-3 <= high


@pytest.mark.slow
def test_the_bound_of_unseen_failures_holds_for_many_rare_modes():
    """1,000 modes of 5e-5, 5% in all: most of their probability is never seen."""
    law = [5e-5] * 1000
    violated = 0
    for seed in range(100):
        samples = modes(seed, law, [0.0] * 1000, 400)
        unseen = set(range(1000)) - {sample.kind for sample in samples}
        violated += 5e-5 * len(unseen) > failure_probability(samples).evidence.unseen
    assert violated <= 5


def test_the_bound_of_unseen_failures_knows_that_conversations_of_a_prompt_are_alike():
    """200 conversations of 10 prompts: 31%, as for ten conversations."""
    samples = [Sample(False, -1.0, -2.0, True, prompt=at % 10) for at in range(200)]
    assert failure_probability(samples).evidence.unseen == pytest.approx(0.31, abs=0.005)


def test_a_failure_kind_that_another_prompt_found_is_seen():
    def failure(prompt, kind, baseline=True):
        return Sample(True, -1.0, -1.0, baseline, prompt, kind)

    samples = [failure(0, "a"), failure(1, "a"), failure(1, "b"), failure(1, "b"), failure(0, None)]
    assert unseen_failures(samples) == [False, False, True, True, True]
    assert unseen_failures([*samples, failure(2, "b", baseline=False)])[2:4] == [False, False]


def test_a_collapsed_attacker_does_not_make_the_number_exact():
    """It always says the same conversation, whose probability in ordinary use is 1e-5."""
    found = failure_probability(modes(0, [1e-5], [1 - 1e-9], 400))
    assert isinstance(found, Probability)
    assert found.interval.high >= 1 - 0.05 ** (1 / 200)
    assert found.plain_conversations == pytest.approx(200 / 1e-5, rel=0.01)
    assert "not narrower" in found.text


def prompts_that_differ(seed, prompts, per, mean, icc):
    """Each prompt has a failure probability of its own, beta-distributed."""
    generator = np.random.default_rng(seed)
    samples = []
    for prompt in range(prompts):
        p = generator.beta(mean * (1 / icc - 1), (1 - mean) * (1 / icc - 1))
        p = float(np.clip(p, 1e-9, 1 - 1e-9))
        q = min(0.95, 8 * p)
        for from_baseline, law in ((True, p), (False, q)):
            for fails in generator.random(per) < law:
                baseline, attacker = (p, q) if fails else (1 - p, 1 - q)
                samples.append(
                    Sample(
                        bool(fails),
                        math.log(baseline),
                        math.log(attacker),
                        from_baseline,
                        prompt,
                        0,
                    )
                )
    return samples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "per", "mean", "icc"), [(10, 20, 0.05, 0.1), (20, 10, 0.02, 0.17)]
)
def test_the_interval_holds_the_truth_if_prompts_differ(prompts, per, mean, icc):
    covered, _ = held(lambda seed: prompts_that_differ(seed, prompts, per, mean, icc), mean, 120)
    assert covered >= 0.93


def test_the_interval_is_never_wider_than_that_of_the_baseline_alone():
    """Of moderate rates, as in the demo; and it says what was gained."""
    gains = []
    for seed in range(60):
        found = failure_probability(modes(seed, [0.05, 0.02, 0.01], [0.5, 0.4, 0.0], 400))
        assert isinstance(found, Probability)
        gains.append(found.gain)
        assert found.interval.low <= 0.08 <= found.interval.high
    assert min(gains) >= 1 - 1e-9
    assert np.median(gains) > 1.2


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


@pytest.mark.slow
def test_it_is_computed_from_recorded_attempts(attempt, turn):
    samples = mixture(0)
    attempts = [recorded(attempt, turn, sample, index) for index, sample in enumerate(samples)]
    broken = [attempt(turn(score=None), opening="x"), attempt(turn(score=0.9), opening="y")]
    found = failure_probability_of([*attempts, *broken], baseline="ordinary")
    expected = failure_probability(samples)
    assert found.estimate == pytest.approx(expected.estimate)
    assert found.interval == pytest.approx(expected.interval, rel=0.05)
    assert found.evidence.left_out == 2


def test_what_is_left_out_may_be_failures_and_too_much_gives_no_number():
    samples = mixture(0)
    known = failure_probability(samples)
    few = failure_probability(samples, left_out=100, left_out_of_baseline=60)
    assert few.estimate == known.estimate
    assert few.interval.high > 60 / 1060 > known.interval.high
    assert few.evidence.plain.unscored == 60
    many = failure_probability(samples, left_out=500, left_out_of_baseline=0)
    assert isinstance(many, NoProbability)
    assert "the outcome or the likelihood of 500 of" in many.reason
    alone = failure_probability(samples[:1000], left_out=400)
    assert alone.interval.high > 400 / 1400


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


@pytest.mark.slow
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


def test_attackers_together_are_one_mixture():
    found = mixture_logprob({"last": math.log(0.2), "best": math.log(0.6)}, {"last": 3, "best": 1})
    assert found == pytest.approx(math.log(0.75 * 0.2 + 0.25 * 0.6))
    alone = mixture_logprob({"last": -3.0, "best": -math.inf}, {"last": 2, "best": 0})
    assert alone == pytest.approx(-3.0)
    with pytest.raises(ConfigurationError, match="no attacker"):
        mixture_logprob({"last": -3.0}, {"last": 0})


def checkpoints(seed, attempt, turn, *, split, count=400):
    """Mode A, which the last attacker finds, and mode B, which only an earlier one does."""
    laws = {
        "ordinary": np.array([1e-4, 1e-4, 1 - 2e-4]),
        "trained": np.array([0.5, 0.0, 0.5]),
        "checkpoint best": np.array([0.0, 0.5, 0.5]),
    }
    of_best = count // 4 if split else 0
    counts = {
        "ordinary": count // 2,
        "trained": count // 2 - of_best,
        "checkpoint best": of_best,
    }
    keys = {"ordinary": "baseline", "trained": "attacker", "checkpoint best": "checkpoint best"}
    generator = np.random.default_rng(seed)
    found = []
    for name, size in counts.items():
        for index, mode in enumerate(generator.choice(3, size=size, p=laws[name])):
            logprobs = {
                keys[other]: LogProb(total=float(np.log(max(law[mode], 1e-300))), tokens=1)
                for other, law in laws.items()
            }
            made = turn(attack="abc"[mode], score=float(mode < 2), logprobs=logprobs)
            found.append(attempt(made, opening=f"{name} {index}", attacker=name))
    return found


def test_an_earlier_checkpoint_finds_what_the_last_attacker_has_unlearned(attempt, turn):
    """With both, the estimate is that of both modes together; the last alone sees half of it."""

    def estimated(split):
        names = ("checkpoint best",) if split else ()
        found = [
            failure_probability_of(
                checkpoints(seed, attempt, turn, split=split),
                baseline="ordinary",
                checkpoints=names,
                kind_of=lambda attack: attack,
            )
            for seed in range(3)
        ]
        return np.mean([each.estimate for each in found]), found

    both, found = estimated(True)
    assert both == pytest.approx(2e-4, rel=0.15)
    assert all(each.interval.high >= 2e-4 for each in found)
    alone, found = estimated(False)
    assert alone == pytest.approx(1e-4, rel=0.15)
    assert all(each.interval.high >= 2e-4 for each in found)


def test_an_attempt_without_the_likelihood_of_a_checkpoint_is_left_out(attempt, turn):
    samples = mixture(0, 40)
    attempts = [recorded(attempt, turn, sample, index) for index, sample in enumerate(samples)]
    found = failure_probability_of(attempts, baseline="ordinary", checkpoints=["checkpoint best"])
    assert found.evidence.left_out == 40
    assert isinstance(found, NoProbability)


def test_the_kinds_that_were_seen_have_an_interval_of_their_own():
    found = failure_probability(modes(0, [1e-5], [0.3], 400))
    assert found.seen.low <= 1e-5 <= found.seen.high < 3e-5
    # Of two lower ends the larger one is taken, so this one has half the level (scipy's Student t).
    degrees = found.evidence.effective_failures - 1
    reach = stats.t.ppf([0.9875, 0.975], degrees)
    below = logit(found.estimate) - logit([found.interval.low, found.seen.low])
    assert below[0] / below[1] == pytest.approx(reach[0] / reach[1], rel=0.002)
    # Without a failure of the baseline its own bound is that of the kinds that were not seen.
    assert found.interval.high == found.evidence.plain.interval.high == found.evidence.unseen
    data = found.as_dict()
    assert (data["seen_low"], data["seen_high"]) == tuple(found.seen)
    assert failure_probability(mixture(0, 40)).as_dict()["seen_high"] is None


def in_order(generator, rates, counts, attackers, *, in_turn):
    """Prompts in their order; every player begins with the first, or where the last one ended."""
    of_attackers = {name: size for name, size in counts.items() if name != "ordinary"}
    samples, start = [], 0
    for player, count in counts.items():
        for at in range(start, start + count):
            prompt = at % len(rates)
            law = rates[prompt] if player == "ordinary" else attackers[player]
            fails = generator.random() < law
            mixture = mixture_logprob(
                {name: math.log(q if fails else 1 - q) for name, q in attackers.items()},
                of_attackers,
            )
            p = rates[prompt] if fails else 1 - rates[prompt]
            baseline = player == "ordinary"
            samples.append(Sample(bool(fails), math.log(p), mixture, baseline, prompt, 0))
        start += count * in_turn
    return samples


def test_a_missing_conversation_of_the_baseline_changes_its_prompt_only():
    """The prompt is left out, all others keep their own mixture."""
    rates = np.full(150, 1e-5)
    rates[:60] = 0.005
    counts, laws = {"ordinary": 200, "a": 67, "b": 67, "c": 66}, {"a": 0.5, "b": 0.5, "c": 0.5}
    samples = in_order(np.random.default_rng(0), rates, counts, laws, in_turn=True)
    lost = next(each for each in samples if each.from_baseline and each.prompt == 100)
    rest = [each for each in samples if each is not lost]
    found = failure_probability(rest, left_out=1, left_out_of_baseline=1)
    without = failure_probability([each for each in samples if each.prompt != 100])
    assert found.estimate == without.estimate
    assert found.estimate == pytest.approx(failure_probability(samples).estimate, rel=0.02)
    assert found.evidence.left_out == 1 + sum(each.prompt == 100 for each in rest)
    assert found.evidence.plain.unscored == 1
    assert found.interval.low < without.interval.low < found.interval.high


def test_what_is_left_out_may_be_no_failures():
    """The lower end holds if none of the conversations that were left out is a failure."""
    samples = modes(0, [1e-5], [0.3], 400)
    known, few = failure_probability(samples), failure_probability(samples, left_out=40)
    assert few.interval.low == pytest.approx(known.interval.low * 400 / 440)


@pytest.mark.parametrize("first", [True, False])
def test_prompts_that_are_ordered_by_category_are_weighed_alike(first):
    """60 of 150 prompts fail. It was 2.2 times too high where the attackers get to the first 67."""
    rates = np.full(150, 1e-5)
    rates[:60] = 0.005
    if not first:
        rates = rates[::-1].copy()
    generator = np.random.default_rng(0)
    counts, laws = {"ordinary": 200, "a": 67, "b": 67, "c": 66}, {"a": 0.5, "b": 0.5, "c": 0.5}
    found = [
        failure_probability(in_order(generator, rates, counts, laws, in_turn=True))
        for _ in range(25)
    ]
    assert all(isinstance(each, Probability) for each in found)
    assert np.mean([each.estimate for each in found]) == pytest.approx(rates.mean(), rel=0.06)
    assert np.mean([each.seen.low <= rates.mean() <= each.seen.high for each in found]) >= 0.93
    unfair = failure_probability(in_order(generator, rates, counts, laws, in_turn=False))
    assert isinstance(unfair, NoProbability)
    assert "83 of 150 prompts have conversations of the baseline only" in unfair.reason
    assert unfair.interval.low <= rates.mean() <= unfair.interval.high


def test_each_prompt_has_a_mixture_of_its_own_attackers(attempt, turn):
    """Prompt 0 has a conversation of one attacker, prompt 1 of the other."""
    logprobs = {
        name: LogProb(total=math.log(p), tokens=1)
        for name, p in {"baseline": 0.01, "attacker": 0.5, "checkpoint x": 0.02}.items()
    }
    attempts = [
        attempt(turn(score=1.0, logprobs=logprobs), opening=opening, attacker=name)
        for opening, name in [
            ("0", "ordinary"), ("0", "trained"), ("1", "ordinary"), ("1", "checkpoint x"),
        ]
    ]  # fmt: skip
    found = failure_probability_of(
        attempts, baseline="ordinary", checkpoints=("checkpoint x",), min_effective_failures=0
    )
    weights = np.repeat([0.01 / (0.5 * 0.01 + 0.5 * 0.5), 0.01 / (0.5 * 0.01 + 0.5 * 0.02)], 2)
    assert found.evidence.effective_failures == pytest.approx(effective_size(weights))


def test_prompts_without_a_conversation_of_the_baseline_have_the_mixture_of_all():
    samples = [Sample(False, -1.0, -1.5, at % 2 == 0, prompt=at) for at in range(20)]
    alone = [sample._replace(prompt=None) for sample in samples]
    assert failure_probability(samples).evidence == failure_probability(alone).evidence


@pytest.mark.parametrize(
    ("prompts", "counts"),
    [(150, (200, 67, 67, 66)), (1000, (20, 17, 7)), (1000, (20, 7, 7)), (3, (4, 9))],
)
def test_players_take_prompts_in_turn_and_only_those_of_both(prompts, counts):
    order = prompts_in_turn(prompts, counts, 1)
    assert [len(each) for each in order] == list(counts)
    played = Counter(row for each in order for row in each)
    assert set(played) == set(order[0]) == {row for each in order[1:] for row in each}
    assert max(played.values()) - min(played.values()) <= 1
    assert len(played) == min(prompts, counts[0], sum(counts[1:]))
    assert order != prompts_in_turn(prompts, counts, 2)
