"""A target behind an OpenAI-compatible endpoint: vLLM, Ollama, a llama.cpp server, or hosted."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

from astra_rl.core.contracts import check_number
from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.targets.budget import Prices
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.caller import Answer, CallSettings, Send
from astra_rl.targets.credentials import read_variable
from astra_rl.targets.error_bodies import error_of_response, json_or_none, read_error
from astra_rl.targets.http_client import json_of
from astra_rl.targets.openai_client import OPENAI_URL, OfficialClient, Reply
from astra_rl.targets.remote import Chat, RemoteTarget, answer_of, check_count, made
from astra_rl.targets.replies import charged, read_reply, reported_tokens
from astra_rl.targets.servers import Servers

_PATHS = {"chat": ("choices", 0, "message", "content"), "completions": ("choices", 0, "text")}
_COUNTS = ("max_tokens", "max_completion_tokens", "n")


@named("openai")
class OpenAITarget(RemoteTarget):
    """A model behind an OpenAI-compatible endpoint, called with the official client.

    **Conversations are sent to the endpoint over the network**, unless it is on this machine.

    A reply that a filter of the endpoint withheld has the finish reason ``"content_filter"``. The
    retries of the client are switched off; those of `CallSettings` apply.

    Args:
        model: Name of the model at the endpoint.
        base_url: URL of the endpoint, for instance ``"http://127.0.0.1:8000/v1"``; None reads the
            environment variable ``OPENAI_BASE_URL``, else it is OpenAI's. A list of URLs is a pool
            of servers of the same model: each call goes to one of them, and those of a server that
            fails to the others, see `Servers`.
        api: ``"chat"``, or ``"completions"`` for base models, which continue one plain text.
        api_key_env: Environment variable with the key. With the default ``OPENAI_API_KEY``,
            endpoints other than OpenAI's need no key.
        max_tokens: Most tokens of a reply; None is the default of the endpoint.
        temperature: Sampling temperature, 0 or more; None is the default of the endpoint.
        top_p: Nucleus sampling threshold, in [0, 1]; None is the default of the endpoint.
        stop: Strings that end a reply.
        send_seed: Whether to send a seed with each request, for endpoints that support it: the same
            conversation of the same run then gets the same reply.
        extra: Further fields of the request, for instance ``{"reasoning_effort": "low"}``.
        prices: ``{"input": ..., "output": ...}``: cost per million tokens; None is unknown.
        calls: Concurrency, retries and timeouts; see `CallSettings`.

    Raises:
        ConfigurationError: There is no key, or a value is out of range.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | Sequence[str] | None = None,
        api: Literal["chat", "completions"] = "chat",
        api_key_env: str = "OPENAI_API_KEY",
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: Sequence[str] | None = None,
        send_seed: bool = False,
        extra: Mapping[str, Any] | None = None,
        prices: Prices | Mapping[str, float] | None = None,
        calls: CallSettings | Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise ConfigurationError(f"model={model!r}; it must be the name of a model, not empty.")
        if api not in ("chat", "completions"):
            raise ConfigurationError(f"api={api!r}; choose 'chat' or 'completions'.")
        check_count("max_tokens", max_tokens)
        for name in _COUNTS:  # the upper bound of the tokens of a call is computed from them
            check_count(f"extra.{name}", (extra or {}).get(name))
        _check_range("temperature", temperature, 0, None)
        _check_range("top_p", top_p, 0, 1)
        settings = made(CallSettings, "calls", calls) or CallSettings()
        self.api_key_env = api_key_env
        given = [base_url] if base_url is None or isinstance(base_url, str) else list(base_url)
        if not isinstance(base_url, str | None) and not all(
            isinstance(each, str) and each for each in given
        ):
            raise ConfigurationError(
                "base_url: a server of the list is no URL; give the URL of each server."
            )
        self._clients = [OfficialClient(each, self._secret, settings) for each in given]
        self.urls = tuple(each.base_url for each in self._clients)
        self._servers = Servers(self.urls, first_wait=settings.first_wait)
        self.model, self.api = model, api
        others = f" and {len(given) - 1} more" if len(given) > 1 else ""
        super().__init__(f"{model} at {self._clients[0].host}{others}", settings, prices)
        self.send_seed = send_seed
        self.request: dict[str, Any] = {
            name: value
            for name, value in {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "stop": None if stop is None else list(stop),
                **(extra or {}),
            }.items()
            if value is not None
        }
        if "max_completion_tokens" in self.request:  # the newer name of the same limit
            self.request.pop("max_tokens", None)
        self._secret()

    @property
    def reads_images(self) -> bool:
        """Whether images are sent: by the chat API, not as a plain text."""
        return self.api == "chat"

    @property
    def reads_tools(self) -> bool:
        """Whether tools are sent: by the chat API, not as a plain text."""
        return self.api == "chat"

    @property
    def base_url(self) -> str:
        """URL of the endpoint, or of the first server."""
        return self.urls[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a reply depends on besides the chat."""
        url = self.urls[0] if len(self.urls) == 1 else sorted(self.urls)
        endpoint = {"model": self.model, "url": url, "api": self.api}
        return {**endpoint, "seed": self.send_seed, "request": self.request}

    @property
    def most_output_tokens(self) -> int | None:
        """Most output tokens of a call, in all replies that `extra` requests (``n``)."""
        most = self.request.get("max_tokens", self.request.get("max_completion_tokens"))
        count = self.request.get("n", 1)
        return None if most is None else int(most) * int(count)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Send[Chat, Utterance]]:
        """Open the official client of each server."""
        # Of several, before the caller gives up, so that it is known which one did not answer.
        timeout = 0.95 * self.calls.timeout if len(self.urls) > 1 else None

        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(each.open()) for each in self._clients]
            failures: defaultdict[str, Counter[int]] = defaultdict(Counter)

            async def send(chat: Chat) -> Answer[Utterance]:
                call = str([dict(each) for each in chat.messages])
                at = self._servers.choose(call, failures.get(call, {}))
                try:
                    async with asyncio.timeout(timeout):
                        answer = await self._send(self._clients[at], clients[at], chat)
                except TimeoutError:
                    failure = CallError("timed out", retryable=True, overload=True)
                except CallError as error:
                    failure = error
                else:
                    self._servers.succeeded(at)
                    return answer
                failures[call][at] += 1
                raise self._servers.failed(at, failure)

            yield send

    async def _send(self, official: OfficialClient, client: Any, chat: Chat) -> Answer[Utterance]:
        body = dict(self.request)
        if self.send_seed and chat.seed is not None:
            body["seed"] = chat.seed % 2**31
        kind = client.chat.completions
        prompt: dict[str, Any] = {"messages": [dict(each) for each in chat.messages]}
        if self.api == "completions":
            kind, prompt = client.completions, {"prompt": _plain_text(chat)}
        elif chat.tools:
            prompt["tools"] = [dict(tool) for tool in chat.tools]
        reply = await official.reply_to(
            kind.with_raw_response.create(model=self.model, **prompt, extra_body=body)
        )
        return self._read(chat, reply)

    def _read(self, chat: Chat, reply: Reply) -> Answer[Utterance]:
        is_error = not 200 <= reply.status < 300
        data = json_or_none(reply.body) if is_error else json_of(reply.body)
        tokens = reported_tokens(data)
        error = error_of_response(reply.body) if is_error else read_error(data)
        if error is not None and error.is_filtered:
            return answer_of(chat, Utterance(finish_reason="content_filter"), *tokens)
        try:
            if error is not None:
                raise error.as_call_error(reply.status, reply.headers)
            with_calls = bool(chat.tools) and self.api == "chat"
            said = read_reply(data, _PATHS[self.api], limit=self._limit, with_calls=with_calls)
        except CallError as failure:
            raise charged(failure, tokens) from None
        return answer_of(chat, said, *tokens)

    @property
    def _limit(self) -> str:
        """The token limit of a request and where it is set, for errors."""
        for name, where in (("max_completion_tokens", "extra."), ("max_tokens", "")):
            if name in self.request:
                return f"{where}{name}={self.request[name]}"
        return "the limit of the endpoint (max_tokens is not set)"

    def _secret(self) -> str:
        optional = self.api_key_env == "OPENAI_API_KEY" and OPENAI_URL not in self.urls
        if optional and not os.environ.get(self.api_key_env):
            return "none"
        return read_variable(self.api_key_env, self.name)


def _plain_text(chat: Chat) -> str:
    system = [each["content"] + "\n\n" for each in chat.messages if each["role"] == "system"]
    rest = [each["content"] for each in chat.messages if each["role"] != "system"]
    return "".join([*system, *rest])


def _check_range(name: str, value: Any, low: float, high: float | None) -> None:
    if value is not None:
        allowed = f"{low} or more" if high is None else f"from {low} to {high}"
        check_number(name, value, lambda n: low <= n and (high is None or n <= high), allowed)
