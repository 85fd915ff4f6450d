"""A pool of servers of one model: calls are spread, failed servers drained, budgets kept."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tests.endpoint import FAST, Endpoint, Fault, error, judging, said, serving

from astra_rl.core.text import Exchange, NoReply
from astra_rl.errors import BudgetSpentError, ConfigurationError, EndpointError
from astra_rl.moderators.llm_judge import LLMJudgeModerator
from astra_rl.targets.budget import Budget
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.ledger import Ledger
from astra_rl.targets.openai_endpoint import OpenAITarget
from astra_rl.targets.servers import Servers

CALLS = {**FAST, "max_tries": 6, "timeout": 20.0}
TEXTS = [f"question {number}" for number in range(40)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which servers are drained; it stands still."""
    now = [0.0]
    monkeypatch.setattr("astra_rl.targets.servers.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def pair() -> Iterator[tuple[Endpoint, Endpoint]]:
    with serving() as one, serving() as other:
        yield one, other


def pool(*servers: Endpoint, **calls: float) -> OpenAITarget:
    return OpenAITarget("m", base_url=[each.url for each in servers], calls={**CALLS, **calls})


def test_calls_are_spread_over_the_servers_and_equal_ones_have_the_same(
    pair: tuple[Endpoint, Endpoint],
) -> None:
    target = pool(*pair)
    texts = [f"question {number}" for number in range(160)]
    assert target.respond(texts) == [f"you said {text}" for text in texts]
    asked = [{said(body) for *_, body in each.requests} for each in pair]
    # Which server has a text depends on its port: this fails for one pair of ports in 10**10.
    assert all(len(each) >= 40 for each in asked)
    assert asked[0] | asked[1] == set(texts)
    target.respond(texts)
    assert [{said(body) for *_, body in each.requests} for each in pair] == asked


@pytest.mark.parametrize(
    "fault", [error(404), error(401), error(503, retry_after="30"), Fault(reset=True)]
)
def test_a_server_that_fails_is_drained_and_the_others_answer(
    fault: Fault, pair: tuple[Endpoint, Endpoint], clock: list[float]
) -> None:
    pair[0].fault = lambda number: fault
    ledger = Ledger()
    with ledger.charging():
        found = pool(*pair, concurrency=4).respond(TEXTS)
    assert found == [f"you said {text}" for text in TEXTS]
    assert len(pair[0].requests) <= 4  # those in flight when it failed
    assert len(pair[1].answered) == len(TEXTS)
    assert ledger.total().requests == sum(len(each.requests) for each in pair)


def test_a_server_that_does_not_answer_is_drained(pair: tuple[Endpoint, Endpoint]) -> None:
    pair[0].fault = lambda number: Fault(wait=30.0)
    # More tries than its two servers need, for a machine that stands still for seconds.
    found = pool(*pair, timeout=3.0, max_tries=8).respond(TEXTS[:6])
    assert found == [f"you said {text}" for text in TEXTS[:6]]


def test_a_call_goes_to_a_server_that_failed_it_least(pair: tuple[Endpoint, Endpoint]) -> None:
    """However short the drain is, so that no call uses up its tries at one server."""
    pair[0].fault = lambda number: error(401)
    found = pool(*pair, first_wait=1e-4, max_tries=2).respond(TEXTS)
    assert found == [f"you said {text}" for text in TEXTS]
    servers = Servers(["one", "other"], first_wait=0.0)
    first = servers.choose("x")
    assert servers.choose("x", {first: 1}) == 1 - first
    assert servers.choose("x", {first: 1, 1 - first: 1}) == first
    assert servers.choose("x", {first: 1, 1 - first: 2}) == first


def test_a_server_that_is_back_is_used_again(pair: tuple[Endpoint, Endpoint]) -> None:
    target = pool(*pair)
    pair[0].faults = [error(500)]
    target.respond(TEXTS)
    before = len(pair[0].answered)
    target.respond(TEXTS)
    assert len(pair[0].answered) > before


def test_when_all_servers_fail_the_error_is_theirs(pair: tuple[Endpoint, Endpoint]) -> None:
    for each in pair:
        each.fault = lambda number: error(404)
    with pytest.raises(EndpointError, match="not found"):
        pool(*pair).respond(TEXTS)


def test_a_refused_call_is_no_failure_of_its_server(pair: tuple[Endpoint, Endpoint]) -> None:
    for each in pair:
        each.fault = lambda number: error(400)
    found = pool(*pair, give_up_after=100).respond(TEXTS[:4])
    assert all(isinstance(each, NoReply) for each in found)
    assert sum(len(each.requests) for each in pair) == 4


def test_the_budget_counts_the_requests_of_all_servers(pair: tuple[Endpoint, Endpoint]) -> None:
    pair[0].fault = lambda number: error(500)
    with Ledger(Budget(max_requests=15)).charging(), pytest.raises(BudgetSpentError):
        pool(*pair).respond(TEXTS)
    assert sum(len(each.requests) for each in pair) <= 15


def test_a_judge_is_served_by_a_pool(pair: tuple[Endpoint, Endpoint]) -> None:
    for each in pair:
        each.reply = judging(lambda body: "fine")
    pair[1].faults = [error(503)]
    judge = LLMJudgeModerator(pool(*pair))
    scores = judge.moderate([Exchange("state", f"attack {n}", "reply") for n in range(80)])
    assert scores == [0.3] * 80
    assert all(each.answered for each in pair)


def test_servers_that_are_none_or_there_twice_are_refused() -> None:
    one = "http://127.0.0.1:9/v1"
    for urls in ([], [one] * 2, [one, f"{one}/"]):
        with pytest.raises(ConfigurationError, match="at least one, and each once"):
            OpenAITarget("m", base_url=urls)
    with pytest.raises(ConfigurationError, match="is no URL"):
        OpenAITarget("m", base_url=[one, None])  # type: ignore[list-item]


def test_a_server_that_is_down_for_days_stays_drained(clock: list[float]) -> None:
    """Its failures are more than the exponents of a float."""
    servers = Servers(["one", "other"], first_wait=1.0)
    for _ in range(1100):
        clock[0] += 61.0
        assert servers.failed(0, CallError("down", retryable=True)).retryable
    assert {servers.choose(text) for text in TEXTS} == {1}


def test_keys_in_the_urls_of_servers_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers(["http://a/v1?key=planted-1234567890", "b"], first_wait=60.0)
    servers.failed(0, CallError("down", retryable=True))
    assert "http://a/v1" in caplog.text
    assert "planted-1234567890" not in caplog.text


def test_one_server_keeps_its_own_errors_whatever_the_wait() -> None:
    servers = Servers(["one"], first_wait=0.0)
    failure = CallError("not found", permanent=True)
    assert servers.failed(servers.choose("x"), failure) is failure
    assert servers.choose("y") == 0


def test_a_permanent_failure_is_one_of_all_servers() -> None:
    servers = Servers(["one", "other"], first_wait=60.0)
    assert servers.failed(0, CallError("overloaded", retryable=True)).retryable
    missing = servers.failed(1, CallError("not found", permanent=True))
    assert (missing.retryable, missing.permanent) == (True, False)  # the first will be back
    assert servers.failed(0, CallError("not found", permanent=True)).permanent
