"""Pools of vLLM servers: token ids in and out, adapters by version, failed servers drained.

Servers are started by the user, one model per pool::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16

for an attacker, and without ``--enable-lora`` for a target, because vLLM gives no log-probabilities
of prompts where it runs adapters.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from astra_rl.core.text import FinishReason
from astra_rl.errors import ConfigurationError, EndpointError
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.models.adapter_versions import Adapter
from astra_rl.models.engines import EngineSampler
from astra_rl.models.generation import Sample, Sampling
from astra_rl.targets.call_errors import CallError, error_of_status
from astra_rl.targets.caller import run_in_background
from astra_rl.targets.credentials import check_url, read_variable
from astra_rl.targets.error_bodies import error_of_response
from astra_rl.targets.http_client import WebClients, json_of

OVERLOAD = 1.25
"""A server gets at most this many times its share of the distinct prompts of a call."""
MAX_REPLY_BYTES = 64_000_000


@dataclass
class _Server:
    """A server of the pool.

    Attributes:
        url: Its URL, without the path of the API.
        web: Opens clients.
        adapters: Names of the adapters that it has.
        failures: Failures in a row.
        not_before: Monotonic time before which it is not used again.
    """

    url: str
    web: WebClients
    adapters: set[str] = field(default_factory=set)
    failures: int = 0
    not_before: float = 0.0
    loading: asyncio.Lock | None = None


class _Request(NamedTuple):
    prompt: Sequence[int]
    seed: int
    span: tuple[int, int]


class ServerPool:
    """A model behind one or more vLLM servers.

    Rows with the same prompt go to the same server, so that siblings share its prefix cache, and no
    server gets more than `OVERLOAD` times its share. A server that fails is drained: its requests
    go to the others, and it is tried again after a wait that doubles with every failure.

    **Prompts are sent to the servers over the network**, unless they are on this machine.

    Args:
        servers: URLs, with or without ``/v1``.
        model: Name of the model at the servers (``--served-model-name``, else what was served).
        api_key_env: Environment variable with the key of the servers; None sends none.
        timeout: Seconds for a request, all of its tokens included.
        concurrency: Most concurrent requests per server.
        max_tries: Attempts per request, over all servers.
        first_wait: Seconds before a failed server is tried again, doubled for each further failure.
        gives_sampled_logprobs: Whether the servers were started with ``--logprobs-mode
            processed_logprobs``. Without it, log-probabilities at another temperature than 1 or
            with truncation are missing (NaN).

    Raises:
        ConfigurationError: No server, or a URL or the key is not valid.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(
        self,
        servers: Sequence[str],
        model: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        concurrency: int = 256,
        max_tries: int = 6,
        first_wait: float = 1.0,
        gives_sampled_logprobs: bool = False,
    ) -> None:
        if not servers:
            raise ConfigurationError("servers is empty; give the URL of at least one server.")
        self.model, self._key = model, api_key_env
        self._timeout, self._concurrency = timeout, concurrency
        self._max_tries, self._first_wait = max_tries, first_wait
        self._gives_sampled_logprobs = gives_sampled_logprobs
        self._servers = []
        for each in dict.fromkeys(url.rstrip("/").removesuffix("/v1") for url in servers):
            check_url(each, "servers")
            web = WebClients(each, timeout, MAX_REPLY_BYTES, concurrency)
            self._servers.append(_Server(each, web))
        self._headers()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score_spans: Sequence[tuple[int, int]] | None = None,
        adapter: Adapter | None = None,
    ) -> list[Sample]:
        """See `astra_rl.models.engines.Engine`."""
        spans = [(0, 0)] * len(prompts) if score_spans is None else score_spans
        requests = [_Request(*each) for each in zip(prompts, seeds, spans, strict=True)]
        batch = _Batch(self, requests, self._body(sampling, stop_ids, adapter), adapter, sampling)
        return run_in_background(batch.run())

    def unload(self, adapter: Adapter) -> None:
        """See `astra_rl.models.engines.Engine`; a server that does not answer keeps the name."""
        run_in_background(self._unload(adapter))

    def sleep(self) -> None:
        """See `astra_rl.models.engines.Engine`; servers keep their memory."""

    async def _unload(self, adapter: Adapter) -> None:
        for server in self._servers:
            if adapter.name not in server.adapters:
                continue
            server.adapters.discard(adapter.name)
            try:
                async with server.web.open(self._headers()) as client:
                    await _post(
                        server, client, "/v1/unload_lora_adapter", {"lora_name": adapter.name}
                    )
            except CallError as error:
                name = redact_message(server.url)
                logger.warning("%s: cannot unload %s: %s", name, adapter.name, error.reason)

    def order(self, prompt: Sequence[int]) -> list[int]:
        """Return the servers in the order in which they are used for a prompt.

        Highest random weight hashing: without one server, only its prompts move.
        """
        ids = ",".join(map(str, prompt)).encode()

        def weight(index: int) -> bytes:
            url = self._servers[index].url.encode()
            return hashlib.blake2b(url + b"\0" + ids, digest_size=8).digest()

        return sorted(range(len(self._servers)), key=weight)

    def assignment(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the index of the server of each prompt, if all servers are up."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        most = math.ceil(OVERLOAD * len(distinct) / len(self._servers))
        load: Counter[int] = Counter()
        chosen = {}
        for prompt in distinct:
            free = [index for index in self.order(prompt) if load[index] < most]
            chosen[prompt] = free[0]
            load[free[0]] += 1
        return [chosen[tuple(prompt)] for prompt in prompts]

    def _headers(self) -> dict[str, str]:
        if self._key is None:
            return {}
        return {"Authorization": f"Bearer {read_variable(self._key, 'rollout.servers')}"}

    def _body(
        self, sampling: Sampling, stop_ids: frozenset[int], adapter: Adapter | None
    ) -> dict[str, Any]:
        return {
            "model": self.model if adapter is None else adapter.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,  # stop_ids contains the end tokens
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }


class _Batch:
    """The requests of one call of a pool."""

    def __init__(
        self,
        pool: ServerPool,
        requests: Sequence[_Request],
        body: Mapping[str, Any],
        adapter: Adapter | None,
        sampling: Sampling,
    ) -> None:
        self.pool, self.requests, self.body = pool, requests, body
        self.adapter, self.sampling = adapter, sampling
        self.servers = pool._servers

    async def run(self) -> list[Sample]:
        preferred = self.pool.assignment([each.prompt for each in self.requests])
        headers = self.pool._headers()
        slots = [asyncio.Semaphore(self.pool._concurrency) for _ in self.servers]
        for server in self.servers:
            server.loading = asyncio.Lock()
        async with _Clients(self.servers, headers) as clients:
            tasks = [
                asyncio.ensure_future(self._answer(row, first, clients, slots))
                for row, first in enumerate(preferred)
            ]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self, row: int, first: int, clients: Sequence[Any], slots: Sequence[asyncio.Semaphore]
    ) -> Sample:
        request = self.requests[row]
        order = [first, *(each for each in self.pool.order(request.prompt) if each != first)]
        failure: CallError | None = None
        for _ in range(self.pool._max_tries):
            index = await self._next(order)
            server = self.servers[index]
            try:
                async with slots[index]:
                    await self._ensure_adapter(server, clients[index])
                    reply = await self._complete(server, clients[index], request)
                sample = self._read(request, reply)
            except CallError as error:
                failure = error
                if not error.retryable and not error.permanent:
                    break
                self._drain(server, error)
                # Last for this request: else one that is back at once could use up all its tries.
                order.append(order.pop(order.index(index)))
            else:
                server.failures = 0
                return sample
        assert failure is not None
        detail = redact_message(failure.detail)
        raise EndpointError(
            f"no server of {self.pool.model} answered ({', '.join(s.url for s in self.servers)}); "
            f"the last failure: {failure.reason}{f' ({detail})' if detail else ''}."
        )

    async def _next(self, order: Sequence[int]) -> int:
        """Return the first server that may be used, after waiting for one if there is none."""
        now = time.monotonic()
        index = next((each for each in order if self.servers[each].not_before <= now), None)
        if index is None:
            index = min(order, key=lambda each: self.servers[each].not_before)
            await asyncio.sleep(max(0.0, self.servers[index].not_before - now))
        return index

    def _drain(self, server: _Server, error: CallError) -> None:
        """Send a server nothing for a while; what it had loaded may be gone when it is back."""
        now = time.monotonic()
        if server.not_before > now:  # by another request of the same time
            return
        wait = max(
            self.pool._first_wait * 2.0 ** min(server.failures, 30), error.retry_after or 0.0
        )
        server.failures += 1
        server.not_before = now + min(wait, 60.0)
        server.adapters.clear()
        name = redact_message(server.url)
        logger.warning("%s: %s; its requests go to other servers", name, error.reason)

    async def _ensure_adapter(self, server: _Server, client: Any) -> None:
        adapter = self.adapter
        assert server.loading is not None
        async with server.loading:
            if adapter is None or adapter.name in server.adapters:
                return
            body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
            try:
                await _post(server, client, "/v1/load_lora_adapter", body)
            except CallError as error:
                if "already" not in error.detail:
                    raise _explained(server, error) from None
            server.adapters.add(adapter.name)

    async def _complete(self, server: _Server, client: Any, request: _Request) -> Any:
        body = {**self.body, "prompt": list(request.prompt), "seed": request.seed % 2**63}
        if request.span[1] > request.span[0]:
            body["prompt_logprobs"] = 0
        return json_of(await _post(server, client, "/v1/completions", body))

    def _read(self, request: _Request, reply: Any) -> Sample:
        """Read a reply, and check that it is of the adapter and the prompt that were sent."""
        try:
            choice = reply["choices"][0]
            ids = tuple(int(each) for each in choice["token_ids"])
            logprobs = [float(each) for each in choice["logprobs"]["token_logprobs"]]
            start, stop = request.span
            prompt = choice["prompt_token_ids"]
            scored = tuple(
                float(choice["prompt_logprobs"][place][str(request.prompt[place])]["logprob"])
                for place in range(start, stop)
            )
            served = reply["model"]
        except (KeyError, IndexError, TypeError, ValueError):
            raise CallError(
                "unparsable reply",
                "without token ids or log-probabilities, which vLLM 0.32 gives (return_token_ids)",
            ) from None
        if served != self.body["model"]:
            raise CallError("another version", f"{served!r} for {self.body['model']!r}")
        if list(prompt) != list(request.prompt):
            raise CallError("another prompt", "the token ids of the reply are not those sent")
        if len(logprobs) != len(ids) or not 0 < len(ids) <= self.body["max_tokens"]:
            raise CallError(
                "unparsable reply",
                f"{len(ids)} tokens and {len(logprobs)} log-probabilities; "
                f"{self.body['max_tokens']} tokens were asked for at most",
            )
        if self.sampling.temperature == 0:
            logprobs = [0.0] * len(ids)
        elif not (self.sampling.is_exact or self.pool._gives_sampled_logprobs):
            logprobs = [math.nan] * len(ids)
        finish: FinishReason = (
            "stop" if ids and ids[-1] in self.body["stop_token_ids"] else "length"
        )
        return Sample(ids, tuple(min(each, 0.0) for each in logprobs), finish, scored)


class _Clients:
    """One client per server, open together."""

    def __init__(self, servers: Sequence[_Server], headers: Mapping[str, str]) -> None:
        self._clients = [server.web.open(headers) for server in servers]

    async def __aenter__(self) -> list[Any]:
        return [await client.__aenter__() for client in self._clients]

    async def __aexit__(self, *error: object) -> None:
        for client in self._clients:
            await client.__aexit__(None, None, None)


async def _post(server: _Server, client: Any, path: str, body: Mapping[str, Any]) -> bytes:
    """Return the body of a reply.

    Raises:
        CallError: There is none, or its status is an error.
    """
    try:
        reply = await client.post(f"{server.url}{path}", json=dict(body))
        content = bytes(await reply.aread())
    except Exception as error:  # of the client
        raise server.web.error_of(error) from None
    if not 200 <= reply.status_code < 300:
        detail = error_of_response(content).message
        raise error_of_status(reply.status_code, reply.headers, detail)
    return content


def _explained(server: _Server, error: CallError) -> CallError:
    """Return why an adapter could not be loaded; a status of 404 is a server that may not."""
    if error.reason != "not found":
        return error
    return CallError(
        "adapters cannot be loaded",
        f"{server.url} has no /v1/load_lora_adapter; start it with --enable-lora and "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    )


def server_sampler(
    pool: ServerPool, *, staleness: int = 0, adapters: Path | None = None
) -> EngineSampler:
    """Return a sampler that runs one model on a pool of servers; another model is refused.

    Args:
        pool: The servers.
        staleness: See `EngineSampler`.
        adapters: Folder for adapters that the servers can read; None is a temporary folder, for
            servers on this machine.
    """
    served: list[PreTrainedModel] = []

    def start(model: PreTrainedModel, rank: int) -> ServerPool:
        if served and served[0] is not model:
            raise ConfigurationError(
                f"the servers of {pool.model} run one model, and another one was to be sampled "
                "from. Give each model servers of its own."
            )
        served[:] = [model]
        return pool

    return EngineSampler(start, staleness=staleness, adapters=adapters)
