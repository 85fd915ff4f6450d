import copy
import functools
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
import torch

from astra_rl.core.moderator import Moderator
from astra_rl.moderators import (
    CachedModerator,
    FunctionModerator,
    KeywordModerator,
    LLMJudgeModerator,
    MaxModerator,
    RefusalModerator,
    SecretLeakModerator,
    WeightedModerator,
)
from astra_rl.moderators.identity import fingerprint, identity_of
from astra_rl.testing import ScriptedModerator, tiny_model


def test_settings_that_change_scores_change_the_identity():
    identities = {
        identity_of(moderator).settings
        for moderator in (
            KeywordModerator(["a"]),
            KeywordModerator(["b"]),
            KeywordModerator(patterns=["a"]),
        )
    }
    assert len(identities) == 3
    assert identity_of(KeywordModerator(["a"])) == identity_of(KeywordModerator(("a",)))
    assert identity_of(KeywordModerator(["a"])).name == "KeywordModerator"


def test_a_cache_is_the_moderator_it_asks():
    inner = SecretLeakModerator("amber falcon")
    assert identity_of(CachedModerator(CachedModerator(inner))) == identity_of(inner)


def test_a_secret_is_in_no_identity():
    identity = identity_of(SecretLeakModerator("amber falcon"))
    assert "amber" not in str(identity.as_dict())


def test_a_composition_is_its_parts_and_its_settings():
    a, b = KeywordModerator(["a"]), KeywordModerator(["b"])
    different = [
        MaxModerator([a, b]),
        MaxModerator([b, a]),
        WeightedModerator([a, b], [1, 2]),
        WeightedModerator([a, b], [2, 1]),
    ]
    assert len({identity_of(each) for each in different}) == 4
    assert identity_of(MaxModerator([a, b])) == identity_of(MaxModerator([CachedModerator(a), b]))


def test_weights_are_told_apart_by_their_values_and_not_by_where_they_are():
    one, again, other = (tiny_model(seed=seed).model for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    with torch.no_grad():
        next(iter(again.parameters())).mul_(1.01)
    assert fingerprint(again) != fingerprint(one)


def test_a_judge_is_told_by_who_answers_it():
    class Client:
        def __init__(self, model):
            self.model = model

        def __call__(self, chats):
            return ["?"] * len(chats)

    small, large = (identity_of(LLMJudgeModerator(Client(name))) for name in ("small", "large"))
    assert (small.weights, large.weights) == ("small", "large")
    assert small.settings == large.settings
    assert identity_of(LLMJudgeModerator(Client("small"), seed=1)).settings != small.settings


def count_a(texts):
    return [text.count("a") > 2 for text in texts]


def count_b(texts):
    return [text.count("b") > 2 for text in texts]


def test_functions_are_told_apart_by_name_and_source():
    a, b = identity_of(FunctionModerator(count_a)), identity_of(FunctionModerator(count_b))
    assert a != b
    assert a == identity_of(FunctionModerator(count_a))


def scores_of(limit):
    return lambda texts: [len(text) > limit for text in texts]


def test_functions_are_told_apart_by_what_they_were_made_with():
    identities = [
        identity_of(FunctionModerator(each)).settings
        for each in (
            scores_of(1),
            scores_of(2),
            functools.partial(count_a, sep=1),
            functools.partial(count_a, sep=2),
            eval("lambda texts: [0.0] * len(texts)"),
            eval("lambda texts: [1.0 - 0.5] + [0.0] * len(texts)"),
        )
    ]
    assert len(set(identities)) == len(identities)
    assert identities[0] == identity_of(FunctionModerator(scores_of(1))).settings


def test_a_function_that_holds_itself_has_an_identity():
    def again(texts):
        return [0.0 for _ in texts] if texts else again(texts)

    assert identity_of(FunctionModerator(again)) == identity_of(FunctionModerator(again))


def test_a_class_of_ones_own_needs_nothing_and_may_say_more():
    class Plain(Moderator[str, str]):
        def __init__(self, words, device="cpu"):
            self.words, self.device = words, device

        def moderate(self, x):
            return [0.0] * len(x)

    class Telling(Plain):
        def identity_settings(self):
            return {"version": 2}

        def identity_weights(self):
            return "mine"

    assert identity_of(Plain({"a", "b"})) == identity_of(Plain({"b", "a"}, device="cuda"))
    assert identity_of(Plain(["a"])) != identity_of(Plain(["b"]))
    assert identity_of(Plain([])).name.endswith("Plain")
    assert identity_of(Telling(["a"])) == identity_of(Telling(["b"]))
    assert identity_of(Telling([])).weights == "mine"


def test_what_cannot_be_described_still_has_an_identity():
    assert identity_of(ScriptedModerator({"a": object()})).settings


class PrivateWord(Moderator[str, str]):
    """Keeps its arguments under other names, as most classes of users do."""

    def __init__(self, word, *, limit=3, **more):
        self._word, self._limit, self._more = word, limit, more

    def moderate(self, x):
        return [float(self._word in text) for text in x]


def test_arguments_that_are_kept_privately_are_part_of_the_identity():
    assert identity_of(PrivateWord("a")) != identity_of(PrivateWord("b"))
    assert identity_of(PrivateWord("a")) != identity_of(PrivateWord("a", limit=4))
    assert identity_of(PrivateWord("a", extra=1)) != identity_of(PrivateWord("a", extra=2))


def test_how_an_argument_was_given_makes_no_difference():
    same = [
        PrivateWord("a"),
        PrivateWord(word="a"),
        PrivateWord("a", limit=3),
        PrivateWord(limit=3, word="a"),
    ]
    assert len({identity_of(each) for each in same}) == 1
    assert identity_of(PrivateWord("a", x=1, y=2)) == identity_of(PrivateWord("a", y=2, x=1))


@dataclass(frozen=True)
class WithFields(Moderator[str, str]):
    words: tuple[str, ...]
    options: dict[str, int] = field(default_factory=dict)

    def moderate(self, x):
        return [0.0] * len(x)


def test_a_dataclass_is_told_by_its_fields():
    assert identity_of(WithFields(("a",))) == identity_of(WithFields(words=("a",), options={}))
    assert identity_of(WithFields(("a",))) != identity_of(WithFields(("b",)))
    assert identity_of(WithFields((), {"n": 1})) != identity_of(WithFields((), {"n": 2}))


class ByTopic(KeywordModerator):
    def __init__(self, topic, level=1):
        super().__init__({"fruit": ["apple"], "tools": ["saw"]}[topic], patterns=["x"])
        self._level = level


def test_a_subclass_is_told_by_its_own_arguments_not_by_those_it_passes_on():
    assert identity_of(ByTopic("fruit")) != identity_of(ByTopic("tools"))
    assert identity_of(ByTopic("fruit", level=2)) != identity_of(ByTopic("fruit"))
    assert identity_of(ByTopic("fruit")) == identity_of(ByTopic(topic="fruit"))


def test_arguments_are_told_apart_by_type_and_content():
    linear = torch.nn.Linear(2, 2)
    arguments = [
        1, 1.0, True, "1", None, [1], {"a": 1}, {1: 1}, {"1": 2},
        re.compile("a"), re.compile("b"), re.compile("a", re.IGNORECASE),
        torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.int64), np.zeros(3),
        tiny_model(seed=0).model, tiny_model(seed=1).model, linear,
        count_a, count_b, str.upper, int, float, "ab".startswith, PrivateWord("a").moderate,
        PrivateWord("b").moderate, KeywordModerator(["a"]), KeywordModerator(["b"]),
    ]  # fmt: skip
    identities = [identity_of(PrivateWord(each)).settings for each in arguments]
    assert len(set(identities)) == len(identities)
    assert identities == [identity_of(PrivateWord(each)).settings for each in arguments]


def test_functions_on_one_line_are_told_apart():
    def pair():
        return [FunctionModerator(lambda t: [0.1]), FunctionModerator(lambda t: [0.2])]

    (first, second), (again, _) = pair(), pair()
    assert identity_of(first) != identity_of(second)
    assert identity_of(first) == identity_of(again)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (date(2026, 1, 1), date(2026, 1, 2)),
        (Decimal("1"), Decimal("2")),
        (1j, 2j),
        (np.array(["a"]), np.array(["b"])),
        (np.array([{"a": 1}], dtype=object), np.array([{"a": 2}], dtype=object)),
    ],
)
def test_values_of_other_types_are_told_apart(one, other):
    assert identity_of(Keeping(one)) != identity_of(Keeping(other))
    assert identity_of(Keeping(one)) == identity_of(Keeping(copy.deepcopy(one)))


class Keeping(Moderator):
    def __init__(self, value):
        self._value = value

    def moderate(self, x):
        return [0.0 for _ in x]


class OwnNew(Keeping):
    def __new__(cls, value):
        return super().__new__(cls)


def test_a_class_with_a_new_of_its_own_is_told_by_its_attributes():
    assert identity_of(OwnNew("a")) != identity_of(OwnNew("b"))
    assert identity_of(OwnNew("a")) == identity_of(OwnNew("a"))


def test_credentials_and_how_it_is_run_are_no_part_of_an_identity():
    class Remote(Moderator[str, str]):
        def __init__(self, url, api_key="", auth_token="", timeout=1, batch_size=2):
            self._settings = url, api_key, auth_token, timeout, batch_size

        def moderate(self, x):
            return [0.0] * len(x)

    one = Remote("u", api_key="k", auth_token="t", timeout=5, batch_size=8)
    assert identity_of(one) == identity_of(Remote("u"))
    assert identity_of(one) != identity_of(Remote("v"))
    assert {"api_key", "auth_token"}.isdisjoint(one.identity_settings())


def test_a_class_without_a_constructor_takes_no_arguments():
    class Bare(Moderator[str, str]):
        def moderate(self, x):
            return [0.0] * len(x)

    assert identity_of(Bare()).settings == identity_of(Bare()).settings
    with pytest.raises(TypeError, match="argument"):
        Bare("a")


def test_a_copy_has_the_identity_of_the_original():
    moderator = PrivateWord("a")
    assert identity_of(copy.deepcopy(moderator)) == identity_of(moderator)


def test_the_behavior_of_harmbench_is_part_of_its_identity(guard_of):
    one, other, none = (
        identity_of(guard_of("harmbench", behavior=each)) for each in ("one", "other", None)
    )
    assert len({one, other, none}) == 3


@pytest.mark.parametrize(
    ("moderator", "settings"),
    [
        (KeywordModerator(["a"]), "02b8431ce587"),
        (SecretLeakModerator("amber falcon"), "fd6135a0f4bb"),
        (MaxModerator([KeywordModerator(["a"])]), "3823720cd53f"),
        (LLMJudgeModerator(lambda chats: []), "fe4322c93e91"),
    ],
)
def test_identities_of_the_library_are_those_of_earlier_records(moderator, settings):
    assert identity_of(moderator).settings == settings


PROGRAM = """
from astra_rl.moderators import KeywordModerator, MaxModerator, RefusalModerator
from astra_rl.moderators.identity import identity_of
print(identity_of(MaxModerator([KeywordModerator(["x", "y"]), RefusalModerator()])).settings)
"""


@pytest.mark.slow
def test_the_identity_is_the_same_in_every_process():
    """Hashes of strings are others in each process."""
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"},
    ).stdout
    moderator = MaxModerator([KeywordModerator(["x", "y"]), RefusalModerator()])
    assert printed == f"{identity_of(moderator).settings}\n"


def test_attributes_that_are_set_later_are_no_part_of_the_identity():
    # The scores of a moderator must not depend on them: its constructor says what it is.
    first, other = KeywordModerator(["leak"]), KeywordModerator(["leak"])
    other.note = "set later"
    assert identity_of(first) == identity_of(other)
    changed = KeywordModerator(["leak", "spill"])
    assert identity_of(first) != identity_of(changed)
