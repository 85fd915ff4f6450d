"""The official client against a real server on this machine."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from astra_rl.core.moderator import reason_of
from astra_rl.core.text import Exchange
from astra_rl.errors import BudgetSpentError, ConfigurationError, EndpointError
from astra_rl.moderators import OpenAIModerationModerator
from astra_rl.moderators.identity import identity_of
from astra_rl.targets import Budget, Ledger, ReplyCache

pytest.importorskip("openai")

ZERO = {"violence": 0.0, "hate": 0.0}


class Endpoint:
    """Answers requests with what is scripted; a function of the texts makes the scores."""

    def __init__(self):
        self.requests = []
        self.failures = []  # (status, headers, body) sent first
        self.scores = lambda text: {"violence": text.count("!") / 10, "hate": text.count("?") / 10}
        self.body = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, dict(self.headers), body))
                status, headers, data = endpoint.answer(body["input"])
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, texts):
        if self.failures:
            return self.failures.pop(0)
        results = [{"flagged": False, "category_scores": self.scores(text)} for text in texts]
        reply = {"id": "modr-1", "model": "omni", "results": results}
        data = json.dumps(reply).encode() if self.body is None else self.body
        return 200, {"Content-Type": "application/json"}, data


@pytest.fixture
def endpoint(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


def moderator(endpoint, **options):
    return OpenAIModerationModerator(
        base_url=endpoint.url, api_key="sk-sentinel-0123456789", **{"max_retries": 0, **options}
    )


def test_the_highest_category_is_the_score(endpoint):
    assert moderator(endpoint).moderate(["a!!!", "b??", "c"]) == [0.3, 0.2, 0.0]
    path, headers, body = endpoint.requests[0]
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == "/v1/moderations"
    assert headers["authorization"] == "Bearer sk-sentinel-0123456789"
    assert body == {"model": "omni-moderation-latest", "input": ["a!!!", "b??", "c"]}


def test_only_chosen_categories_count(endpoint):
    assert moderator(endpoint, categories=["hate"]).moderate(["a!!!?"]) == [0.1]


def test_texts_go_in_batches_and_come_back_in_order(endpoint):
    texts = [f"{'!' * n}" for n in range(5)]
    scores = moderator(endpoint, batch_size=2).moderate(texts)
    assert scores == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert sorted(len(body["input"]) for _, _, body in endpoint.requests) == [1, 2, 2]
    assert moderator(endpoint).moderate([]) == []


def test_only_the_judged_text_leaves_the_machine(endpoint):
    moderator(endpoint).moderate([Exchange("the context", "the attack", "a \ud800 reply")])
    assert endpoint.requests[0][2]["input"] == ["a \ufffd reply"]


def test_a_failure_that_passes_is_tried_again(endpoint):
    busy = {"Retry-After-Ms": "1"}
    endpoint.failures = [(429, busy, b"{}"), (500, busy, b"")]
    assert moderator(endpoint, max_retries=2).moderate(["a!"]) == [0.1]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "rate limited"), (500, "endpoint error 500"), (400, "refused by the endpoint")],
)
def test_a_failure_that_stays_is_missing_with_its_reason(endpoint, status, reason):
    endpoint.failures = [(status, {}, b"{}")]
    scores = moderator(endpoint).moderate(["a"])
    assert [reason_of(score) for score in scores] == [reason]


def test_one_text_that_is_refused_does_not_cost_the_others_their_score(endpoint):
    # The batch is refused, then the second of its texts.
    endpoint.failures = [(400, {}, b"{}")]
    original = endpoint.answer

    def answer(texts):
        return (413, {}, b"{}") if texts == ["bad"] else original(texts)

    endpoint.answer = answer
    scores = moderator(endpoint).moderate(["a!", "bad", "b!!"])
    assert scores[::2] == [0.1, 0.2]
    assert reason_of(scores[1]) == "too long for the endpoint"


@pytest.mark.parametrize("status", [401, 404])
def test_a_failure_that_never_passes_is_an_error_without_the_key(endpoint, status):
    endpoint.failures = [(status, {}, b'{"error": {"message": "key sk-sentinel-0123456789"}}')]
    with pytest.raises(EndpointError, match=f"{status}.*check the URL") as caught:
        moderator(endpoint).moderate(["a"])
    assert "sentinel" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"violence": "NaN"}, "not a number"),
        ({"violence": math.nan}, "not finite"),
        ({"violence": 1.5}, "out of range"),
        ({"violence": -1}, "out of range"),
        ({"violence": True}, "not a number"),
        ({"violence": 0.9, "hate": math.inf}, "not finite"),
        ({"violence": None}, "category not scored"),
        ({}, "unparsable reply"),
        (None, "unparsable reply"),
        ([0.5], "unparsable reply"),
    ],
)
def test_a_score_that_is_none_is_missing_and_never_zero(endpoint, scores, reason):
    endpoint.scores = lambda text: scores
    assert [reason_of(score) for score in moderator(endpoint).moderate(["a"])] == [reason]


def test_a_category_that_the_model_does_not_know_is_left_out_unless_asked_for(endpoint):
    endpoint.scores = lambda text: {"violence": 0.2, "illicit": None}
    assert moderator(endpoint).moderate(["a"]) == [0.2]
    asked = moderator(endpoint, categories=["illicit"]).moderate(["a"])
    assert reason_of(asked[0]) == "category not scored"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"results": []}', "incomplete reply"),
        (b'{"results": [{"category_scores": {"violence": 0.1}}', "unparsable reply"),
        (b"<html>hello</html>", "unparsable reply"),
        (b'{"results": "none"}', "incomplete reply"),
        (b'{"results": [NaN]}', "unparsable reply"),
        (b'{"results": [{"category_scores": {"hate": %s}}]}' % (b"9" * 5000), "not finite"),
        (b'{"results": [{"category_scores": {"hate": %s}}]}' % (b"9" * 299), "out of range"),
        (b'{"results": [%s1%s]}' % (b"[" * 2000, b"]" * 2000), "unparsable reply"),
        (b"[" * 100_000, "unparsable reply"),
        (b"[1, 2]", "unparsable reply"),
        (b"", "empty reply"),
    ],
)
def test_a_reply_that_makes_no_sense_is_missing(endpoint, body, reason):
    endpoint.body = body
    assert [reason_of(score) for score in moderator(endpoint).moderate(["a"])] == [reason]


def test_no_connection_is_missing(endpoint):
    judge = OpenAIModerationModerator(
        base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0, timeout=5
    )
    assert [reason_of(score) for score in judge.moderate(["a"])] == ["no connection"]


def test_the_identity_names_the_model_and_never_the_key(endpoint):
    identity = identity_of(moderator(endpoint))
    assert identity.weights == "omni-moderation-latest"
    assert identity == identity_of(
        OpenAIModerationModerator(base_url=endpoint.url, api_key="other")
    )


def test_wrong_options_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        OpenAIModerationModerator()
    with pytest.raises(ConfigurationError, match="Did you mean 'violence'"):
        OpenAIModerationModerator(["violenc"], api_key="k")
    with pytest.raises(ConfigurationError, match="categories is empty"):
        OpenAIModerationModerator([], api_key="k")
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        OpenAIModerationModerator(api_key="k", batch_size=0)


def test_what_was_scored_is_not_asked_again_and_what_failed_is(endpoint, tmp_path):
    endpoint.scores = lambda text: {"violence": None if text == "odd" else 0.5, "hate": 0.25}
    path = tmp_path / "replies.sqlite"
    with ReplyCache(path).answering():
        moderator(endpoint, categories=["violence"]).moderate(["a", "odd", "b"])
    with ReplyCache(path).answering(), Ledger().charging() as ledger:
        # Kept is all that the endpoint said, so other categories of it are known too.
        assert moderator(endpoint, categories=["hate"]).moderate(["a", "c", "b"]) == [0.25] * 3
        assert moderator(endpoint, categories=["hate"]).moderate(["a", "odd"]) == [0.25] * 2
    assert [body["input"] for _, _, body in endpoint.requests] == [
        ["a", "odd", "b"],
        ["c"],
        ["odd"],
    ]
    assert ledger.total().cached == 3


def test_a_batch_that_is_refused_is_kept_text_by_text(endpoint, tmp_path):
    original = endpoint.answer

    def answer(texts):
        return (413, {}, b"{}") if "bad" in texts else original(texts)

    endpoint.answer = answer
    with ReplyCache(tmp_path / "replies.sqlite").answering() as cache:
        moderator(endpoint).moderate(["a!", "bad", "b!!"])
        assert len(cache) == 2
        before = len(endpoint.requests)
        scores = moderator(endpoint).moderate(["b!!", "bad", "a!"])
    assert scores[::2] == [0.2, 0.1]
    assert len(endpoint.requests) == before + 1


def test_what_it_reads_is_counted_and_paid_for(endpoint):
    with Ledger().charging() as ledger:
        moderator(endpoint, prices={"input": 1e6}).moderate(["a" * 8, "b" * 4])
    total = ledger.total()
    assert (total.requests, total.input_tokens, total.cost) == (1, 3, 3.0)
    with Ledger(Budget(max_tokens=10)).charging(), pytest.raises(BudgetSpentError):
        moderator(endpoint).moderate(["a" * 11])
    assert len(endpoint.requests) == 1


def test_prices_are_no_part_of_its_identity(endpoint):
    assert identity_of(moderator(endpoint, prices={"input": 2})) == identity_of(moderator(endpoint))
