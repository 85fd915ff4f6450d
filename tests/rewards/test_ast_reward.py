"""The reward of adaptive stress testing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import ConfigurationError, Conversation, Exchange, FunctionModerator, Utterance
from astra_rl.core.level import Level, tree_level
from astra_rl.rewards import ASTReward
from astra_rl.testing import ScriptedModerator

nan = math.nan


def play(reward, models, turns):
    """Return the rewards of a conversation of (response, nats) turns, turn by turn."""
    context, out = Conversation("Hi."), []
    for depth, (response, nats) in enumerate(turns):
        said = Utterance(str(response), heard_logprobs=[-nats])
        exchange = Exchange(context, f" a{depth}", said)
        with tree_level(Level((0,), (depth == len(turns) - 1,), depth)):
            values, rows = reward.evaluate(models, [exchange])
        out.append((values[0], rows[0]))
        context = context + exchange.attack + exchange.response
    return out


class Judged:
    """A moderator that reads the score off the text."""

    def __init__(self):
        self.moderator = FunctionModerator(lambda texts: [float(text) for text in texts])


def test_a_failure_and_a_near_miss_by_hand():
    """Two turns of 2 and 3 nats, bonus 2 * 10 = 20, threshold 0.5.

    Scores 0.7 and 0.1: the first turn failed: -2, then -3 + 20 = 17. Scores 0.1 and 0.3: -2, then
    -3 - (0.5 - 0.3) = -3.2.
    """
    reward = ASTReward(turns=2)
    (first, row), (last, end) = play(reward, Judged(), [(0.7, 2.0), (0.1, 3.0)])
    assert (first, last) == pytest.approx((-2.0, 17.0))
    assert row == {"attack_nll_target": 2.0, "harm_response": 0.7}
    assert end == {"attack_nll_target": 3.0, "harm_response": 0.1, "event": 1.0, "miss": 0.0}
    (first, _), (last, end) = play(reward, Judged(), [(0.1, 2.0), (0.3, 3.0)])
    assert (first, last) == pytest.approx((-2.0, -3.2))
    assert (end["event"], end["miss"]) == pytest.approx((0.0, 0.2))


def test_weights_count_and_nats_have_a_ceiling():
    """0.5 * min(30, 10) = 5; miss 2 * (0.8 - 0.2) = 1.2."""
    reward = ASTReward(threshold=0.8, likelihood_weight=0.5, miss_weight=2.0)
    assert play(reward, Judged(), [(0.2, 30.0)])[0][0] == pytest.approx(-6.2)
    assert reward.event_bonus == 5.0


scores = st.floats(0, 1)
conversation = st.lists(st.tuples(scores, st.floats(0, 50)), min_size=1, max_size=4)


@given(conversation, conversation)
def test_every_failure_beats_every_conversation_without_one(one, other):
    reward, models = ASTReward(turns=4), Judged()
    returns = [sum(value for value, _ in play(reward, models, each)) for each in (one, other)]
    failed = [max(score for score, _ in each) >= reward.threshold for each in (one, other)]
    if failed[0] != failed[1]:
        assert (returns[0] > returns[1]) == failed[0]


def test_among_failures_the_likeliest_is_best():
    reward, models = ASTReward(turns=2), Judged()
    returns = [
        sum(value for value, _ in play(reward, models, [(0.1, nats), (0.9, 1.0)]))
        for nats in (1.0, 2.0, 9.0)
    ]
    assert returns == sorted(returns, reverse=True)


def test_a_failure_is_one_even_if_another_score_is_missing_and_else_nobody_knows():
    reward, models = ASTReward(turns=2), Judged()
    assert play(reward, models, [("nan", 1.0), (0.9, 1.0)])[-1][1]["event"] == 1.0
    (_, _), (last, end) = play(reward, models, [("nan", 1.0), (0.1, 1.0)])
    assert math.isnan(last)
    assert math.isnan(end["event"])
    assert math.isnan(end["miss"])


def test_a_missing_likelihood_makes_the_turn_missing_unless_it_weighs_nothing():
    class Silent(Judged):
        def get_target_logprobs(self, contexts, continuations):
            return torch.zeros(len(contexts), 1)

    turn = [Exchange("c", "", "0.9")]
    assert math.isnan(ASTReward().evaluate(Silent(), turn)[0][0])
    assert ASTReward(likelihood_weight=0, event_bonus=1.0).evaluate(Silent(), turn)[0] == [1.0]


def test_earlier_turns_are_judged_at_the_end_only(make_models):
    models = make_models(ScriptedModerator({}))
    play(ASTReward(turns=3), models, [("x", 1.0)] * 3)
    assert [len(call) for call in models.moderator.calls] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"turns": 0}, "turns=0"),
        ({"likelihood_weight": -1.0}, "likelihood_weight=-1.0"),
        ({"miss_weight": nan}, "miss_weight=nan"),
        ({"max_nll": math.inf}, "max_nll=inf"),
        (
            {"turns": 3, "event_bonus": 29.0},
            "does not dominate: the penalty of 3 turns of 10.0 nats can reach 30",
        ),
    ],
)
def test_a_reward_that_could_not_dominate_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ASTReward(**options)


def test_a_longer_conversation_than_the_bonus_was_made_for_is_refused():
    with pytest.raises(ConfigurationError, match="more than turns=1"):
        play(ASTReward(), Judged(), [(0.1, 1.0), (0.1, 1.0)])
