"""Targets that call tools: what is sent to them and what is read of their replies."""

import json

import pytest
from tests.endpoint import FAST, Fault, completion

from astra_rl.core.messages import Dialogue, Message, Tool
from astra_rl.core.text import NoReply, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError
from astra_rl.targets import CallableTarget, HTTPTarget, OpenAITarget
from astra_rl.targets.reply_cache import ReplyCache

SEND = Tool("send", "Sends.", {"type": "object", "properties": {"to": {"type": "string"}}})
ASKED = Dialogue([Message("user", "Send it to ann.")], [SEND])


def calling(*calls, content=None):
    message = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return Fault(body=json.dumps({"choices": [choice]}).encode())


def call(name="send", arguments='{"to": "ann"}', id="x1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def target(endpoint):
    return OpenAITarget("m", base_url=endpoint.url, calls=FAST)


def test_tools_are_offered_and_calls_are_read(endpoint, target):
    endpoint.faults = [calling(call(), content="Well.")]
    (said,) = target.respond([ASKED])
    assert endpoint.requests[0][2]["tools"] == [SEND.as_json()]
    assert (said, said.calls) == ("Well.", (ToolCall("send", {"to": "ann"}, "x1"),))


def test_results_are_sent_back_in_the_form_of_the_api(endpoint, target):
    history = [
        *ASKED.messages,
        Message("assistant", "", (ToolCall("send", {"to": "ann"}, "x1"),)),
        Message("tool", "sent", name="send", call_id="x1"),
    ]
    target.respond([Dialogue(history, [SEND])])
    sent = endpoint.requests[0][2]["messages"]
    assert sent[1]["tool_calls"] == [call(arguments='{"to": "ann"}')]
    assert (sent[2]["role"], sent[2]["tool_call_id"]) == ("tool", "x1")


@pytest.mark.parametrize(
    ("written", "error"),
    [
        (call(arguments='{"to": '), "not JSON"),
        (call(arguments="[1]"), "must be a JSON object"),
        (call(name=""), "must have a name"),
        ({"function": 7}, "must be a JSON object"),
        (7, "must be a JSON object"),
    ],
)
def test_a_malformed_call_is_a_reply_with_an_error(endpoint, target, written, error):
    endpoint.faults = [calling(written)]
    (said,) = target.respond([ASKED])
    assert error in said.calls[0].error
    # Else a record has no trace of what the model wrote.
    assert json.loads(said) == (written if written == 7 else written["function"])


def test_a_call_that_is_repeated_in_the_older_field_is_one_call(endpoint, target):
    fault = calling(call())
    data = json.loads(fault.body)
    data["choices"][0]["message"]["function_call"] = call()["function"]
    endpoint.faults = [Fault(body=json.dumps(data).encode())]
    (said,) = target.respond([ASKED])
    assert said.calls == (ToolCall("send", {"to": "ann"}, "x1"),)


def test_without_tools_a_call_is_still_no_reply(endpoint, target):
    endpoint.faults = [calling(call())]
    (said,) = target.respond(["Hello"])
    assert isinstance(said, NoReply)
    assert "tools" not in endpoint.requests[0][2]


def test_calls_are_cached_with_the_reply_and_other_tools_are_another_chat(
    endpoint, target, tmp_path
):
    endpoint.faults = [calling(call())]
    with ReplyCache(tmp_path / "replies").answering():
        first = target.respond([ASKED])
    with ReplyCache(tmp_path / "replies").answering():
        again = target([ASKED.messages and [{"role": "user", "content": "Send it to ann."}]])
        seeded = target.respond([ASKED])
    assert again[0].calls is None
    assert first[0].calls == (ToolCall("send", {"to": "ann"}, "x1"),)
    assert seeded[0] == "you said Send it to ann."  # another seed


def test_a_function_that_takes_tools_is_an_agent():
    def agent(messages: list, tools: list) -> str:
        return Utterance("", calls=[ToolCall(tools[0]["function"]["name"], {"n": len(messages)})])

    (said,) = CallableTarget(agent).respond([ASKED])
    assert said.calls == (ToolCall("send", {"n": 1}),)
    assert json.loads(completion("x"))


HISTORY = Dialogue(
    [
        Message("system", "Be kind."),
        *ASKED.messages,
        Message("assistant", "Well.", (ToolCall("send", {"to": "ann"}, "x1"),)),
        Message("tool", "sent", name="send", call_id="x1"),
    ],
    [SEND],
)


def test_a_target_that_knows_no_tools_is_told_of_them_in_words(endpoint):
    seen = []

    def ask(messages):
        seen.append(messages)
        return "Done."

    completions = OpenAITarget("m", base_url=endpoint.url, api="completions", calls=FAST)
    reply = "choices[0].message.content"
    url = f"{endpoint.url}/chat/completions"
    http = HTTPTarget(url, reply=reply, body={"messages": "{messages}"})
    for target in (CallableTarget(ask), http, completions):
        target.respond([HISTORY])
    asked = [seen[0], endpoint.requests[0][2]["messages"]]
    for messages in asked:
        assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
        assert messages[0]["content"].startswith("Be kind.\n\nYou have these tools")
        assert json.dumps(SEND.as_json()["function"]) in messages[0]["content"]
        assert messages[2]["content"] == (
            'Well.\n<tool_call>{"name": "send", "arguments": {"to": "ann"}}</tool_call>'
        )
        assert messages[3]["content"] == "<tool_response>sent</tool_response>"
    assert "You have these tools" in endpoint.requests[1][2]["prompt"]


def test_a_target_that_reads_the_last_message_alone_is_no_agent(endpoint):
    http = HTTPTarget(endpoint.url, reply="text", body={"text": "{message}", "about": "{system}"})
    for target in (CallableTarget(lambda text: "No."), http):
        with pytest.raises(ConfigurationError, match="the last message alone"):
            target.respond([ASKED])
        assert endpoint.requests == []
