"""A target behind an HTTP API that takes and returns JSON."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.targets.base import last_user_text
from astra_rl.targets.budget import Prices
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.caller import Answer, CallSettings, Send
from astra_rl.targets.credentials import check_headers, check_url, filled
from astra_rl.targets.error_bodies import error_of_response, json_or_none, read_error
from astra_rl.targets.http_client import WebClients, json_of
from astra_rl.targets.remote import Chat, RemoteTarget, answer_of, check_count
from astra_rl.targets.replies import charged, read_reply, reported_tokens

PLACEHOLDERS = ("message", "messages", "system", "seed")
_PLACE = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_TOKEN_LIMIT = re.compile(
    "max_?(new_?|output_?|completion_?)?tokens|(num|n)_predict", re.IGNORECASE
)
_STEP = re.compile(r"([^.\[\]]+)|\[([0-9]+)\]")


@named("http")
class HTTPTarget(RemoteTarget):
    """An application behind an HTTP API of its own.

    The body of a request is a template of JSON values. In its strings ``{message}`` is replaced by
    the last message of the user and ``{system}`` by the system message. A string that is exactly
    ``{messages}`` is replaced by the list of all messages (``role`` and ``content``), and one that
    is exactly ``{seed}`` by a number. Values are inserted before the body is encoded, so text
    cannot change the structure of the request.

    Args:
        url: URL of the requests.
        body: Template of the body.
        reply: Path of the reply in the response, for instance ``"data.answers[0].text"``: a text,
            or a list of parts. Fields beside it are read as `astra_rl.targets.OpenAITarget` reads
            them: reasoning, refusals, tool calls, finish reasons, and the ``usage`` of the body.
        headers: Headers of each request. ``${NAME}`` is replaced by an environment variable;
            credentials must be given in this way.
        method: ``"POST"``, ``"PUT"`` or ``"PATCH"``.
        blocked_statuses: Status codes that mean that a filter withheld the reply.
        name: Name in records; None is the host.
        max_tokens: Most tokens of a reply, for estimates and budgets; None is unknown.
        prices: ``{"input": ..., "output": ...}``: cost per million tokens. Where the response
            reports none, tokens are estimated as a quarter of the characters.
        calls: See `CallSettings`.

    Raises:
        ConfigurationError: The URL, the body, the path or a header is not valid.
        MissingDependencyError: The extra ``openai``, which includes the client, is not installed.
    """

    def __init__(
        self,
        url: str,
        body: Mapping[str, Any],
        reply: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        blocked_statuses: Sequence[int] = (),
        name: str | None = None,
        max_tokens: int | None = None,
        prices: Prices | Mapping[str, float] | None = None,
        calls: CallSettings | Mapping[str, Any] | None = None,
    ) -> None:
        host = check_url(url, "url")
        super().__init__(name or host, calls, prices)
        self.url, self.body, self.headers = url, body, dict(headers or {})
        check_headers(self.headers)
        self.reply, self._path = reply, read_path(reply)
        self.method = method.upper()
        self.blocked_statuses = frozenset(blocked_statuses)
        check_count("max_tokens", max_tokens)
        self.max_tokens = max_tokens
        if self.method not in ("POST", "PUT", "PATCH"):
            raise ConfigurationError(f"method={method!r}; choose POST, PUT or PATCH.")
        if not isinstance(body, Mapping) or not ({"message", "messages"} & _places(body)):
            raise ConfigurationError(
                "body must be a mapping that contains '{message}' or '{messages}'; otherwise the "
                "conversation would not be sent."
            )
        self._filled_headers()
        self._clients = WebClients(
            url, self.calls.timeout, self.calls.max_reply_bytes, self.calls.concurrency
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a reply depends on besides the chat; headers as in the configuration."""
        return {
            "url": self.url,
            "body": self.body,
            "reply": self.reply,
            "method": self.method,
            "headers": self.headers,
            "blocked": sorted(self.blocked_statuses),
        }

    @property
    def reads_chats(self) -> bool:
        """Whether the body has all messages."""
        return '"{messages}"' in json.dumps(self.body)

    @property
    def most_output_tokens(self) -> int | None:
        """The option `max_tokens`."""
        return self.max_tokens

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Send[Chat, Utterance]]:
        """Open an HTTP client."""
        async with self._clients.open(self._filled_headers()) as client:

            async def send(chat: Chat) -> Answer[Utterance]:
                return await self._send(client, chat)

            yield send

    async def _send(self, client: Any, chat: Chat) -> Answer[Utterance]:
        body = fill_body(self.body, chat)
        try:
            response = await client.request(self.method, self.url, json=body)
        except Exception as error:
            raise self._clients.error_of(error) from None
        return self._read(chat, response.status_code, response.headers, response.content)

    def _read(
        self, chat: Chat, status: int, headers: Mapping[str, str], body: bytes
    ) -> Answer[Utterance]:
        is_error = not 200 <= status < 300
        if status in self.blocked_statuses:
            return answer_of(chat, Utterance(finish_reason="content_filter"))
        data = json_or_none(body) if is_error else json_of(body)
        tokens = reported_tokens(data)
        error = error_of_response(body) if is_error else None
        if error is None:
            try:
                said = read_reply(data, self._path, limit=self._limit)
                return answer_of(chat, said, *tokens)
            except CallError as failure:
                error = read_error(data) if failure.retryable else None
                if error is None:
                    raise charged(failure, tokens) from None
        if error.is_filtered:
            return answer_of(chat, Utterance(finish_reason="content_filter"), *tokens)
        raise charged(error.as_call_error(status, headers), tokens)

    @property
    def _limit(self) -> str:
        """The token limit in the body of a request, for errors."""
        found = next(_limits(self.body, "body"), None)
        return found or "the token limit of the application (body has none)"

    def _filled_headers(self) -> dict[str, str]:
        return {name: filled(value, self.name) for name, value in self.headers.items()}


def fill_body(template: Any, chat: Chat) -> Any:
    """Return a template with its placeholders replaced, in one pass."""
    if isinstance(template, Mapping):
        return {str(key): fill_body(value, chat) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [fill_body(value, chat) for value in template]
    if not isinstance(template, str):
        return template
    if template == "{messages}":
        return [dict(message) for message in chat.messages]
    if template == "{seed}":
        return None if chat.seed is None else chat.seed % 2**31
    texts = {
        "message": last_user_text(chat.messages),
        "system": next((m["content"] for m in chat.messages if m["role"] == "system"), ""),
    }
    return _PLACE.sub(lambda found: texts.get(found[1], found[0]), template)


def read_path(path: str) -> list[str | int]:
    """Parse a path to a JSON value: names separated by dots, and ``[0]`` for list indices.

    Raises:
        ConfigurationError: The path is not valid.
    """
    rest = path.removeprefix("$").removeprefix(".") if isinstance(path, str) else ""
    steps: list[str | int] = []
    at = 0
    while at < len(rest):
        at += rest[at] == "." and bool(steps)
        found = _STEP.match(rest, at)
        if not found:
            at = -1
            break
        steps.append(found[1] if found[1] is not None else int(found[2]))
        at = found.end()
    if not steps or at < len(rest):
        raise ConfigurationError(
            f"reply={path!r}; write the path of the text in the response, for instance "
            "'choices[0].message.content'."
        )
    return steps


def _limits(template: Any, where: str) -> Iterator[str]:
    """Yield the token limits in a template, as ``body.max_tokens=64``."""
    if isinstance(template, Mapping):
        for key, value in template.items():
            if isinstance(key, str) and _TOKEN_LIMIT.fullmatch(key):
                yield f"{where}.{key}={value}"
            yield from _limits(value, f"{where}.{key}")


def _places(template: Any) -> set[str]:
    if isinstance(template, Mapping):
        return set().union(*map(_places, template.values())) if template else set()
    if isinstance(template, list | tuple):
        return set().union(*map(_places, template)) if template else set()
    return set(_PLACE.findall(template)) if isinstance(template, str) else set()
