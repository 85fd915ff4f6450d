"""Problem whose attacker is the baseline model, for estimates under ordinary use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.core.problem import Problem
from astra_rl.core.text import Conversation


class BaselineAttackerProblem(Problem[str, str]):
    """Problem in which the baseline model takes the role of the attacker.

    The baseline models the messages of ordinary users. Rewards are NaN and there are no trainable
    parameters, so the problem is for evaluation only.

    Args:
        problem: The problem whose target and baseline are used.
        sample_attacks: Returns the baseline's message for each context, for example
            `HFASTProblem.rollout_prompt_with_baseline`.
        brief: Replaces the attacker's brief; None keeps it, an empty text removes it.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        sample_attacks: Callable[[Sequence[str]], Sequence[str]],
        *,
        brief: str | None = None,
    ) -> None:
        super().__init__(problem.moderator)
        self.problem, self.sample_attacks, self.brief = problem, sample_attacks, brief

    def with_baseline_brief(self, context: str) -> str:
        """Return the context with the baseline's brief in place of the attacker's."""
        if self.brief is None:
            return context
        conversation = Conversation.of(context)
        return Conversation(
            conversation.prompt,
            turns=conversation.turns,
            system=conversation.system,
            brief=self.brief or None,
            facts=conversation.facts,
            separator=conversation.separator,
        )

    def conversing(self) -> contextlib.AbstractContextManager[None]:
        """See `Problem.conversing`."""
        return self.problem.conversing()

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        """Sample one message of the baseline per context."""
        return self.sample_attacks([self.with_baseline_brief(context) for context in contexts])

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return the target's response to each context."""
        return self.problem.rollout_prompt_with_target(contexts)

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return log-probabilities under the attacker, (B, T), see `Problem`."""
        return self.problem.get_attacker_logprobs(contexts, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return log-probabilities under the target, (B, T), see `Problem`."""
        return self.problem.get_target_logprobs(contexts, continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return log-probabilities under the baseline with its own brief, (B, T), see `Problem`."""
        contexts = [self.with_baseline_brief(context) for context in contexts]
        return self.problem.get_baseline_logprobs(contexts, continuations)

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the conversation with this turn appended."""
        return self.problem.advance(context, attack, response)

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Return NaN for every turn."""
        return [math.nan] * len(contexts)

    def parameters(self) -> Iterator[Parameter]:
        """Return an empty iterator; nothing is trainable."""
        return iter(())
