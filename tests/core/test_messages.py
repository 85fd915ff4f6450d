import copy
import json
import pickle

import pytest

from astra_rl.core.messages import (
    AgentReply,
    Dialogue,
    Message,
    Tool,
    Trace,
    chat_messages,
    trace_of,
)
from astra_rl.core.text import Conversation, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.distributed.records import pack_texts, unpack_texts
from astra_rl.errors import ConfigurationError
from astra_rl.targets.base import messages_of, tools_of

CALL = ToolCall("send", {"to": "ann"}, "call00001")
MESSAGES = (
    Message("system", "Be kind."),
    Message("user", "Send it."),
    Message("assistant", "Well.", (CALL, ToolCall("", error="not JSON"))),
    Message("tool", "sent\ud800", name="send", call_id="call00001"),
    Message("tool", "Error: not JSON"),
)
TOOLS = (Tool("send", "Sends.", {"type": "object", "properties": {"to": {"type": "string"}}}),)
TRACE = Trace(MESSAGES, {"sent": [{"to": "ann"}]}, 0.5, 1.0, "answered", 3, 2)


def test_a_dialogue_is_a_conversation_whose_text_is_a_transcript():
    dialogue = Dialogue(MESSAGES, TOOLS)
    assert Conversation.of(dialogue) is dialogue
    assert 'assistant: Well.\n[call send {"to": "ann"}]' in dialogue
    assert dialogue.encode()


def test_an_unknown_role_is_refused_and_the_message_lists_the_roles():
    with pytest.raises(ConfigurationError, match="role='robot'; choose from system, user"):
        Dialogue([Message("robot", "x")])


def test_messages_have_the_form_of_the_chat_apis():
    chat = chat_messages(MESSAGES)
    assert chat == messages_of(Dialogue(MESSAGES))
    assert chat[2]["tool_calls"] == [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "send", "arguments": '{"to": "ann"}'},
        }
    ]
    assert chat[3] == {
        "role": "tool",
        "content": "sent\ufffd",
        "tool_call_id": "call00001",
        "name": "send",
    }
    # There is no call that the last message could be the result of.
    assert chat[4] == {"role": "user", "content": "Error: not JSON"}


def test_tools_have_the_form_of_the_chat_apis_and_a_conversation_has_none():
    assert tools_of(Dialogue(MESSAGES, TOOLS))[0]["function"]["name"] == "send"
    assert tools_of("Hello") == ()


@pytest.mark.parametrize("text", [Dialogue(MESSAGES, TOOLS), AgentReply("Done.", TRACE)])
def test_messages_and_traces_cross_processes_as_json(text):
    (back,) = unpack_texts(json.loads(json.dumps(pack_texts([text]))))
    assert type(back) is type(text)
    assert back == text
    assert vars(back) == vars(text)


def test_a_trace_is_a_value():
    again = Trace.from_json(json.loads(json.dumps(TRACE.as_json())))
    assert again == TRACE
    assert trace_of(AgentReply("Done.", TRACE)) is TRACE
    assert trace_of("Done.") is None


def test_what_the_attacker_wrote_is_marked_wherever_it_stands():
    marked = Message("tool", "a mail: do it, and do it").marked(" do it ")
    assert [marked.text[start:end] for start, end in marked.written_by_attacker] == ["do it"] * 2
    assert Message("tool", "a mail").marked("").written_by_attacker == ()


@pytest.mark.parametrize(
    "text", [Dialogue(MESSAGES, TOOLS), AgentReply("Done.", TRACE), Utterance("x", calls=[CALL])]
)
def test_texts_are_copied_with_all_that_they_carry(text):
    for copied in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert type(copied) is type(text)
        assert (copied, vars(copied)) == (text, vars(text))


def test_names_of_tools_are_sent_as_endpoints_accept_them():
    names = ["send", "functions.send", "../x", "a\ud800", "x" * 500, "<b>", "größe"]
    messages = [
        Message("user", "Hi."),
        Message("assistant", "", tuple(ToolCall(name, id=name) for name in names)),
        *(Message("tool", "Error", name=name, call_id=name) for name in names),
    ]
    _, said, *results = chat_messages(messages)
    sent = ["send", "functions_send", "___x", "a_", "x" * 64, "_b_", "größe"]
    assert [call["function"]["name"] for call in said["tool_calls"]] == sent
    assert [each["name"] for each in results] == sent
    assert [call.name for call in messages[1].calls] == names  # as the model wrote them
