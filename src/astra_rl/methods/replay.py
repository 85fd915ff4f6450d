"""Replay of given attacks against a target, without an attacker model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.agents.loop import answer
from astra_rl.core.contracts import check_length
from astra_rl.core.graph import Graph, Node
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, row_seeds, seeded
from astra_rl.core.text import Conversation, NoReply
from astra_rl.errors import ConfigurationError
from astra_rl.targets.base import Target


class RespondingProblem(Protocol):
    """Object that a replay queries: a problem, or a `TargetOnlyProblem`."""

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Return one response per context; each context ends in an attack."""

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the state after this turn."""


class TargetOnlyProblem(Problem[str, str]):
    """Problem without an attacker, for attacks that are given.

    What needs an attacker or a baseline raises `ConfigurationError`. Rewards are missing.

    Args:
        target: The target to query.
        moderator: Scores the responses.
    """

    def __init__(self, target: Target, moderator: Moderator[str, str]) -> None:
        super().__init__(moderator)
        self.target = target

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Query the target; one response per context."""
        return self.target.respond(contexts)

    def advance(self, context: str, attack: str, response: str) -> str:
        """Return the conversation with this turn added."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Return missing rewards."""
        return [math.nan] * len(contexts)

    def parameters(self) -> Iterator[Parameter]:
        """Yield nothing: there is nothing to train."""
        yield from ()

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        """Raise: there is no attacker."""
        raise _no_attacker()

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Raise: there is no attacker."""
        raise _no_attacker()

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Raise: the target is only queried."""
        raise _no_attacker()

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Raise: there is no baseline."""
        raise _no_attacker()


def _no_attacker() -> ConfigurationError:
    return ConfigurationError(
        "there is no attacker and no baseline here, only a target that is queried. Name an "
        "attacker: 'attacker: {model: ...}' in the configuration."
    )


def replay_attacks(
    problem: RespondingProblem,
    openings: Sequence[str],
    attacks: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    batch_size: int = 64,
    numbers: Sequence[int] | None = None,
) -> list[Graph[str, str]]:
    """Play conversations with the given attacks, turn by turn.

    Args:
        problem: Queries the target; its attacker is not used.
        openings: Opening context of each conversation.
        attacks: The attacks of each conversation, one per turn.
        seed: Seed of the target's sampling; the same seed and local target give the same responses.
        batch_size: Number of conversations that are played together.
        numbers: Index of each conversation if `openings` is part of a larger list; None counts from
            0. Seeds depend on the index, so the parts get the same responses as the whole list.

    Returns:
        One graph per conversation: a chain of nodes with NaN rewards. It ends at the first turn to
        which the target gave no reply.
    """
    graphs: list[Graph[str, str]] = []
    known = range(len(openings)) if numbers is None else numbers
    for start in range(0, len(openings), batch_size):
        rows = slice(start, start + batch_size)
        seeds = [derive_seed(seed, "resend", number) for number in known[rows]]
        graphs += _play(problem, openings[rows], attacks[rows], seeds)
    return graphs


def _play(
    problem: RespondingProblem,
    openings: Sequence[str],
    attacks: Sequence[Sequence[str]],
    seeds: Sequence[int],
) -> list[Graph[str, str]]:
    states: list[str] = [Conversation.of(opening) for opening in openings]
    played: list[list[Node[str, str]]] = [[] for _ in openings]
    with seeded(derive_seed(*seeds)):
        for turn in range(max(map(len, attacks), default=0)):
            rows = [
                row
                for row in range(len(openings))
                if turn < len(attacks[row]) and not _has_ended(played[row])
            ]
            if not rows:
                break
            contexts = [states[row] + attacks[row][turn] for row in rows]
            with row_seeds([derive_seed(seeds[row], turn) for row in rows]):
                responses = answer(contexts, problem.rollout_prompt_with_target)
            check_length(responses, len(rows), source="rollout_prompt_with_target")
            for row, response in zip(rows, responses, strict=True):
                attack = attacks[row][turn]
                played[row].append(Node(states[row], attack, response, float("nan"), []))
                states[row] = problem.advance(states[row], attack, response)
    return [_chain(opening, nodes) for opening, nodes in zip(openings, played, strict=True)]


def _has_ended(nodes: Sequence[Node[str, str]]) -> bool:
    return bool(nodes) and isinstance(nodes[-1].response, NoReply)


def _chain(opening: str, nodes: Sequence[Node[str, str]]) -> Graph[str, str]:
    for node, following in pairwise(nodes):
        node.children = [following]
    return Graph(Conversation.of(opening), list(nodes[:1]))
