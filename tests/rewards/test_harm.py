"""Harm on a conversation made by hand, every way it can be looked at."""

import math

import pytest

from astra_rl import ConfigurationError, Conversation, Exchange
from astra_rl.core.level import Level, tree_level
from astra_rl.core.moderator import reason_of
from astra_rl.core.seeding import current_row_seeds, row_seeds
from astra_rl.core.text import NoReply
from astra_rl.rewards import Harm, SeveralTargets
from astra_rl.rewards.terms import recording_response_harm
from astra_rl.targets import Target
from astra_rl.testing import ScriptedModerator

nan = math.nan
JUDGE = {"you bad": 0.75, "awful": 0.9, "bad": 0.5, "hey": 0.2, "broken": nan}

# Two turns: " hey" was answered " awful" (0.9), then " you" is answered " bad" (0.5).
OPENING = Conversation("Hi.")
SECOND = OPENING + " hey" + " awful"


@pytest.fixture
def models(make_models):
    return make_models(ScriptedModerator(JUDGE))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ("response", 0.5),  # " bad"
        ("exchange", 0.75),  # " you bad"
        ("attack", 0.0),  # " you"
        ("worst_turn", 0.9),  # " awful" of the turn before
        ("last_turn", 0.5),  # outside of an environment a turn ends its conversation
    ],
)
def test_harm_looks_at_what_it_is_told_to(models, of, expected):
    term = Harm(of)
    assert term(models, [Exchange(SECOND, " you", " bad")]) == [expected]
    assert term.name == f"harm_{of}"


@pytest.mark.parametrize(
    ("scale", "word", "expected"),
    [
        ("log", "bad", -0.6931471805599453),  # log 0.5
        ("log", "fine", -13.815510557964274),  # log 1e-6, where p is 0
        ("log_complement", "bad", 0.6931471805599453),  # -log(1 - 0.5)
        ("log_complement", "awful", 2.302585092994046),  # -log(1 - 0.9)
        ("log_complement", "fine", 0.0),
        ("log", "broken", nan),
        ("log_complement", "broken", nan),
    ],
)
def test_harm_on_a_logarithmic_scale(models, scale, word, expected):
    value = Harm(scale=scale)(models, [Exchange("c", "a", word)])[0]
    assert value == pytest.approx(expected, nan_ok=True)


def test_several_replies_are_judged_and_averaged_after_scaling(make_models):
    """Replies 0.5 (the episode's own), 0.9 and 0.5: mean 1.9 / 3; mean of the logarithms
    (log 0.5 + log 0.9 + log 0.5) / 3 = (-0.6931 - 0.1054 - 0.6931) / 3 = -0.4972."""
    for scale, expected in (("probability", 1.9 / 3), ("log", -0.4972183)):
        models = make_models(ScriptedModerator(JUDGE), replies=["awful", "fine", "bad", "fine"])
        exchanges = [Exchange(OPENING, " a", "bad"), Exchange(OPENING, " b", "fine")]
        values = Harm(scale=scale, replies=3)(models, exchanges)
        assert values[0] == pytest.approx(expected)
        assert models.asked == [["Hi. a", "Hi. b", "Hi. a", "Hi. b"]]
        assert len(models.moderator.calls) == 1


def test_one_reply_that_could_not_be_scored_makes_the_mean_missing(make_models):
    models = make_models(ScriptedModerator(JUDGE), replies=["broken"])
    assert math.isnan(Harm(replies=2)(models, [Exchange("c", "a", "bad")])[0])


def test_replies_draw_from_seeds_of_their_rows_whatever_else_is_asked(make_models):
    class Seeded(make_models):
        def rollout_prompt_with_target(self, contexts):
            return [f"0.{seed % 9}" for seed in current_row_seeds(len(contexts))]

    class Number(ScriptedModerator):
        def moderate(self, x):
            return [float(text) for text in x]

    models, harm = Seeded(Number({})), Harm(replies=4)
    exchanges = [Exchange("c", "a", "0.5"), Exchange("d", "b", "0.25")]
    with row_seeds([11, 12]):
        together = harm(models, exchanges)
    with row_seeds([12]):
        assert harm(models, exchanges[1:]) == together[1:]


def test_harm_of_the_last_turn_is_paid_where_the_conversation_ends(models):
    turns = [Exchange("c", "a", "bad"), Exchange("c", "b", "bad")]
    with tree_level(Level((0, 0), (False, True), 0)):
        assert Harm("last_turn")(models, turns) == [0.0, 0.5]


def test_the_worst_turn_is_one_of_the_episode_not_of_a_dialogue_it_opened_with(models):
    with tree_level(Level((0,), (True,), depth=0)):
        assert Harm("worst_turn")(models, [Exchange(SECOND, " you", " bad")]) == [0.5]
    with tree_level(Level((0,), (True,), depth=1)):
        assert Harm("worst_turn")(models, [Exchange(SECOND, " you", " bad")]) == [0.9]


def test_a_turn_that_siblings_share_is_judged_once(models):
    Harm("worst_turn")(models, [Exchange(SECOND, each, " bad") for each in (" a", " b", " c")])
    assert [len(call) for call in models.moderator.calls] == [3, 1]


def test_a_missing_turn_may_have_been_the_worst(models):
    context = OPENING + " x" + " broken"
    assert math.isnan(Harm("worst_turn")(models, [Exchange(context, " you", " bad")])[0])


def test_another_judge_may_be_given(models):
    assert Harm(moderator=ScriptedModerator({}, default=0.3))(
        models, [Exchange("c", "a", "bad")]
    ) == [0.3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "prompt"}, "of='prompt'; choose 'response', 'exchange'"),
        ({"scale": "odds"}, "scale='odds'; choose"),
        ({"replies": 0}, "replies=0; it must be at least 1"),
        ({"of": "attack", "replies": 2}, "several replies need"),
    ],
)
def test_what_harm_cannot_do_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Harm(**options)


# Several targets.


def test_harm_over_several_targets_by_hand(models):
    """0.5 from the own target, 0.9 and 0 from the others: mean 1.4 / 3, minimum 0."""
    others = [lambda contexts: ["awful"] * len(contexts), lambda contexts: ["fine"]]
    exchanges = [Exchange(OPENING, " a", "bad")]
    values, rows = SeveralTargets(others).evaluate(models, exchanges)
    assert values == pytest.approx([1.4 / 3])
    assert rows == [{"harm_response": 0.5, "harm_target_2": 0.9, "harm_target_3": 0.0}]
    assert SeveralTargets(others, rule="min").evaluate(models, exchanges)[0] == [0.0]
    assert len(models.moderator.calls) == 2  # one call each time, for all targets
    # 0.5 less the largest of the others
    difference = SeveralTargets(others, rule="difference").evaluate(models, exchanges)[0]
    assert difference == pytest.approx([0.5 - 0.9])


def test_all_targets_hear_the_same_attack(models):
    heard = []

    def other(contexts):
        heard.extend(contexts)
        return ["fine"] * len(contexts)

    SeveralTargets([other]).evaluate(models, [Exchange(SECOND, " a", "bad")])
    assert heard == [SECOND + " a"]
    assert heard[0].responses == (" awful",)


@pytest.mark.parametrize("rule", ["mean", "min", "difference"])
def test_a_target_that_could_not_be_scored_makes_the_reward_missing(models, rule):
    reward = SeveralTargets([lambda contexts: ["broken"]], rule=rule)
    assert math.isnan(reward.evaluate(models, [Exchange("c", "a", "bad")])[0][0])


def test_no_other_targets_are_refused():
    with pytest.raises(ConfigurationError, match="others is empty"):
        SeveralTargets([])


@pytest.mark.parametrize(
    "options",
    [{"scale": "log", "replies": 2}, {"replies": 2}, {"of": "worst_turn"}, {"of": "last_turn"}],
)
def test_whatever_is_made_of_it_the_score_of_the_response_is_recorded(options, make_models, turns):
    """Or nobody would know whether the target failed: a training would have no success rate."""
    models = make_models(ScriptedModerator({"r bad": 0.5}, default=0.25), replies=["x", "y"])
    _, rows = Harm(**options).evaluate(models, turns("bad", "good"))
    assert [row["harm_response"] for row in rows] == [0.5, 0.25]
    named = Harm()
    named.name = "mine"
    assert named.evaluate(models, turns("bad"))[1] == [{"harm_response": 0.5, "mine": 0.5}]


@pytest.mark.parametrize("options", [{"of": "exchange"}, {"moderator": ScriptedModerator({})}])
def test_what_does_not_judge_the_response_as_the_moderator_records_no_such_score(
    options, make_models, turns
):
    term = Harm(**options)
    term.name = "other"
    (row,) = term.evaluate(make_models(), turns("bad"))[1]
    assert set(row) == {"other"}


def test_a_reward_that_asks_other_judges_only_records_what_the_moderator_says_as_well(models):
    strict = ScriptedModerator({}, default=0.9)
    for reward in (
        Harm(moderator=strict),
        SeveralTargets([lambda contexts: ["bad"] * len(contexts)], moderator=strict),
    ):
        said = [Exchange("c", "a", "bad")]
        values, (row,) = recording_response_harm(reward).evaluate(models, said)
        assert values == pytest.approx([0.9])
        assert (row["harm_response"], row["harm_response_other_judge"]) == (0.5, 0.9)
    # A score that could not be had costs the reward of another judge nothing.
    unheard = [Exchange("c", "a", "broken")]
    values, (row,) = recording_response_harm(Harm(moderator=strict)).evaluate(models, unheard)
    assert values == [0.9]
    assert math.isnan(row["harm_response"])


@pytest.mark.parametrize("reward", [Harm(), Harm("worst_turn"), Harm(replies=2)])
def test_a_reward_that_records_the_moderators_score_is_left_as_it_is(reward):
    assert recording_response_harm(reward) is reward


def test_a_target_that_gave_no_reply_makes_the_reward_missing_and_is_not_judged(models):
    reward = SeveralTargets([lambda contexts: [NoReply("timed out")]])
    (value,), (row,) = reward.evaluate(models, [Exchange("c", "a", "bad")])
    assert math.isnan(value)
    assert reason_of(row["harm_target_2"]) == "timed out"
    assert [len(texts) for texts in models.moderator.calls] == [1]


def test_a_further_reply_that_did_not_come_makes_harm_missing(models):
    models.rollout_prompt_with_target = lambda contexts: [NoReply("timed out")] * len(contexts)
    (value,) = Harm(replies=2)(models, [Exchange("c", "a", "bad")])
    assert reason_of(value) == "timed out"


def test_targets_are_asked_by_their_own_method(models):
    class Awful(Target):
        def respond(self, conversations):
            return ["awful"] * len(conversations)

        def __call__(self, chats):
            raise AssertionError("chats were not to be asked")

    (value,), _ = SeveralTargets([Awful()]).evaluate(models, [Exchange("c", "a", "bad")])
    assert value == pytest.approx(0.7)
