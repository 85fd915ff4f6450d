"""Calls of tools in the text of models; formats as released models write them."""

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.tool_calls import MOST_CALLS, ToolCall, parse_calls, read_call

SEND = {"name": "send", "arguments": {"to": "ann", "count": 2}}
WRITTEN = {
    "qwen": '<tool_call>\n{"name": "send", "arguments": {"to": "ann", "count": 2}}\n</tool_call>',
    "hermes cut": '<tool_call>{"name": "send", "arguments": {"to": "ann", "count": 2}}',
    "llama": '{"name": "send", "parameters": {"to": "ann", "count": 2}}',
    "llama tag": '<|python_tag|>{"name": "send", "parameters": {"to": "ann", "count": 2}}',
    "llama typed": '{"type": "function", "name": "send", "parameters": {"to": "ann", "count": 2}}',
    "mistral": '[TOOL_CALLS] [{"name": "send", "arguments": {"to": "ann", "count": 2}}]',
    "mistral new": '[TOOL_CALLS]send[ARGS]{"to": "ann", "count": 2}',
    "json text": (
        '<tool_call>{"name": "send", "arguments": "{\\"to\\": \\"ann\\", \\"count\\": 2}"}'
    ),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_each_format_of_a_call_is_read(written):
    text, calls = parse_calls(written)
    assert text == ""
    assert [(call.name, call.arguments, call.error) for call in calls] == [
        ("send", {"to": "ann", "count": 2}, "")
    ]


def test_the_text_around_calls_is_kept_and_their_order_too():
    text, calls = parse_calls(
        'First.\n<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b"}</tool_call>'
    )
    assert text == "First."
    assert [call.name for call in calls] == ["a", "b"]


A, B = ({"name": name, "arguments": {"n": n}} for name, n in (("a", 1), ("b", 2)))


@pytest.mark.parametrize(
    ("written", "text"),
    [
        # Llama 3.1 (huggingface/chat-ui#1595), Mistral (ml-explore/mlx-lm#1448)
        (f"{json.dumps(A)}; {json.dumps(B)}", ""),
        (f"<|python_tag|>{json.dumps(A)}\n{json.dumps(B)}", ""),
        (f"<tool_call>{json.dumps(A)}\n{json.dumps(B)}</tool_call>", ""),
        ('[TOOL_CALLS]a[ARGS]{"n": 1}[TOOL_CALLS]b[ARGS]{"n": 2}', ""),
        (
            '[TOOL_CALLS]a[ARGS]{"n": 1}\n\n[TOOL_CALLS]b[ARGS]{"n": 2}\n\nLet me see.',
            "Let me see.",
        ),
        (f"Well.[TOOL_CALLS] {json.dumps([A, B])} Let me see.", "Well.\nLet me see."),
        (f"{json.dumps(A)}, {json.dumps(B)} Let me {{see}}.", "Let me {see}."),
    ],
)
def test_several_calls_and_words_after_them_are_read(written, text):
    said, calls = parse_calls(written)
    assert [(call.name, dict(call.arguments), call.error) for call in calls] == [
        ("a", {"n": 1}, ""),
        ("b", {"n": 2}, ""),
    ]
    assert said == text


@pytest.mark.parametrize("written", ['{}""', '{} "', "", " ", "{}''\n"])
def test_stray_quotation_marks_after_arguments_mean_nothing(written):
    """As several models write empty arguments (UKGovernmentBEIS/inspect_ai#4822)."""
    call = read_call({"name": "look", "arguments": written})
    assert (call.arguments, call.error) == ({}, "")
    for other in ('{"a": 1', '{"a": 1}{"a": 2}', '{} {"a": 1}', "{} x"):
        assert "not JSON" in read_call({"name": "look", "arguments": other}).error


TAKEN = {"name": "send", "arguments": {"t": "</tool_call> <tool_call> [TOOL_CALLS] {"}}


@pytest.mark.parametrize(
    "written",
    [
        # An agent that passes on a text of the attacker (vllm-project/vllm#45167).
        f"<tool_call>\n{json.dumps(TAKEN)}\n</tool_call>",
        f"<tool_call>{json.dumps(TAKEN)}",
        json.dumps(TAKEN),
        f"<|python_tag|>{json.dumps(TAKEN)}",
        f"[TOOL_CALLS] {json.dumps([TAKEN])}",
        f"[TOOL_CALLS]send[ARGS]{json.dumps(TAKEN['arguments'])}",
    ],
)
def test_marks_of_calls_in_an_argument_are_text(written):
    assert parse_calls(written) == ("", (ToolCall("send", TAKEN["arguments"]),))


def test_of_several_calls_the_readable_ones_are_kept_and_the_broken_one_is_an_error():
    for written in (
        f'{json.dumps(A)}; {{"name": "b", ',
        f"<tool_call>{json.dumps(A)} {{</tool_call>",
    ):
        text, calls = parse_calls(written)
        assert [(call.name, bool(call.error)) for call in calls] == [("a", False), ("", True)]
        assert text == written
    text, calls = parse_calls(f"<tool_call>{json.dumps(A)} and words</tool_call>")
    assert ["after the call" in call.error for call in calls] == [True]


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("<tool_call>{name: send}</tool_call>", "not JSON"),
        ("<tool_call>[1]</tool_call>", "must be a JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "must have a name"),
        ('<tool_call>{"name": 3}</tool_call>', "must have a name"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "must be a JSON object"),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "not finite"),
        ('<tool_call>{"name": "a", "arguments": "{"}</tool_call>', "not JSON"),
        ("[TOOL_CALLS]send[ARGS]{", "not JSON"),
        ("[TOOL_CALLS] [", "not JSON"),
        ('{"name": "send", "parameters": ', "not JSON"),
        ("<|python_tag|>print(1)", "not JSON"),
        ("<tool_call>" + "[" * 5000, "nested"),
    ],
)
def test_a_call_that_cannot_be_read_has_an_error_and_stays_in_the_text(written, error):
    text, calls = parse_calls(f"Well. {written}" if written.startswith("<tool") else written)
    assert len(calls) == 1
    assert error in calls[0].error
    assert written in text


@pytest.mark.parametrize("text", ["", "Hello.", '{"answer": 1}', 'He said {"name": "x"}', "a < b"])
def test_a_text_without_calls_is_all_text(text):
    assert parse_calls(text) == (text, ())


def test_only_so_many_calls_are_read_and_the_rest_is_one_error():
    _, calls = parse_calls('<tool_call>{"name": "a"}</tool_call>' * 500)
    assert len(calls) == MOST_CALLS + 1
    assert "500 calls" in calls[-1].error
    _, calls = parse_calls('{"name": "a"}' * 100_000)
    assert len(calls) == MOST_CALLS + 1


@given(st.text(alphabet='<>/[]{}"tool_calTOL:,name\\ ARGS|1\ud800', max_size=200))
def test_no_text_raises(text):
    for call in parse_calls(text).calls:
        json.dumps(call.as_json())


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_no_value_of_an_endpoint_raises(value):
    call = read_call(value)
    assert call.error or call.name
    assert ToolCall(**call.as_json()) == call


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-(10**300), "arguments have a number that is not finite, or too large"),
        (functools.reduce(lambda inner, _: [inner], range(3000), []), "nested too deeply"),
    ],
)
def test_arguments_that_json_of_this_library_cannot_hold_are_an_error(value, error):
    assert error in read_call({"name": "a", "arguments": {"x": value}}).error
