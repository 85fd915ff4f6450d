"""What a problem asks of the target: of one in this process, and of one that only answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.contracts import check_length
from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import score, speak, without_end
from astra_rl.logging import logger
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.dialogue import DialogueView
from astra_rl.models.embedding import mean_hidden_states
from astra_rl.models.generation import Sampler, Sampling
from astra_rl.targets.base import Target

LogProbs = Callable[[Sequence[str], Sequence[str]], Tensor]


class UnderTest(Protocol):
    """The target as a problem sees it; see the methods of `HFASTProblem` of the same names."""

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, memory: ConversationCache | None
    ) -> list[Utterance]:
        """Return a response per context that ends in an attack."""

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Score attacks, (B, T)."""

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score beginnings of responses, (B, T)."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return a vector per text, (N, H)."""


class LocalTarget:
    """A language model in this process: everything of it can be read.

    Args:
        model: Its weights.
        view: How it sees a conversation.
        sampling: How it answers.
    """

    def __init__(self, model: PreTrainedModel, view: DialogueView, sampling: Sampling) -> None:
        self.model, self.view, self.sampling = model, view, sampling

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, memory: ConversationCache | None
    ) -> list[Utterance]:
        """Sample responses, and keep how likely the target found the attacks."""
        return speak(self.model, self.view, contexts, self.sampling, sampler, memory)

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Score attacks as the target hears them, in its own tokens."""
        check_length(attacks, len(contexts), source="the caller's list of continuations")
        room = self.sampling.max_new_tokens
        rendered = [
            self.view.render(Conversation.of(context) + attack, room=room)
            for context, attack in zip(contexts, attacks, strict=True)
        ]
        return score(
            self.model,
            [each.ids[: each.heard[0]] for each in rendered],
            [each.ids[slice(*each.heard)] for each in rendered],
        )

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score beginnings of responses; their ends are not scored, for they may go on."""
        check_length(responses, len(contexts), source="the caller's list of responses")
        said = [without_end(self.view, self.view.said_ids(str(each))) for each in responses]
        prompts = [
            self.view.render(Conversation.of(context), room=len(ids)).ids
            for context, ids in zip(contexts, said, strict=True)
        ]
        return score(self.model, prompts, said)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return mean last hidden states."""
        return embedded(self.model, self.view, texts)


class BlackBoxTarget:
    """A target that only answers. Its likelihood of an attack is taken to be the baseline's.

    Args:
        target: What is asked.
        baseline_logprobs: Scores attacks under the baseline.
    """

    def __init__(self, target: Target, baseline_logprobs: LogProbs) -> None:
        self.target, self.baseline_logprobs = target, baseline_logprobs
        self._said = False

    def respond(
        self, contexts: Sequence[str], sampler: Sampler, memory: ConversationCache | None
    ) -> list[Utterance]:
        """Ask; what is no `Utterance` yet is made one."""
        replies = self.target.respond(contexts)
        check_length(replies, len(contexts), source=f"{type(self.target).__name__}.respond")
        return [each if isinstance(each, Utterance) else Utterance(each) for each in replies]

    def attack_logprobs(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Score attacks under the baseline, and say so once."""
        if not self._said:
            self._said = True
            logger.warning("%s: %s", self.target.name, NO_LIKELIHOODS)
        return self.baseline_logprobs(contexts, attacks)

    def response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Refuse.

        Raises:
            ConfigurationError: Always.
        """
        raise self._refusal("the probability of a response")

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Refuse.

        Raises:
            ConfigurationError: Always.
        """
        raise self._refusal("hidden states")

    def _refusal(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.target.name} only answers: {what} cannot be read from it. Use a local target, "
            "or another part of the reward."
        )


NO_LIKELIHOODS = (
    "it gives no probabilities, so wherever the target's likelihood of an attack is asked for, "
    "that of the baseline is used"
)


def embedded(model: PreTrainedModel, view: DialogueView, texts: Sequence[str]) -> Tensor:
    """Return the mean last hidden state of each text, (N, H) float32."""
    ids = [without_end(view, view.said_ids(str(text)))[: view.window] for text in texts]
    return mean_hidden_states(model, ids)
