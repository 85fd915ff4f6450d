"""Pools of vLLM servers: token ids in and out, weights by version, failed servers drained.

Servers are started by the user, one model per pool::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16
    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out

for an attacker that trains an adapter, and for one that trains all weights; and without either for
a target. vLLM gives no log-probabilities of prompts where it runs adapters.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedModel

from astra_rl.core.text import FinishReason
from astra_rl.errors import ConfigurationError, EndpointError
from astra_rl.ext.vllm.engine import LOADING, STARTED_WITH
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.models.adapter_versions import Adapter
from astra_rl.models.engines import EngineSampler
from astra_rl.models.generation import Sample, Sampling
from astra_rl.models.references import resolve_reference
from astra_rl.models.versions import FullWeights, Version
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
        weights: Version of the weights that it has been given; None if that is not known.
        failures: Failures in a row.
        not_before: Monotonic time before which it is not used again.
    """

    url: str
    web: WebClients
    adapters: set[str] = field(default_factory=set)
    weights: str | None = None
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

    A server has one version of its weights at a time. Calls with versions are made one after the
    other, and a server without the version that is asked for gets it first. Weights that a server
    was not started with are never taken for those that it was.

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
        self._exchanging = threading.Lock()
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
        version: Adapter | FullWeights | None = None,
    ) -> list[Sample]:
        """See `astra_rl.models.engines.Engine`."""
        spans = [(0, 0)] * len(prompts) if score_spans is None else score_spans
        requests = [_Request(*each) for each in zip(prompts, seeds, spans, strict=True)]
        options = _options(sampling, stop_ids)
        if isinstance(version, FullWeights):
            weights = _Weights(version, self.model, options)
            with self._exchanging:
                return run_in_background(_Batch(self, requests, weights, sampling, stop_ids).run())
        started = _Started(version, self.model, options)
        return run_in_background(_Batch(self, requests, started, sampling, stop_ids).run())

    def unload(self, version: Version) -> None:
        """See `astra_rl.models.engines.Engine`; a server that does not answer keeps the name."""
        run_in_background(self._unload(version))

    def has_started_weights(self) -> bool:
        """Whether no server that answers says that it has been given other weights."""
        return run_in_background(self._has_started_weights())

    async def _has_started_weights(self) -> bool:
        async with _Clients(self._servers, self._headers()) as clients:
            for server, client in zip(self._servers, clients, strict=True):
                try:
                    found = await _weights_of(server, client)
                except CallError:
                    continue
                if found != STARTED_WITH:
                    return False
        return True

    def sleep(self) -> None:
        """See `astra_rl.models.engines.Engine`; servers keep their memory."""

    async def _unload(self, version: Version) -> None:
        for server in self._servers:
            if version.name not in server.adapters:
                continue
            server.adapters.discard(version.name)
            try:
                async with server.web.open(self._headers()) as client:
                    await _post(
                        server, client, "/v1/unload_lora_adapter", {"lora_name": version.name}
                    )
            except CallError as error:
                name = redact_message(server.url)
                logger.warning("%s: cannot unload %s: %s", name, version.name, error.reason)

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


def _options(sampling: Sampling, stop_ids: frozenset[int]) -> dict[str, Any]:
    """Return the sampling parameters of a request, by the names of vLLM."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,  # stop_ids contains the end tokens
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def _options_of(request: _Request) -> dict[str, Any]:
    """Return those that requests of a call differ in."""
    scores = request.span[1] > request.span[0]
    return {"seed": request.seed % 2**63, **({"prompt_logprobs": 0} if scores else {})}


class _Reply(NamedTuple):
    """What a server answered: of which version and prompt, with log-probabilities of both."""

    version: str
    prompt: list[int]
    prompt_logprobs: Any
    ids: tuple[int, ...]
    logprobs: list[float]


class _Served(Protocol):
    """What samples at a server: how it gets there, how it is asked, and what it answers.

    Attributes:
        name: The version that each reply must have.
        path: Path of the requests.
    """

    name: str
    path: str

    async def prepare(self, server: _Server, client: Any) -> None:
        """Make a server ready for requests; called once for each server that gets some."""

    async def confirm(self, server: _Server, client: Any) -> None:
        """Raise if replies of a server may be of other weights, which they do not say."""

    def body(self, request: _Request) -> dict[str, Any]:
        """Return the body of a request."""

    def read(self, reply: Any) -> _Reply:
        """Read a reply; its errors are those of a reply without its parts."""


class _Started:
    """The weights that a server was started with, alone or with an adapter.

    Args:
        adapter: The adapter.
        model: Name of the model at the servers.
        options: Sampling parameters.
    """

    path = "/v1/completions"

    def __init__(self, adapter: Adapter | None, model: str, options: Mapping[str, Any]) -> None:
        self.adapter, self.options = adapter, options
        self.name = model if adapter is None else adapter.name

    async def prepare(self, server: _Server, client: Any) -> None:
        await self.confirm(server, client)
        if self.adapter is None or self.adapter.name in server.adapters:
            return
        body = {"lora_name": self.adapter.name, "lora_path": str(self.adapter.folder)}
        try:
            await _post(server, client, "/v1/load_lora_adapter", body)
        except CallError as error:
            if "already" not in error.detail:
                raise _explained(
                    error,
                    "adapters cannot be loaded",
                    f"{server.url} has no /v1/load_lora_adapter; start it with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                ) from None
        server.adapters.add(self.adapter.name)

    async def confirm(self, server: _Server, client: Any) -> None:
        found = await _weights_of(server, client)
        if found != STARTED_WITH:
            raise CallError(
                "other weights",
                f"{server.url} was given {found}, and the weights that it was started with were "
                "asked for. Start it again, and give each model servers of its own",
            )

    def body(self, request: _Request) -> dict[str, Any]:
        return {
            "model": self.name,
            "prompt": list(request.prompt),
            "return_token_ids": True,
            **self.options,
            **_options_of(request),
        }

    def read(self, reply: Any) -> _Reply:
        choice = reply["choices"][0]
        return _Reply(
            reply["model"],
            choice["prompt_token_ids"],
            choice.get("prompt_logprobs"),
            tuple(int(each) for each in choice["token_ids"]),
            [float(each) for each in choice["logprobs"]["token_logprobs"]],
        )


class _Weights:
    """Weights that a server is given; it names them in every reply.

    Args:
        version: The weights.
        model: Name of the model at the servers.
        options: Sampling parameters.
    """

    path = "/inference/v1/generate"

    def __init__(self, version: FullWeights, model: str, options: Mapping[str, Any]) -> None:
        self.version, self.model, self.options = version, model, options
        self.name = version.name

    async def prepare(self, server: _Server, client: Any) -> None:
        # Asked anew for each call: another run may have changed them, or stopped while it did.
        if await _weights_of(server, client) == self.name:
            if server.weights != self.name:  # its connection may have broken before this
                await _post(server, client, "/resume", {})
            server.weights = self.name
            return
        server.weights = None
        loading = f"{LOADING} {self.name}"
        # Whatever fails or is interrupted from here on, its weights are nobody's until they are
        # named again, and a server that stays paused is never taken for one that answers.
        try:
            await _post(server, client, "/update_weight_version", {"new_version": loading})
        except CallError as error:
            raise _explained(
                error,
                "weights cannot be handed over",
                f"{server.url} has no /update_weight_version; start it with VLLM_SERVER_DEV_MODE=1 "
                "and --enable-scale-out, where only this run can reach it",
            ) from None
        await _post(server, client, "/pause?mode=wait", {})
        await _check_named(server, client, loading)
        load = {"method": "reload_weights", "kwargs": {"weights_path": str(self.version.folder)}}
        try:
            await _post(server, client, "/collective_rpc", load)
        except CallError as error:
            raise CallError(
                "weights cannot be loaded",
                f"{server.url} cannot load {self.version.folder}, which it must be able to read "
                f"(rollout.attacker.adapters): {error.reason} {error.detail}",
                retryable=error.retryable,
            ) from None
        was_reset = json_of(await _post(server, client, "/reset_prefix_cache", {}))
        if was_reset.get("success") is not True:  # it is of the weights before
            raise CallError("prefix cache not reset", server.url, retryable=True)
        await _check_named(server, client, loading)
        await _post(server, client, "/update_weight_version", {"new_version": self.name})
        await _post(server, client, "/resume", {})
        server.weights = self.name

    async def confirm(self, server: _Server, client: Any) -> None:
        """Each reply names its weights."""

    def body(self, request: _Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "token_ids": list(request.prompt),
            "return_token_ids": True,
            "sampling_params": {**self.options, **_options_of(request), "detokenize": False},
        }

    def read(self, reply: Any) -> _Reply:
        choice = reply["choices"][0]
        found = {str(span["version"]) for span in choice["weight_versions"]}
        return _Reply(
            ", ".join(sorted(found)),
            reply["prompt_token_ids"],
            reply.get("prompt_logprobs"),
            tuple(int(each) for each in choice["token_ids"]),
            [float(each["logprob"]) for each in choice["logprobs"]["content"]],
        )


class _Batch:
    """The requests of one call of a pool."""

    def __init__(
        self,
        pool: ServerPool,
        requests: Sequence[_Request],
        served: _Served,
        sampling: Sampling,
        stop_ids: frozenset[int],
    ) -> None:
        self.pool, self.requests, self.served = pool, requests, served
        self.sampling, self.stop_ids = sampling, stop_ids
        self.servers = pool._servers
        self.ready: set[str] = set()

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
                samples = await asyncio.gather(*tasks)
                for server, client in zip(self.servers, clients, strict=True):
                    if server.url in self.ready:
                        await self._confirm(server, client)
                return samples
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _confirm(self, server: _Server, client: Any) -> None:
        """Raise if a server may have answered with other weights than were asked for."""
        try:
            await self.served.confirm(server, client)
        except CallError as error:
            if not error.retryable:  # else it does not answer; its replies were complete
                raise self._failed(error) from None

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
                    await self._prepare(server, clients[index])
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
        raise self._failed(failure)

    def _failed(self, failure: CallError) -> EndpointError:
        detail = redact_message(failure.detail)
        return EndpointError(
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
        server.weights = None
        self.ready.discard(server.url)
        name = redact_message(server.url)
        logger.warning("%s: %s; its requests go to other servers", name, error.reason)

    async def _prepare(self, server: _Server, client: Any) -> None:
        assert server.loading is not None
        async with server.loading:
            if server.url not in self.ready:
                await self.served.prepare(server, client)
                self.ready.add(server.url)

    async def _complete(self, server: _Server, client: Any, request: _Request) -> Any:
        return json_of(await _post(server, client, self.served.path, self.served.body(request)))

    def _read(self, request: _Request, reply: Any) -> Sample:
        """Read a reply, and check that it is of the version and the prompt that were sent."""
        try:
            version, prompt, prompt_logprobs, ids, logprobs = self.served.read(reply)
            scored = tuple(
                float(prompt_logprobs[place][str(request.prompt[place])]["logprob"])
                for place in range(*request.span)
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise CallError(
                "unparsable reply",
                "without token ids or log-probabilities, which vLLM 0.32 gives (return_token_ids)",
            ) from None
        if version != self.served.name:
            # A server that was started again has lost what it was given, and gets it again.
            is_lost = isinstance(self.served, _Weights)
            raise CallError(
                "another version", f"{version!r} for {self.served.name!r}", retryable=is_lost
            )
        if list(prompt) != list(request.prompt):
            raise CallError("another prompt", "the token ids of the reply are not those sent")
        most = self.sampling.max_new_tokens
        if len(logprobs) != len(ids) or not 0 < len(ids) <= most:
            raise CallError(
                "unparsable reply",
                f"{len(ids)} tokens and {len(logprobs)} log-probabilities; "
                f"{most} tokens were asked for at most",
            )
        if self.sampling.temperature == 0:
            logprobs = [0.0] * len(ids)
        elif not (self.sampling.is_exact or self.pool._gives_sampled_logprobs):
            logprobs = [math.nan] * len(ids)
        finish: FinishReason = "stop" if ids and ids[-1] in self.stop_ids else "length"
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
    return await _send(server, client.post(f"{server.url}{path}", json=dict(body)))


async def _send(server: _Server, request: Awaitable[Any]) -> bytes:
    try:
        reply = await request
        content = bytes(await reply.aread())
    except Exception as error:  # of the client
        raise server.web.error_of(error) from None
    if not 200 <= reply.status_code < 300:
        detail = error_of_response(content).message
        raise error_of_status(reply.status_code, reply.headers, detail)
    return content


async def _weights_of(server: _Server, client: Any) -> str:
    """Return what a server calls its weights; it can be given others in development mode only.

    Raises:
        CallError: It does not answer.
    """
    try:
        reply = json_of(await _send(server, client.get(f"{server.url}/weight_info")))
    except CallError as error:
        if error.retryable:
            raise
        return STARTED_WITH  # it has no such path
    return str(reply.get("weight_version"))


async def _check_named(server: _Server, client: Any, name: str) -> None:
    """Raise unless a server's weights have the name that they were given.

    Asked before and after a load: of two runs that load at a time, the one that named them first
    stops, so that the weights of the other one never get its name.

    Raises:
        CallError: Another run has named them, or the server does not answer.
    """
    found = await _weights_of(server, client)
    if found != name:
        raise CallError(
            "another run gives it weights",
            f"{server.url} has {found}. Give each run servers of its own",
            retryable=True,
        )


_NOT_FOUND = error_of_status(404, {}).reason


def _explained(error: CallError, reason: str, detail: str) -> CallError:
    """Return a failure with its reason, if it is of a server that lacks a path."""
    return CallError(reason, detail) if error.reason == _NOT_FOUND else error


def server_sampler(
    pool: ServerPool,
    *,
    staleness: int = 0,
    adapters: Path | None = None,
    started_with: str | None = None,
) -> EngineSampler:
    """Return a sampler that runs one model on a pool of servers; another model is refused.

    Args:
        pool: The servers.
        staleness: See `EngineSampler`.
        adapters: Folder for versions of adapters or weights that the servers can read; None is a
            temporary folder, for servers on this machine.
        started_with: Hub id or folder of the model that the servers were started with. Weights of
            a frozen model that was loaded from elsewhere are handed over; None: any frozen model
            is taken for theirs.
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

    def lacks(model: PreTrainedModel) -> bool:
        if started_with is not None and model.name_or_path != resolve_reference(started_with):
            return True
        return not pool.has_started_weights()

    return EngineSampler(start, staleness=staleness, adapters=adapters, lacks=lacks)
