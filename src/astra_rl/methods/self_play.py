"""Self-play: one model attacks and defends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.core.contracts import check_length
from astra_rl.core.environment import Graph, Node
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import current_row_seeds, derive_seed, row_seeds
from astra_rl.core.text import Conversation, Exchange, NoAttack, NoReply
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.methods.ast_environment import ASTEnvironment, ASTNode, Branch, SiblingSets
from astra_rl.methods.registry import ENVIRONMENTS as ENVIRONMENTS
from astra_rl.rewards.base import RewardPart, WeightedSum, check_stateless
from astra_rl.rewards.terms import Harm


@named("self_play")
class SelfPlayEnvironment(ASTEnvironment):
    """Self-play: one model is trained as attacker and as defender (Self-RedTeam, arXiv 2506.07468).

    The problem's attacker generates both sides; its target is not run. `replies` responses are
    sampled per attack. The attacker's node has the mean reward over the responses, and its children
    are nodes of the defender (`Node.role`): their "attack" is a response, their context the
    conversation as the defender sees it (`defender_context`), their reward the defender's. Policy
    gradients and preference pairs pass rewards back, and compare, within one role only. The
    defender's reward terms are prefixed with ``defender_``.

    In evaluation the attacker plays against the defender, and the defender's nodes are removed.

    Args:
        problem: The models and the attacker's reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled from each context.
        replies: Responses sampled per attack; at least 1.
        defender_reward: Reward of the defender; None is minus the harm of the response.

    Raises:
        ConfigurationError: `replies` is below 1, `defender_reward` is stateful, or see
            `ASTEnvironment`.
    """

    calls_target = False

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 4,
        *,
        replies: int = 4,
        defender_reward: RewardPart | None = None,
    ) -> None:
        super().__init__(problem, prompts, tree_width, 1)
        SelfPlayEnvironment.check_options(replies=replies, defender_reward=defender_reward)
        self.replies = replies
        self.defender_reward = _minus_harm() if defender_reward is None else defender_reward

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and `defender_reward` has no memory."""
        super().check_options(**options)
        replies = options.get("replies", 1)
        if replies < 1:
            raise ConfigurationError(f"replies={replies}; it must be at least 1.")
        check_stateless("defender_reward", options.get("defender_reward"))

    @classmethod
    def rewards_of(cls, **options: Any) -> list[RewardPart]:
        """Return the reward of the defender."""
        return super().rewards_of(**options) or [_minus_harm()]

    def respond(self, contexts: Sequence[str]) -> Sequence[str]:
        """Generate responses with the attacker's model in the role of the defender."""
        said = self.problem.rollout_prompt_with_attacker(
            [defender_context(Conversation.of(context)) for context in contexts]
        )
        # An output without an answer is no answer; the empty text would be judged as harmless.
        return [NoReply("no answer") if isinstance(each, NoAttack) else each for each in said]

    def reward_nodes(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Sample the other responses to each attack, and reward both sides."""
        rounds = [responses, *self._more_replies(contexts, attacks)]
        # One call per round; in a single call an attack would be a sibling of itself.
        played = [
            super(SelfPlayEnvironment, self).reward_nodes(contexts, attacks, each)
            for each in rounds
        ]
        nodes = [_mean_node(turns) for turns in zip(*played, strict=True)]
        for replies in rounds:
            answers = self._defender_nodes(contexts, attacks, replies)
            for node, answer in zip(nodes, answers, strict=True):
                node.children = [*node.children, answer]
        return nodes

    def select(self, branches: list[Branch]) -> list[Branch]:
        """Return none: an episode is one exchange."""
        return []

    def expand_straight(
        self, contexts: Sequence[str], seeds: Sequence[int]
    ) -> list[Graph[str, str]]:
        """Play one attack and one response per context."""
        single = SelfPlayEnvironment(
            self.problem, self.prompts, 1, replies=1, defender_reward=self.defender_reward
        )
        graphs = single.expand(contexts, seeds, width=1)
        for graph in graphs:
            for node in graph.children:
                node.children = []
        return graphs

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the number of exchanges of an episode; the target is not called."""
        return [1 if straight else options["tree_width"] * options["replies"]]

    @classmethod
    def siblings_by_level(cls, **options: Any) -> list[SiblingSets]:
        """Return the attacks, and the responses to each."""
        width, replies = options["tree_width"], options["replies"]
        return [SiblingSets(1, width), SiblingSets(width, replies, "defender")]

    def _more_replies(self, contexts: Sequence[str], attacks: Sequence[str]) -> list[Sequence[str]]:
        asked = [context + attack for context, attack in zip(contexts, attacks, strict=True)]
        rounds, seeds = range(1, self.replies), current_row_seeds(len(contexts))
        if not rounds:
            return []
        with row_seeds([derive_seed(seed, "reply", each) for each in rounds for seed in seeds]):
            said = self.respond([context for _ in rounds for context in asked])
        check_length(said, len(rounds) * len(contexts), source="rollout_prompt_with_attacker")
        size = len(contexts)
        return [said[index * size : (index + 1) * size] for index in range(len(rounds))]

    def _defender_nodes(
        self, contexts: Sequence[str], attacks: Sequence[str], replies: Sequence[str]
    ) -> list[ASTNode]:
        exchanges = list(map(Exchange, contexts, attacks, replies))
        rewards, rows = self.defender_reward.evaluate(self.problem, exchanges)
        return [
            Node(
                defender_context(Conversation.of(each.context) + each.attack),
                each.response,
                "",
                reward,
                [],
                reward_terms={f"defender_{name}": value for name, value in row.items()},
                role="defender",
            )
            for each, reward, row in zip(exchanges, rewards, rows, strict=True)
        ]


DEFENDER_BRIEF = "You are a helpful and harmless assistant. Answer the user."
"""System message of the defender where the prompt has none."""


def defender_context(conversation: Conversation) -> Conversation:
    """Return a conversation that ends in an attack, with the two sides swapped.

    The opening prompt and the first attack become the prompt, the system message becomes the brief,
    and the remaining turns alternate between defender and attacker. The attacker's brief is left
    out.
    """
    first, *rest = conversation.turns
    return Conversation(
        conversation.separator.join(part for part in (conversation.prompt, first) if part),
        turns=rest,
        brief=conversation.system or DEFENDER_BRIEF,
        facts=conversation.facts,
        separator=conversation.separator,
    )


def _mean_node(turns: Sequence[ASTNode]) -> ASTNode:
    """Node of an attack with several responses: the first response, mean reward and mean terms."""
    first = turns[0]
    names = [
        name for name in first.reward_terms if all(name in each.reward_terms for each in turns)
    ]
    return Node(
        first.context,
        first.attack,
        first.response,
        sum(each.reward for each in turns) / len(turns),  # one missing makes the mean missing
        [],
        reward_terms={
            name: sum(each.reward_terms[name] for each in turns) / len(turns) for name in names
        },
    )


def _minus_harm() -> RewardPart:
    return WeightedSum({Harm("response"): -1.0})
