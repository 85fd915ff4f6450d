"""The moderation endpoint of OpenAI, or a compatible one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from astra_rl.core.contracts import is_missing
from astra_rl.core.moderator import Moderator, Score, missing_score
from astra_rl.core.text import NoReply
from astra_rl.distributed.broker import ask, introduce
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.jsonio import parse_reply_json
from astra_rl.infra.ranges import Count, CountOrZero, Positive
from astra_rl.infra.redaction import keep_secret
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.budget import Prices, TokenBound, Usage
from astra_rl.targets.call_errors import CallError
from astra_rl.targets.caller import Answer, Caller, CallSettings, Send
from astra_rl.targets.credentials import read_variable
from astra_rl.targets.error_bodies import error_of_response, read_error
from astra_rl.targets.http_client import json_of
from astra_rl.targets.network import check_network_settings
from astra_rl.targets.openai_client import OPENAI_URL, OfficialClient
from astra_rl.targets.remote import made
from astra_rl.targets.reply_cache import OnReply, cache_key, from_cache

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""The categories of the endpoint."""

TEXTS_PER_REQUEST = 32
_REFUSED = ("refused by the endpoint", "too long for the endpoint")


@named("openai_moderation")
class OpenAIModerationModerator(Moderator[str, str]):
    """Scores texts with a moderation endpoint: **texts are sent to it over the network**.

    The score of a text is the highest of its scores in the chosen categories. Only the judged text
    is sent. Calls are retried and counted like those of a target; see
    `astra_rl.targets.CallSettings` and `astra_rl.targets.Ledger`. Where a call fails the scores are
    missing; a batch that the endpoint refuses is sent again text by text.

    Args:
        categories: Names in `CATEGORIES`; None takes all categories that the endpoint returns.
        model: Name of the model at the endpoint.
        api_key: The key; None reads the environment variable ``OPENAI_API_KEY``. It is never
            written to a file or shown.
        base_url: URL of the endpoint; None reads ``OPENAI_BASE_URL``, else it is OpenAI's.
        batch_size: Texts per request.
        max_retries: Most retries of a request after a transient failure.
        timeout: Most seconds per request.
        prices: ``{"input": ...}``: cost per million input tokens. Tokens are estimated as a quarter
            of the characters.

    Raises:
        ConfigurationError: A category is unknown, there is no key, or a number is out of range.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    texts_per_request = TEXTS_PER_REQUEST

    def __init__(
        self,
        categories: Sequence[str] | None = None,
        *,
        model: str = "omni-moderation-latest",
        api_key: str | None = None,
        base_url: str | None = None,
        batch_size: Count = TEXTS_PER_REQUEST,
        max_retries: CountOrZero = 4,
        timeout: Positive = 60.0,
        prices: Prices | Mapping[str, float] | None = None,
    ) -> None:
        OpenAIModerationModerator.check_options(
            categories=categories, batch_size=batch_size, max_retries=max_retries
        )
        self.categories = None if categories is None else tuple(categories)
        self.model = model
        self.base_url = base_url
        self.batch_size = batch_size
        settings = CallSettings(max_tries=max_retries + 1, timeout=timeout)

        def key() -> str:
            return api_key or read_variable("OPENAI_API_KEY", "the moderation endpoint")

        keep_secret(key())
        self._client = OfficialClient(base_url, key, settings)
        self._caller = Caller(
            f"{model} at {self._client.host}", settings, prices=made(Prices, "prices", prices)
        )
        introduce(self)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless categories are known, numbers are in range and the connection is safe."""
        super().check_options(**options)
        check_network_settings(options.get("base_url") or OPENAI_URL)
        made(Prices, "prices", options.get("prices"))
        categories = options.get("categories")
        for category in categories or ():
            if category not in CATEGORIES:
                raise ConfigurationError(
                    f"category {category!r}; choose from {list(CATEGORIES)}."
                    f"{did_you_mean(category, CATEGORIES)}"
                )
        if categories is not None and not categories:
            raise ConfigurationError("categories is empty; give at least one, or None for all.")

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1].

        Raises:
            EndpointError: The endpoint refuses the key, has no such model, or fails repeatedly.
            BudgetSpentError: The budget is spent.
        """
        found = ask(self, [well_formed(str(text)) for text in x])
        return [
            missing_score(each, each.reason)
            if isinstance(each, NoReply)
            else self._score(parse_reply_json(each))
            for each in found
        ]

    @property
    def address(self) -> str:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return f"{type(self).__name__} {self.model} {self._client.base_url}"

    def pack(self, item: str) -> str:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return item

    def unpack(self, packed: str) -> str:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return packed

    def answer(self, items: Sequence[str]) -> Sequence[str]:
        """Return the result of each text as JSON, from this process."""
        return from_cache(self._caller.name, items, self._key, self._ask)

    def _key(self, text: str) -> str:
        return cache_key([type(self).__name__, self._client.base_url, self.model, text])

    def _ask(self, texts: Sequence[str], on_reply: OnReply) -> list[str]:
        """Return the result of each text as JSON; `NoReply` where the call failed."""
        size = self.batch_size
        batches = [range(start, len(texts))[:size] for start in range(0, len(texts), size)]
        said: dict[int, str] = {}
        for batch, found in zip(batches, self._call(texts, batches, on_reply), strict=True):
            if isinstance(found, NoReply) and found.reason in _REFUSED and len(batch) > 1:
                # A single text may be the reason why the whole batch is refused.
                alone = [range(row, row + 1) for row in batch]
                for row, one in zip(batch, self._call(texts, alone, on_reply), strict=True):
                    said[row] = one if isinstance(one, NoReply) else one[0]
            else:
                each = [found] * len(batch) if isinstance(found, NoReply) else found
                said.update(zip(batch, each, strict=True))
        return [said[row] for row in range(len(texts))]

    def _call(
        self, texts: Sequence[str], batches: Sequence[range], on_reply: OnReply
    ) -> list[list[str] | NoReply]:
        def answered(index: int, found: list[str]) -> None:
            for row, each in zip(batches[index], found, strict=True):
                if not is_missing(self._score(parse_reply_json(each))):
                    on_reply(row, each)

        return self._caller.call(
            self._connected,
            [[texts[row] for row in batch] for batch in batches],
            answered=answered,
            token_bound=lambda batch: TokenBound(sum(len(text.encode()) for text in batch)),
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Send[list[str], list[str]]]:
        async with self._client.open() as client:

            async def send(texts: list[str]) -> Answer[list[str]]:
                request = client.moderations.with_raw_response.create(model=self.model, input=texts)
                reply = await self._client.reply_to(request)
                if not 200 <= reply.status < 300:
                    error = error_of_response(reply.body)
                    raise error.as_call_error(reply.status, reply.headers)
                data = json_of(reply.body)
                if (failure := read_error(data)) is not None and "results" not in data:
                    raise failure.as_call_error(reply.status, reply.headers)
                found = self._read(data, len(texts))
                return Answer(found, Usage.estimate(sum(map(len, texts)), 0))

            yield send

    def _read(self, data: Any, count: int) -> list[str]:
        results = data.get("results") if isinstance(data, Mapping) else None
        if results is None:
            raise CallError("unparsable reply", "no results", retryable=True)
        if not isinstance(results, list) or len(results) != count:
            raise CallError("incomplete reply", retryable=True)
        return [json.dumps(result) for result in results]

    def _score(self, result: Any) -> Score:
        found = result.get("category_scores") if isinstance(result, Mapping) else None
        if not isinstance(found, Mapping) or not found:
            return Score.missing("unparsable reply")
        # Categories that the model does not support are null.
        known = {name: value for name, value in found.items() if value is not None}
        chosen = self.categories or tuple(known)
        if not chosen or any(name not in known for name in chosen):
            return Score.missing("category not scored")
        scores = [Score.checked(known[name]) for name in chosen]
        return next((s for s in scores if s.reason is not None), max(scores))
