"""Interface to the attacker, target and baseline models."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
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
    """The models and the reward: rollouts, log-probabilities, state transitions, reward.

    Every method that takes sequences is batched and index-aligned: one result per input, in the
    same order. Log-probability methods return natural logarithms, one row per context, padded on
    the right with zeros.

    Args:
        moderator: Scores texts; higher is more harmful.
    """

    def __init__(self, moderator: Moderator[Any, Any]) -> None:
        self.moderator = moderator

    @property
    def samples_exactly(self) -> bool:
        """Whether attacks are sampled from the distribution that `get_attacker_logprobs` scores.

        On-policy algorithms require it. Override it if sampling uses a temperature or truncation.
        """
        return True

    def conversing(self) -> contextlib.AbstractContextManager[None]:
        """Open a block in which conversations are continued turn by turn.

        Weights do not change inside it, so a problem may cache the keys and values of its models.
        The default caches nothing.
        """
        return contextlib.nullcontext()

    def rollouts_over(self) -> None:
        """Called when the episodes of an experience have been played, before they are scored.

        Engines that only sample may free their memory. The default does nothing.
        """

    def activation_bytes(self, tokens: int | None) -> int | None:
        """Estimate the memory of the activations of a backward pass, in bytes; None if unknown.

        Args:
            tokens: Most tokens of a backward pass; None: as many as the attacker's device allows.
        """
        return None

    def attacking_at(self, temperature: float) -> contextlib.AbstractContextManager[None]:
        """Open a block in which attacks are sampled at another temperature than 1.

        For exploration in off-policy algorithms. Log-probabilities stay those of temperature 1.

        Raises:
            ConfigurationError: The problem does not support it; this default always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot sample attacks at temperature {temperature:.2g}; "
            "override attacking_at, or set tempered_share to 0."
        )

    def frozen_attacker(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Hand the attacker's present weights to what samples attacks, before they are trained.

        For episodes that are played while the weights change.

        Returns:
            Opens a block, in whatever thread, in which attacks are sampled from these weights.

        Raises:
            ConfigurationError: Attacks are sampled from the weights that are trained; this default
                always raises it.
        """
        raise ConfigurationError(
            f"max_staleness above 0: {type(self).__name__} samples attacks from the weights that "
            "are trained, so no episode can be played meanwhile. Sample them in an engine "
            "(rollout.attacker: vllm, or servers), or use max_staleness: 0."
        )

    def attacking_untrained(self) -> contextlib.AbstractContextManager[None]:
        """Open a block in which the frozen reference makes the attacks.

        For exploration in off-policy algorithms. Log-probabilities stay those of the attacker.

        Raises:
            ConfigurationError: The problem does not support it; this default always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot sample attacks of the untrained attacker; "
            "override attacking_untrained, or set untrained_share to 0."
        )

    def mutate_attacks(
        self, contexts: Sequence[StateT], attacks: Sequence[ActionT], *, temperature: float
    ) -> Sequence[ActionT]:
        """Return each attack with a random token replaced by a sample of the frozen reference.

        For exploration in off-policy algorithms. The token is sampled after the ones before it.

        Args:
            contexts: Contexts of the mutated attacks.
            attacks: The attacks, of these or of other contexts.
            temperature: Temperature of the sample, positive.

        Raises:
            ConfigurationError: The problem does not support it; this default always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot mutate attacks, which needs a local attacker; override "
            "mutate_attacks, or use another environment."
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

    def get_reference_logprobs(
        self, contexts: Sequence[StateT], continuations: Sequence[ActionT]
    ) -> Tensor:
        """Score attacks under the reference of the KL penalty, (B, T), without gradients.

        That is the baseline, until `sync_reference` replaces it. The likelihood of attacks in
        rewards and evaluations is always that under the baseline.
        """
        return self.get_baseline_logprobs(contexts, continuations)

    def sync_reference(self, alpha: float) -> None:
        """Move the reference of the KL penalty towards the attacker.

        Its weights become ``alpha * attacker + (1 - alpha) * reference`` (Gorbatovski et al. 2024,
        TR-DPO, arXiv 2404.09656).

        Args:
            alpha: In (0, 1]; 1 replaces the reference by a copy of the attacker.

        Raises:
            ConfigurationError: The problem does not support it; this default always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no sync_reference(alpha); leave sync_ref_model out."
        )

    def reference_state(self) -> list[Tensor]:
        """Return the weights of a reference that was synchronised; empty before the first time."""
        return []

    def load_reference_state(self, state: Sequence[Tensor]) -> None:
        """Restore what `reference_state` returned."""

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

    def forget_scores(self) -> None:
        """Drop cached scores of models; see `Moderator.forget`.

        The last digits of a score may depend on the batch that it was computed in. A training in
        parts calls this before each part. Override it in a problem that caches further scores.
        """
        self.moderator.forget()

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
        """Return the reward of each turn; NaN is missing."""

    @abstractmethod
    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters to train."""

    def token_ends(self, attack: ActionT) -> Sequence[int]:
        """Return the end of each token in the text of an attack, as character offsets.

        For algorithms that mask the tokens of a format.

        Raises:
            ConfigurationError: The problem does not support it; this default always raises it.
        """
        raise ConfigurationError(
            f"{type(self).__name__} does not know the character offsets of tokens; override "
            "token_ends, or leave format_pattern out."
        )

    def reward_terms(
        self,
        contexts: Sequence[StateT],
        attacks: Sequence[ActionT],
        responses: Sequence[StateT],
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        """Return the reward of each turn, and its parts by name for the record.

        Override it instead of `reward` if the reward has named parts.
        """
        return self.reward(contexts, attacks, responses), [{} for _ in contexts]

    def reward_without_attack(
        self,
        contexts: Sequence[StateT],
        attacks: Sequence[ActionT],
        responses: Sequence[StateT],
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        """Return reward and terms of turns whose output has no attack, so nothing was sent.

        Missing, unless a problem overrides it to reward the format of the output.

        Args:
            contexts: As for `reward_terms`.
            attacks: Empty texts, `astra_rl.core.text.NoAttack`.
            responses: Missing replies, `astra_rl.core.text.NotAsked`.
        """
        return [math.nan for _ in contexts], [{} for _ in contexts]

    def observe(self, graphs: Sequence[Graph[StateT, ActionT]]) -> None:
        """Update the state of the reward from a training experience.

        The harness calls it once after each experience. Rewards must not change otherwise, so that
        they do not depend on the batch and evaluation does not change them.
        """

    def reward_state(self) -> dict[str, Any]:
        """Return the state of the reward as JSON values, for a checkpoint."""
        return {}

    def load_reward_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `reward_state` returned."""


class ValueFunctionProblem(Problem[StateT, ActionT]):
    """A problem with a value function, for actor-critic algorithms."""

    @abstractmethod
    def value(self, contexts: Sequence[StateT], continuations: Sequence[ActionT]) -> Tensor:
        """Estimate the return at each token of the continuations, shape (B, T), with gradients.

        The estimate at a token uses the context and the tokens before it only.
        """

    def values(self, contexts: Sequence[StateT], continuations: Sequence[ActionT]) -> Tensor:
        """Estimate several returns at once, shape (B, T, K), with gradients.

        The first is `value`; the others are of further signals of an algorithm, such as the costs
        of constraints. Override it in a problem with several values.
        """
        return self.value(contexts, continuations)[:, :, None]
