"""Weights of the turns of a tree in a loss.

A tree of width w has w^d turns at depth d, but a conversation has one. The expected return of a
conversation is an expectation over single conversations, so a mean over all turns of a tree gives
late turns too much weight. Each turn n has instead the probability that a uniform random walk from
the root visits it::

    weight(n) = weight(parent of n) / number of siblings of n, including n

Siblings are independent samples of one policy, so the turn that a walk visits at depth d has the
distribution of turn d of a conversation, and ``sum over n of weight(n) * grad log pi(n) * A(n)`` is
an unbiased estimate of the policy gradient (Sutton et al. 2000), if A(n) is an unbiased advantage.

Where only some turns are continued, those pass on the weight of the others: divided by the
probability of being continued if the selection is random (Horvitz and Thompson 1952), which stays
unbiased, and by the share of the weight of the level that was continued if it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from astra_rl.core.contracts import is_missing
from astra_rl.core.graph import Graph, Node
from astra_rl.errors import ConfigurationError

SharedNodes = Literal["expected_return", "once", "per_path"]
"""Weight of a turn in the loss: ``"expected_return"``, its visit probability; ``"once"``, 1;
``"per_path"``, the number of root-to-leaf paths through it."""


def check_shared_nodes(kind: str) -> None:
    """Raise unless `kind` is one of `SharedNodes`.

    Raises:
        ConfigurationError: It is not.
    """
    if kind not in get_args(SharedNodes):
        raise ConfigurationError(
            f"shared_nodes={kind!r}; choose from {list(get_args(SharedNodes))}."
        )


def node_weights(graph: Graph[str, str], kind: SharedNodes) -> list[float]:
    """Return the weight of each node, breadth first, not yet normalised."""
    if kind == "once":
        return [1.0 for _ in graph.nodes()]
    return visit_probabilities(graph) if kind == "expected_return" else count_paths(graph)


def visit_probabilities(graph: Graph[str, str]) -> list[float]:
    """Return, for each node breadth first, the probability that a random walk visits it.

    The walk starts at the root and moves to one of the children with equal probability, until a
    leaf. The probabilities of each set of siblings sum to that of their parent; those of the first
    turns sum to 1. Turns that were continued pass on the weight of truncated ones, see the module.
    """
    weights: list[float] = []
    groups = [(graph.children, 1.0)]
    while groups:
        level = [(node, weight / len(siblings)) for siblings, weight in groups for node in siblings]
        weights += [weight for _, weight in level]
        share = _share_continued(level)
        groups = [
            (node.children, weight / (node.continuation_probability or share))
            for node, weight in level
            if node.children
        ]
    return weights


def _share_continued(level: Sequence[tuple[Node[str, str], float]]) -> float:
    """Share of the weight of a level that was continued, of what could have been."""
    chosen = [(node, weight) for node, weight in level if node.continuation_probability is None]
    continued = math.fsum(weight for node, weight in chosen if node.children)
    truncated = math.fsum(weight for node, weight in chosen if node.truncated)
    return continued / (continued + truncated) if continued else 1.0


def count_paths(graph: Graph[str, str]) -> list[float]:
    """Return, for each node breadth first, the number of root-to-leaf paths through it."""
    counts: dict[int, float] = {}
    nodes = list(graph.nodes())
    for node in reversed(nodes):
        counts[id(node)] = math.fsum(counts[id(child)] for child in node.children) or 1.0
    return [counts[id(node)] for node in nodes]


def normalised(weights: Sequence[float], sizes: Sequence[float] | None = None) -> list[float]:
    """Scale weights to a mean of 1.

    Done once per experience, so that a minibatch can divide by its number of rows: divided by its
    own sum of weights, a batch of late turns would count as much as one of first turns.

    Args:
        weights: Not negative.
        sizes: Number of elements of each, for the mean over elements; None is 1 each.
    """
    counts = [1.0] * len(weights) if sizes is None else sizes
    total = math.fsum(weight * count for weight, count in zip(weights, counts, strict=True))
    factor = math.fsum(counts) / total if total > 0 else 1.0
    return [weight * factor for weight in weights]


def weighted_mean_of_present(values: Iterable[float], weights: Iterable[float]) -> float:
    """Return the weighted mean of the values that are not missing; NaN if there are none."""
    pairs = [
        (value, weight)
        for value, weight in zip(values, weights, strict=True)
        if not is_missing(value)
    ]
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else math.nan
