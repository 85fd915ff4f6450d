"""Conversations as trees: all episodes grow together, one level at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, NamedTuple

from astra_rl.agents.assignment import Assignment
from astra_rl.agents.loop import answer
from astra_rl.core.contracts import check_length, is_missing, mean_of_present
from astra_rl.core.environment import Environment, Graph, Node
from astra_rl.core.graph import Role
from astra_rl.core.level import Level, tree_level
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, fresh_seed, repetitions, row_seeds, seeded
from astra_rl.core.text import (
    Conversation,
    NoAttack,
    NoReply,
    NotAsked,
    NotSent,
    context_key,
    finish_reasons,
)
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.methods.curriculum import Curriculum
from astra_rl.rewards.base import RewardPart

ASTNode = Node[str, str]
"""One turn of a conversation in text."""


@dataclass(frozen=True)
class Branch:
    """A conversation to be continued.

    Attributes:
        graph: The episode.
        node: The latest turn, or the graph itself at the start.
        state: The context of the attacker.
        seed: Seed of the path from the root to here.
        group: Index of its set of siblings within the tree level.
    """

    graph: Graph[str, str]
    node: Graph[str, str] | ASTNode
    state: str
    seed: int
    group: int = 0


class SiblingSets(NamedTuple):
    """Sets of siblings of one level of an episode.

    Attributes:
        sets: Number of sets.
        size: Number of turns of each.
        role: Who makes the turns.
    """

    sets: int
    size: int
    role: Role = "attacker"


@named("tree")
class ASTEnvironment(Environment[str, str]):
    """Plays conversations as trees: at every turn `tree_width` attacks are sampled.

    All episodes of a call grow together, one tree level at a time: one attacker call, one target
    call and one reward call per level, whatever the number of episodes. A subclass that overrides
    `rollout` or `eval_rollout` but not their plurals has its episodes played one by one.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts: texts, or `Conversation` objects with a system message.
        tree_width: Attacks sampled from each context, at least 1.
        tree_depth: Maximum number of turns of a conversation; 0 plays none.

    Attributes:
        curriculum: Draws the prompts of training episodes; None draws them uniformly. Set it before
            the training.
        calls_target: Whether the responses are those of the problem's target.

    Raises:
        ConfigurationError: No prompts, or a width or depth out of range.
    """

    curriculum: Curriculum | None = None
    calls_target: ClassVar[bool] = True

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 2,
        tree_depth: int = 3,
    ) -> None:
        super().__init__(problem)
        self.prompts = check_prompts(prompts)
        ASTEnvironment.check_options(tree_width=tree_width, tree_depth=tree_depth)
        self.tree_width = tree_width
        self.tree_depth = tree_depth

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options of the constructor are in range; called before models are loaded.

        Args:
            options: Its keyword arguments, defaults included.

        Raises:
            ConfigurationError: One is out of range.
        """
        width, depth = options.get("tree_width", 1), options.get("tree_depth", 1)
        if width < 1:
            raise ConfigurationError(f"tree_width={width}; it must be at least 1.")
        if depth < 0:
            raise ConfigurationError(f"tree_depth={depth}; it must be 0 or more.")

    @classmethod
    def rewards_of(cls, **options: Any) -> list[RewardPart]:
        """Return the rewards that it evaluates besides the problem's, for cost estimates.

        Args:
            options: Keyword arguments of the constructor, defaults included.
        """
        return [each for each in options.values() if isinstance(each, RewardPart)]

    def rollout(self, seed: int | None = None) -> Graph[str, str]:
        """Play one episode from a prompt that the seed chooses."""
        play = self.rollouts if self._only_overrides("rollouts", "rollout") else self._play
        return play([seed])[0]

    def rollouts(self, seeds: Sequence[int | None]) -> list[Graph[str, str]]:
        """Play one episode per seed, all together."""
        if self._only_overrides("rollout", "rollouts"):
            return super().rollouts(seeds)
        return self._play(seeds)

    def _play(self, seeds: Sequence[int | None]) -> list[Graph[str, str]]:
        known = [fresh_seed() if seed is None else seed for seed in seeds]
        contexts = [self.draw_prompt(seed) for seed in known]
        return self.expand(contexts, known, width=self.tree_width)

    def eval_rollout(self, seed: int | str | None = None) -> Graph[str, str]:
        """Play one conversation without branches, from a seed or from a given prompt."""
        if self._only_overrides("eval_rollouts", "eval_rollout"):
            return self.eval_rollouts([seed])[0]
        return self._play_straight([seed], [0])[0]

    def eval_rollouts(
        self, seeds: Sequence[int | str | None], trials: Sequence[int] | None = None
    ) -> list[Graph[str, str]]:
        """Play one conversation without branches per entry, all together.

        An integer or None chooses the prompt as `rollout` does; a text is the prompt itself. The
        same prompt given twice is two trials that differ.

        Args:
            seeds: What each conversation opens with.
            trials: How often each prompt was played before; None counts from this call.
        """
        if self._only_overrides("eval_rollout", "eval_rollouts"):
            return super().eval_rollouts(seeds)
        return self._play_straight(seeds, repetitions(seeds) if trials is None else trials)

    def _play_straight(
        self, seeds: Sequence[int | str | None], trials: Sequence[int]
    ) -> list[Graph[str, str]]:
        contexts, known = [], []
        for seed, trial in zip(seeds, trials, strict=True):
            if isinstance(seed, str):
                known.append(_opening_seed(seed, trial))
                contexts.append(seed)
            else:
                known.append(fresh_seed() if seed is None else seed)
                contexts.append(self.choose_prompt(known[-1]))
        return self.expand_straight(contexts, known)

    def expand_straight(
        self, contexts: Sequence[str], seeds: Sequence[int]
    ) -> list[Graph[str, str]]:
        """Play one conversation without branches per context, for evaluation."""
        return self.expand(contexts, seeds, width=1)

    def _only_overrides(self, name: str, other: str) -> bool:
        """Whether a subclass has its own `name` and the `other` of this class."""

        def own(method: str) -> bool:
            return getattr(type(self), method) is not getattr(ASTEnvironment, method)

        return own(name) and not own(other)

    def choose_prompt(self, seed: int) -> str:
        """Return the prompt that an episode of this seed opens with."""
        return Random(derive_seed(seed, "prompt")).choice(self.prompts)

    def draw_prompt(self, seed: int) -> str:
        """Return the prompt that a training episode of this seed opens with; see `curriculum`."""
        if self.curriculum is None:
            return self.choose_prompt(seed)
        prompts = list(self._distinct_prompts().values())
        weights = self.curriculum.probabilities(len(prompts))
        return Random(derive_seed(seed, "prompt")).choices(prompts, weights)[0]

    def observe(self, graphs: Sequence[Graph[str, str]]) -> None:
        """Update the curriculum with the mean rewards of the episodes."""
        if self.curriculum is None:
            return
        places = {key: row for row, key in enumerate(self._distinct_prompts())}
        rewards: dict[int, list[float]] = {}
        for graph in graphs:
            place = places.get(context_key(Conversation.of(graph.context)))
            if place is not None:  # a subclass may open with other contexts
                mean = mean_of_present(node.reward for node in graph.attacker_nodes())
                rewards.setdefault(place, []).extend([] if is_missing(mean) else [mean])
        self.curriculum.observe(rewards)

    def _distinct_prompts(self) -> dict[Hashable, str]:
        return {context_key(Conversation.of(prompt)): prompt for prompt in self.prompts}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the curriculum."""
        return {} if self.curriculum is None else {"curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self.curriculum is not None:
            self.curriculum.load_state_dict(state["curriculum"])

    def expand(
        self, contexts: Sequence[str], seeds: Sequence[int], *, width: int
    ) -> list[Graph[str, str]]:
        """Grow one tree per context, level by level.

        Args:
            contexts: Opening context of each episode.
            seeds: One per episode; with its context it determines the whole tree.
            width: Attacks sampled from each context.
        """
        # A Conversation keeps the token ids of its turns.
        contexts = [Conversation.of(context) for context in contexts]
        graphs = [Graph[str, str](context, []) for context in contexts]
        branches = [
            Branch(graph, graph, graph.context, derive_seed(seed, "tree"))
            for graph, seed in zip(graphs, seeds, strict=True)
        ]
        cached = self.problem.conversing() if self.tree_depth > 1 else nullcontext()
        with seeded(derive_seed(*seeds)), cached:
            for depth in range(self.tree_depth):
                if not branches:  # no episodes, or all are over
                    break
                branches = self._grow_level(branches, width, depth)
        return graphs

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the most turns of an episode, level by level, for cost estimates.

        Override it in an environment of another shape, or whose constructor does not take
        `tree_width` and `tree_depth`.

        Args:
            straight: Of an episode of evaluation, without branches.
            options: Keyword arguments of the constructor, defaults included.
        """
        width = 1 if straight else options.get("tree_width", 2)
        return [width ** (level + 1) for level in range(options.get("tree_depth", 3))]

    @classmethod
    def siblings_by_level(cls, **options: Any) -> list[SiblingSets]:
        """Return the most sets of siblings of a training episode, for estimates of updates.

        Override it in an environment whose sets of siblings are not of `tree_width` attacks.

        Args:
            options: Keyword arguments of the constructor, defaults included.
        """
        width = int(options.get("tree_width", 1))
        return [SiblingSets(count // width, width) for count in cls.turns_by_level(**options)]

    def write(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return an attack per context; override it where others than the attacker write, too.

        Row seeds are set. Where not all attacks are samples of the attacker, set `samples_exactly`.
        """
        return self.problem.rollout_prompt_with_attacker(contexts)

    def asked(self, branch: Branch, attack: str) -> str:
        """Return the context of the target; override it where it differs from the attacker's."""
        return branch.state + attack

    def next_state(self, branch: Branch, node: ASTNode) -> str:
        """Return the context of the attacker at the turn after `node`."""
        return self.problem.advance(node.context, node.attack, node.response)

    def is_over(self, branch: Branch) -> bool:
        """Return whether a conversation ended with its latest turn, which is then terminated.

        Override it to end conversations by a rule, such as the first success. Those that exceed a
        context window or whose target failed are over in any case.
        """
        return False

    def select(self, branches: list[Branch]) -> list[Branch]:
        """Return the conversations of a level to be continued; override it to prune the trees.

        The others are marked as truncated: their future is unknown, not 0. A selection at random
        can set `Node.continuation_probability` of all turns it chose from, which makes credit and
        weights unbiased. Not called after the last turn.

        Args:
            branches: Conversations that have not ended, siblings side by side, at their new `node`.
                Siblings have the same `group`.
        """
        return branches

    def respond(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return the response to each context that ends in an attack; agents run their loop."""
        loops = any(Assignment.of(context) is not None for context in contexts)
        with self.problem.conversing() if loops else nullcontext():
            return answer(contexts, self.problem.rollout_prompt_with_target)

    def reward_nodes(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Reward the turns of one tree level in one call and return their nodes."""
        return _nodes(self.problem.reward_terms, contexts, attacks, responses)

    def reward_without_attack(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Reward the turns of one tree level whose output has no attack; return their nodes."""
        return _nodes(self.problem.reward_without_attack, contexts, attacks, responses)

    def _grow_level(self, branches: Sequence[Branch], width: int, depth: int) -> list[Branch]:
        grown = [branch for branch in branches for _ in range(width)]
        groups = tuple(group for group, _ in enumerate(branches) for _ in range(width))
        contexts = [branch.state for branch in grown]
        paths = [derive_seed(branch.seed, child) for branch in branches for child in range(width)]
        with row_seeds([derive_seed(path, "attacker") for path in paths]):
            attacks = self.write(contexts)
        check_length(attacks, len(contexts), source="rollout_prompt_with_attacker")
        asked = [self.asked(branch, attack) for branch, attack in zip(grown, attacks, strict=True)]
        responses = self._responses(attacks, asked, paths)
        over = [ends_conversation(*turn) for turn in zip(attacks, responses, strict=True)]
        is_last_level = depth == self.tree_depth - 1
        level = Level(groups, tuple(is_last_level or each for each in over), depth)
        nodes = self._reward_answered(level, paths, contexts, attacks, responses)
        for index, branch in enumerate(branches):
            branch.node.children = nodes[index * width : (index + 1) * width]
        going = [
            Branch(branch.graph, node, self.next_state(branch, node), path, group)
            for branch, node, path, group, ended in zip(
                grown, nodes, paths, groups, over, strict=True
            )
            if not ended
        ]
        going = [branch for branch in going if not self.is_over(branch)]
        return going if is_last_level else self._select(going)

    def _responses(
        self, attacks: Sequence[str], asked: Sequence[str], paths: Sequence[int]
    ) -> list[str]:
        """Return the response to each attack; nothing is sent where there is none."""
        rows = [row for row, each in enumerate(attacks) if not isinstance(each, NoAttack | NoReply)]
        responses: list[str] = [_unasked(attack) for attack in attacks]
        if rows:
            with row_seeds([derive_seed(paths[row], "target") for row in rows]):
                said = self.respond([asked[row] for row in rows])
            check_length(said, len(rows), source="rollout_prompt_with_target")
            for row, response in zip(rows, said, strict=True):
                responses[row] = response
        return responses

    def _select(self, branches: list[Branch]) -> list[Branch]:
        """Select the conversations to be continued, and mark the others as truncated."""
        selected = self.select(branches)
        chosen = {id(branch.node) for branch in selected}
        for branch in branches:
            if isinstance(branch.node, Node):
                branch.node.truncated = id(branch.node) not in chosen
                if branch.node.truncated and branch.node.continuation_probability is None:
                    branch.node.next_context = branch.state
        return selected

    def _reward_answered(
        self,
        level: Level,
        paths: Sequence[int],
        contexts: Sequence[str],
        attacks: Sequence[str],
        responses: Sequence[str],
    ) -> list[ASTNode]:
        """Reward the turns with a response, and those without an attack; others have no reward."""
        nodes = [
            Node(context, attack, response, math.nan, [])
            for context, attack, response in zip(contexts, attacks, responses, strict=True)
        ]
        answered = [row for row, said in enumerate(responses) if not isinstance(said, NoReply)]
        without = [row for row, said in enumerate(responses) if isinstance(said, NotAsked)]
        for rows, reward in ((answered, self.reward_nodes), (without, self.reward_without_attack)):
            if not rows:
                continue
            part = Level(
                tuple(level.siblings[row] for row in rows),
                tuple(level.last[row] for row in rows),
                level.depth,
            )
            seeds = [derive_seed(paths[row], "reward") for row in rows]
            with tree_level(part), row_seeds(seeds):
                rewarded = reward(
                    [contexts[row] for row in rows],
                    [attacks[row] for row in rows],
                    [responses[row] for row in rows],
                )
            for row, node in zip(rows, rewarded, strict=True):
                nodes[row] = node
        return nodes


def _opening_seed(opening: str, trial: int) -> int:
    """Return the seed of a trial; openings of one text with other hidden parts have other seeds."""
    context = Conversation.of(opening)
    parts: list[int | str] = [str(opening), trial]
    if context.turns or context.system or context.brief or context.facts:
        parts.append(repr(context_key(context)))
    return derive_seed("prompt", *parts)


def _unasked(attack: str) -> NoReply:
    """Return the reply of a target that got no attack, with the reason if a call failed."""
    if isinstance(attack, NotSent):
        return NotSent()
    if isinstance(attack, NoReply):
        return NoReply(f"attacker: {attack.reason}", attack.detail, finish_reason="not_asked")
    return NotAsked()


def _nodes(
    reward: Callable[..., tuple[Sequence[float], Sequence[dict[str, float]]]],
    contexts: Sequence[str],
    attacks: Sequence[str],
    responses: Sequence[str],
) -> list[ASTNode]:
    """Return the nodes of turns with the rewards that a method of the problem gives them."""
    rewards, terms = reward(contexts, attacks, responses)
    check_length(rewards, len(contexts), source="reward")
    check_length(terms, len(contexts), source="reward_terms")
    return [
        Node(context, attack, response, float(reward), [], reward_terms=dict(parts))
        for context, attack, response, reward, parts in zip(
            contexts, attacks, responses, rewards, terms, strict=True
        )
    ]


def ends_conversation(attack: str, response: str) -> bool:
    """Whether a conversation ends with this turn.

    A context window is full, there was no attack, the call of the target failed, or its response
    was filtered.
    """
    reasons = finish_reasons(attack, response)
    return not reasons.isdisjoint({"context_overflow", "error", "content_filter", "not_asked"})


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a list of strings.

    Raises:
        ConfigurationError: There are none, or one is not a text.
    """
    if isinstance(prompts, str):
        raise ConfigurationError(
            "prompts is one string; give a list of prompts, for instance [prompt]."
        )
    prompts = list(prompts)
    if not prompts:
        raise ConfigurationError("prompts is empty; give at least one opening text.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ConfigurationError(
                f"prompt {index} is a {type(prompt).__name__}; prompts must be texts."
            )
        if not prompt and not isinstance(prompt, Conversation):
            raise ConfigurationError(
                f"prompt {index} is empty; give at least one character of opening text, or a "
                "Conversation with a system message or a brief."
            )
    return prompts
