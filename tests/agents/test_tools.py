from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.agents.tools import ToolError, check_arguments, tool_of
from astra_rl.errors import ConfigurationError


def order(
    state: dict,
    name: str,
    count: int = 1,
    price: float = 0.0,
    gift: bool = False,
    sizes: list[str] = (),
    colour: Literal["red", "blue"] = "red",
) -> str:
    """Order something.

    It is sent at once.

    Args:
        name: What is ordered,
            by its full name.
        count: How many.
    """
    return "ordered"


TOOL = tool_of(order)


def test_a_tool_is_described_by_signature_and_docstring():
    assert TOOL.name == "order"
    assert TOOL.description == "Order something."
    assert TOOL.parameters == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "What is ordered, by its full name."},
            "count": {"type": "integer", "description": "How many."},
            "price": {"type": "number"},
            "gift": {"type": "boolean"},
            "sizes": {"type": "array", "items": {"type": "string"}},
            "colour": {"type": "string", "enum": ["red", "blue"]},
        },
        "required": ["name"],
    }


def undocumented(state: dict, name: str) -> str:
    return name


def unannotated(state: dict, name) -> str:
    """Do it."""
    return name


@pytest.mark.parametrize(
    ("function", "message"), [(undocumented, "no docstring"), (unannotated, "annotated as None")]
)
def test_a_function_that_cannot_be_described_is_refused(function, message):
    with pytest.raises(ConfigurationError, match=message):
        tool_of(function)


def test_arguments_that_fit_are_passed_on_and_whole_floats_are_integers():
    given = {"name": "tea", "count": 2.0, "price": 3, "gift": True, "sizes": ["s"]}
    assert check_arguments(TOOL, given) == {**given, "count": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the argument name is missing"),
        ({"name": "tea", "x": 1}, "no argument 'x'; it takes name, count"),
        ({"name": 3}, "name must be of type string"),
        ({"name": "tea", "count": "2"}, "count must be of type integer"),
        ({"name": "tea", "count": 2.5}, "count must be of type integer"),
        ({"name": "tea", "count": True}, "count must be of type integer"),
        ({"name": "tea", "gift": 1}, "gift must be of type boolean"),
        ({"name": "tea", "sizes": "s"}, "sizes must be a list"),
        ({"name": "tea", "sizes": [1]}, r"sizes\[0\] must be of type string"),
        ({"name": "tea", "colour": "green"}, "colour must be one of red, blue"),
        ({"name": "tea", "colour": ["red"]}, "colour must be one of red, blue"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error_for_the_agent(arguments, message):
    with pytest.raises(ToolError, match=message):
        check_arguments(TOOL, arguments)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["name", "count", "sizes", "colour", "x"]), VALUES))
def test_hostile_arguments_fit_or_are_refused(arguments):
    try:
        checked = check_arguments(TOOL, arguments)
    except ToolError:
        return
    assert isinstance(checked["name"], str)
    assert type(checked.get("count", 1)) is int
