import functools
import subprocess
import sys

import pytest
import torch

from astra_rl.core.moderator import Moderator
from astra_rl.moderators import (
    CachedModerator,
    FunctionModerator,
    KeywordModerator,
    LLMJudgeModerator,
    MaxModerator,
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


PROGRAM = """
from astra_rl.moderators import KeywordModerator, MaxModerator, RefusalModerator
from astra_rl.moderators.identity import identity_of
print(identity_of(MaxModerator([KeywordModerator(["x", "y"]), RefusalModerator()])).settings)
"""


@pytest.mark.slow
def test_the_identity_is_the_same_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
