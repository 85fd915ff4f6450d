"""How the models of an episode are run."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal

from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.core.common import ActionT, StateT
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError

FrozenModel = Literal["target", "baseline"]
"""A model that is not trained."""


class Problem(ABC, Generic[StateT, ActionT]):
    """How the models of an episode are run: rollouts, log-probabilities, state, reward.

    Every method that takes sequences is batched and index-aligned: one result per input, in the
    same order. Log-probability methods return natural logarithms, one row per context, padded on
    the right with zeros.

    Args:
        moderator: Scores what was said; higher is more harmful.
    """

    def __init__(self, moderator: Moderator[Any, Any]) -> None:
        self.moderator = moderator

    @property
    def samples_exactly(self) -> bool:
        """Whether attacks come from the very distribution that `get_attacker_logprobs` scores.

        On-policy algorithms need it. Override it where sampling uses a temperature or truncation.
        """
        return True

    def conversing(self) -> contextlib.AbstractContextManager[None]:
        """Open a block in which conversations are carried on turn by turn.

        Inside it weights do not change, so a problem may keep what its models have read of them.
        The default keeps nothing.
        """
        return contextlib.nullcontext()

    def attacking_at(self, temperature: float) -> contextlib.AbstractContextManager[None]:
        """Open a block in which attacks are sampled at another temperature than 1.

        Off-policy algorithms explore with it. Log-probabilities stay those of temperature 1.

        Raises:
            ConfigurationError: The problem cannot; this default never can.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot sample attacks at temperature {temperature:.2g}; "
            "override attacking_at, or set tempered_share to 0."
        )

    @abstractmethod
    def rollout_prompt_with_attacker(self, contexts: Sequence[StateT]) -> Sequence[ActionT]:
        """Sample one attack per context, without repeating the context."""

    @abstractmethod
    def rollout_prompt_with_target(self, contexts: Sequence[StateT]) -> Sequence[StateT]:
        """Sample one response per context that ends in an attack, without repeating it."""

    @abstractmethod
    def get_attacker_logprobs(
        self, contexts: Sequence[StateT], continuations: Sequence[ActionT]
    ) -> Tensor:
        """Score attacks under the attacker, shape (B, T). The result carries gradients."""

    @abstractmethod
    def get_target_logprobs(
        self, contexts: Sequence[StateT], continuations: Sequence[ActionT]
    ) -> Tensor:
        """Score attacks under the target, shape (B, T), without gradients."""

    @abstractmethod
    def get_baseline_logprobs(
        self, contexts: Sequence[StateT], continuations: Sequence[ActionT]
    ) -> Tensor:
        """Score attacks under the frozen reference, shape (B, T), without gradients."""

    def get_response_logprobs(
        self, contexts: Sequence[StateT], responses: Sequence[StateT]
    ) -> Tensor:
        """Score responses to contexts that end in an attack under the target, (B, T), no gradients.

        Raises:
            ConfigurationError: The log-probabilities of the target are not available; this default
                always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no get_response_logprobs(contexts, responses); "
            "response_likelihood needs a target whose log-probabilities are available."
        )

    def embed(self, texts: Sequence[str], under: FrozenModel) -> Tensor:
        """Return embeddings of texts under a frozen model, (N, D), float32, without gradients.

        Raises:
            ConfigurationError: The hidden states of the model are not available; this default
                always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no embed(texts, under); choose embedder='hashing', or pass "
            "a function from texts to vectors."
        )

    @abstractmethod
    def advance(self, context: StateT, attack: ActionT, response: StateT) -> StateT:
        """Return the state after this turn."""

    @abstractmethod
    def reward(
        self,
        contexts: Sequence[StateT],
        attacks: Sequence[ActionT],
        responses: Sequence[StateT],
    ) -> Sequence[float]:
        """Reward of each turn; NaN where it could not be computed."""

    @abstractmethod
    def parameters(self) -> Iterator[Parameter]:
        """Yield what the optimizer trains."""

    def token_ends(self, attack: ActionT) -> Sequence[int]:
        """Return where in the text of an attack each of its tokens ends, in characters.

        For algorithms that treat the tokens of a format in another way than the others.

        Raises:
            ConfigurationError: The problem cannot say; this default never can.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot say which token of an attack says what; override "
            "token_ends, or leave format_pattern out."
        )

    def reward_terms(
        self,
        contexts: Sequence[StateT],
        attacks: Sequence[ActionT],
        responses: Sequence[StateT],
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        """Return each turn's reward, and its parts by name for the record.

        Override this instead of `reward` in a problem whose reward has named parts.
        """
        return self.reward(contexts, attacks, responses), [{} for _ in contexts]

    def observe(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        """Learn from the episodes of a training experience, for rewards that have a memory.

        The harness calls it once after each experience. Rewards must not change in between, so
        that they do not depend on the batch and that evaluation leaves no trace.
        """

    def reward_state(self) -> dict[str, Any]:
        """Return what the reward remembers, as JSON values, for a checkpoint."""
        return {}

    def load_reward_state(self, state: dict[str, Any]) -> None:
        """Take back what `reward_state` returned."""


class ValueFunctionProblem(Problem[StateT, ActionT]):
    """A problem that also estimates how well a conversation will go, for actor-critic methods."""

    @abstractmethod
    def value(self, contexts: Sequence[StateT], continuations: Sequence[ActionT]) -> Tensor:
        """Estimate the return at each token of the continuations, shape (B, T), with gradients.

        The estimate at a token is made before that token is known: from the context and the tokens
        before it.
        """

    def values(self, contexts: Sequence[StateT], continuations: Sequence[ActionT]) -> Tensor:
        """Estimate several returns at once, shape (B, T, K), with gradients.

        The first is `value`; the others are of whatever else an algorithm accounts for, such as
        the costs of constraints. Override it in a problem with more than one.
        """
        return self.value(contexts, continuations)[:, :, None]
