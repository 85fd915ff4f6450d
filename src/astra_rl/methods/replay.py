"""Sending attacks that are known to a target, whatever it answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from astra_rl.core.contracts import check_length
from astra_rl.core.graph import Graph, Node
from astra_rl.core.seeding import derive_seed, row_seeds, seeded
from astra_rl.core.text import Conversation, NoReply
from astra_rl.targets.base import Target


class RespondingProblem(Protocol):
    """What is asked: a problem, or a target alone."""

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return a response per context that ends in an attack."""

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the state after this turn."""


class TargetOnlyProblem:
    """A target as what is asked, without a problem around it.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Ask the target."""
        return self.target.respond(contexts)

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the conversation with this turn added."""
        return context + attack + response


def replay_attacks(
    problem: RespondingProblem,
    openings: Sequence[str],
    attacks: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    batch_size: int = 64,
    first: int = 0,
) -> list[Graph[str, str]]:
    """Hold conversations in which every attack is given.

    Args:
        problem: Asks the target; its attacker is not asked.
        openings: Context of each conversation.
        attacks: Of each, what is said turn by turn.
        seed: Of the answers: the same seed and target give the same ones.
        batch_size: Conversations that are held together.
        first: Number of the first of these conversations, where they are a part of more: with it
            the parts get the answers that all together would get.

    Returns:
        One graph per conversation, without branches and without rewards. It ends early where the
        target gave no reply.
    """
    graphs: list[Graph[str, str]] = []
    for start in range(0, len(openings), batch_size):
        rows = slice(start, start + batch_size)
        numbers = range(first + start, first + start + len(openings[rows]))
        seeds = [derive_seed(seed, "resend", number) for number in numbers]
        graphs += _hold(problem, openings[rows], attacks[rows], seeds)
    return graphs


def _hold(
    problem: RespondingProblem,
    openings: Sequence[str],
    attacks: Sequence[Sequence[str]],
    seeds: Sequence[int],
) -> list[Graph[str, str]]:
    states: list[str] = [Conversation.of(opening) for opening in openings]
    said: list[list[Node[str, str]]] = [[] for _ in openings]
    with seeded(derive_seed(*seeds)):
        for turn in range(max(map(len, attacks), default=0)):
            rows = [
                row
                for row in range(len(openings))
                if turn < len(attacks[row]) and not _ended(said[row])
            ]
            if not rows:
                break
            asked = [states[row] + attacks[row][turn] for row in rows]
            with row_seeds([derive_seed(seeds[row], turn) for row in rows]):
                responses = problem.rollout_prompt_with_target(asked)
            check_length(responses, len(rows), source="rollout_prompt_with_target")
            for row, response in zip(rows, responses, strict=True):
                attack = attacks[row][turn]
                said[row].append(Node(states[row], attack, response, float("nan"), []))
                states[row] = problem.advance(states[row], attack, response)
    return [_graph(opening, nodes) for opening, nodes in zip(openings, said, strict=True)]


def _ended(said: Sequence[Node[str, str]]) -> bool:
    return bool(said) and isinstance(said[-1].response, NoReply)


def _graph(opening: str, nodes: Sequence[Node[str, str]]) -> Graph[str, str]:
    for node, following in pairwise(nodes):
        node.children = [following]
    return Graph(Conversation.of(opening), list(nodes[:1]))
