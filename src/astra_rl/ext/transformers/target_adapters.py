"""Target adapters: one interface for in-process models and black-box targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.contracts import check_length
from astra_rl.core.seeding import current_row_seeds, row_seeds
from astra_rl.core.text import Conversation, Utterance
from astra_rl.distributed.broker import ask, introduce, is_shared
from astra_rl.distributed.records import pack_texts, unpack_texts
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import (
    ensure_nonempty_prompts,
    generate_turns,
    score_continuations,
    strip_end_token,
    with_padding_marked,
)
from astra_rl.ext.transformers.slots import slot_token_ids
from astra_rl.logging import logger
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.embedding import mean_hidden_states
from astra_rl.models.engines import Engine, EngineAlone, engine_logprobs
from astra_rl.models.generation import Sampler, Sampling
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.targets.base import Target

LogProbs = Callable[[Sequence[str], Sequence[str]], Tensor]
"""Function of contexts and continuations that returns log-probabilities, (B, T) float32."""


class TargetAdapter(Protocol):
    """Operations that a problem needs from its target."""

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, prefix_cache: ConversationCache | None
    ) -> list[Utterance]:
        """Return one response per context; each context ends in an attack."""

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Return log-probabilities of attacks, (B, T) float32, padded with zeros."""

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return log-probabilities of response prefixes, (B, T) float32, padded with zeros."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one embedding per text, (N, H) float32."""


class _RenderedTarget(ABC):
    """Target whose prompts are rendered here, with access to its probabilities.

    Args:
        renderer: Renders conversations for the target.
        sampling: Sampling parameters of responses.
    """

    _tokens_after: ClassVar[int] = 0
    """Tokens that are sampled after those that are scored."""

    def __init__(self, renderer: ConversationRenderer, sampling: Sampling) -> None:
        self.renderer, self.sampling = renderer, sampling

    @abstractmethod
    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return log-probabilities of token ids, (B, T) float32; zero marks padding."""

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Return log-probabilities of attacks, (B, T) float32, in the target's tokens.

        An agent reads an attack in its slot, see `slot_token_ids`.
        """
        check_length(attacks, len(contexts), source="the caller's list of continuations")
        rows = [
            slot_token_ids(self.renderer, context, attack) or self._as_message(context, attack)
            for context, attack in zip(contexts, attacks, strict=True)
        ]
        return self.score([prompt for prompt, _ in rows], [ids for _, ids in rows])

    def _as_message(self, context: str, attack: str) -> tuple[Sequence[int], Sequence[int]]:
        """Return the token ids before an attack that is a message of the user, and its own."""
        said = Conversation.of(context) + attack
        found = self.renderer.render(said, reserve=self.sampling.max_new_tokens)
        start, end = found.last_turn
        return found.ids[:start], found.ids[start:end]

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return log-probabilities of response prefixes, (B, T) float32; no end token is scored."""
        check_length(responses, len(contexts), source="the caller's list of responses")
        prefixes = [
            strip_end_token(self.renderer, self.renderer.utterance_ids(str(response)))
            for response in responses
        ]
        prompts = [
            self.renderer.render(
                Conversation.of(context), reserve=len(ids) + self._tokens_after
            ).ids
            for context, ids in zip(contexts, prefixes, strict=True)
        ]
        return self.score(prompts, prefixes)


class LocalTarget(_RenderedTarget):
    """Target that is a language model in this process, with access to its probabilities.

    Args:
        model: The language model.
        renderer: Renders conversations for the target.
        sampling: Sampling parameters of responses.
    """

    def __init__(
        self, model: PreTrainedModel, renderer: ConversationRenderer, sampling: Sampling
    ) -> None:
        super().__init__(renderer, sampling)
        self.model = model

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, prefix_cache: ConversationCache | None
    ) -> list[Utterance]:
        """Sample responses; each also has the log-probabilities of the attack it answers."""
        return generate_turns(
            self.model, self.renderer, contexts, self.sampling, sampler, prefix_cache
        )

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Tensor:
        """See `score_continuations`."""
        return score_continuations(self.model, prompts, continuations)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return mean last hidden states, (N, H) float32."""
        return embed_texts(self.model, self.renderer, texts)


class EngineTarget(_RenderedTarget):
    """Target in an inference engine, with access to its probabilities, not to its hidden states.

    Args:
        name: Name of the target, for messages.
        engine: The engine.
        renderer: Renders conversations for the target.
        sampling: Sampling parameters of responses.
    """

    _tokens_after = 1

    def __init__(
        self, name: str, engine: Engine, renderer: ConversationRenderer, sampling: Sampling
    ) -> None:
        super().__init__(renderer, sampling)
        self.name, self.engine = name, engine
        self._sampler = EngineAlone(engine)

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, prefix_cache: ConversationCache | None
    ) -> list[Utterance]:
        """Sample responses; each also has the log-probabilities of the attack it answers."""
        return generate_turns(None, self.renderer, contexts, self.sampling, self._sampler, None)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Tensor:
        """See `engine_logprobs`."""
        prompts, continuations = ensure_nonempty_prompts(prompts, continuations)
        scored = engine_logprobs(self.engine, prompts, continuations)
        return with_padding_marked(scored, continuations)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Not available.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"{self.name} runs in an inference engine, which gives no hidden states. Use "
            "rollout.target: own, or a reward that does not need them."
        )


class BlackBoxTarget:
    """Target without access to probabilities; the baseline's are used for attacks.

    In a training on several processes the first one queries it for all, see
    `astra_rl.distributed.broker.Endpoint`.

    Args:
        target: The target.
        baseline_logprobs: Returns log-probabilities of attacks under the baseline.
    """

    def __init__(self, target: Target, baseline_logprobs: LogProbs) -> None:
        self.target, self.baseline_logprobs = target, baseline_logprobs
        self._warned = False
        introduce(self)

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, prefix_cache: ConversationCache | None
    ) -> list[Utterance]:
        """Query the target; plain strings are wrapped as utterances."""
        if not is_shared():
            return self._answered(contexts)
        seeds = current_row_seeds(len(contexts))
        return list(map(Utterance.of, ask(self, list(zip(contexts, seeds, strict=True)))))

    def _answered(self, contexts: Sequence[str]) -> list[Utterance]:
        responses = self.target.respond(contexts)
        check_length(responses, len(contexts), source=f"{type(self.target).__name__}.respond")
        return [each if isinstance(each, Utterance) else Utterance(each) for each in responses]

    @property
    def address(self) -> str:
        """See `astra_rl.distributed.broker.Endpoint`."""
        return f"target {self.target.identity}"

    def pack(self, item: tuple[str, int]) -> Any:
        """Return a context and the seed of its row as JSON values."""
        return pack_texts(item)

    def unpack(self, packed: Any) -> tuple[str, int]:
        """Return the item of `pack`."""
        context, seed = unpack_texts(packed)
        return context, seed

    def answer(self, items: Sequence[tuple[str, int]]) -> list[Utterance]:
        """Return the response to each context, from this process."""
        with row_seeds([seed for _, seed in items]):
            return self._answered([context for context, _ in items])

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Return the baseline's log-probabilities of attacks, with a warning on the first call."""
        if not self._warned:
            self._warned = True
            logger.warning("%s: %s", self.target.name, NO_LOGPROBS_WARNING)
        return self.baseline_logprobs(contexts, attacks)

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Not available.

        Raises:
            ConfigurationError: Always.
        """
        raise self._unavailable("log-probabilities of responses")

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Not available.

        Raises:
            ConfigurationError: Always.
        """
        raise self._unavailable("hidden states")

    def _unavailable(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.target.name} is a black-box target and gives no {what}. Use a local target, or "
            "a reward that does not need them."
        )


NO_LOGPROBS_WARNING = (
    "a black-box target gives no probabilities; the baseline's log-probabilities of attacks are "
    "used instead"
)


def embed_texts(
    model: PreTrainedModel, renderer: ConversationRenderer, texts: Sequence[str]
) -> Tensor:
    """Return the mean last hidden state of each text, (N, H) float32."""
    ids = [
        strip_end_token(renderer, renderer.utterance_ids(str(text)))[: renderer.window]
        for text in texts
    ]
    return mean_hidden_states(model, ids)
