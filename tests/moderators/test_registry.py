import pytest

from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.moderators import FunctionModerator
from astra_rl.moderators.registry import (
    MODERATORS,
    is_composition,
    load_object,
    moderator_class,
)


@pytest.mark.parametrize("name", MODERATORS)
def test_every_name_is_a_moderator_with_a_docstring(name):
    chosen = moderator_class(name)
    assert issubclass(chosen, Moderator)
    assert chosen.__doc__


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'llama_guard'.*'package.module:"):
        MODERATORS.check("lama_guard")
    with pytest.raises(ConfigurationError, match=r"no moderator 'a.b:'"):
        moderator_class("a.b:")


def test_a_class_of_ones_own_is_named_by_where_it_is():
    assert moderator_class("astra_rl.testing:ScriptedModerator").__name__ == "ScriptedModerator"
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
