"""Everything that an endpoint does wrong, through the official client and through plain HTTP."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.cases import cases
from tests.endpoint import Endpoint, Fault, completion, error, said

from astra_rl.core.text import Conversation, NoReply
from astra_rl.errors import BudgetSpentError, EndpointError
from astra_rl.targets import Budget, HTTPTarget, Ledger, OpenAITarget, RemoteTarget

Make = Callable[..., RemoteTarget]
NO_HTTP = (
    "broken HTTP reply: what answers at this address does not speak HTTP/1.1, or closed the "
    "connection before the end of its reply"
)
CALLS = {"first_wait": 0.001, "max_tries": 4, "timeout": 60}


def openai_target(endpoint: Endpoint, **calls: Any) -> RemoteTarget:
    return OpenAITarget("m", base_url=endpoint.url, calls=CALLS | calls)


def http_target(endpoint: Endpoint, **calls: Any) -> RemoteTarget:
    return HTTPTarget(
        f"{endpoint.url}/ask",
        {"message": "{message}"},
        "choices[0].message.content",
        calls=CALLS | calls,
    )


@pytest.fixture(params=[openai_target, http_target], ids=["openai", "http"])
def make(request: pytest.FixtureRequest) -> Make:
    chosen: Make = request.param
    return chosen


def test_replies_come_in_order(endpoint: Endpoint, make: Make) -> None:
    texts = [f"attack {number}" for number in range(20)]
    assert make(endpoint).respond(texts) == [f"you said {text}" for text in texts]
    assert make(endpoint).respond([]) == []


@pytest.mark.parametrize(
    "fault",
    [
        error(429),
        error(429, retry_after="0"),
        error(500),
        error(503),
        Fault(body=b""),
        Fault(body=completion("lost")[:40]),
        Fault(body=completion("lost"), cut=30),
        Fault(body=completion("lost"), cut=30, reset=True),
        Fault(body=completion("lost"), cut=0, reset=True),
        Fault(body=b'{"choices": 3}'),
        Fault(body=completion({"a": 1})),
        Fault(body=completion(7)),
        Fault(body=b"[]"),
        Fault(body=b"null"),
        Fault(body=b'"text"'),
        Fault(body=b'{"choices": []}'),
        Fault(body=b"\xff\xfe"),
        Fault(body=b"[" * 100_000),
    ],
    ids=lambda fault: f"{fault.status}-{fault.body[:12]!r}-{fault.cut}-{fault.reset}",
)
def test_what_may_pass_is_tried_again(endpoint: Endpoint, make: Make, fault: Fault) -> None:
    endpoint.faults = [fault]
    assert make(endpoint).respond(["hello"]) == ["you said hello"]
    assert len(endpoint.requests) == 2


def test_three_failures_of_a_server_cost_three_tries(endpoint: Endpoint, make: Make) -> None:
    endpoint.faults = [error(500)] * 3
    with Ledger().charging() as ledger:
        assert make(endpoint).respond(["hello"]) == ["you said hello"]
    assert (ledger.total().requests, ledger.total().failed_tries) == (4, 3)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (error(400, "not like this"), "refused by the endpoint"),
        (error(403), "forbidden"),
        (error(413), "too long for the endpoint"),
        (Fault(307, {"Location": "/elsewhere"}), "endpoint error 307"),
        (Fault(body=completion("x" * 10_000_000)), "reply too long"),
        (Fault(body=completion("x" * 10_000_000), chunked=True), "reply too long"),
        (Fault(status=500, body=b"x" * 10_000_000, chunked=True), "reply too long"),
        (Fault(body=b"x", headers={"Content-Encoding": "gzip"}), "unparsable reply"),
        (error(429, retry_after="3600"), "rate limited"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.status,
)
def test_what_will_not_pass_is_the_outcome_of_its_row_at_once(
    endpoint: Endpoint, make: Make, fault: Fault, reason: str
) -> None:
    endpoint.fault = lambda number: fault if "bad" in said(endpoint.requests[number][2]) else None
    good, bad, also_good = make(endpoint).respond(["one", "bad", "two"])
    assert (good, also_good) == ("you said one", "you said two")
    assert isinstance(bad, NoReply)
    assert (str(bad), bad.reason, bad.finish_reason) == ("", reason, "error")
    assert len(endpoint.requests) == 3


def test_a_failure_that_stays_says_what_it_was(endpoint: Endpoint, make: Make) -> None:
    for fault, said_of_it in (
        (error(500, "full"), "endpoint error 500: 500 Internal Server Error full"),
        (Fault(body=b""), "empty reply"),
        (Fault(body=b"{"), "unparsable reply: not JSON"),
        (Fault(headers={"no header": "x"}), NO_HTTP),
        (Fault(body=completion("lost"), cut=30), NO_HTTP),
    ):
        endpoint.reset()
        endpoint.fault = lambda number, fault=fault: fault
        (reply,) = make(endpoint).respond(["hello"])
        assert isinstance(reply, NoReply)
        assert reply.error == said_of_it
        assert len(endpoint.requests) == 4


@pytest.mark.parametrize("fault", [Fault(wait=30), Fault(body=completion("slow"), drip=0.2)])
def test_a_reply_that_takes_too_long_is_given_up(
    endpoint: Endpoint, make: Make, fault: Fault
) -> None:
    """Each byte of a slow drip comes in time, and the reply as a whole does not.

    The tries are more than the two that it needs, for a machine that stands still for a second.
    """
    endpoint.faults = [fault]
    assert make(endpoint, timeout=1, max_tries=12).respond(["hello"]) == ["you said hello"]


def test_a_key_that_is_refused_ends_it_at_once(endpoint: Endpoint, make: Make) -> None:
    endpoint.fault = lambda number: error(401, "no such key")
    with pytest.raises(EndpointError, match=r"key refused.*no such key.*check the URL"):
        make(endpoint, start_concurrency=1).respond(["hello"] * 50)
    assert len(endpoint.requests) == 1


def test_the_same_failure_again_and_again_ends_it(endpoint: Endpoint, make: Make) -> None:
    endpoint.fault = lambda number: error(500)
    target = make(endpoint, give_up_after=5, max_tries=2, start_concurrency=2)
    with pytest.raises(EndpointError, match="5 consecutive calls failed: endpoint error 500"):
        target.respond(["hello"] * 100)
    assert len(endpoint.requests) < 30


def test_failures_between_successes_do_not_end_it(endpoint: Endpoint, make: Make) -> None:
    endpoint.fault = lambda number: error(400) if number % 2 else None
    target = make(endpoint, give_up_after=3, concurrency=1)
    replies = target.respond(["hello"] * 20)
    assert sum(isinstance(reply, NoReply) for reply in replies) == 10


def test_failures_of_different_kinds_do_not_end_it(endpoint: Endpoint, make: Make) -> None:
    endpoint.fault = lambda number: error(400 if number % 2 else 413)
    replies = make(endpoint, give_up_after=3, concurrency=1).respond(["hello"] * 20)
    assert all(isinstance(reply, NoReply) for reply in replies)


@pytest.mark.parametrize("header", [{"retry_after": "1"}, {"retry_after_ms": "1000"}])
def test_nothing_is_sent_while_an_endpoint_asks_to_wait(
    endpoint: Endpoint, make: Make, header: dict[str, str]
) -> None:
    times = []

    def note(number: int) -> None:
        times.append(time.monotonic())

    endpoint.fault = note
    endpoint.faults = [error(429, **header)]
    began = time.monotonic()
    assert make(endpoint, concurrency=1).respond(["a", "b"]) == ["you said a", "you said b"]
    assert min(times) - began >= 1


def test_a_budget_is_never_exceeded_and_what_was_answered_is_kept(
    endpoint: Endpoint, make: Make
) -> None:
    endpoint.latency = 0.01
    with Ledger(Budget(max_requests=30)).charging(), pytest.raises(BudgetSpentError, match="=30"):
        make(endpoint).respond([f"hello {number}" for number in range(100)])
    assert len(endpoint.requests) == len(endpoint.answered) == 30


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_the_middle_ends_all_calls(endpoint: Endpoint, make: Make) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(number: int) -> None:
        if number == 20:
            signal.pthread_kill(main, signal.SIGINT)

    endpoint.latency, endpoint.fault = 0.2, interrupt
    target = make(endpoint)
    with pytest.raises(KeyboardInterrupt):
        target.respond([f"hello {number}" for number in range(1000)])
    sent = -1
    while sent != len(endpoint.requests):  # those sent before the interrupt may still arrive
        sent = len(endpoint.requests)
        time.sleep(0.5)
    assert sent < 1000
    assert target.respond(["again"]) == ["you said again"]


@pytest.mark.slow
@pytest.mark.parametrize("count", cases([200, 1000], by_default=[200]))
def test_many_attempts_with_faults_are_each_accounted_for_once(
    endpoint: Endpoint, make: Make, count: int
) -> None:
    """The first try of one in twenty fails, in turn in each of the ways there are."""
    ways = [
        error(429),
        error(500),
        Fault(body=b""),
        Fault(body=completion("lost"), cut=20, reset=True),
        error(400),
    ]
    texts = [f"attack {number:04d}" for number in range(count)]
    first = dict(zip(texts[7::20], itertools.cycle(ways)))
    endpoint.fault = lambda number: first.pop(said(endpoint.requests[number][2]), None)
    endpoint.latency = 0.005
    with Ledger().charging() as ledger:
        replies = make(endpoint, timeout=60).respond(texts)
    answered = Counter(said(body) for body in endpoint.answered)
    assert max(answered.values()) == 1
    for text, reply in zip(texts, replies, strict=True):
        if isinstance(reply, NoReply):
            assert reply.reason == "refused by the endpoint"
            assert answered[text] == 0
        else:
            assert reply == f"you said {text}"
            assert answered[text] == 1
    lost = sum(isinstance(reply, NoReply) for reply in replies)
    assert lost == count // 100
    total = ledger.total()
    assert total.failed_tries == count // 20
    assert total.requests == len(endpoint.requests) == count + total.failed_tries - lost


def test_what_a_filter_withheld_is_no_failure(endpoint: Endpoint) -> None:
    endpoint.faults = [
        error(400, "filtered", "content_filter"),
        Fault(body=completion(None, finish="content_filter")),
        Fault(body=completion("the first wor", finish="content_filter")),
    ]
    target = openai_target(endpoint, concurrency=1)
    replies = target.respond(["a", "b", "c"])
    assert replies == ["", "", "the first wor"]
    assert [reply.finish_reason for reply in replies] == ["content_filter"] * 3


def test_a_refusal_in_a_field_of_its_own_is_the_reply(endpoint: Endpoint) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I won't."}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    endpoint.faults = [Fault(body=json.dumps(body).encode())]
    assert openai_target(endpoint).respond(["hello"]) == ["I won't."]


def test_the_conversation_is_sent_as_messages_and_nothing_of_the_attacker(
    endpoint: Endpoint,
) -> None:
    context = Conversation("Hi.", system="Be kind.", brief="Attack!", facts={"secret": "falcon"})
    openai_target(endpoint).respond([context + "first \ud800" + "answer" + "second"])
    (_, headers, body) = endpoint.requests[0]
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi.\nfirst \ufffd"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
    ]
    assert "Attack!" not in json.dumps(body)
    assert "falcon" not in json.dumps(body)
    assert headers["authorization"] == "Bearer none"


def asked_until_spent(endpoint: Endpoint, budget: Budget, **options: Any) -> Ledger:
    """Ask more than a budget allows, many at once, and return what was spent."""
    endpoint.latency = 0.02
    options = {"max_tokens": 8, "prices": {"input": 1e6, "output": 2e6}, "calls": CALLS, **options}
    target = OpenAITarget("m", base_url=endpoint.url, **options)
    ledger = Ledger(budget)
    with ledger.charging(), pytest.raises(BudgetSpentError):
        target.respond([f"hello {number}" for number in range(200)])
    return ledger


WORST = 64 + 16 + len("hello 100") + 8
"""Most tokens that a call of `asked_until_spent` is taken to need; in truth it takes 7 and 3."""


@pytest.mark.slow
@pytest.mark.parametrize("most", [WORST, 500, 1000])
def test_calls_under_way_do_not_lead_beyond_a_limit_of_tokens(
    endpoint: Endpoint, most: int
) -> None:
    total = asked_until_spent(endpoint, Budget(max_tokens=most)).total()
    spent = total.input_tokens + total.output_tokens
    assert most - WORST < spent <= most
    assert endpoint.most_at_once > 1 or most == WORST


def test_calls_under_way_do_not_lead_beyond_a_limit_of_cost(endpoint: Endpoint) -> None:
    total = asked_until_spent(endpoint, Budget(max_cost=600)).total()
    assert 600 - (WORST + 8) < total.cost <= 600


def test_a_call_that_could_exceed_a_limit_is_not_sent_and_the_error_says_so(
    endpoint: Endpoint,
) -> None:
    target = OpenAITarget("m", base_url=endpoint.url, max_tokens=1000)
    message = r"max_tokens=900 is too small for the next call, which may take 1085 \(0 is spent\)"
    ledger = Ledger(Budget(max_tokens=900))
    with ledger.charging():
        with pytest.raises(BudgetSpentError, match=message):
            target.respond(["hello"])
        with pytest.raises(BudgetSpentError):  # nothing else is sent either
            ledger.check()
    assert endpoint.requests == []


def test_replies_without_a_limit_are_reckoned_by_the_longest_so_far(endpoint: Endpoint) -> None:
    """Each writes 1,000 tokens where 256 were assumed: the first may exceed a limit, others not."""
    usage = {"prompt_tokens": 7, "completion_tokens": 1000}
    endpoint.reply = lambda body: completion("long", usage=usage)
    total = asked_until_spent(endpoint, Budget(max_tokens=70_000), max_tokens=None).total()
    spent = total.input_tokens + total.output_tokens
    assert 70_000 - (WORST + 1000) < spent <= 70_000
    assert (
        asked_until_spent(endpoint, Budget(max_tokens=260), max_tokens=None).total().requests == 0
    )


def test_an_endpoint_that_reads_more_than_it_is_told_is_found_out(endpoint: Endpoint) -> None:
    """A template of 1,000 tokens: only calls that were sent before the first reply may exceed."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 3}
    endpoint.reply = lambda body: completion("hi", usage=usage)
    most = 50_000
    total = asked_until_spent(endpoint, Budget(max_tokens=most)).total()
    spent = total.input_tokens + total.output_tokens
    assert most - 1100 < spent <= most
    # The bound: what each call under way took beyond what was set aside for it.
    calls = {**CALLS, "concurrency": 8, "start_concurrency": 8}
    total = asked_until_spent(endpoint, Budget(max_tokens=1500), calls=calls).total()
    assert total.input_tokens + total.output_tokens <= 1500 + 8 * 1003


@pytest.mark.slow
def test_what_was_set_aside_for_calls_that_ended_badly_is_free_again(endpoint: Endpoint) -> None:
    """A refused key ends the calls under way without waiting for their replies."""

    def answer(number: int) -> Fault | None:
        # By text: requests of calls that were ended may arrive when the next ones are sent.
        said_last = said(endpoint.requests[number][2])
        return {"refused": error(401), "slow": Fault(wait=300)}.get(said_last)

    endpoint.fault = answer
    target = OpenAITarget("m", base_url=endpoint.url, max_tokens=8, calls={**CALLS, "timeout": 600})
    began = time.monotonic()
    with Ledger(Budget(max_tokens=40 * WORST)).charging():
        for _ in range(5):
            with pytest.raises(EndpointError):
                target.respond(["refused", *["slow"] * 18])
        assert target.respond(["hello"] * 19) == ["you said hello"] * 19
    assert time.monotonic() - began < 300  # not one slow reply was waited for
