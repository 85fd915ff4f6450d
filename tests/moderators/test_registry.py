from collections.abc import Sequence

import pytest

from astra_rl.config.parts import build_moderator
from astra_rl.config.schema import ModeratorConfig
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.moderators import FunctionModerator, KeywordModerator
from astra_rl.moderators.identity import identity_of
from astra_rl.moderators.registry import (
    MODERATORS,
    is_composition,
    load_object,
    moderator_factory,
)


@pytest.mark.parametrize("name", MODERATORS)
def test_every_name_is_a_moderator_with_a_docstring(name):
    chosen = moderator_factory(name, {})
    assert issubclass(chosen, Moderator)
    assert chosen.__doc__


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'llama_guard'.*'package.module:"):
        MODERATORS.check("lama_guard")
    with pytest.raises(ConfigurationError, match=r"no moderator 'a.b:'"):
        moderator_factory("a.b:", {})


def test_a_class_of_ones_own_is_named_by_where_it_is():
    assert MODERATORS.load("astra_rl.testing:ScriptedModerator").__name__ == "ScriptedModerator"
    assert not is_composition("astra_rl.testing:ScriptedModerator")
    assert is_composition("majority")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:x", "cannot import 'no_such_module:x'"),
        ("json:no_such_name", "no_such_name"),
        ("json", "write it as 'package.module:name'"),
        ("os.system('x'):y", "write it as"),
    ],
)
def test_what_cannot_be_imported_is_named(path, message):
    with pytest.raises(ConfigurationError, match=message):
        load_object(path)


def test_a_function_can_be_named_too():
    moderator = FunctionModerator("astra_rl.evaluation.judges.reward_watch:is_gibberish")
    assert moderator.function("!!!") is True
    with pytest.raises(ConfigurationError, match="must be callable"):
        FunctionModerator("astra_rl.moderators.registry:MODERATORS")


def scores(texts: Sequence[str]) -> list[float]:
    return [float("leak" in text) for text in texts]


def made(word: str) -> Moderator[str, str]:
    return KeywordModerator([word])


def made_unannotated(word):
    return KeywordModerator([word])


HERE = "tests.moderators.test_registry"


@pytest.mark.parametrize(
    "section",
    [
        {"type": f"{HERE}:scores"},
        {"type": "function", "options": {"function": f"{HERE}:scores"}},
        {"type": f"{HERE}:made", "options": {"word": "leak"}},
        {"type": f"{HERE}:made_unannotated", "options": {"word": "leak"}},
    ],
    ids=lambda section: section["type"].rpartition(":")[2],
)
def test_a_function_scores_texts_or_makes_a_moderator(section):
    moderator = build_moderator(ModeratorConfig(**section))
    assert moderator.moderate(["leak", "fine"]) == [1.0, 0.0]


def test_a_function_that_makes_a_moderator_lacks_its_option():
    with pytest.raises(ConfigurationError, match=r"moderator\.options\.word: missing"):
        build_moderator(ModeratorConfig(type=f"{HERE}:made"))


def test_both_ways_to_name_a_function_are_one_identity():
    by_path = build_moderator(ModeratorConfig(type=f"{HERE}:scores"))
    by_name = build_moderator(
        ModeratorConfig(type="function", options={"function": f"{HERE}:scores"})
    )
    assert identity_of(by_path) == identity_of(by_name)
