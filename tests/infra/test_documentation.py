"""Help on classes and functions that share options shows every option, with its default."""

import inspect
import re

import pytest

from astra_rl.ext.vllm import VLLMSampler
from astra_rl.infra.documentation import document_options
from astra_rl.models.generation import generate
from astra_rl.models.generation_transformers import generate_with_transformers
from astra_rl.moderators import MODERATORS
from astra_rl.moderators.guard import GuardModerator

JUDGES = ("hf_classifier", "llm_judge", "strong_reject")
GUARDS = ("harmbench", "llama_guard", "qwen_guard", "shield_gemma", "wild_guard")


def arguments_of(documented):
    """Descriptions in the Args section of a docstring, by name, in order."""
    section = inspect.getdoc(documented).split("\nArgs:\n", 1)[1].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("name", [*GUARDS, *JUDGES])
def test_help_on_a_judge_shows_each_option_once_with_its_default(name):
    kind = MODERATORS.load(name)
    described = arguments_of(kind)
    parameters = inspect.signature(kind).parameters
    assert set(described) == set(parameters)
    for option, text in described.items():
        default = parameters[option].default
        if "Default: " in text:
            assert f"Default: {default!r}" in text
    for option in {"device", "dtype"} & set(parameters):
        assert f"Default: {parameters[option].default!r}" in described[option]
    assert inspect.getdoc(kind).count("\nArgs:\n") == 1


def test_all_guards_are_tested_here():
    guards = [name for name in MODERATORS if issubclass(MODERATORS.load(name), GuardModerator)]
    assert set(guards) == set(GUARDS)


@pytest.mark.parametrize("sampler", [generate, generate_with_transformers, VLLMSampler.__call__])
def test_help_on_a_sampler_shows_every_argument_in_order(sampler):
    parameters = [name for name in inspect.signature(sampler).parameters if name != "self"]
    assert list(arguments_of(sampler)) == parameters


def test_a_sampler_says_what_it_does_otherwise():
    assert arguments_of(generate)["prefix_cache"].endswith("it is read and updated. Default: None.")
    assert arguments_of(generate_with_transformers)["prefix_cache"].startswith("Ignored")


def test_the_section_of_arguments_is_put_before_the_next_section():
    @document_options({"size": "Number of rows.", "kind": "Which kind."}, {"kind": "Colour."})
    def make(size, *, kind="red"):
        """Make rows.

        Returns:
            The rows.
        """

    assert make.__doc__ == (
        "Make rows.\n\nArgs:\n    size: Number of rows.\n    kind: Colour. Default: 'red'.\n\n"
        "Returns:\n    The rows.\n"
    )


def test_a_parameter_that_a_subclass_requires_has_no_default():
    class Base:
        def __init__(self, *, size=1):
            pass

    @document_options({"size": "Number of rows."})
    class Derived(Base):
        """Rows."""

        def __init__(self, *, size):
            pass

    assert Derived.__doc__ == "Rows.\n\nArgs:\n    size: Number of rows.\n"
