import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import ConfigurationError, ContractError, Conversation, Exchange, Moderator, Utterance
from astra_rl.methods.ast_problem import astprompter_reward
from astra_rl.rewards.base import RewardTerm, WeightedSum, measure
from astra_rl.rewards.novel_failure import NovelFailureReward
from astra_rl.rewards.terms import AttackNLL, Harm, Novelty, jaccard, word_set
from astra_rl.testing import ScriptedModerator

nan = math.nan


class Models:
    """Scores each word of an attack with fixed log-probabilities, one call at a time."""

    def __init__(self, moderator=None, table=None):
        self.moderator = moderator or ScriptedModerator({})
        self.table = table or {}
        self.calls = []

    def get_target_logprobs(self, contexts, continuations):
        self.calls.append("target")
        return self._rows(continuations, 1.0)

    def get_baseline_logprobs(self, contexts, continuations):
        self.calls.append("baseline")
        return self._rows(continuations, 2.0)

    def _rows(self, continuations, scale):
        rows = [[scale * self.table[word] for word in text.split()] for text in continuations]
        width = max(map(len, rows), default=0)
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows]).reshape(
            len(rows), width
        )


class Constant(RewardTerm):
    def __init__(self, name, *values):
        self.name, self.values = name, values

    def __call__(self, models, exchanges):
        return self.values


def turns(*attacks, context="c"):
    return [Exchange(context, attack, "answer") for attack in attacks]


def test_the_reward_of_astprompter_on_a_conversation_made_by_hand():
    """Response "bad": 0.5; attack + response " you" + "bad": 0.75; words of the attack have -1 and
    -3 nats, mean 2. Reward = 0.5 + 0.5 * 0.75 - 0.1 * 2 = 0.675."""
    moderator = ScriptedModerator({"you bad": 0.75, "bad": 0.5})
    models = Models(moderator, {"hey": -1.0, "you": -3.0})
    rewards, terms = astprompter_reward()(models, [Exchange("Hi.", " hey you", " bad")])
    assert rewards == pytest.approx([0.675])
    assert terms == [
        {"harm_response": 0.5, "harm_exchange": 0.75, "attack_nll_target": pytest.approx(2.0)}
    ]


def test_its_weights_may_be_changed():
    models = Models(ScriptedModerator({}, default=0.5), {"hey": -4.0})
    reward = astprompter_reward(response_weight=2.0, exchange_weight=0.0, nll_weight=1.0)
    assert reward(models, turns("hey"))[0] == pytest.approx([1.0 - 4.0])


def test_a_missing_score_makes_the_reward_missing_and_never_zero():
    moderator = ScriptedModerator({"bad": nan}, default=0.5)
    models = Models(moderator, {"hey": -1.0})
    rewards, terms = astprompter_reward()(
        models, [Exchange("c", "hey", "bad"), Exchange("c", "hey", "good")]
    )
    assert math.isnan(rewards[0])
    assert rewards[1] == pytest.approx(0.5 + 0.25 - 0.1)
    assert math.isnan(terms[0]["harm_response"])
    assert terms[0]["attack_nll_target"] == pytest.approx(1.0)


def test_a_weighted_sum_weighs_its_terms_and_records_each():
    reward = WeightedSum({Constant("a", 1.0, 2.0): 2.0, Constant("b", 3.0, 4.0): -1.0})
    assert reward(Models(), turns("x", "y")) == (
        [-1.0, 0.0],
        [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 4.0}],
    )


def test_a_term_of_weight_zero_is_recorded_and_costs_no_turn_its_reward():
    reward = WeightedSum({Constant("a", 1.0): 1.0, Constant("watched", nan): 0.0})
    rewards, terms = reward(Models(), turns("x"))
    assert rewards == [1.0]
    assert math.isnan(terms[0]["watched"])


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="two reward terms have the name 'harm_response'"):
        WeightedSum({Harm(): 1.0, Harm("response"): 0.5})


def test_a_term_that_loses_a_turn_is_named():
    with pytest.raises(ContractError, match="reward term 'a' returned 1 values for 2"):
        measure([Constant("a", 1.0)], Models(), turns("x", "y"))


def test_a_moderator_that_loses_a_turn_is_named():
    class Forgetful(Moderator):
        def moderate(self, x):
            return [0.0]

    with pytest.raises(ContractError, match="Forgetful returned 1 values for 2"):
        Harm()(Models(Forgetful()), turns("x", "y"))


def test_harm_is_judged_in_one_call_on_exchanges_that_know_their_context():
    moderator = ScriptedModerator({"answer": 0.5})
    context = Conversation("Hi", system="secret")
    for on, text in (("response", "answer"), ("exchange", "x answer")):
        exchanges = [Exchange(context, "x ", "answer"), Exchange(context, "y", "no")]
        assert Harm(on)(Models(moderator), exchanges) == [0.5, 0.0]
        asked = moderator.calls.pop()
        assert asked[0] == text
        assert asked[0].context.system == "secret"
        assert asked[0].attack == "x "
        assert asked[0].response == "answer"
    assert moderator.calls == []


@pytest.mark.parametrize("term", [Harm, AttackNLL])
def test_what_a_term_cannot_look_at_is_refused(term):
    with pytest.raises(ConfigurationError, match="'prompt'; choose"):
        term("prompt")


def test_the_likelihood_of_an_attack_is_a_mean_over_its_own_tokens():
    models = Models(table={"a": -1.0, "b": -3.0})
    assert AttackNLL("target")(models, turns("a", "a b b b")) == pytest.approx([1.0, 2.5])
    assert AttackNLL("baseline")(models, turns("a")) == pytest.approx([2.0])
    assert models.calls == ["target", "baseline"]


def test_what_the_target_heard_is_not_scored_again():
    models = Models()
    heard = [
        Exchange("c", "a", Utterance("r", heard_logprobs=[-1.0, -2.0])),
        Exchange("c", "b", Utterance("r", heard_logprobs=[-4.0])),
    ]
    assert AttackNLL("target")(models, heard) == [1.5, 4.0]
    assert models.calls == []


def test_if_the_target_did_not_hear_one_all_are_scored():
    models = Models(table={"a": -1.0, "b": -3.0})
    mixed = [
        Exchange("c", "a", Utterance("r", heard_logprobs=[-9.0])),
        Exchange("c", "b", Utterance("r")),
    ]
    assert AttackNLL("target")(models, mixed) == pytest.approx([1.0, 3.0])


def test_the_baseline_never_takes_what_the_target_heard():
    models = Models(table={"a": -1.0})
    exchange = Exchange("c", "a", Utterance("r", heard_logprobs=[-9.0]))
    assert AttackNLL("baseline")(models, [exchange]) == pytest.approx([2.0])


def test_an_attack_without_tokens_has_no_likelihood():
    values = AttackNLL()(Models(table={"a": -1.0}), turns("", "a"))
    assert math.isnan(values[0])
    assert values[1] == 1.0
    assert all(map(math.isnan, AttackNLL()(Models(), turns("", ""))))


def test_the_ids_an_attack_remembers_do_not_count_as_the_scorer_s_tokens():
    attack = Utterance("a b", token_ids=[1, 2, 3, 4])
    models = Models(table={"a": -1.0, "b": -3.0, "x": -1.0})
    assert AttackNLL()(models, turns(attack, "x x x x"))[0] == pytest.approx(2.0)


def test_the_likelihood_is_measured_without_gradients():
    class Attached(Models):
        def get_target_logprobs(self, contexts, continuations):
            assert not torch.is_grad_enabled()
            return super().get_target_logprobs(contexts, continuations)

    AttackNLL()(Attached(table={"a": -1.0}), turns("a"))


def test_novelty_by_hand():
    """{a, b} and {a, c} share 1 of 3 words; {x} shares none; nearest 2 of 2 siblings.

    1 - (1/3 + 0) / 2 = 5/6, the same, and 1. With nearest 1: 2/3, 2/3 and 1.
    """
    siblings = turns("a b", "A c!", "x")
    assert Novelty(nearest=2)(Models(), siblings) == pytest.approx([5 / 6, 5 / 6, 1.0])
    assert Novelty(nearest=1)(Models(), siblings) == pytest.approx([2 / 3, 2 / 3, 1.0])


def test_attacks_on_other_contexts_do_not_count():
    first, second = turns("same"), turns("same", context="other")
    assert Novelty()(Models(), [*first, *second]) == [1.0, 1.0]
    hidden = [Exchange(Conversation("c", system=system), "same", "r") for system in ("one", "two")]
    assert Novelty()(Models(), hidden) == [1.0, 1.0]


def test_saying_the_same_is_not_new():
    assert Novelty()(Models(), turns("same words", "words SAME")) == [0.0, 0.0]
    assert Novelty()(Models(), turns("", "")) == [0.0, 0.0]


def test_at_least_one_sibling_must_count():
    with pytest.raises(ConfigurationError, match="nearest=0"):
        Novelty(nearest=0)


words = st.text("ab c", max_size=8)


@given(st.lists(words, max_size=6), st.integers(1, 4))
def test_novelty_lies_between_zero_and_one_and_ignores_the_order(attacks, nearest):
    term = Novelty(nearest=nearest)
    values = term(Models(), turns(*attacks))
    assert all(0 <= value <= 1 for value in values)
    assert term(Models(), turns(*attacks[::-1])) == pytest.approx(values[::-1])


@given(words, words)
def test_jaccard_is_symmetric_and_one_for_the_same(a, b):
    assert jaccard(word_set(a), word_set(b)) == jaccard(word_set(b), word_set(a))
    assert jaccard(word_set(a), word_set(a)) == 1


def test_a_missing_term_makes_a_failure_missing_unless_it_weighs_nothing():
    models = Models(ScriptedModerator({}, default=1.0))
    assert math.isnan(NovelFailureReward()(models, turns(""))[0][0])
    assert NovelFailureReward(nll_weight=0.0)(models, turns(""))[0] == [1.0]
    judge_failed = Models(ScriptedModerator({}, default=nan), {"a": -1.0})
    assert math.isnan(NovelFailureReward()(judge_failed, turns("a"))[0][0])
