"""Answers of a local model to given prompts, with the exact probability of any answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import generate_turns
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.models.generation import Sampler, Sampling
from astra_rl.models.rendering import ConversationRenderer, same_vocabulary
from astra_rl.models.scoring import continuation_logprobs


@dataclass(frozen=True)
class AnswerModel:
    """A causal language model that answers conversations which end in a message to it.

    Attributes:
        name: Name in results.
        pair: Model and tokenizer.
        renderer: Renders conversations for the model.
        sampling: Sampling parameters of answers, without truncation (`top_k`, `top_p`).
        steer: Text that is added to the system message of every conversation; empty: none.

    Raises:
        ConfigurationError: Answers are not sampled from a distribution that can be scored, or
            there is no system message to add `steer` to.
    """

    name: str
    pair: ModelPair
    renderer: ConversationRenderer
    sampling: Sampling
    steer: str = ""

    def __post_init__(self) -> None:
        if not (self.sampling.temperature and self.sampling.top_p == 1 and not self.sampling.top_k):
            raise ConfigurationError(
                f"{self.name} samples answers with temperature={self.sampling.temperature}, "
                f"top_k={self.sampling.top_k}, top_p={self.sampling.top_p}, so some answers have "
                "no probability that could weigh them. Set a temperature above 0, top_k=0 and "
                "top_p=1."
            )
        if self.steer and not self.renderer.chat:
            raise ConfigurationError(
                f"{self.name} has no chat template, so there is no system message to add the text "
                "of --steer to. Use another proposal."
            )

    def check_same_answers(self, other: AnswerModel) -> None:
        """Check that both models give a probability to the same answers, and read them alike.

        Raises:
            ConfigurationError: They differ in the vocabulary, in how tokens are read, for instance
                because one has no chat template, or in the length.
        """
        same = (
            same_vocabulary(self.pair.tokenizer, other.pair.tokenizer)
            and self.renderer.reads_like(other.renderer)
            and self.sampling.max_new_tokens == other.sampling.max_new_tokens
        )
        if not same:
            raise ConfigurationError(
                f"{other.name} and {self.name} differ in the vocabulary, the end tokens, the chat "
                "format or max_new_tokens, so an answer of one has no probability under the other, "
                "or is another text there. Use a copy of the target as the proposal, with the same "
                "chat and max_new_tokens."
            )

    def answer(self, conversations: Sequence[str], sampler: Sampler) -> list[Utterance]:
        """Sample one answer per conversation, with the seeds of the enclosing `row_seeds`."""
        steered = [self._steered(each) for each in conversations]
        return generate_turns(self.pair.model, self.renderer, steered, self.sampling, sampler, None)

    def logprobs(
        self, conversations: Sequence[str], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """Return the natural log-probability of each answer under the sampling distribution.

        Args:
            conversations: What the answers are given to.
            answers: Token ids, with the end token of a complete answer.
        """
        reserve = self.sampling.max_new_tokens
        prompts = [
            self.renderer.render(self._steered(each), reserve=reserve).ids for each in conversations
        ]
        with torch.no_grad():
            found = continuation_logprobs(
                self.pair.model, prompts, answers, temperature=self.sampling.temperature
            )
        return [float(each) for each in found.double().sum(dim=1)]

    def _steered(self, conversation: str) -> Conversation:
        found = Conversation.of(conversation)
        if not self.steer:
            return found
        return Conversation(
            found.prompt,
            turns=found.turns,
            system="\n\n".join(filter(None, (found.system, self.steer))),
            brief=found.brief,
            facts=found.facts,
            separator=found.separator,
        )
