"""The baseline of ordinary use in the attacker's place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.core.problem import Problem
from astra_rl.core.text import Conversation


class BaselineAttackerProblem(Problem[str, str]):
    """A problem whose attacks are what ordinary use would say.

    Nothing is rewarded: there is nothing to learn from it.

    Args:
        problem: Runs the models; its target answers.
        say: What the baseline says in contexts, for instance
            `HFASTProblem.rollout_prompt_with_baseline`.
        brief: What somebody in ordinary use is told in the place of the attacker's brief; None
            leaves that, and an empty text tells nothing.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        say: Callable[[Sequence[str]], Sequence[str]],
        *,
        brief: str | None = None,
    ) -> None:
        super().__init__(problem.moderator)
        self.problem, self.say, self.brief = problem, say, brief

    def with_baseline_brief(self, context: str) -> str:
        """Return a context as somebody in ordinary use sees it."""
        if self.brief is None:
            return context
        known = Conversation.of(context)
        return Conversation(
            known.prompt,
            turns=known.turns,
            system=known.system,
            brief=self.brief or None,
            facts=known.facts,
            separator=known.separator,
        )

    def conversing(self) -> contextlib.AbstractContextManager[None]:
        """See `Problem.conversing`."""
        return self.problem.conversing()

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        """Say what the baseline says."""
        return self.say([self.with_baseline_brief(context) for context in contexts])

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Let the target answer."""
        return self.problem.rollout_prompt_with_target(contexts)

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score what was said under the attacker of the problem."""
        return self.problem.get_attacker_logprobs(contexts, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Score what was said under the target."""
        return self.problem.get_target_logprobs(contexts, continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score what was said under the baseline, told what ordinary use is told."""
        told = [self.with_baseline_brief(context) for context in contexts]
        return self.problem.get_baseline_logprobs(told, continuations)

    def advance(self, context: str, attack: str, response: str) -> str:
        """Append the turn."""
        return self.problem.advance(context, attack, response)

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Return NaN for every turn."""
        return [math.nan] * len(contexts)

    def parameters(self) -> Iterator[Parameter]:
        """Yield nothing."""
        return iter(())
