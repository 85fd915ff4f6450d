"""What the policy-gradient family learns from: one step per attack, several to a batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from astra_rl.core.contracts import is_missing
from astra_rl.core.graph import Graph, Node
from astra_rl.core.text import context_key
from astra_rl.errors import ContractError

Group = Literal["siblings", "episode", "prompt"]
"""Which attacks are compared with each other: those tried from one context of one episode, all of
one episode, or all of every episode of the experience that opens with the same prompt."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where an attack stands, so that it can be compared, and reward be passed back to it.

    Attributes:
        episode: The episode, by identity.
        opening: The episode's opening context, by value.
        index: Number of the attack in the episode, parents before their children.
        parent: Number of the attack before it; None for a first turn.
    """

    episode: object = field(default_factory=object)
    opening: Hashable = None
    index: int = 0
    parent: int | None = None

    def group(self, kind: Group) -> Hashable:
        """Return what the members of its group have in common."""
        if kind == "prompt":
            return self.opening
        return (id(self.episode), self.parent if kind == "siblings" else None)


@dataclass(frozen=True)
class PolicyStep:
    """One attack, and what is known about it.

    `flatten` fills in the first five; `prepare` the others.

    Attributes:
        context: State before the attack.
        attack: What the attacker said.
        reward: Its reward; NaN if it is missing.
        place: Where it stands in its episode.
        terms: The parts of the reward by name.
        old_logprobs: Per token, under the policy that sampled it.
        reference_logprobs: Per token, under the frozen reference; None if nothing needs them. A
            reference with another tokenizer has another number of tokens.
        penalty: What the divergence from the reference costs of the reward, over all tokens.
        penalties: The same per token; None if the tokens cannot be compared.
        values: Estimated returns before each token, one tuple per kind of return; None without a
            value function.
        returns: What the estimates should have been, in the same shape.
        advantages: How much better than expected each token was; None until it is estimated, or if
            it cannot be.
        weight: How much the attack counts beside the others.
    """

    context: str
    attack: str
    reward: float
    place: Place = field(default_factory=Place)
    terms: Mapping[str, float] = field(default_factory=dict)
    old_logprobs: tuple[float, ...] = ()
    reference_logprobs: tuple[float, ...] | None = None
    penalty: float = 0.0
    penalties: tuple[float, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None
    returns: tuple[tuple[float, ...], ...] | None = None
    advantages: tuple[float, ...] | None = None
    weight: float = 1.0

    @property
    def is_trainable(self) -> bool:
        """Whether something can be learned: it has tokens, and an advantage that is known."""
        if not self.old_logprobs or self.advantages is None:
            return False
        return not any(map(is_missing, self.advantages))


@dataclass(frozen=True)
class PolicyBatch:
    """Several attacks, index-aligned; tensors are float32, padded on the right with zeros.

    Attributes:
        contexts: States before the attacks.
        attacks: What the attacker said.
        advantages: (B, T).
        old_logprobs: (B, T).
        weights: (B,).
        token_counts: Real tokens of each row.
        reference_logprobs: (B, T); None if nothing needs them, or if they are of other tokens.
        values: (B, T, K), before the update; with a value function only.
        returns: (B, T, K), with a value function only.
    """

    contexts: Sequence[str]
    attacks: Sequence[str]
    advantages: Tensor
    old_logprobs: Tensor
    weights: Tensor
    token_counts: Sequence[int]
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.contexts)


def steps_of(graph: Graph[str, str]) -> list[PolicyStep]:
    """Return one step per node, breadth first, siblings side by side."""
    opening = context_key(graph.context)
    parents: dict[int, int] = {}
    steps: list[PolicyStep] = []
    for index, node in enumerate(graph.nodes()):
        place = Place(graph, opening, index, parents.get(id(node)))
        parents.update({id(child): index for child in node.children})
        steps.append(PolicyStep(node.context, node.attack, node.reward, place, node.reward_terms))
    return steps


def count_paths(graph: Graph[str, str]) -> list[int]:
    """Return, for each node breadth first, the number of conversations that run through it."""
    counts: dict[int, int] = {}
    nodes: list[Node[str, str]] = list(graph.nodes())
    for node in reversed(nodes):
        counts[id(node)] = sum(counts[id(child)] for child in node.children) or 1
    return [counts[id(node)] for node in nodes]


def groups_of(steps: Iterable[PolicyStep], kind: Group) -> list[list[int]]:
    """Return the indices of the steps, group by group, in the order of their first members."""
    groups: dict[Hashable, list[int]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(step.place.group(kind), []).append(index)
    return list(groups.values())


def episodes_of(steps: Sequence[PolicyStep]) -> list[tuple[list[int], list[int | None]]]:
    """Return each episode's steps, as indices, and where in that list the parent of each is.

    A step whose parent is not among the steps counts as a first turn.
    """
    found = []
    for indices in groups_of(steps, "episode"):
        indices = sorted(indices, key=lambda index: steps[index].place.index)
        numbers = {steps[index].place.index: row for row, index in enumerate(indices)}
        parents = [steps[index].place.parent for index in indices]
        found.append(
            (indices, [None if parent is None else numbers.get(parent) for parent in parents])
        )
    return found


def collate(steps: Sequence[PolicyStep]) -> PolicyBatch:
    """Put steps side by side.

    Args:
        steps: What `prepare` returned.

    Raises:
        ContractError: A step did not come through `prepare`.
    """
    advantages = [step.advantages for step in steps if step.advantages is not None]
    if len(advantages) < len(steps):
        raise ContractError(
            "a step without advantages came to collate_fn. Call prepare on the steps of a whole "
            "experience first, as Harness does."
        )
    width = max((len(step.old_logprobs) for step in steps), default=0)
    references = [step.reference_logprobs or () for step in steps]
    # A reference with another tokenizer has nothing to say of single tokens.
    comparable = [len(row) for row in references] == [len(step.old_logprobs) for step in steps]
    return PolicyBatch(
        [step.context for step in steps],
        [step.attack for step in steps],
        pad(advantages, width),
        pad([step.old_logprobs for step in steps], width),
        torch.tensor([step.weight for step in steps]),
        [len(step.old_logprobs) for step in steps],
        pad(references, width) if comparable else None,
        _pad_heads([step.values for step in steps], width),
        _pad_heads([step.returns for step in steps], width),
    )


def pad(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """Return the rows as (B, width), float32, with zeros after the end of each."""
    out = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return out


def _pad_heads(rows: Sequence[Sequence[Sequence[float]] | None], width: int) -> Tensor | None:
    present = [row for row in rows if row is not None]
    if not present or len(present) < len(rows):
        return None
    heads = [pad([row[head] for row in present], width) for head in range(len(present[0]))]
    return torch.stack(heads, dim=-1)


def like(values: Tensor, logprobs: Tensor) -> Tensor:
    """Cut or pad (B, T', ...) to the width of `logprobs`, and move it to its device."""
    out = logprobs.new_zeros(*logprobs.shape, *values.shape[2:])
    width = min(values.shape[1], logprobs.shape[1])
    out[:, :width] = values[:, :width].to(logprobs)
    return out
