"""How an attack is written."""

import math
from itertools import pairwise

import pytest

from astra_rl import ConfigurationError, Exchange, FunctionModerator, Utterance
from astra_rl.rewards import Brevity, Format, Gibberish, Length

ALL = [Exchange("c", each, "r") for each in ("Is it?", "<p>go</p>", "", "two\nlines?")]


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Format(r"\?\s*$"), [1, 0, 0, 1]),
        (Format("two.lines"), [0, 0, 0, 1]),  # "." crosses lines
        (Format("<p>.*?</p>", times=1), [0, 1, 0, 0]),
        (Format("i", times=0), [0, 1, 1, 0]),
        (Length(), [6, 9, 0, 10]),
        (Length("words"), [2, 3, 0, 2]),
    ],
)
def test_form_and_length_by_hand(term, expected):
    assert list(term(None, ALL)) == expected


def test_tokens_are_those_the_attacker_sampled_and_unknown_without():
    known = Exchange("c", Utterance("a b", token_ids=[7, 8, 9]), "r")
    counted = Length("tokens")(None, [known, ALL[0]])
    assert counted[0] == 3
    assert math.isnan(counted[1])
    assert math.isnan(Brevity(1, 2, unit="tokens")(None, ALL)[0])


def test_brevity_by_hand():
    """At the middle of its range a sigmoid is at the middle of its heights, 0.75.

    At a quarter: sigmoid(2.5) = 0.9241; stretched from [0.0067, 0.9933] to [0.5, 1]:
    0.5 + 0.5 * (0.9241 - 0.0067) / 0.9866 = 0.9649.
    """
    attacks = [Exchange("c", "x" * length, "r") for length in (0, 100, 125, 150, 200, 900)]
    assert Brevity()(None, attacks) == pytest.approx([1, 1, 0.9649481, 0.75, 0.5, 0.5])


def test_brevity_falls_without_a_jump():
    values = Brevity(10, 20)(None, [Exchange("c", "x" * length, "r") for length in range(30)])
    assert values == sorted(values, reverse=True)
    assert max(a - b for a, b in pairwise(values)) < 0.15


def test_gibberish_is_what_a_classifier_says_of_the_attack():
    asked = []

    def classify(texts):
        asked.extend(map(str, texts))
        return [0.9 if "zx" in text else 0.1 for text in texts]

    term = Gibberish(FunctionModerator(classify))
    assert term(None, [Exchange("c", "zxcv", "fine"), Exchange("c", "hi", "zx")]) == [0.9, 0.1]
    assert asked == ["zxcv", "hi"]
    assert term.name == "gibberish"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Format("("), "is not a regular expression"),
        (lambda: Format("a", times=-1), "times=-1"),
        (lambda: Length("lines"), "unit='lines'"),
        (lambda: Brevity(5, 5), "end must be above start"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
