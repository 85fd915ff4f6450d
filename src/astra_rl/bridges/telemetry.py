"""OpenTelemetry: spans of target and judge calls, by the GenAI conventions; extra ``otel``.

`opentelemetry-instrument` finds `AstraInstrumentor` by the entry point of this distribution::

    opentelemetry-instrument --traces_exporter otlp astra-rl train config.yaml

In Python: ``AstraInstrumentor().instrument()``. Nothing is traced, and no package of OpenTelemetry
imported, unless one of the two is done.

| span | of | attributes beside the conventions |
| --- | --- | --- |
| ``chat MODEL``, client | each request to an endpoint or function, retries included | |
| ``chat MODEL``, internal | each batch of a local target | ``astra_rl.conversations`` |
| ``execute_tool TOOL``, internal | each call of a tool by an agent | ``astra_rl.world`` |
| ``evaluate MODERATOR``, internal | each batch of a moderator | ``astra_rl.texts``, ``.missing`` |

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/. The texts of requests and replies
are attributes only if ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from astra_rl.core.contracts import is_missing
from astra_rl.core.images import image_urls, text_of_content
from astra_rl.core.messages import Message
from astra_rl.core.moderator import reason_of
from astra_rl.distribution import NAME, version
from astra_rl.errors import require
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.redaction import redact
from astra_rl.infra.registry import DECLARED
from astra_rl.moderators.identity import identity_of
from astra_rl.targets.call_errors import CallError

try:
    import wrapt
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
    from opentelemetry.instrumentation.utils import unwrap
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
except ImportError:
    require("opentelemetry.instrumentation", extra="otel")  # says how to install it
    raise

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Environment variable of the conventions: whether texts are recorded."""


class AstraInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes a span of every call of a target or judge from `instrument` to `uninstrument`.

    `instrument` takes ``tracer_provider``; None is the global one.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what must be installed: nothing beside this package."""
        return ()

    def _instrument(self, **options: Any) -> None:
        tracer = trace.get_tracer(NAME, version(), options.get("tracer_provider"))
        for module, owner, method, kind in _WRAPPED:
            # When the module is imported: importing it here would load torch for every command.
            wrapt.register_post_import_hook(
                _wrap(module, f"{owner}.{method}", kind(tracer)), module
            )

    def _uninstrument(self, **options: Any) -> None:
        for module, owner, method, _ in _WRAPPED:
            if module in sys.modules:
                unwrap(getattr(sys.modules[module], owner), method)


def _wrap(module: str, path: str, wrapper: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda imported: wrapt.wrap_function_wrapper(module, path, wrapper)


class _Calls:
    """Wraps `Caller.call`: a span per attempt, in the context of the batch."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, wrapped: Any, caller: Any, given: Any, options: Mapping[str, Any]) -> Any:
        connect, *rest = given
        return wrapped(self._traced(connect, caller.name, contexts.get_current()), *rest, **options)

    def _traced(self, connect: Any, name: str, parent: Any) -> Any:
        owner = type(getattr(connect, "__self__", None))
        provider = DECLARED.get(f"{owner.__module__}:{owner.__name__}", owner.__name__)

        @asynccontextmanager
        async def connected() -> AsyncIterator[Any]:
            async with connect() as send:

                async def traced_send(item: Any) -> Any:
                    messages = getattr(item, "messages", None)
                    what = "chat" if messages is not None else "evaluate"
                    with self._tracer.start_as_current_span(
                        f"{what} {name}",
                        context=parent,
                        kind=SpanKind.CLIENT,
                        attributes=_request(what, provider, name, messages),
                        record_exception=False,  # the message of an error may have a credential
                        set_status_on_exception=False,
                    ) as span:
                        try:
                            answer = await send(item)
                        except BaseException as error:
                            _failed(span, error)
                            raise
                        _answered(span, answer)
                        return answer

                yield traced_send

        return connected


class _Moderations:
    """Wraps `FaultTolerantModerator.moderate`: a span per batch, with an event per score."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, wrapped: Any, moderator: Any, given: Any, options: Any) -> Any:
        name = identity_of(moderator).name
        with self._tracer.start_as_current_span(
            f"evaluate {name}", attributes={"gen_ai.operation.name": "evaluate"}
        ) as span:
            scores = wrapped(*given, **options)
            span.set_attributes(
                {
                    "gen_ai.evaluation.name": name,
                    "astra_rl.texts": len(scores),
                    "astra_rl.missing": sum(map(is_missing, scores)),
                }
            )
            for score in scores:
                missing = is_missing(score)
                result = (
                    {"error.type": redact(str(reason_of(score)))}
                    if missing
                    else {"gen_ai.evaluation.score.value": float(score)}
                )
                span.add_event(
                    "gen_ai.evaluation.result", {"gen_ai.evaluation.name": name, **result}
                )
            return scores


class _LocalReplies:
    """Wraps `LocalTarget.respond`: a span per batch."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, wrapped: Any, target: Any, given: Any, options: Any) -> Any:
        name = redact(str(target.model.name_or_path)) or "model"
        with self._tracer.start_as_current_span(
            f"chat {name}", attributes=_request("chat", "transformers", name, None)
        ) as span:
            replies = wrapped(*given, **options)
            tokens = sum(len(each.token_ids or ()) for each in replies)
            span.set_attributes(
                {"astra_rl.conversations": len(replies), "gen_ai.usage.output_tokens": tokens}
            )
            return replies


class _ToolCalls:
    """Wraps `AgentTurn.run_call`: a span per call of a tool by an agent."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, wrapped: Any, turn: Any, given: Any, options: Any) -> Any:
        (call,) = given
        # A name that is none of the tools is text of a model, and could be anything.
        name = call.name if call.name in turn.world.tool_names else "unknown"
        with self._tracer.start_as_current_span(
            f"execute_tool {name}",
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": call.id,
                "astra_rl.world": type(turn.world).__name__,
            },
        ) as span:
            result: Message = wrapped(*given, **options)
            if _records_content():
                span.set_attributes(
                    {
                        "gen_ai.tool.call.arguments": redact(json.dumps(dict(call.arguments))),
                        "gen_ai.tool.call.result": redact(result.shown),
                    }
                )
            if result.is_error:
                span.set_attribute("error.type", "tool_error")
                span.set_status(Status(StatusCode.ERROR))
            return result


_WRAPPED: Sequence[tuple[str, str, str, Callable[[Tracer], Callable[..., Any]]]] = (
    ("astra_rl.targets.caller", "Caller", "call", _Calls),
    ("astra_rl.moderators.fault_tolerant", "FaultTolerantModerator", "moderate", _Moderations),
    ("astra_rl.agents.loop", "AgentTurn", "run_call", _ToolCalls),
    ("astra_rl.ext.transformers.target_adapters", "LocalTarget", "respond", _LocalReplies),
)
"""Module, class and method of what is traced, and what wraps it."""


def _request(
    operation: str, provider: str, name: str, messages: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": name,
    }
    if messages is not None and _records_content():
        attributes["gen_ai.input.messages"] = json.dumps([_chat_message(each) for each in messages])
    return attributes


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": redact(text)}]}


def _chat_message(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of a chat API, with its calls or as the result of one."""
    if chat["role"] == "tool":
        part = {
            "type": "tool_call_response",
            "id": chat["tool_call_id"],
            "response": redact(text_of_content(chat["content"])),
        }
        return {"role": "tool", "parts": [part]}
    message = _message(chat["role"], text_of_content(chat["content"]))
    message["parts"] += map(_image_part, image_urls(chat["content"]))
    message["parts"] += [
        _call_part(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in chat.get("tool_calls", ())
    ]
    return message


def _image_part(url: str) -> dict[str, Any]:
    """Return an image, which is a ``data:`` URL, as a part of a message."""
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "blob", "modality": "image", "mime_type": kind, "content": data}


def _call_part(id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a call as a part of a message; `arguments` is JSON."""
    return {
        "type": "tool_call",
        "id": redact(id),
        "name": redact(name),
        "arguments": _parsed(redact(arguments)),
    }


def _parsed(arguments: str) -> Any:
    """Return JSON, or the text itself: of an endpoint, or with a credential that was a number."""
    try:
        return parse_json(arguments)
    except ValueError:
        return arguments


def _answered(span: Span, answer: Any) -> None:
    reason = getattr(answer.value, "finish_reason", None)
    if reason is not None:
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
    if answer.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", answer.usage.input)
        span.set_attribute("gen_ai.usage.output_tokens", answer.usage.output)
    if isinstance(answer.value, str) and _records_content():
        said = {**_message("assistant", str(answer.value)), "finish_reason": reason or "unknown"}
        said["parts"] += [
            _call_part(call.id, call.name, json.dumps(dict(call.arguments)))
            for call in getattr(answer.value, "calls", None) or ()
        ]
        span.set_attribute("gen_ai.output.messages", json.dumps([said]))


def _failed(span: Span, error: BaseException) -> None:
    reason = redact(error.reason) if isinstance(error, CallError) else type(error).__name__
    span.set_attribute("error.type", reason)
    span.set_status(Status(StatusCode.ERROR))


def _records_content() -> bool:
    return os.environ.get(CONTENT, "").strip().lower() == "true"


__all__ = ["CONTENT", "AstraInstrumentor"]
