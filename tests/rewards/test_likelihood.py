"""Terms of log-probabilities, on words with a table of nats."""

import math

import pytest

from astra_rl import ConfigurationError, Conversation, Exchange, Utterance
from astra_rl.rewards import (
    KL,
    AttackNLL,
    AttackProbability,
    Entropy,
    MinK,
    ResponseLikelihood,
)
from astra_rl.testing import ToyProblem

# Under the target; the baseline doubles them, the attacker halves them.
TABLE = {"a": -1.0, "b": -3.0, "odd": -20.0}


@pytest.fixture
def models(make_models):
    return make_models(table=TABLE)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (AttackNLL("target"), (1 + 3) / 2),
        (AttackNLL("baseline"), (2 + 6) / 2),
        (AttackNLL("target", per_token=False), 1 + 3),
        (AttackProbability("target"), math.exp(-4)),
        (AttackProbability("baseline"), math.exp(-8)),
        # log pi - log pi_ref = (-0.5 - 1.5) - (-2 - 6) = 6, over two tokens 3
        (KL(), 6.0),
        (KL(per_token=True), 3.0),
        (Entropy(), 2.0),
        (Entropy(per_token=True), 1.0),
        (MinK(1), -6.0),  # the lowest of -2 and -6
        (MinK(7), -4.0),  # fewer than 7: the mean of all
        (MinK(1, under="target"), -3.0),
    ],
)
def test_nats_of_an_attack_by_hand(models, term, expected):
    assert term(models, [Exchange("c", "a b", "r")]) == pytest.approx([expected])


def test_min_k_sees_one_odd_token_that_a_mean_hides(models):
    """Nine tokens of 2 nats and one of 40: the mean is -5.8, the lowest -40."""
    attack = "a a a a odd a a a a a"
    exchanges = [Exchange("c", attack, "r")]
    assert AttackNLL("baseline")(models, exchanges) == pytest.approx([5.8])
    assert MinK(1)(models, exchanges) == pytest.approx([-40.0])
    assert MinK(2)(models, exchanges) == pytest.approx([-21.0])


@pytest.mark.parametrize(
    "term",
    [AttackNLL(per_token=False), AttackProbability(), KL(), KL(per_token=True), Entropy(), MinK()],
)
def test_an_attack_without_tokens_has_no_nats(models, term):
    first, second = term(models, [Exchange("c", "", "r"), Exchange("c", "a", "r")])
    assert math.isnan(first)
    assert math.isfinite(second)


def test_what_the_attacker_sampled_with_is_not_scored_again(models):
    attack = Utterance("a b", token_ids=[1, 2], logprobs=[-0.25, -0.5])
    assert Entropy()(models, [Exchange("c", attack, "r")]) == [0.75]
    # 8 nats under the baseline, less 0.75
    assert KL()(models, [Exchange("c", attack, "r")]) == pytest.approx([7.25])


def test_log_probabilities_of_a_truncated_sampler_are_not_those_of_the_policy(models):
    attack = Utterance("a b", token_ids=[1, 2], logprobs=[-0.25, -0.5])
    models.samples_exactly = False
    assert Entropy()(models, [Exchange("c", attack, "r")]) == pytest.approx([2.0])


def test_what_the_target_heard_serves_all_terms(models):
    heard = Exchange("c", "a b", Utterance("r", heard_logprobs=[-5.0, -7.0]))
    assert AttackNLL(per_token=False)(models, [heard]) == [12.0]
    assert MinK(1, under="target")(models, [heard]) == [-7.0]


def test_the_likelihood_of_a_wanted_response(models):
    context = Conversation("Hi.", facts={"response": "a a"})
    values = ResponseLikelihood()(models, [Exchange(context, " ask", "no")])
    assert values == pytest.approx([-1.0])
    assert models.asked == [["Hi. ask"]]
    assert ResponseLikelihood("a b")(models, [Exchange("Hi.", " ask", "no")]) == [-2.0]


def test_a_prompt_that_lacks_the_wanted_response_is_named(models):
    with pytest.raises(ConfigurationError, match=r"fact 'response', and 'Hi\.' has none"):
        ResponseLikelihood()(models, [Exchange("Hi.", "x", "y")])


def test_a_target_that_cannot_be_read_is_named():
    with pytest.raises(ConfigurationError, match="has no get_response_logprobs"):
        ResponseLikelihood("yes")(ToyProblem(), [Exchange("c", "a", "r")])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinK(0), "k=0; it must be at least 1"),
        (lambda: MinK(under="attacker"), "under='attacker'; choose 'target' or 'baseline'"),
        (lambda: AttackProbability("me"), "under='me'"),
        (lambda: ResponseLikelihood(""), "text is empty"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_no_turns_cost_nothing(models):
    for term in (
        AttackNLL(),
        MinK(),
        KL(),
        Entropy(),
        AttackProbability(),
        ResponseLikelihood("a"),
    ):
        assert list(term(models, [])) == []
