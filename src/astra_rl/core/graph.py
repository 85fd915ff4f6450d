"""Episodes as trees of turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Literal

from astra_rl.core.common import ActionT, StateT
from astra_rl.infra.visible import html_text

MOST_SHOWN = 200
"""Most turns of an episode that a notebook shows."""

Role = Literal["attacker", "defender"]
"""Who made a turn; only self-play has turns of a defender."""


@dataclass
class Node(Generic[StateT, ActionT]):
    """One turn: an attack in a context, and the response of the target.

    Attributes:
        context: State before the attack.
        attack: Output of the attacker.
        response: Output of the target.
        reward: Reward of this turn. NaN is missing: the node is counted, but not trained on.
        children: The next turns; empty at a leaf.
        reward_terms: Parts of the reward by name, before weighting.
        truncated: Whether the conversation could have been continued here, but was not selected, so
            that its future is unknown. A turn without children that is not truncated is terminated:
            it reached the maximum number of turns, or the conversation had ended. The distinction
            is that of Gymnasium.
        continuation_probability: Probability, in (0, 1], with which a random selection continued
            this turn; also set if it did not. None if the turn was not selected at random.
        next_context: State after a truncated turn that was not selected at random, for an estimate
            of its value; None if it is not known, or the turn is not truncated.
        role: Who made the turn. Rewards are passed back, and attacks compared, between turns of one
            role only.
        unknown_alternatives: Number of turns among which this one was selected as the best and
            whose response could not be rewarded, so that one of them may be better.
    """

    context: StateT
    attack: ActionT
    response: StateT
    reward: float
    children: Sequence[Node[StateT, ActionT]] = field(default_factory=list)
    reward_terms: dict[str, float] = field(default_factory=dict, kw_only=True)
    truncated: bool = field(default=False, kw_only=True)
    continuation_probability: float | None = field(default=None, kw_only=True)
    next_context: StateT | None = field(default=None, kw_only=True)
    role: Role = field(default="attacker", kw_only=True)
    unknown_alternatives: int = field(default=0, kw_only=True)


@dataclass
class Graph(Generic[StateT, ActionT]):
    """One episode: the opening context and the turns from it.

    Attributes:
        context: State before the first attack.
        children: The first turns; siblings are alternatives to each other.
    """

    context: StateT
    children: Sequence[Node[StateT, ActionT]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """Return the turns as nested lists, for a notebook."""
        shown = islice(self._lines(), MOST_SHOWN)
        count = sum(1 for _ in self.nodes())
        more = f"<p>{MOST_SHOWN} of {count} turns</p>" if count > MOST_SHOWN else ""
        return f"<p>{html_text(self.context)}</p>{''.join(shown)}{more}"

    def _lines(self) -> Iterator[str]:
        """Yield one element per turn, depth first, indented by its depth."""
        waiting = [(node, 0) for node in reversed(self.children)]
        while waiting:
            node, depth = waiting.pop()
            waiting.extend((child, depth + 1) for child in reversed(node.children))
            yield (
                f'<div style="margin-left:{2 * depth}em;border-left:1px solid;padding-left:.5em">'
                f"<b>{html_text(node.attack)}</b><br>{html_text(node.response)}<br>"
                f"<small>reward {node.reward:.3g}</small></div>"
            )

    def sibling_groups(self) -> Iterator[Sequence[Node[StateT, ActionT]]]:
        """Yield each non-empty set of siblings, breadth first. Each node is in exactly one."""
        queue = deque([self.children])
        while queue:
            siblings = queue.popleft()
            if siblings:
                yield siblings
                queue.extend(node.children for node in siblings)

    def nodes(self) -> Iterator[Node[StateT, ActionT]]:
        """Yield every node once, breadth first."""
        for siblings in self.sibling_groups():
            yield from siblings

    def attacker_nodes(self) -> Iterator[Node[StateT, ActionT]]:
        """Yield the turns of the attacker, breadth first: all of them except in self-play."""
        return (node for node in self.nodes() if node.role == "attacker")

    def paths(self) -> Iterator[list[Node[StateT, ActionT]]]:
        """Yield every path from a first turn to a leaf."""
        stack = [[node] for node in reversed(self.children)]
        while stack:
            path = stack.pop()
            if path[-1].children:
                stack.extend([*path, child] for child in reversed(path[-1].children))
            else:
                yield path
