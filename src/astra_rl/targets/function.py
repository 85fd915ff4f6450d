"""A Python function as a target."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_type_hints

from astra_rl.core.text import Utterance
from astra_rl.core.tool_calls import checked_calls
from astra_rl.errors import ConfigurationError
from astra_rl.targets.base import last_user_text
from astra_rl.targets.budget import Prices
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.caller import Answer, CallSettings, Send
from astra_rl.targets.http_client import too_long
from astra_rl.targets.remote import Chat, RemoteTarget, answer_of, check_count, made, read_text

_OF_MESSAGES = frozenset({"messages", "chat", "conversation", "history"})


class CallableTarget(RemoteTarget):
    """A target that is a function, ``str -> str`` or ``messages -> str``, plain or ``async``.

    ```python
    CallableTarget(lambda text: my_application.ask(text))
    ```

    A function that takes a text is given the last message of the user; one that takes messages is
    given the whole conversation, a list of ``{"role": ..., "content": ...}``; the content of a
    message with images is a list of parts, as in the chat APIs. An exception affects
    only its own conversation; a `ConnectionError` or `TimeoutError` is retried.

    An agent is a function ``(messages, tools) -> str``; `tools` is a list in the form of the chat
    APIs. Without this parameter, tools are described in the system message. It calls a tool with
    ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` in its text, or returns an
    `Utterance` with `calls`.

    Args:
        function: The function; in a configuration ``type: package.module:function``.
        takes: ``"text"`` or ``"messages"``; None decides by the annotation of the first parameter,
            else by its name (messages, chat, conversation or history).
        name: Name in records; None is the name of the function.
        max_tokens: Most tokens of a reply, for estimates and budgets; None is unknown.
        prices: ``{"input": ..., "output": ...}``: cost per million tokens. Tokens are estimated as
            a quarter of the characters.
        calls: See `CallSettings`. A plain function is called from one thread at a time unless
            `concurrency` is given here, because it may not be thread-safe.

    Raises:
        ConfigurationError: `function` is not callable, or a value is out of range.
    """

    def __init__(
        self,
        function: Callable[..., str | Awaitable[str]],
        *,
        takes: Literal["text", "messages"] | None = None,
        name: str | None = None,
        max_tokens: int | None = None,
        prices: Prices | Mapping[str, float] | None = None,
        calls: CallSettings | Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"function={function!r}; it must be callable.")
        if takes not in (None, "text", "messages"):
            raise ConfigurationError(f"takes={takes!r}; choose 'text' or 'messages'.")
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            type(function).__call__
        )
        self.takes = takes or _parameter_kind(function)
        self.takes_tools = _has_parameter(function, "tools")
        check_count("max_tokens", max_tokens)
        self.max_tokens = max_tokens
        module = getattr(function, "__module__", type(function).__module__)
        called = getattr(function, "__qualname__", type(function).__qualname__)
        self._path = f"{module}:{called}"
        settings = made(CallSettings, "calls", calls) or CallSettings()
        chosen = isinstance(calls, CallSettings) or "concurrency" in (calls or {})
        if not self.is_async and not chosen:
            settings = replace(settings, concurrency=1)
        super().__init__(name or called, settings, prices)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Module and name of the function, and what it takes."""
        return {"function": self._path, "takes": self.takes}

    @property
    def reads_images(self) -> bool:
        """Whether the function is given images: a function of messages, not one of a text."""
        return self.takes == "messages"

    @property
    def reads_chats(self) -> bool:
        """Whether the function takes messages, not a text."""
        return self.takes == "messages"

    @property
    def reads_tools(self) -> bool:
        """Whether the function has a parameter for tools."""
        return self.takes_tools

    @property
    def most_output_tokens(self) -> int | None:
        """The option `max_tokens`."""
        return self.max_tokens

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Send[Chat, Utterance]]:
        """Yield the function; there is no connection to open."""
        yield self._send

    async def _send(self, chat: Chat) -> Answer[Utterance]:
        given: Any = [dict(message) for message in chat.messages]
        if self.takes == "text":
            given = last_user_text(chat.messages)
        try:
            call: Any = self.function
            if self.takes_tools:
                call = partial(call, tools=[dict(tool) for tool in chat.tools])
            said = await (call(given) if self.is_async else _call_in_thread(call, given))
        except CallError:
            raise
        except Exception as error:
            is_transient = isinstance(error, ConnectionError | TimeoutError)
            raise CallError(
                f"{type(error).__name__} in {self.name}", str(error), retryable=is_transient
            ) from None
        if not isinstance(said, str):
            raise CallError("not a text", f"{self.name} returned {type(said).__name__}")
        if not isinstance(said, Utterance):
            said = read_text(said)
        elif said.calls is not None:
            said = Utterance(
                str(said),
                finish_reason=said.finish_reason,
                reasoning=said.reasoning,
                calls=checked_calls(said.calls),
            )
        answer = answer_of(chat, said)
        if len(said) > self.calls.max_reply_bytes:
            failure = too_long(self.calls.max_reply_bytes)
            failure.usage = answer.usage
            raise failure
        return answer


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin
        return False


def _parameter_kind(function: Callable[..., Any]) -> Literal["text", "messages"]:
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
        hints = get_type_hints(function) if inspect.isroutine(function) else {}
    except (TypeError, ValueError, NameError):  # a builtin, or annotations that cannot be resolved
        return "text"
    if first is None:
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(f"{name} takes no argument; it must take a text or messages.")
    if first.name in hints:
        return "text" if hints[first.name] is str else "messages"
    return "messages" if first.name in _OF_MESSAGES else "text"


async def _call_in_thread(function: Callable[[Any], Any], given: Any) -> Any:
    """Call a function in a daemon thread, so that a hanging one blocks nothing, not even exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def report(set_it: Callable[[Any], None], value: Any) -> None:
        if not result.done():  # the call may have been cancelled
            set_it(value)

    def run() -> None:
        try:
            value = function(given)
        except Exception as error:
            loop.call_soon_threadsafe(report, result.set_exception, error)
        else:
            loop.call_soon_threadsafe(report, result.set_result, value)

    threading.Thread(target=run, name="astra-target", daemon=True).start()
    return await result
