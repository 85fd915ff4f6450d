"""Spans of target and judge calls, by the SDK of OpenTelemetry with an exporter in memory."""

import json
import subprocess
import sys

import pytest
from tests.evaluation.show.agent_attempts import LIST, YES, played

from astra_rl.agents import Assignment, ToolError
from astra_rl.agents import answer as answer_agent
from astra_rl.agents.loop import AgentTurn
from astra_rl.agents.worlds.mailbox import Mailbox
from astra_rl.core.messages import Dialogue
from astra_rl.core.moderator import Score
from astra_rl.core.text import Conversation, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.infra.redaction import keep_secret
from astra_rl.moderators.fault_tolerant import FaultTolerantModerator
from astra_rl.moderators.function import FunctionModerator
from astra_rl.targets.function import CallableTarget
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.filterwarnings("default")
traced = pytest.mark.bridge("opentelemetry.instrumentation")


@pytest.mark.slow
def test_nothing_of_opentelemetry_is_imported_unless_asked():
    code = """
import sys
import astra_rl.targets.caller, astra_rl.moderators.fault_tolerant, astra_rl.actions.redteam
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from astra_rl.bridges.telemetry import AstraInstrumentor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    AstraInstrumentor().instrument(tracer_provider=provider)
    yield exporter.get_finished_spans
    AstraInstrumentor().uninstrument()


def answer(text):
    if "break" in text:
        raise ConnectionError("key-0a1b2c3d refused")
    return f"you said {text}"


def ask(*texts, **calls):
    target = CallableTarget(answer, name="app", calls={"max_tries": 2, "first_wait": 0.01, **calls})
    return target.respond([Conversation(separator="\n") + text for text in texts])


@traced
def test_every_call_of_a_target_is_a_span(spans):
    ask("hello", "bye")
    found = sorted(spans(), key=lambda span: span.attributes["gen_ai.usage.input_tokens"])
    assert [(span.name, span.kind.name) for span in found] == [("chat app", "CLIENT")] * 2
    assert dict(found[1].attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "CallableTarget",
        "gen_ai.request.model": "app",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 4,
    }


@traced
def test_a_failed_call_is_an_error_without_its_message(spans):
    keep_secret("key-0a1b2c3d")
    ask("break")
    found = spans()
    assert len(found) == 2  # it was retried
    for span in found:
        assert span.status.status_code.name == "ERROR"
        assert span.attributes["error.type"] == "ConnectionError in app"
        assert span.events == ()
        assert "key-0a1b2c3d" not in span.to_json()


@traced
def test_texts_are_recorded_only_on_request_and_without_credentials(spans, monkeypatch):
    from astra_rl.bridges.telemetry import CONTENT

    keep_secret("key-0a1b2c3d")
    ask("my key-0a1b2c3d")
    monkeypatch.setenv(CONTENT, "true")
    ask("my key-0a1b2c3d")
    without, with_texts = spans()
    assert not any("messages" in name for name in without.attributes)
    assert json.loads(with_texts.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "my (redacted)"}]}
    ]
    (said,) = json.loads(with_texts.attributes["gen_ai.output.messages"])
    assert said["parts"] == [{"type": "text", "content": "you said my (redacted)"}]


@traced
def test_calls_are_children_of_the_span_around_them(spans):
    from opentelemetry import trace
    from opentelemetry.trace import TraceFlags

    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, False, TraceFlags(1)))):
        ask("hello")
    (span,) = spans()
    assert (span.context.trace_id, span.parent.span_id) == (1, 2)


@traced
def test_every_batch_of_a_moderator_is_a_span_with_its_scores(spans):
    def judge(texts):
        return [Score.missing("unparsable verdict") if "?" in text else 0.5 for text in texts]

    FaultTolerantModerator(FunctionModerator(judge)).moderate(["a", "?"])
    (span,) = spans()
    assert span.name == f"evaluate {span.attributes['gen_ai.evaluation.name']}"
    assert (span.attributes["astra_rl.texts"], span.attributes["astra_rl.missing"]) == (2, 1)
    first, second = span.events
    assert first.name == second.name == "gen_ai.evaluation.result"
    assert first.attributes["gen_ai.evaluation.score.value"] == 0.5
    assert second.attributes["error.type"] == "unparsable verdict"
    assert "gen_ai.evaluation.score.value" not in second.attributes


@traced
def test_replies_of_a_local_target_are_a_span(spans):
    pair = tiny_model("llama", window=64)
    problem = HFASTProblem(pair, pair, pair, FunctionModerator(lambda texts: [0.0] * len(texts)))
    context = Conversation("Hello") + "you"
    replies = problem.rollout_prompt_with_target([context, context])
    (span,) = spans()
    assert span.attributes["gen_ai.provider.name"] == "transformers"
    assert span.attributes["astra_rl.conversations"] == 2
    tokens = sum(len(each.token_ids) for each in replies)
    assert span.attributes["gen_ai.usage.output_tokens"] == tokens


@traced
def test_nothing_is_traced_afterwards(spans):
    from astra_rl.bridges.telemetry import AstraInstrumentor

    AstraInstrumentor().uninstrument()
    ask("hello")
    assert spans() == ()


@traced
def test_every_call_of_a_tool_by_an_agent_is_a_span(spans, monkeypatch):
    played([LIST, ToolCall("fly\x1b[31m")], [YES])
    found = [span for span in spans() if span.name.startswith("execute_tool")]
    assert [span.name for span in found] == [
        "execute_tool list_mails",
        "execute_tool unknown",
        "execute_tool send_mail",
    ]
    assert dict(found[2].attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "send_mail",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call00002",
        "astra_rl.world": "Mailbox",
    }
    assert [span.status.status_code.name for span in found] == ["UNSET", "ERROR", "UNSET"]
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    played([YES])
    last = spans()[-1]
    assert json.loads(last.attributes["gen_ai.tool.call.arguments"]) == YES.arguments
    assert last.attributes["gen_ai.tool.call.result"] == "sent to ann@pottery.example"


@traced
def test_arguments_that_are_no_json_without_a_credential_are_told_as_text(spans, monkeypatch):
    from astra_rl.infra import redaction

    monkeypatch.setattr(redaction, "_registered", redaction._registered)
    monkeypatch.setattr(redaction, "_forms", redaction._forms)
    redaction.keep_secret("12345678901234567890")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    target = CallableTarget(lambda messages, tools: "Done.", name="app")
    said = Utterance("", calls=[ToolCall("pay", {"number": 12345678901234567890})])
    opening = Assignment("mailbox", "answer_ann", "door_code", "mail").opening()
    first = iter([[said]])
    (reply,) = answer_agent(
        [opening + "x"], lambda contexts: next(first, None) or target.respond(contexts)
    )
    assert str(reply) == "Done."
    last = [span for span in spans() if span.name == "chat app"][-1]
    read = json.loads(last.attributes["gen_ai.input.messages"])
    assert read[2]["parts"][-1]["arguments"] == '{"number": (redacted)}'


@traced
def test_calls_and_results_are_parts_of_messages_by_the_conventions(spans, monkeypatch):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    target = CallableTarget(lambda messages, tools: "Done.", name="app")
    said = Utterance("", calls=[LIST])
    opening = Assignment("mailbox", "answer_ann", "door_code", "mail").opening()
    first = iter([[said]])
    answer_agent([opening + "x"], lambda contexts: next(first, None) or target.respond(contexts))
    last = [span for span in spans() if span.name == "chat app"][-1]
    read = json.loads(last.attributes["gen_ai.input.messages"])
    assert read[2]["parts"][-1] == {
        "type": "tool_call",
        "id": "call00000",
        "name": "list_mails",
        "arguments": {},
    }
    assert read[3]["role"] == "tool"
    assert read[3]["parts"][0]["type"] == "tool_call_response"
    assert read[3]["parts"][0]["id"] == "call00000"


@traced
def test_an_image_is_a_blob_and_a_result_is_an_error_by_its_kind_not_by_its_words(
    spans, monkeypatch
):
    from tests.agents.test_images import MESSAGES, PHOTO, SKETCH

    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    CallableTarget(lambda messages: "Done.", takes="messages", name="app").respond(
        [Dialogue(MESSAGES)]
    )
    read = json.loads(spans()[-1].attributes["gen_ai.input.messages"])
    blobs = [part for each in read for part in each["parts"] if part["type"] == "blob"]
    assert blobs == [
        {"type": "blob", "modality": "image", "mime_type": each.media_type, "content": each.data}
        for each in (SKETCH, PHOTO)
    ]

    def notice(state: dict) -> str:
        """Read the notice."""
        return "Error: the lift is out of order"

    def stop(state: dict) -> str:
        """Stop."""
        raise ToolError("not now")

    class Hall(Mailbox):
        tools = (notice, stop)

    assignment = Assignment("mailbox", "answer_ann", "door_code", "mail")
    turn = AgentTurn(assignment, assignment.opening() + "x")
    turn.world = Hall()
    results = [turn.run_call(ToolCall(name)) for name in ("notice", "stop", "fly")]
    assert [result.is_error for result in results] == [False, True, True]
    codes = [span.status.status_code.name for span in spans()[-3:]]
    assert codes == ["UNSET", "ERROR", "ERROR"]
