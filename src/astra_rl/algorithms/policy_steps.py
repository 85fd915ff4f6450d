"""Steps and batches of the policy-gradient family: one step per attack, in three stages.

`PolicyGradient.flatten` returns a `PolicyStep` per attack. `PolicyGradient.prepare` adds
log-probabilities (`ScoredStep`), then advantages (`PreparedStep`); only the last can be collated.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from astra_rl.algorithms.credit import CONTINUED_OR_ENDED, Continuation
from astra_rl.algorithms.weighting import SharedNodes, node_weights
from astra_rl.core.graph import Graph, Role
from astra_rl.core.text import context_key
from astra_rl.errors import ContractError

Group = Literal["siblings", "episode", "prompt"]
"""Which attacks form a group, whose mean reward is the baseline: ``"siblings"``, those sampled from
one context of one episode; ``"episode"``, all of one episode; ``"prompt"``, all attacks of all
episodes of the experience with the same opening prompt. All members have the same role. On trees
deeper than 1 the last two contain an attack and its descendants, whose rewards depend on it, so
that the baseline is biased."""


@dataclass(frozen=True, eq=False)
class Place:
    """Position of an attack in its episode, for grouping and for credit assignment.

    Attributes:
        episode: The episode, compared by identity.
        opening: The episode's opening context, compared by value.
        index: Index of the attack in the episode, parents before their children.
        parent: Index of the latest turn of the same role before it, to which credit is passed back;
            None for a first turn.
        continuation: How the attack was continued.
        origin: Index of the turn from which it and its siblings were sampled; None for a first
            turn. It differs from `parent` where an opponent plays in between.
        role: Who made the turn.
    """

    episode: object = field(default_factory=object)
    opening: Hashable = None
    index: int = 0
    parent: int | None = None
    continuation: Continuation = CONTINUED_OR_ENDED
    origin: int | None = None
    role: Role = "attacker"

    def group(self, kind: Group) -> Hashable:
        """Return a key that all members of the attack's group share."""
        if kind == "prompt":
            return (self.opening, self.role)
        return (id(self.episode), self.origin if kind == "siblings" else None, self.role)


@dataclass(frozen=True)
class PolicyStep:
    """One attack as it was played: what `PolicyGradient.flatten` returns.

    Attributes:
        context: State before the attack.
        attack: The attack.
        reward: Its reward; NaN if missing.
        place: Position in its episode.
        terms: Reward terms by name.
        weight: Weight of the attack in the loss, see `SharedNodes`. `PolicyGradient.prepare` scales
            the weights to a mean of 1.
        next_context: See `Node.next_context`.
    """

    context: str
    attack: str
    reward: float
    place: Place = field(default_factory=Place)
    terms: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    next_context: str | None = None

    def scored(self, old_logprobs: tuple[float, ...]) -> ScoredStep:
        """Return the step with the log-probabilities of its tokens."""
        return ScoredStep(**vars(self), old_logprobs=old_logprobs)


@dataclass(frozen=True, kw_only=True)
class ScoredStep(PolicyStep):
    """An attack with its log-probabilities: what an `AdvantageEstimator` receives.

    Attributes:
        old_logprobs: Per token, under the policy that sampled it; empty for an attack without
            tokens.
        reference_logprobs: Per token, under the frozen reference; None if there is no KL penalty.
            A reference with another tokenizer has another number of tokens.
        penalty: KL penalty of the whole attack, to be subtracted from the reward; 0 without one.
        penalties: The same per token; None without a penalty in the reward, or if the reference has
            other tokens.
        values: Estimated return before each token, one tuple per value head; None without a value
            function.
        next_values: Estimated return of `next_context`, one per value head; None if not known.
        corrections: Weight of each token in the policy loss, which corrects for a sampler that is
            not the policy, see `astra_rl.algorithms.mismatch`; None weights all by 1.
    """

    old_logprobs: tuple[float, ...]
    reference_logprobs: tuple[float, ...] | None = None
    penalty: float = 0.0
    penalties: tuple[float, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None
    next_values: tuple[float, ...] | None = None
    corrections: tuple[float, ...] | None = None

    def corrected(self, corrections: tuple[float, ...]) -> ScoredStep:
        """Return the step with weights of its tokens in the policy loss."""
        return replace(self, corrections=corrections)

    @property
    def penalized_reward(self) -> float:
        """The reward minus the KL penalty; NaN if the reward is missing."""
        return self.reward - self.penalty

    def prepared(
        self,
        advantages: tuple[float, ...],
        returns: tuple[tuple[float, ...], ...] | None = None,
    ) -> PreparedStep:
        """Return the step with the advantages of its tokens."""
        return PreparedStep(**vars(self), advantages=advantages, returns=returns)


@dataclass(frozen=True, kw_only=True)
class PreparedStep(ScoredStep):
    """An attack with its advantages, ready to be trained on: what `PolicyGradient.prepare` returns.

    Attributes:
        advantages: Per token; none is NaN.
        returns: Targets of `values`, in the same shape; None without a value function.
        unpenalized: The advantages without the KL penalty in the reward, whose spread is the scale
            of whitened advantages; None: not known.
    """

    advantages: tuple[float, ...]
    returns: tuple[tuple[float, ...], ...] | None = None
    unpenalized: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PolicyBatch:
    """Several attacks, index-aligned; tensors are float32, right-padded with zeros.

    Attributes:
        contexts: States before the attacks, length B.
        attacks: The attacks, length B.
        advantages: (B, T).
        old_logprobs: Under the policy that sampled, (B, T).
        weights: Weights of the attacks, (B,).
        token_counts: Number of tokens of each row, without padding.
        reference_logprobs: (B, T); None without a KL penalty, or if the reference has another
            tokenizer.
        values: Value estimates before the update, (B, T, K); None without a value function.
        returns: Targets of the value function, (B, T, K); None without one.
        corrections: Weights of tokens in the policy loss, (B, T), see `ScoredStep`; None is 1.
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
    corrections: Tensor | None = None

    def __len__(self) -> int:
        return len(self.contexts)


def steps_of(
    graph: Graph[str, str], shared_nodes: SharedNodes = "expected_return"
) -> list[PolicyStep]:
    """Return one step per node, breadth first, siblings side by side."""
    weights = node_weights(graph, shared_nodes)
    opening = context_key(graph.context)
    origins: dict[int, int] = {}
    steps: list[PolicyStep] = []
    for index, node in enumerate(graph.nodes()):
        how = Continuation(node.truncated, node.continuation_probability)
        origin = parent = origins.get(id(node))
        while parent is not None and steps[parent].place.role != node.role:
            parent = steps[parent].place.origin
        place = Place(graph, opening, index, parent, how, origin, node.role)
        origins.update({id(child): index for child in node.children})
        steps.append(
            PolicyStep(
                node.context,
                node.attack,
                node.reward,
                place,
                node.reward_terms,
                weights[index],
                node.next_context,
            )
        )
    return steps


def groups_of(steps: Iterable[PolicyStep], kind: Group) -> list[list[int]]:
    """Return the indices of the steps, group by group, in the order of their first members."""
    groups: dict[Hashable, list[int]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(step.place.group(kind), []).append(index)
    return list(groups.values())


def episodes_of(steps: Sequence[PolicyStep]) -> list[tuple[list[int], list[int | None]]]:
    """Return, per episode, the indices of its steps and the positions of their parents among these.

    The turns of each role are an episode of their own, because a reward is that of one role. A step
    whose parent is not among the steps counts as a first turn: its parent is None.
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
    """Collate steps to a batch.

    Args:
        steps: `PreparedStep` objects, as `PolicyGradient.prepare` returns them.

    Raises:
        ContractError: A step did not come through `prepare`.
    """
    prepared = [step for step in steps if isinstance(step, PreparedStep)]
    if len(prepared) < len(steps):
        raise ContractError(
            "collate_fn received a step without advantages. Call prepare on the steps of a whole "
            "experience first, as Harness does."
        )
    return _collate(prepared)


def _collate(steps: Sequence[PreparedStep]) -> PolicyBatch:
    width = max((len(step.old_logprobs) for step in steps), default=0)
    references = [step.reference_logprobs or () for step in steps]
    # The tokens of a reference with another tokenizer cannot be compared one by one.
    comparable = [len(row) for row in references] == [len(step.old_logprobs) for step in steps]
    return PolicyBatch(
        [step.context for step in steps],
        [step.attack for step in steps],
        pad([step.advantages for step in steps], width),
        pad([step.old_logprobs for step in steps], width),
        torch.tensor([step.weight for step in steps]),
        [len(step.old_logprobs) for step in steps],
        pad(references, width) if comparable else None,
        _pad_heads([step.values for step in steps], width),
        _pad_heads([step.returns for step in steps], width),
        _pad_corrections(steps, width),
    )


def pad(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """Return the rows as a float32 tensor (B, width), right-padded with zeros."""
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


def _pad_corrections(steps: Sequence[PreparedStep], width: int) -> Tensor | None:
    """Return the weights of tokens in the policy loss, (B, width); None if all of them are 1."""
    if all(step.corrections is None for step in steps):
        return None
    return pad([step.corrections or (1.0,) * len(step.old_logprobs) for step in steps], width)


def like(values: Tensor, logprobs: Tensor) -> Tensor:
    """Truncate or zero-pad (B, T', ...) to the width T of `logprobs` (B, T), on its device."""
    out = logprobs.new_zeros(*logprobs.shape, *values.shape[2:])
    width = min(values.shape[1], logprobs.shape[1])
    out[:, :width] = values[:, :width].to(logprobs)
    return out
