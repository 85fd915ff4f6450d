"""Adaptive stress testing of language models: the problem, and the reward of ASTPrompter.

Hardy, Liu, Griffith, Lange, Eddy, Kochenderfer: *ASTPrompter*, arXiv 2407.09447.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.core.environment import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.text import Exchange
from astra_rl.methods.ast_environment import ASTEnvironment, ASTNode, Branch
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.direction import scores_good_behavior, warn_of_direction
from astra_rl.rewards.base import (
    Reward,
    RewardPart,
    WeightedSum,
    load_state_dict,
    observe,
    state_dict,
)
from astra_rl.rewards.terms import AttackNLL, Harm

__all__ = [
    "ASTEnvironment",
    "ASTEvaluator",
    "ASTNode",
    "ASTProblem",
    "Branch",
    "astprompter_reward",
]


def astprompter_reward(
    *, response_weight: float = 1.0, exchange_weight: float = 0.5, nll_weight: float = 0.1
) -> Reward:
    """Reward of ASTPrompter's released code.

    ``harm(response) + 0.5 * harm(attack + response) - 0.1 * nll(attack)``, with the mean negative
    log-likelihood per token of the attack under the target (arXiv 2407.09447, and the authors'
    environment.py, which calls the last term a perplexity though it is its logarithm).

    Args:
        response_weight: Weight of the moderator's score of the response.
        exchange_weight: Weight of its score of attack and response together.
        nll_weight: Weight of the NLL per token of the attack, in nats.
    """
    return WeightedSum(
        {
            Harm("response"): response_weight,
            Harm("exchange"): exchange_weight,
            AttackNLL("target"): -nll_weight,
        }
    )


class ASTProblem(Problem[str, str]):
    """A problem whose states are conversations and whose reward is made of named terms.

    Subclasses run the models: they implement the rollouts, the log-probabilities and `parameters`.

    Args:
        moderator: Scores texts.
        reward: The reward of a turn; None is `astprompter_reward()`.
    """

    def __init__(self, moderator: Moderator[str, str], reward: RewardPart | None = None) -> None:
        super().__init__(moderator)
        # One that a configuration made was checked when the configuration was resolved.
        if not isinstance(moderator, CachedModerator) and scores_good_behavior(moderator):
            warn_of_direction(type(moderator).__name__)
        self.reward_rule: RewardPart = astprompter_reward() if reward is None else reward

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the conversation with this turn added."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Reward of each turn; NaN where it could not be computed."""
        return self._by_rule(contexts, attacks, responses)[0]

    def reward_terms(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        """Return each turn's reward and its terms; no terms if a subclass overrides `reward`."""
        if not self._has_rule:
            return super().reward_terms(contexts, attacks, responses)
        return self._by_rule(contexts, attacks, responses)

    def reward_without_attack(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        """Return reward and terms of turns without an attack; all but terms of the format miss."""
        if not self._has_rule:
            return super().reward_without_attack(contexts, attacks, responses)
        return self._by_rule(contexts, attacks, responses)

    @property
    def _has_rule(self) -> bool:
        """Whether rewards are those of `reward_rule`: no subclass overrides `reward`."""
        return getattr(self.reward, "__func__", None) is ASTProblem.reward

    def _by_rule(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> tuple[Sequence[float], Sequence[dict[str, float]]]:
        exchanges = [
            Exchange(context, attack, response)
            for context, attack, response in zip(contexts, attacks, responses, strict=True)
        ]
        return self.reward_rule.evaluate(self, exchanges)

    def observe(self, graphs: Sequence[Graph[str, str]]) -> None:
        """Update the stateful parts of the reward with an experience."""
        observe(self.reward_rule, self, graphs)

    def reward_state(self) -> dict[str, Any]:
        """Return the state of the parts of the reward, as JSON values."""
        return state_dict(self.reward_rule)

    def load_reward_state(self, state: dict[str, Any]) -> None:
        """Restore what `reward_state` returned.

        Raises:
            ConfigurationError: The state is of another reward.
        """
        load_state_dict(self.reward_rule, state)
