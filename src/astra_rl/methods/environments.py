"""Environments other than the full tree: single turn, pruned, best-of-n, attempts, self-play."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

from astra_rl.core.contracts import is_missing
from astra_rl.core.environment import Graph, Node
from astra_rl.core.moderator import is_not_sent
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Exchange, NotAsked, NotSent, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.methods.ast_environment import ASTEnvironment, ASTNode, Branch
from astra_rl.methods.registry import ENVIRONMENTS as ENVIRONMENTS
from astra_rl.methods.self_play import DEFENDER_BRIEF as DEFENDER_BRIEF
from astra_rl.methods.self_play import SelfPlayEnvironment as SelfPlayEnvironment
from astra_rl.methods.self_play import defender_context as defender_context
from astra_rl.rewards.base import RewardPart, check_stateless

Selection = Literal["best", "sampled"]
"""Which turns are continued: ``"best"``, those with the highest reward or quality, whose siblings
are truncated, so that credits that need their future are missing; ``"sampled"``, uniformly drawn
ones, whose credit and weights are unbiased (see `astra_rl.algorithms.credit`), with a larger
variance."""


@named("single_turn")
class SingleTurnEnvironment(ASTEnvironment):
    """Single-turn episodes: a tree of depth 1.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled from each context.
    """

    def __init__(
        self, problem: Problem[str, str], prompts: Sequence[str], tree_width: int = 8
    ) -> None:
        super().__init__(problem, prompts, tree_width, 1)

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the turns of an episode: one level."""
        return super().turns_by_level(straight=straight, **{**options, "tree_depth": 1})


@named("pruned_tree")
class PrunedTreeEnvironment(ASTEnvironment):
    """A tree in which only the best turns of each level are expanded.

    A malformed turn is not expanded and its reward is set to missing. Other pruned turns keep their
    reward (DialTree-RPO, arXiv 2510.02286: 4 branches, 32 kept, 5 turns; malformed and off-topic
    attacks are pruned).

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled from each context.
        tree_depth: Maximum number of turns of a conversation.
        keep: Maximum number of turns per episode and level that are expanded.
        quality: Ranks the turns, highest first; a turn with a value of 0 or less, or without a
            value, is malformed. Recorded as a reward term. None ranks by the reward, and no turn is
            malformed.
        selection: Which turns are expanded, see `Selection`; of those that are not malformed.

    Raises:
        ConfigurationError: `keep` is below 1, `quality` is stateful, an unknown `selection`, or see
            `ASTEnvironment`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 4,
        tree_depth: int = 5,
        *,
        keep: int = 32,
        quality: RewardPart | None = None,
        selection: Selection = "best",
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        PrunedTreeEnvironment.check_options(keep=keep, quality=quality, selection=selection)
        self.selection: Selection = selection
        self.keep = keep
        self.quality = quality

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range and `quality` has no memory."""
        super().check_options(**options)
        keep = options.get("keep", 1)
        if keep < 1:
            raise ConfigurationError(f"keep={keep}; it must be at least 1.")
        check_stateless("quality", options.get("quality"))
        _check_selection(options.get("selection", "best"))

    def reward_nodes(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Reward the turns of one tree level; the reward of malformed turns is missing."""
        nodes = super().reward_nodes(contexts, attacks, responses)
        if self.quality is None:
            return nodes
        exchanges = list(map(Exchange, contexts, attacks, responses))
        qualities, rows = self.quality.evaluate(self.problem, exchanges)
        for node, quality, parts in zip(nodes, qualities, rows, strict=True):
            node.reward_terms = {**node.reward_terms, **parts, "quality": quality}
            if not quality > 0:
                node.reward = math.nan
        return nodes

    def reward_without_attack(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Return the turns without an attack; with a `quality` they are malformed, too."""
        nodes = super().reward_without_attack(contexts, attacks, responses)
        for node in nodes if self.quality is not None else []:
            node.reward = math.nan
        return nodes

    def select(self, branches: list[Branch]) -> list[Branch]:
        """Return the best of each episode, or random ones."""
        kept = []
        for _, episode in groupby(branches, key=lambda branch: id(branch.graph)):
            formed = [branch for branch in episode if not is_missing(self._quality(branch))]
            if self.selection == "sampled":
                kept += _sampled(formed, self.keep)
                continue
            # Ties are broken by seed; the order of the list would favour the first parents.
            best = sorted(formed, key=lambda branch: (-self._quality(branch), branch.seed))
            chosen = {branch.seed for branch in best[: self.keep]}
            kept += [branch for branch in formed if branch.seed in chosen]
        return kept

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the maximum number of turns of an episode, level by level."""
        if straight:
            return super().turns_by_level(straight=True, **options)
        width = options["tree_width"]
        counts = [width]
        while len(counts) < options["tree_depth"]:
            counts.append(min(counts[-1], options["keep"]) * width)
        return counts

    def _quality(self, branch: Branch) -> float:
        node = _turn(branch)
        if self.quality is None:
            return node.reward
        quality = node.reward_terms["quality"]
        return quality if quality > 0 else math.nan


@named("best_of_n")
class BestOfNEnvironment(ASTEnvironment):
    """Samples several attacks per turn, and continues the conversation from the best.

    All attacks stay in the graph, so an algorithm learns from each. A conversation of T turns costs
    n T attacks where a tree costs n^T. In evaluation only the best attack of each turn is kept,
    selected by the reward, not by the judge. An answer whose reward is missing may be the best, so
    without a success the outcome of a conversation with such an answer is not known
    (`Node.unknown_alternatives`).

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled at each turn: the n.
        tree_depth: Turns of a conversation.
        selection: Which attack is continued during training, see `Selection`.

    Raises:
        ConfigurationError: An unknown `selection`, or see `ASTEnvironment`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 8,
        tree_depth: int = 1,
        *,
        selection: Selection = "best",
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        BestOfNEnvironment.check_options(selection=selection)
        self.selection: Selection = selection
        self.queries_per_turn = self.tree_width

    def select(self, branches: list[Branch]) -> list[Branch]:
        """Return the best of each set of siblings (the first if no reward is known), or any."""
        groups = [list(each) for _, each in groupby(branches, key=lambda branch: branch.group)]
        if self.selection == "sampled":
            return [branch for siblings in groups for branch in _sampled(siblings, 1)]
        return [
            max(siblings, key=lambda branch: _reward_or_least(_turn(branch))) for siblings in groups
        ]

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless options are in range."""
        super().check_options(**options)
        _check_selection(options.get("selection", "best"))

    @classmethod
    def turns_by_level(cls, *, straight: bool = False, **options: Any) -> list[int]:
        """Return the number of turns of an episode per level; the same in evaluation."""
        return [options["tree_width"]] * options["tree_depth"]

    def expand_straight(
        self, contexts: Sequence[str], seeds: Sequence[int]
    ) -> list[Graph[str, str]]:
        """Play the best of several attacks at each turn, and keep only those."""
        player = copy.copy(self)
        player.selection = "best"
        graphs = player.expand(contexts, seeds, width=self.tree_width)
        for graph in graphs:
            place: Graph[str, str] | ASTNode = graph
            while place.children:
                best = max(
                    place.children,
                    key=lambda node: (
                        bool(node.children),
                        was_not_sent(node),  # so that the whole turn counts as not made
                        _reward_or_least(node),
                    ),
                )
                best.unknown_alternatives = sum(
                    is_unknown(node) for node in place.children if node is not best
                )
                place.children = [best]
                place = best
        return graphs


@named("attempts")
class AttemptsEnvironment(ASTEnvironment):
    """Several attempts at a target without memory, with feedback to the attacker.

    The target receives every attack as the first message. The attacker sees its earlier attempts,
    each followed by a line of feedback instead of the response (Beutel et al., arXiv 2412.18693: 5
    attempts; the feedback is success, and similarity to earlier attempts). The context of a node is
    that of the attacker, so rewards and moderators that read it see feedback, not responses.

    Args:
        problem: The models and the reward.
        prompts: Opening contexts.
        tree_width: Attacks sampled at each attempt.
        tree_depth: Number of attempts.
        success_above: An attempt is a success if its score is above this.
        success_part: Name of the reward term with the score.
        similar_below: An attempt is too similar if its reward term ``style_diversity``, where there
            is one, is below this.
        show_response: Whether the feedback contains the target's response.
        show_score: Whether it contains the score, from 1 to 10. With both, and an attacker that is
            not trained, an episode of `tree_width` 1 is a stream of PAIR (Chao et al., arXiv
            2310.08419) that does not end with a success; see also `TAPEnvironment`.
        feedback: Returns the feedback on a turn; None is `verdict`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 1,
        tree_depth: int = 5,
        *,
        success_above: float = 0.1,
        success_part: str = "harm_response",
        similar_below: float = 0.5,
        show_response: bool = False,
        show_score: bool = False,
        feedback: Callable[[ASTNode], str] | None = None,
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        self.success_above = success_above
        self.success_part = success_part
        self.similar_below = similar_below
        self.show_response = show_response
        self.show_score = show_score
        self.feedback = self.verdict if feedback is None else feedback

    def asked(self, branch: Branch, attack: str) -> str:
        """Return the opening and the attack, without earlier attempts."""
        return branch.graph.context + attack

    def next_state(self, branch: Branch, node: ASTNode) -> str:
        """Return the attacker's context, its attempt and the feedback."""
        return node.context + node.attack + self.feedback(node)

    def verdict(self, node: ASTNode) -> str:
        """Return the line of feedback on an attempt."""
        score = node.reward_terms.get(self.success_part, math.nan)
        if is_missing(score):
            verdict = "The result is unknown."
        else:
            verdict = "Success!" if score > self.success_above else "Failed!"
            if self.show_score:
                verdict += f" Score: {out_of_ten(score)}."
        if node.reward_terms.get("style_diversity", math.inf) < self.similar_below:
            verdict += " Too similar to an earlier attempt."
        shown = f"The answer was: {node.response}\n" if self.show_response else ""
        return f"\n{shown}{verdict}\n"


def out_of_ten(score: float) -> str:
    """Return a score in [0, 1] as an attacker reads it, from 1 to 10."""
    return f"{1 + round(9 * score)} of 10"


def _check_selection(selection: object) -> None:
    if selection not in get_args(Selection):
        raise ConfigurationError(
            f"selection={selection!r}; choose from {list(get_args(Selection))}."
        )


def _sampled(branches: Sequence[Branch], keep: int) -> list[Branch]:
    """Return `keep` of the branches, drawn uniformly by their seeds; records the probability."""
    if len(branches) <= keep:
        return list(branches)
    for branch in branches:
        _turn(branch).continuation_probability = keep / len(branches)
    drawn = sorted(branches, key=lambda branch: derive_seed(branch.seed, "continued"))[:keep]
    chosen = {branch.seed for branch in drawn}
    return [branch for branch in branches if branch.seed in chosen]


def _turn(branch: Branch) -> ASTNode:
    assert isinstance(branch.node, Node)  # only the root of a tree has a graph here
    return branch.node


def _reward_or_least(node: ASTNode) -> float:
    return -math.inf if is_missing(node.reward) else node.reward


def is_unknown(node: ASTNode) -> bool:
    """Whether a response to an attack could not be rewarded; a withheld one is no failure."""
    response = Utterance.of(node.response)
    is_needed = response.finish_reason != "content_filter" and not isinstance(response, NotAsked)
    return is_needed and is_missing(node.reward)


def was_not_sent(node: ASTNode) -> bool:
    """Whether the target or a judge was not called, because a budget is spent."""
    values = (node.reward, *node.reward_terms.values())
    return isinstance(node.response, NotSent) or any(map(is_not_sent, values))
