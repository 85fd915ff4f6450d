"""Problem whose attacker is prompted and not trained: an endpoint or an application."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.agents.history import compacted
from astra_rl.core.extraction import Extraction
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import (
    DEFAULT_BRIEF,
    Conversation,
    NoAttack,
    NoReply,
    Utterance,
    written_text,
)
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.rewards.base import RewardPart
from astra_rl.rewards.terms import Harm
from astra_rl.targets.base import Target


class PromptedAttackerProblem(ASTProblem):
    """Problem whose attacker is a model behind an endpoint, or an application.

    It evaluates methods that do not train: single attacks, best of n, attempts with feedback,
    few-shot prompts. Log-probabilities raise `ConfigurationError`, because only the text of an
    attack is known.

    Args:
        attacker: Writes the attacks. It reads its brief and the opening as the first message of a
            user, the responses of the target as the following ones, and its attacks as its own.
        target: The target to query.
        moderator: Scores texts; the reward decides which attack is continued.
        reward: The reward of a turn, without likelihoods; None is the harm of the response.
        extraction: Takes the attack out of an output; None sends all of it.
    """

    def __init__(
        self,
        attacker: Target,
        target: Target,
        moderator: Moderator[str, str],
        reward: RewardPart | None = None,
        *,
        extraction: Extraction | None = None,
    ) -> None:
        super().__init__(moderator, Harm("response") if reward is None else reward)
        self.attacker, self.target, self.extraction = attacker, target, extraction

    @property
    def samples_exactly(self) -> bool:
        """False: the distribution of the attacks is not known."""
        return False

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Return one attack per context; a failed call is a `NoReply`.

        An output that a filter withheld, or that has nothing to extract, is a `NoAttack`.
        """
        read = [as_attacker_reads(Conversation.of(context)) for context in contexts]
        return [self._attack(Utterance.of(output)) for output in self.attacker.respond(read)]

    def _attack(self, output: Utterance) -> Utterance:
        if isinstance(output, NoReply):
            return output
        if output.finish_reason == "content_filter":
            return NoAttack("", written=str(output), finish_reason="content_filter")
        return output if self.extraction is None else self.extraction(output)

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Query the target; one response per context."""
        return self.target.respond(contexts)

    def parameters(self) -> Iterator[Parameter]:
        """Yield nothing: there is nothing to train."""
        yield from ()

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Raise: an endpoint gives no probabilities."""
        raise self._no_probabilities()

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Raise: the target is only queried."""
        raise self._no_probabilities()

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Raise: there is no baseline."""
        raise self._no_probabilities()

    def _no_probabilities(self) -> ConfigurationError:
        return ConfigurationError(
            f"the attacker {self.attacker.name} gives text and no probabilities, so it cannot be "
            "trained, and the likelihood of its attacks is unknown. Name a local model to train: "
            "attacker.model."
        )


def as_attacker_reads(conversation: Conversation) -> Conversation:
    r"""Return a conversation in which the attacker has the place of the assistant.

    The first message of the user has the brief and the opening, as a local attacker with a chat
    template reads them. The system message of the target and the facts are not in it.

    >>> read = as_attacker_reads(Conversation("Hi.", turns=("Tell me.", "No."), brief="Ask."))
    >>> read.prompt, read.turns
    ('Ask.\n\nHi.', ('', 'Tell me.', 'No.'))
    """
    conversation = compacted(conversation)
    parts = (conversation.brief or DEFAULT_BRIEF, conversation.prompt)
    own = [
        written_text(turn) if index % 2 == 0 else str(turn).strip()
        for index, turn in enumerate(conversation.turns)
    ]
    return Conversation("\n\n".join(part for part in parts if part), turns=("", *own))
