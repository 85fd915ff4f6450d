"""The moderation endpoint of OpenAI, or any that speaks like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_rl.core.jsonio import parse_json
from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.text import well_formed
from astra_rl.errors import ConfigurationError, ModelError, did_you_mean, require

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
"""What the endpoint scores."""

_HOPELESS = (401, 403, 404)
_REASONS = {400: "refused by the endpoint", 413: "too long for the endpoint", 429: "rate limited"}


class OpenAIModerationModerator(Moderator[str, str]):
    """Scores texts with a moderation endpoint, by its own client: **texts leave your machine**.

    The score of a text is its highest among the chosen categories. Nothing but the text itself is
    sent, of an exchange the one that is judged. What the endpoint does not answer, after the
    client's own retries, is missing; a batch that it refuses is asked again text by text.

    Args:
        categories: Of `CATEGORIES`; None takes all that the endpoint scores.
        model: What the endpoint calls the model.
        api_key: None takes the environment variable ``OPENAI_API_KEY``. It is kept by the client
            only.
        base_url: Of another endpoint; None takes ``OPENAI_BASE_URL``, or OpenAI's own.
        batch_size: Texts per request.
        max_retries: Further tries of a request that failed for reasons that may pass.
        timeout: Seconds that a request may take.

    Raises:
        ConfigurationError: There is no such category, no key, or a number is out of range.
        MissingDependencyError: The extra ``openai`` is not installed.
    """

    def __init__(
        self,
        categories: Sequence[str] | None = None,
        *,
        model: str = "omni-moderation-latest",
        api_key: str | None = None,
        base_url: str | None = None,
        batch_size: int = 32,
        max_retries: int = 4,
        timeout: float = 60.0,
    ) -> None:
        for category in categories or ():
            if category not in CATEGORIES:
                raise ConfigurationError(
                    f"category {category!r}; choose from {list(CATEGORIES)}."
                    f"{did_you_mean(category, CATEGORIES)}"
                )
        if categories is not None and not categories:
            raise ConfigurationError("categories is empty; give at least one, or None for all.")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}; it must be at least 1.")
        self.categories = None if categories is None else tuple(categories)
        self.model = model
        self.base_url = base_url
        self.batch_size = batch_size
        self._openai = require("openai", extra="openai")
        try:
            self._client = self._openai.OpenAI(
                api_key=api_key, base_url=base_url, max_retries=max_retries, timeout=timeout
            )
        except self._openai.OpenAIError as error:
            raise ConfigurationError(
                "the moderation endpoint needs a key; set the environment variable OPENAI_API_KEY, "
                "or pass api_key."
            ) from error

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1].

        Raises:
            ModelError: The endpoint refuses the key, or knows no such model: no text would ever be
                scored.
        """
        scores: list[float] = []
        for start in range(0, len(x), self.batch_size):
            scores += self._ask(
                [well_formed(str(text)) for text in x[start : start + self.batch_size]]
            )
        return scores

    def _ask(self, texts: Sequence[str]) -> list[Score]:
        try:
            # Raw, because the client would take a reply of another form for what it should be.
            raw = self._client.moderations.with_raw_response
            reply = raw.create(model=self.model, input=list(texts)).http_response.content
            results = parse_json(reply)["results"]
        except self._openai.APIStatusError as error:
            if error.status_code in _HOPELESS:
                raise ModelError(
                    f"the moderation endpoint answered {error.status_code}; check the key and "
                    f"model={self.model!r}."
                ) from error
            if error.status_code in (400, 413) and len(texts) > 1:
                return [score for text in texts for score in self._ask([text])]
            known = _REASONS.get(error.status_code)
            return [Score.missing(known or f"endpoint error {error.status_code}")] * len(texts)
        except self._openai.APITimeoutError:
            return [Score.missing("timed out")] * len(texts)
        except self._openai.APIConnectionError:
            return [Score.missing("no connection")] * len(texts)
        except (KeyError, TypeError, ValueError, RecursionError):
            return [Score.missing("unparsable reply")] * len(texts)
        if not isinstance(results, list) or len(results) != len(texts):
            return [Score.missing("incomplete reply")] * len(texts)
        return [self._score(result) for result in results]

    def _score(self, result: Any) -> Score:
        found = result.get("category_scores") if isinstance(result, Mapping) else None
        if not isinstance(found, Mapping) or not found:
            return Score.missing("unparsable reply")
        # A category that the model does not know comes back as null.
        known = {name: value for name, value in found.items() if value is not None}
        chosen = self.categories or tuple(known)
        if not chosen or any(name not in known for name in chosen):
            return Score.missing("category not scored")
        scores = [Score.checked(known[name]) for name in chosen]
        return next((s for s in scores if s.reason is not None), max(scores))
