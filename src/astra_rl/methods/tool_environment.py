"""Episodes against an agent with tools."""

from __future__ import annotations

import math
from collections.abc import Sequence

from astra_rl.agents.assignment import Assignment, Limits, assignments
from astra_rl.core.messages import trace_of
from astra_rl.core.problem import Problem
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.methods.ast_environment import ASTEnvironment, ASTNode


@named("tools")
class ToolEnvironment(ASTEnvironment):
    """Plays episodes against an agent with tools: its loop runs until it answers or meets a limit.

    Every environment runs the loop for openings of agents; this one accepts no others, and records
    with each turn the reward terms ``hijack`` and ``utility``: how far the attacker's goal was
    reached and the user's task was done, in [0, 1].

    Args:
        problem: The models and the reward.
        prompts: Openings of agents: those of a scenario with ``agent:``, or `Assignment.opening`.
        tree_width: Attacks sampled from each context.
        tree_depth: Maximum number of turns: times that the user asks and the attacker writes.

    Raises:
        ConfigurationError: An opening is of no agent, or see `ASTEnvironment`.
    """

    def __init__(
        self,
        problem: Problem[str, str],
        prompts: Sequence[str],
        tree_width: int = 4,
        tree_depth: int = 1,
    ) -> None:
        super().__init__(problem, prompts, tree_width, tree_depth)
        for index, prompt in enumerate(self.prompts):
            if Assignment.of(prompt) is None:
                raise ConfigurationError(
                    f"prompt {index} is of no agent; use a scenario with agent: {{world: ...}}, "
                    "for instance mailbox, or another type of environment."
                )

    @classmethod
    def of_world(
        cls,
        problem: Problem[str, str],
        world: str,
        *,
        slots: Sequence[str] = (),
        split: str = "train",
        limits: Limits | None = None,
        history: int = 0,
        rollback: bool = False,
        tree_width: int = 4,
        tree_depth: int = 1,
    ) -> ToolEnvironment:
        """Return one whose openings are each task of a world with each goal, in each slot.

        Args:
            problem: The models and the reward.
            world: Name of a world, or one's own as ``package.module:Name``.
            slots: Where the attacker's text stands; empty is the first slot of the world.
            split: ``"train"``, ``"validation"`` or ``"test"``.
            limits: Limits of a turn.
            history: Number of turns that the attacker reads at least; 0 is all.
            rollback: Whether the attacker can take a turn back.
            tree_width: See the class.
            tree_depth: See the class.

        Raises:
            ConfigurationError: World or slot does not exist, or the split is empty.
        """
        found = assignments(world, split, slots, limits, history=history, rollback=rollback)
        openings = [each.opening() for each in found]
        return cls(problem, openings, tree_width, tree_depth)

    def reward_nodes(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> list[ASTNode]:
        """Reward the turns of one tree level, with the terms of agents."""
        nodes = super().reward_nodes(contexts, attacks, responses)
        for node, response in zip(nodes, responses, strict=True):
            trace = trace_of(response)
            if trace is not None:
                known = {"hijack": trace.hijack, "utility": trace.utility}
                node.reward_terms |= {
                    name: math.nan if value is None else value for name, value in known.items()
                }
        return nodes
