"""What is sent, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoint import Endpoint, Fault, error, judging, messages

from astra_rl.core.moderator import reason_of
from astra_rl.core.seeding import row_seeds
from astra_rl.core.text import Conversation, NoReply, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.moderators import LLMJudgeModerator
from astra_rl.moderators.identity import identity_of
from astra_rl.targets import (
    CallableTarget,
    HTTPTarget,
    Ledger,
    OpenAITarget,
    Prices,
    ReplyCache,
    Target,
)
from astra_rl.targets.http_api import fill_body, read_path
from astra_rl.targets.registry import make_target
from astra_rl.targets.remote import Chat

KEY = "sk-sentinel-0123456789abcdef"


def shout(text: str) -> str:
    """An application of one line."""
    return text.upper()


async def remember(messages: list[dict[str, str]]) -> str:
    return f"{len(messages)} messages, the last {messages[-1]['content']}"


class Parrot:
    """An application that is an object."""

    def __call__(self, text: str) -> str:
        return text


class Mine(Target):
    """A target in five lines."""

    name = "mine"

    def respond(self, conversations: Any) -> list[str]:
        return [f"{len(each)} letters" for each in conversations]


def test_a_request_holds_what_was_asked_for_and_nothing_else(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    target = OpenAITarget(
        "m",
        base_url=endpoint.url,
        api_key_env="MY_KEY",
        max_tokens=5,
        temperature=0,
        stop=["\n"],
        send_seed=True,
        extra={"min_p": 0.1},
    )
    with row_seeds([7]):
        target.respond(["hello"])
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["accept-encoding"] == "identity"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["\n"],
        "min_p": 0.1,
        "seed": 7,
    }


def test_a_base_model_continues_one_running_text(endpoint: Endpoint) -> None:
    target = OpenAITarget("m", base_url=endpoint.url, api="completions", max_tokens=None)
    context = Conversation("Once", system="A tale.")
    assert target.respond([context + " upon"]) == ["you said A tale.\n\nOnce\n upon"]
    assert endpoint.requests[0][0] == "/v1/completions"


def test_a_key_is_in_nothing_that_is_kept_or_said(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    openai = OpenAITarget("m", base_url=endpoint.url, api_key_env="MY_KEY")
    http = HTTPTarget(
        endpoint.url, {"q": "{message}"}, "a", headers={"Authorization": "Token ${MY_KEY}"}
    )
    endpoint.fault = lambda number: error(400, f"bad key {KEY}")
    for target in (openai, http):
        cache = ReplyCache(tmp_path / "replies.sqlite")
        with cache.answering():
            (reply,) = target.respond(["hello"])
        assert KEY in json.dumps(endpoint.requests[-1])
        assert isinstance(reply, NoReply)
        known = [repr(target), repr(reply), reply.error, target.identity, str(target.settings)]
        known += [str(vars(target))]
        assert not any(KEY in each for each in known)
        assert KEY.encode() not in (tmp_path / "replies.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenAITarget("m"), "environment variable OPENAI_API_KEY is not set"),
        (lambda: OpenAITarget(""), "name of a model"),
        (lambda: OpenAITarget("m", base_url="ftp://x"), "http:// or https://"),
        (lambda: OpenAITarget("m", base_url="http://me:pw@x/v1"), "name or password"),
        (lambda: OpenAITarget("m", base_url="http://x", api="c"), "'chat' or 'completions'"),
        (lambda: OpenAITarget("m", base_url="http://x", temperature=-1), "temperature=-1"),
        (
            lambda: OpenAITarget("m", base_url="http://x", calls={"tries": 3}),
            "calls.tries: unknown",
        ),
        (lambda: OpenAITarget("m", base_url="http://x", calls={"timeout": 0}), "timeout=0"),
        (lambda: OpenAITarget("m", base_url="http://x", prices={"in": 1}), "prices.in: unknown"),
        (
            lambda: OpenAITarget("m", base_url="http://x", prices={"input": -1}),
            "it must be at least 0",
        ),
        (lambda: HTTPTarget("http://x", {"q": "hello"}, "a"), "conversation would not be sent"),
        (lambda: HTTPTarget("http://x", {"q": "{message}"}, "a..b"), "write the path of the text"),
        (lambda: HTTPTarget("http://x", {"q": "{message}"}, "a", method="GET"), "choose POST"),
        (
            lambda: HTTPTarget("http://x", {"q": "{message}"}, "a", headers={"X-Api-Key": "abc"}),
            "Name an environment variable",
        ),
        (
            lambda: HTTPTarget("http://x", {"q": "{message}"}, "a", headers={"K": "${NO_SUCH}"}),
            "environment variable NO_SUCH is not set",
        ),
        (lambda: CallableTarget(3), "must be callable"),  # type: ignore[arg-type]
        (lambda: CallableTarget(lambda: ""), "takes no argument"),
        (lambda: make_target("opnai", {}), "Did you mean 'openai'"),
        (lambda: make_target("tests.targets.test_targets:KEY", {}), "name a class or function"),
        (lambda: make_target("tests.targets.test_targets:nothing", {}), "cannot import"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    make: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_a_body_is_built_as_data(endpoint: Endpoint) -> None:
    hostile = '"}, "admin": true, "x": "{system} {messages}'
    target = HTTPTarget(
        endpoint.url,
        {"input": {"text": "Say: {message}", "from": "{system}"}, "all": ["{messages}"], "n": 3},
        "$.choices[0].message.content",
        headers={"X-Version": "2"},
    )
    target.respond([Conversation("", system="S") + hostile])
    _, headers, body = endpoint.requests[0]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": hostile}]
    text = {"text": f"Say: {hostile}", "from": "S"}
    assert body == {"input": text, "all": [chat], "n": 3}
    assert headers["x-version"] == "2"


@given(st.text())
def test_no_text_changes_the_form_of_a_body(text: str) -> None:
    chat = Chat(messages(text), seed=5)
    filled = fill_body({"a": ["{message}", "<{message}>"], "s": "{seed}", "k": None}, chat)
    assert filled == {"a": [text, f"<{text}>"], "s": 5, "k": None}


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("a", ["a"]),
        ("$.a.b", ["a", "b"]),
        ("a[0][1].b-c d", ["a", 0, 1, "b-c d"]),
        ("[2]", [2]),
    ],
)
def test_a_path_is_read(path: str, steps: list[Any]) -> None:
    assert read_path(path) == steps


@pytest.mark.parametrize("path", ["", "$", "a[", "a[x]", "a]", ".a.", "a..b", "a[-1]"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="write the path of the text"):
        read_path(path)


def test_a_status_can_stand_for_a_filter(endpoint: Endpoint) -> None:
    endpoint.faults = [Fault(451)]
    target = HTTPTarget(endpoint.url, {"q": "{message}"}, "a", blocked_statuses=[451])
    assert target.respond(["hello"])[0].finish_reason == "content_filter"


@pytest.mark.parametrize(
    ("function", "reply"),
    [
        (shout, "TWO"),
        (lambda text: text[::-1], "owt"),
        (lambda messages: f"{len(messages)}", "3"),
        (remember, "3 messages, the last two"),
        (Parrot(), "two"),
        (str.title, "Two"),
    ],
)
def test_any_function_is_a_target(function: Any, reply: str) -> None:
    context = Conversation("") + "one" + "answer" + "two"
    assert CallableTarget(function).respond([context]) == [reply]


def test_what_a_function_raises_costs_its_own_row_only() -> None:
    def moody(text: str) -> Any:
        if text == "raise":
            raise ValueError("not today")
        return None if text == "none" else "x" * 2_000_000 if text == "long" else text

    replies = CallableTarget(moody).respond(["a", "raise", "none", "long", "b"])
    assert [str(reply) for reply in replies] == ["a", "", "", "", "b"]
    errors = [reply.error for reply in replies if isinstance(reply, NoReply)]
    assert errors[0].endswith("moody: not today")
    assert errors[1].endswith("returned NoneType")
    assert errors[2].startswith("reply too long")


def test_a_connection_that_a_function_lost_is_tried_again() -> None:
    tries = []

    def flaky(text: str) -> str:
        tries.append(text)
        if len(tries) < 3:
            raise ConnectionResetError("gone")
        return text

    assert CallableTarget(flaky, calls={"first_wait": 0.001}).respond(["a"]) == ["a"]


def test_a_function_that_hangs_is_given_up() -> None:
    released = threading.Event()

    def hang(text: str) -> str:
        released.wait(60 if text == "hang" else 0)
        return text

    target = CallableTarget(hang, calls={"timeout": 5, "max_tries": 1})
    hung, answered = target.respond(["hang", "hello"])
    released.set()
    assert isinstance(hung, NoReply)
    assert (hung.reason, answered) == ("timed out", "hello")


def test_a_plain_function_is_called_once_at_a_time_unless_asked_otherwise() -> None:
    at_once, most = 0, 0

    def count(text: str) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1
        return text

    CallableTarget(count).respond(["a"] * 8)
    assert most == 1
    together = threading.Barrier(4, timeout=60)

    def meet(text: str) -> str:
        together.wait()  # raises if the others do not come
        return text

    calls = {"concurrency": 4, "start_concurrency": 4}
    assert CallableTarget(meet, calls=calls).respond(["a"] * 8) == ["a"] * 8


def test_a_target_of_ones_own_is_made_by_name() -> None:
    made = make_target("tests.targets.test_targets:Mine", {})
    assert made.respond(["four"]) == ["4 letters"]
    assert make_target("tests.targets.test_targets:shout", {"name": "app"}).name == "app"
    assert make_target("tests.targets.test_targets:Parrot", {}).respond(["a"]) == ["a"]


def test_what_was_replied_is_not_asked_again_and_what_failed_is(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    path = tmp_path / "replies.sqlite"
    target = OpenAITarget("m", base_url=endpoint.url, calls={"max_tries": 1})
    endpoint.fault = lambda number: error(400) if number == 1 else None
    endpoint.reply = lambda body: f"reply {len(endpoint.requests)}"
    with ReplyCache(path).answering(), row_seeds([1, 2]):
        first = target.respond(["a"] * 2)
    assert sum(isinstance(each, NoReply) for each in first) == 1
    with ReplyCache(path).answering(), row_seeds([1, 2]), Ledger().charging() as ledger:
        second = target.respond(["a"] * 2)
    assert len(endpoint.requests) == 3
    assert ledger.total().cached == 1
    assert {str(each) for each in first} - {""} < {str(each) for each in second}


@pytest.mark.parametrize("change", ["seed", "text", "system", "model", "request", "endpoint"])
def test_a_reply_is_kept_for_what_it_depends_on(
    endpoint: Endpoint, tmp_path: Path, change: str
) -> None:
    def ask(**changes: Any) -> None:
        target = OpenAITarget(
            changes.get("model", "m"),
            base_url=changes.get("endpoint", endpoint.url),
            max_tokens=changes.get("request", 5),
        )
        context = Conversation("", system=changes.get("system", "s"))
        with row_seeds([changes.get("seed", 1)]):
            target.respond([context + changes.get("text", "t")])

    other = {"seed": 2, "request": 6, "endpoint": endpoint.url + "/"}.get(change, "other")
    with ReplyCache(tmp_path / "replies.sqlite").answering():
        ask()
        ask()
        assert len(endpoint.requests) == 1
        ask(**{change: other})
        assert len(endpoint.requests) == 2


def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_text("I am a letter, not a database. " * 100)
    with pytest.raises(ConfigurationError, match="Remove it to start an empty cache"):
        ReplyCache(path)


def test_a_file_of_replies_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    for number in range(200):
        cache.put(f"{number}", Utterance("a reply " * 20))
    cache.close()
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    path.write_bytes(data)
    cache = ReplyCache(path)
    for use in (lambda: cache.get("7"), lambda: cache.put("new", "text")):
        with pytest.raises(
            ConfigurationError, match=r"replies.sqlite.*Remove it to start an empty"
        ):
            use()
    cache.close()


@pytest.mark.parametrize("kept", ["no json", "[]", '{"text": 3, "finish_reason": null}', "{}"])
def test_a_damaged_reply_is_asked_for_again(tmp_path: Path, kept: str) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put("key", Utterance("hello\ud800", finish_reason="stop"))
    reply = cache.get("key")
    assert reply is not None
    assert (reply, reply.finish_reason) == ("hello\ufffd", "stop")
    cache._database.execute("UPDATE replies SET reply = ?", (kept,))
    assert cache.get("key") is None
    cache.close()


def test_the_same_clients_serve_judges(endpoint: Endpoint) -> None:
    endpoint.reply = judging(lambda body: "?", verdict=7)
    endpoint.fault = lambda number: error(400) if number == 2 else None
    judge = LLMJudgeModerator(
        OpenAITarget("m", base_url=endpoint.url, calls={"concurrency": 1}, prices=Prices(1, 1))
    )
    with Ledger().charging() as ledger:
        scores = judge.moderate(["a", "b", "c"])
    assert scores[:2] == [0.7, 0.7]
    assert reason_of(scores[2]) == "refused by the endpoint"
    assert ledger.total().cost == pytest.approx(2 * 10 / 1e6)


def test_a_judge_is_told_from_one_that_is_asked_otherwise(endpoint: Endpoint) -> None:
    def identity(**options: Any) -> Any:
        return identity_of(LLMJudgeModerator(OpenAITarget("m", base_url=endpoint.url, **options)))

    assert identity() == identity(calls={"concurrency": 3})
    assert identity() != identity(temperature=0.5)
    assert "m at 127.0.0.1" in str(identity().weights)


def test_tokens_that_nobody_counted_are_estimated(endpoint: Endpoint) -> None:
    target = HTTPTarget(
        endpoint.url,
        {"q": "{message}"},
        "choices[0].text",
        prices={"input": 1e6, "output": 2e6},
    )
    endpoint.faults = [Fault(body=json.dumps({"choices": [{"text": "b" * 8}]}).encode())]
    with Ledger().charging() as ledger:
        target.respond(["a" * 40])
    total = ledger.total()
    assert (total.input_tokens, total.output_tokens, total.estimated_tokens) == (10, 2, 12)
    assert total.cost == 14
