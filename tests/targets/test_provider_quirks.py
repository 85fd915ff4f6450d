"""Replies and errors of real providers, each with the outcome that `docs/targets.md` names."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.endpoint import Endpoint, Fault, completion, error

from astra_rl.core.reasoning import NO_ANSWER, OUT_OF_TOKENS
from astra_rl.core.text import NoReply, Utterance
from astra_rl.errors import BudgetSpentError, ContractError, EndpointError
from astra_rl.targets import Budget, CallableTarget, HTTPTarget, Ledger, OpenAITarget
from astra_rl.targets.budget import MAX_TOKENS_OF_A_CALL, Usage
from astra_rl.targets.reply_cache import ReplyCache

CALLS = {"first_wait": 0.001, "max_tries": 4, "timeout": 60}


def openai_target(endpoint: Endpoint, **options: Any) -> OpenAITarget:
    return OpenAITarget("m", base_url=endpoint.url, **{"calls": CALLS, **options})


def http_target(endpoint: Endpoint, **calls: Any) -> HTTPTarget:
    template = {"message": "{message}", "options": {"max_tokens": 256}}
    return HTTPTarget(endpoint.url, template, "choices[0].message.content", calls=CALLS | calls)


def message(finish: str | None = "stop", **fields: Any) -> bytes:
    """Return the body of a chat completion with these fields of its message."""
    usage = {"prompt_tokens": 7, "completion_tokens": 100, "total_tokens": 107}
    choice = {"message": {"role": "assistant", **fields}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def always(endpoint: Endpoint, fault: Fault | bytes) -> None:
    chosen = fault if isinstance(fault, Fault) else Fault(body=fault)
    endpoint.fault = lambda number: chosen


def ask(endpoint: Endpoint, **options: Any) -> tuple[Utterance, Ledger]:
    with Ledger().charging() as ledger:
        (reply,) = openai_target(endpoint, **options).respond(["hello"])
    return reply, ledger


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"content": "Hello", "reasoning_content": "Hm."}, "Hm."),
        ({"content": "Hello", "reasoning": " Hm.\n"}, "Hm."),
        ({"content": "Hello", "reasoning": "Hm.", "reasoning_content": "Hm."}, "Hm."),
        (
            {"content": "Hello", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
            "Hm.",
        ),
        ({"content": "Hello", "reasoning_details": [{"summary": "Hm."}, {"data": "x"}]}, "Hm."),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "Hello"},
                ]
            },
            "Hm.",
        ),
        ({"content": "<think>\nHm.\n</think>\n\nHello"}, "Hm."),
        ({"content": "Hm.\n</think>\n\nHello"}, "Hm."),
        ({"content": "<think>Hm?</think>Hello", "reasoning": "Hm."}, "Hm.\n\nHm?"),
        ({"content": "<think></think>Hello"}, None),
        ({"content": "Hello"}, None),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(
    endpoint: Endpoint, fields: dict[str, Any], reasoning: str | None
) -> None:
    always(endpoint, message(**fields))
    target = openai_target(endpoint)
    with ReplyCache(":memory:").answering():
        for _ in range(2):  # the second reply is from the cache
            (reply,) = target([[{"role": "user", "content": "hello"}]])
            assert (reply, reply.reasoning) == ("Hello", reasoning)
    assert len(endpoint.requests) == 1


def test_a_reply_that_ends_in_its_reasoning_is_unscored(endpoint: Endpoint) -> None:
    always(endpoint, message("length", content="<think>VERDICT: 0"))
    reply, _ = ask(endpoint)
    assert isinstance(reply, NoReply)
    assert reply.reason == "cut before any text"
    assert "max_tokens=256" in reply.detail
    always(endpoint, message("stop", content="<think>VERDICT: 0"))
    target = HTTPTarget(
        endpoint.url, {"message": "{message}"}, "choices[0].message.content", calls=CALLS
    )
    for reply in (ask(endpoint)[0], *target.respond(["hello"])):
        assert isinstance(reply, NoReply)
        assert reply.reason == "reasoning without an answer"


def test_reasoning_in_the_reply_of_an_application_is_kept_apart(endpoint: Endpoint) -> None:
    always(endpoint, message(content="<think>Hm.</think>Hello"))
    function = CallableTarget(lambda text: "<think>Hm.</think>Hello")
    for target in (http_target(endpoint), function):
        (reply,) = target.respond(["hello"])
        assert (reply, reply.reasoning) == ("Hello", "Hm.")


def test_arguments_of_the_chat_template_reach_the_endpoint(endpoint: Endpoint) -> None:
    ask(endpoint, extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert endpoint.requests[0][2]["chat_template_kwargs"] == {"enable_thinking": False}


PART = {"type": "text", "text": "Hello"}
CALL = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": [PART]}, "Hello"),
        ({"content": [PART, {"type": "text", "text": " you"}]}, "Hello you"),
        ({"content": [{"type": "thinking", "thinking": [PART]}, PART]}, "Hello"),
        ({"content": [{"type": "output_text", "text": "Hello", "annotations": []}]}, "Hello"),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": ["Hello", PART]}, "HelloHello"),
        ({"content": "Hello", "tool_calls": [CALL]}, "Hello"),
        ({"content": "Hello", "reasoning_content": "Hm."}, "Hello"),
        ({"content": "", "refusal": "I won't."}, "I won't."),
        ({"content": None, "refusal": "I won't."}, "I won't."),
        ({"content": ""}, ""),
    ],
)
def test_the_text_of_a_reply_is_found(
    endpoint: Endpoint, make: Any, fields: dict[str, Any], text: str
) -> None:
    always(endpoint, message(**fields))
    with Ledger().charging() as ledger:
        (reply,) = make(endpoint).respond(["hello"])
    assert (reply, reply.finish_reason) == (text, "stop")
    total = ledger.total()
    assert (total.requests, total.output_tokens, total.estimated_tokens) == (1, 100, 0)


THINKING = {"type": "thinking", "thinking": "Hm."}
ANTHROPIC_TOOL = {"type": "tool_use", "id": "1", "name": "search", "input": {}}
ITEM = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}


@pytest.mark.parametrize(
    ("path", "given", "text", "reasoning"),
    [
        ("content", {"content": [THINKING, PART], "stop_reason": "end_turn"}, "Hello", "Hm."),
        ("content[1].text", {"content": [THINKING, PART]}, "Hello", None),
        (
            "candidates[0].content.parts",
            {"candidates": [{"content": {"parts": [{"text": "Hm.", "thought": True}, PART]}}]},
            "Hello",
            "Hm.",
        ),
        ("message.content", {"message": {"content": "Hello", "thinking": "Hm."}}, "Hello", "Hm."),
        ("response", {"response": "Hello", "thinking": "Hm.", "done": True}, "Hello", "Hm."),
        (
            "output",
            {
                "output": [{"type": "reasoning", "summary": [{"text": "Hm."}]}, ITEM],
                "reasoning": {"effort": "low", "summary": "auto"},
            },
            "Hello",
            "Hm.",
        ),
        (
            "output.message.content",
            {
                "output": {
                    "message": {
                        "content": [
                            {"reasoningContent": {"reasoningText": {"text": "Hm."}}},
                            {"text": "Hello"},
                        ]
                    }
                },
                "stopReason": "end_turn",
            },
            "Hello",
            "Hm.",
        ),
    ],
)
def test_replies_of_other_interfaces_are_read(
    endpoint: Endpoint, path: str, given: dict[str, Any], text: str, reasoning: str | None
) -> None:
    always(endpoint, body(**given))
    (reply,) = HTTPTarget(endpoint.url, {"q": "{message}"}, path, calls=CALLS).respond(["hello"])
    assert (reply, reply.reasoning) == (text, reasoning)


GEMINI = "candidates[0].content.parts[0].text"


@pytest.mark.parametrize(
    ("path", "given", "reason"),
    [
        ("content[0].text", {"content": [], "stop_reason": "max_tokens"}, OUT_OF_TOKENS),
        ("content[0].text", {"content": [THINKING, PART], "stop_reason": "end_turn"}, NO_ANSWER),
        ("content[0].text", {"content": [ANTHROPIC_TOOL], "stop_reason": "tool_use"}, "tool call"),
        ("content", {"content": [ANTHROPIC_TOOL]}, "tool call"),
        (
            GEMINI,
            {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]},
            OUT_OF_TOKENS,
        ),
        (
            GEMINI,
            {"candidates": [{"content": {"parts": [{"text": "Hm.", "thought": True}]}}]},
            NO_ANSWER,
        ),
        (
            "candidates[0].content.parts",
            {"candidates": [{"content": {"parts": [{"functionCall": {"name": "search"}}]}}]},
            "tool call",
        ),
        (
            "message.content",
            {"message": {"content": "", "thinking": "Hm."}, "done_reason": "length"},
            OUT_OF_TOKENS,
        ),
        ("message", {"message": "", "reasoning": "Hm."}, NO_ANSWER),
        (
            "output[1].content[0].text",
            {
                "output": [{"type": "reasoning", "summary": []}],
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            OUT_OF_TOKENS,
        ),
    ],
)
def test_replies_without_text_of_other_interfaces_are_unscored(
    endpoint: Endpoint, path: str, given: dict[str, Any], reason: str
) -> None:
    always(endpoint, body(**given))
    template = {"q": "{message}", "options": {"num_predict": 9}}
    (found,) = HTTPTarget(endpoint.url, template, path, calls=CALLS).respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.reason.startswith(reason)
    assert len(endpoint.requests) == 1
    assert (reason != OUT_OF_TOKENS) or "body.options.num_predict=9 before any" in found.detail
    assert (reason != "tool call") or "search" in found.detail


@pytest.mark.parametrize(
    "given",
    [
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"candidates": [{"finishReason": "SAFETY"}]},
        {"candidates": [{"finishReason": "PROHIBITED_CONTENT", "content": {}}]},
    ],
)
def test_what_gemini_withholds_is_blocked(endpoint: Endpoint, given: dict[str, Any]) -> None:
    always(endpoint, body(**given))
    (reply,) = HTTPTarget(endpoint.url, {"q": "{message}"}, GEMINI, calls=CALLS).respond(["hello"])
    assert (reply, reply.finish_reason) == ("", "content_filter")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("given", ["hello", ["hello"], {"data": "hello"}, {"data": ["h"]}, {}, 7])
def test_a_response_of_another_form_is_no_reply(endpoint: Endpoint, given: Any) -> None:
    """An index into a text is none of a list."""
    always(endpoint, json.dumps(given).encode())
    target = HTTPTarget(endpoint.url, {"q": "{message}"}, "data[0].text", calls=CALLS)
    (found,) = target.respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.reason == "unparsable reply"


WITHOUT_TEXT = [
    (message("length", content=""), "cut before any text", "max_tokens=256"),
    (message("length", content=None, reasoning="Hm."), "cut before any text", "raise that limit"),
    (message("length", content=" \n"), "cut before any text", "max_tokens=256"),
    (message("MAX_TOKENS", content=""), "cut before any text", "max_tokens=256"),
    (message("tool_calls", content=None, tool_calls=[CALL]), "tool call without text", "search"),
    (message("tool_calls", content="", tool_calls=[CALL]), "tool call without text", "search"),
    (message("tool_calls", content="\n", tool_calls=[CALL]), "tool call without text", "search"),
    (message("tool_calls", content=None), "tool call without text", "a tool"),
    (message("stop", function_call={"name": "f"}), "tool call without text", "called f"),
    (message("stop", content=None, reasoning_content="Hm."), NO_ANSWER, "stop"),
    (message("stop", content="", reasoning="Hm."), NO_ANSWER, "stop"),
    (message("stop", content="\n\n", reasoning="Hm."), NO_ANSWER, "stop"),
    (message(None, content="", reasoning="Hm."), NO_ANSWER, "no finish reason"),
    (message("stop", content=[{"type": "redacted_thinking", "data": "x"}]), NO_ANSWER, "stop"),
]


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(("reply", "reason", "detail"), WITHOUT_TEXT)
def test_a_reply_without_text_is_unscored_charged_and_not_repeated(
    endpoint: Endpoint, make: Any, reply: bytes, reason: str, detail: str
) -> None:
    always(endpoint, reply)
    with Ledger().charging() as ledger:
        (found,) = make(endpoint).respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.reason == reason
    assert detail in found.detail
    total = ledger.total()
    assert (total.requests, total.input_tokens, total.output_tokens) == (1, 7, 100)


DEEP = json.loads("[" * 900 + '"x"' + "]" * 900)


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(
    "reply",
    [
        message(content=DEEP),
        message(content="Hello", reasoning_details=DEEP),
        message(content="Hello", tool_calls=DEEP),
        body(error=DEEP),
        body(choices=DEEP),
    ],
)
def test_a_reply_that_is_nested_too_deeply_is_unparsable(
    endpoint: Endpoint, make: Any, reply: bytes
) -> None:
    always(endpoint, reply)
    (found,) = make(endpoint).respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.reason == "unparsable reply"


def test_the_limit_that_cut_a_reply_is_named(endpoint: Endpoint) -> None:
    always(endpoint, message("length", content=""))
    for options, limit in (
        ({"max_tokens": 2000}, "max_tokens=2000"),
        ({"extra": {"max_completion_tokens": 9}}, "extra.max_completion_tokens=9"),
        ({"max_tokens": None}, "max_tokens is not set"),
        ({"api": "completions"}, "max_tokens=256"),
    ):
        always(endpoint, completion("", finish="length"))
        found, _ = ask(endpoint, **options)
        assert isinstance(found, NoReply)
        assert limit in found.detail
    with pytest.raises(EndpointError, match=r"max_tokens=256 before any text.*raise that limit"):
        openai_target(endpoint).respond(["hello"] * 30)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=message("content_filter", content=None)),
        Fault(body=message("SAFETY", content="")),
        Fault(body=message("content_filter: PROHIBITED_CONTENT", content=None)),
        Fault(body=message("refusal", content=None)),
        Fault(body=body(choices=None, error={"code": "content_filter", "message": "no"})),
        error(400, "filtered", "content_filter"),
        error(400, "filtered", "data_inspection_failed"),
        Fault(
            400,
            body=body(error={"code": 1, "innererror": {"code": "ResponsibleAIPolicyViolation"}}),
        ),
        Fault(
            403,
            body=body(
                error={"code": 403, "message": "flagged", "metadata": {"flagged_input": "x"}}
            ),
        ),
    ],
)
def test_a_reply_that_a_filter_withheld_is_blocked(endpoint: Endpoint, fault: Fault) -> None:
    always(endpoint, fault)
    reply, ledger = ask(endpoint)
    assert (reply, reply.finish_reason) == ("", "content_filter")
    assert ledger.total().requests == 1


PROVIDER_ERRORS = [
    ({"code": 429, "message": "provider is busy"}, 4, "rate limited"),
    ({"code": "429", "message": "busy"}, 4, "rate limited"),
    ({"code": "rate_limit_exceeded", "message": "busy"}, 4, "rate limited"),
    ({"status": "RESOURCE_EXHAUSTED", "message": "busy"}, 4, "rate limited"),
    ({"code": 502, "message": "Provider returned error"}, 4, "endpoint error 502"),
    ({"type": "overloaded_error", "message": "Overloaded"}, 4, "endpoint error 529"),
    ({"code": 400, "message": "no such field"}, 1, "refused by the endpoint"),
    ({"code": "context_length_exceeded", "message": "x"}, 1, "too long for the endpoint"),
    ({"message": "This model's maximum context length is 8"}, 1, "too long for the endpoint"),
    ({"message": "something broke"}, 4, "error in the reply"),
    ("something broke", 4, "error in the reply"),
    ({"code": 10**299, "message": "what"}, 4, "error in the reply"),
    ({"code": 10**4000, "message": "what"}, 4, "error in the reply"),
    ({"code": "9" * 5000, "message": "what"}, 4, "error in the reply"),
    ({"code": "x" * 5000, "message": "what"}, 4, "error in the reply"),
    ({"code": True, "message": "what"}, 4, "error in the reply"),
    ({"code": {}, "message": "what"}, 4, "error in the reply"),
]


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(("said", "tries", "reason"), PROVIDER_ERRORS)
def test_an_error_inside_a_200_has_the_outcome_of_its_code(
    endpoint: Endpoint, make: Any, said: Any, tries: int, reason: str
) -> None:
    text = said if isinstance(said, str) else said["message"]
    for reply in (
        body(error=said, choices=None),
        body(error=said),
        b"[" + body(error=said) + b"]",
        body(choices=[{"error": said, "finish_reason": "error"}]),
    ):
        endpoint.reset()
        always(endpoint, reply)
        (found,) = make(endpoint).respond(["hello"])
        assert isinstance(found, NoReply)
        assert (found.reason, len(endpoint.requests)) == (reason, tries)
        assert text in found.detail


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (error(429, "You exceeded your current quota", "insufficient_quota"), "quota spent"),
        (error(429, "Check your plan", "insufficient_quota", retry_after="1"), "quota spent"),
        (error(429, "You exceeded your current quota"), "quota spent"),
        (error(402, "Insufficient Balance"), "quota spent"),
        (error(403, "x", "billing_not_active"), "quota spent"),
        (Fault(body=b'{"error": "quota exceeded"}'), "quota spent"),
        (Fault(body=body(choices=None, error={"code": 402, "message": "x"})), "quota spent"),
        (error(400, "x", "invalid_api_key"), "key refused"),
        (Fault(400, body=body(error={"details": [{"reason": "API_KEY_INVALID"}]})), "key refused"),
        (error(400, "x", "model_not_found"), "not found"),
    ],
)
def test_a_failure_of_the_account_ends_the_run_at_the_first_try(
    endpoint: Endpoint, make: Any, fault: Fault, reason: str
) -> None:
    always(endpoint, fault)
    with pytest.raises(EndpointError, match=reason):
        make(endpoint).respond(["hello"])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(body=body(error={"type": "overloaded_error", "message": "Overloaded"})),
            "endpoint error 529: overloaded_error in a response of status 200: Overloaded",
        ),
        (
            Fault(body=body(choices=[{"error": {"code": 502, "message": "broke"}}])),
            "endpoint error 502: 502 in a response of status 200: broke",
        ),
        (
            Fault(body=body(error={"code": 1302, "message": "slow down"})),
            "error in the reply: 1302 in a response of status 200: slow down",
        ),
        (
            Fault(body=body(error={"code": 10**299})),
            f"error in the reply: 1{'0' * 39} in a response of status 200",
        ),
        (Fault(body=body(error=429)), "rate limited: 429 in a response of status 200"),
        (
            Fault(body=body(error={"reason": "tea"})),
            'error in the reply: an error in a response of status 200: {"reason": "tea"}',
        ),
        (error(529, "Overloaded"), "endpoint error 529: 529 Overloaded"),
        (error(500, "", "broken"), "endpoint error 500: 500 Internal Server Error broken"),
        (
            Fault(429, {"Retry-After": "inf"}, b""),
            "rate limited: 429 Too Many Requests (it asks to wait 31,536,000 s, more than "
            "max_wait=120)",
        ),
        (
            Fault(429, {"Retry-After": "9" * 5000}, b""),
            "rate limited: 429 Too Many Requests (it asks to wait 31,536,000 s, more than "
            "max_wait=120)",
        ),
    ],
)
def test_a_failure_is_described(endpoint: Endpoint, make: Any, fault: Fault, said: str) -> None:
    always(endpoint, fault)
    (found,) = make(endpoint).respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.error == said


def test_a_long_wait_that_google_asks_for_is_no_spent_quota(endpoint: Endpoint) -> None:
    details = [{"retryDelay": "9" * 400 + "s"}]
    said = {"code": 429, "message": "You exceeded your current quota", "details": details}
    always(endpoint, Fault(429, body=body(error=said)))
    (found,) = openai_target(endpoint).respond(["hello"])
    assert isinstance(found, NoReply)
    assert found.reason == "rate limited"
    assert "asks to wait 31,536,000 s" in found.detail
    assert len(endpoint.requests) == 1


def test_a_spent_quota_says_what_to_do(endpoint: Endpoint) -> None:
    always(endpoint, Fault(body=b'{"error": "quota exceeded"}'))
    with pytest.raises(EndpointError, match=r"quota exceeded.*add credit"):
        openai_target(endpoint).respond(["hello"])


def test_a_quota_per_minute_is_waited_for(endpoint: Endpoint) -> None:
    """Google words it as it words a spent quota, and says how long to wait."""
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}
    said = {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [delay],
    }
    endpoint.faults = [Fault(429, body=b"[" + body(error=said) + b"]")]
    began = time.monotonic()
    assert openai_target(endpoint).respond(["hello"]) == ["you said hello"]
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize("finish", ["error", "network_error", "insufficient_system_resource"])
def test_a_reply_that_broke_off_is_repeated_and_both_are_charged(
    endpoint: Endpoint, finish: str
) -> None:
    endpoint.faults = [Fault(body=message(finish, content="Hel"))]
    reply, ledger = ask(endpoint)
    assert reply == "you said hello"
    assert ledger.total().output_tokens == 100 + 3


@pytest.mark.parametrize(
    "discarded",
    [
        Fault(body=message("stop", content=None)),
        Fault(body=message("stop", content=7)),
        Fault(body=body(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 100})),
        Fault(
            body=body(
                choices=None,
                error={"code": 500},
                usage={"prompt_tokens": 7, "completion_tokens": 100},
            )
        ),
        Fault(500, body=body(error={}, usage={"input_tokens": 7, "output_tokens": 100})),
    ],
)
def test_each_discarded_reply_is_charged(endpoint: Endpoint, discarded: Fault) -> None:
    always(endpoint, discarded)
    prices = {"input": 1e6, "output": 2e6}
    found, ledger = ask(endpoint, prices=prices)
    total = ledger.total()
    assert isinstance(found, NoReply)
    assert (total.requests, total.input_tokens, total.output_tokens) == (4, 28, 400)
    assert (total.cost, total.estimated_tokens) == (28 + 800, 0)


def test_discarded_replies_spend_a_budget(endpoint: Endpoint) -> None:
    always(endpoint, message("stop", content=None))
    target = openai_target(endpoint, max_tokens=100)
    with Ledger(Budget(max_tokens=500)).charging() as ledger, pytest.raises(BudgetSpentError):
        target.respond(["hello"] * 100)
    assert 300 <= ledger.total().output_tokens <= 500


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3)),
        ({"prompt_tokens": 7.0, "completion_tokens": 3.0}, (7, 3)),
        ({"input_tokens": 7, "output_tokens": 3}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 110}, (7, 103)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 5}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 10**299}, (7, 4)),
        ({"prompt_tokens": 7, "completion_tokens": 10**301}, (7, 4)),
        ({"prompt_tokens": -(10**4000), "completion_tokens": 3}, (2, 3)),
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, (2, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10**30}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 1e300}, (7, 4)),
        ({"prompt_tokens": -7, "completion_tokens": True}, (2, 4)),
        ({"prompt_tokens": "7", "completion_tokens": 2.5}, (2, 4)),
        ([], (2, 4)),
        (None, (2, 4)),
    ],
)
def test_numbers_of_usage_are_checked(
    endpoint: Endpoint, usage: Any, tokens: tuple[int, int]
) -> None:
    endpoint.reply = lambda request: completion("you said hello", usage=usage)
    _, ledger = ask(endpoint, prices={"input": 1, "output": 1})
    total = ledger.total()
    assert (total.input_tokens, total.output_tokens) == tokens
    assert total.cost == pytest.approx(sum(tokens) / 1e6)
    again = json.loads(json.dumps(ledger.as_dict()))
    assert again["total"]["output_tokens"] == tokens[1]


@pytest.mark.parametrize("number", [-1, 1.5, True, "7", MAX_TOKENS_OF_A_CALL + 1, 10**300])
def test_usage_of_a_target_of_ones_own_is_checked(number: Any) -> None:
    with pytest.raises(ContractError, match="whole number of tokens"):
        Usage(number, 0)
    with pytest.raises(ContractError, match="whole number of tokens"):
        Usage(0, number)


def test_a_reply_of_a_function_that_is_too_long_is_charged() -> None:
    target = CallableTarget(lambda text: "x" * 800, calls={"max_reply_bytes": 100})
    with Ledger().charging() as ledger:
        target.respond(["four"])
    assert (ledger.total().input_tokens, ledger.total().output_tokens) == (1, 200)


@pytest.mark.parametrize(
    "header",
    [
        {"retry_after": "0"},
        {"retry_after_ms": "0"},
        {"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ],
)
@pytest.mark.parametrize("make", [openai_target, http_target])
def test_an_endpoint_that_asks_for_no_wait_is_waited_for_all_the_same(
    endpoint: Endpoint, make: Any, header: dict[str, str]
) -> None:
    """An outage of 0.4 s is survived, as it is without the header."""
    calls = {"first_wait": 0.1, "max_tries": 6, "give_up_after": 5, "start_concurrency": 8}
    target = make(endpoint, calls=calls) if make is openai_target else make(endpoint, **calls)
    began = time.monotonic()
    endpoint.fault = lambda number: error(429, **header) if time.monotonic() - began < 0.4 else None
    assert target.respond(["hello"] * 12) == ["you said hello"] * 12
    assert len(endpoint.requests) <= 12 * 5
