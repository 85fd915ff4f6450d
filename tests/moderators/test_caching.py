import math

import pytest

from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Exchange, Utterance
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.moderators import CachedModerator


class Recorder(Moderator):
    """Scores by length and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def moderate(self, x):
        self.calls.append(list(x))
        return [math.nan if "?" in text else len(text) / 100 for text in x]


def test_equal_texts_are_judged_once_within_a_call_and_across_calls():
    inner = Recorder()
    moderator = CachedModerator(inner)
    assert moderator.moderate(["bb", "a", "bb"]) == [0.02, 0.01, 0.02]
    assert moderator.moderate(["a", "ccc", "bb"]) == [0.01, 0.03, 0.02]
    assert inner.calls == [["bb", "a"], ["ccc"]]


def test_nothing_new_means_no_call():
    inner = Recorder()
    moderator = CachedModerator(inner)
    moderator.moderate(["a"])
    assert moderator.moderate(["a"]) == [0.01]
    assert moderator.moderate([]) == []
    assert len(inner.calls) == 1


BASE = Conversation("open", turns=("a", "b"), system="s", brief="t", facts={"secret": "x"})


@pytest.mark.parametrize(
    "other",
    [
        "plain text of the same response",
        Exchange(BASE, "attack", "response", text="both"),
        Exchange(BASE, "another", "response"),
        Exchange(BASE, "attack", "else", text="response"),
        Exchange(str(BASE), "attack", "response"),
        Exchange(Conversation("openab"), "attack", "response"),
        Exchange(
            Conversation("open", turns=("a", "b"), system="s", brief="t", facts={"secret": "y"}),
            "attack",
            "response",
        ),
        Exchange(
            Conversation("open", turns=("a", "b"), system="z", brief="t", facts={"secret": "x"}),
            "attack",
            "response",
        ),
        Exchange(
            Conversation("open", turns=("ab",), system="s", brief="t", facts={"secret": "x"}),
            "attack",
            "response",
        ),
    ],
)
def test_exchanges_that_differ_in_any_part_are_judged_apart(other):
    inner = Recorder()
    CachedModerator(inner).moderate([Exchange(BASE, "attack", "response"), other])
    assert len(inner.calls[0]) == 2


def test_an_exchange_and_a_string_of_the_same_text_are_judged_apart():
    inner = Recorder()
    CachedModerator(inner).moderate([Exchange("", "attack", "same"), "same", Conversation("same")])
    assert len(inner.calls[0]) == 3


def test_how_a_text_was_tokenised_makes_no_difference():
    inner = Recorder()
    moderator = CachedModerator(inner)
    moderator.moderate([Exchange("c", Utterance("a", token_ids=[1]), "r")])
    moderator.moderate([Exchange("c", Utterance("a", token_ids=[2, 3]), Utterance("r"))])
    assert len(inner.calls) == 1


def test_a_missing_score_is_tried_again():
    inner = Recorder()
    moderator = CachedModerator(inner)
    for _ in range(2):
        first, second, third = moderator.moderate(["why?", "a", "why?"])
        assert math.isnan(first)
        assert math.isnan(third)
        assert second == 0.01
    assert inner.calls == [["why?", "a"], ["why?"]]


def test_the_least_recently_used_score_goes_first():
    inner = Recorder()
    moderator = CachedModerator(inner, max_entries=2)
    moderator.moderate(["a", "b"])
    moderator.moderate(["a"])
    moderator.moderate(["c"])
    moderator.moderate(["a"])
    assert inner.calls == [["a", "b"], ["c"]]
    moderator.moderate(["b"])
    assert inner.calls[-1] == ["b"]


def test_a_call_may_hold_more_than_the_cache():
    moderator = CachedModerator(Recorder(), max_entries=1)
    assert moderator.moderate(["a", "bb", "ccc", "a"]) == [0.01, 0.02, 0.03, 0.01]
    assert moderator.moderate(["ccc", "bb", "a"]) == [0.03, 0.02, 0.01]


def test_an_inner_moderator_that_loses_scores_is_refused_by_name():
    class Forgetful(Moderator):
        def moderate(self, x):
            return [0.5]

    with pytest.raises(ContractError, match="Forgetful returned 1 values for 2 inputs"):
        CachedModerator(Forgetful()).moderate(["a", "b"])


def test_a_cache_without_room_is_refused():
    with pytest.raises(ConfigurationError, match="max_entries=0"):
        CachedModerator(Recorder(), max_entries=0)
