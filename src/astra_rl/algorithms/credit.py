"""Credit assignment: reward passed back through an episode, as pure functions of a tree.

A tree is two lists: the reward of each turn, and the index of its parent (None for a first turn),
parents before their children. A turn with a missing reward has a missing credit (NaN) and is
ignored by its ancestors: they use the mean (or maximum) over the continuations that have a credit.
If none has, their credit is missing too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError, did_you_mean

Parents = Sequence[int | None]
CreditRule = Callable[[Sequence[float], Parents, float], list[float]]


def turn_credit(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """The reward of the turn itself."""
    return [math.nan if is_missing(reward) else reward for reward in rewards]


def return_to_go(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """The reward of the turn plus the mean return of its continuations, undiscounted."""
    return _backup(rewards, parents, 1.0, statistics.fmean)


def mean_backup(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """``r + gamma * mean`` of the children's credit: the expected discounted return."""
    return _backup(rewards, parents, gamma, statistics.fmean)


def max_backup(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """``r + gamma * max`` of the children's credit: the return of the best continuation.

    For a policy gradient this is optimistic on purpose: a turn is credited with the best outcome it
    allows, not with the expected return of the policy.
    """
    return _backup(rewards, parents, gamma, max)


def leaf_credit(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """The mean reward of the leaves below the turn."""
    children = _children(parents)
    credit = turn_credit(rewards, parents, gamma)
    for turn in reversed(range(len(credit))):
        if children[turn]:
            credit[turn] = _over_present(statistics.fmean, (credit[c] for c in children[turn]))
    return credit


def trajectory_credit(rewards: Sequence[float], parents: Parents, gamma: float) -> list[float]:
    """The total reward of the conversation, averaged over the conversations through the turn."""
    credit = return_to_go(rewards, parents, gamma)
    before: list[float] = []
    for parent in parents:
        before.append(0.0 if parent is None else before[parent] + rewards[parent])
    return turn_credit([past + rest for past, rest in zip(before, credit, strict=True)], (), 1.0)


CREDITS: dict[str, CreditRule] = {
    "turn": turn_credit,
    "return_to_go": return_to_go,
    "mean_backup": mean_backup,
    "max_backup": max_backup,
    "leaf": leaf_credit,
    "trajectory": trajectory_credit,
}
"""Credit assignment rules by their names in a configuration."""


class Credit:
    """A credit assignment rule with its discount.

    Args:
        kind: One of `CREDITS`.
        gamma: Discount per turn, in [0, 1]; used by the backups.

    Raises:
        ConfigurationError: An unknown kind, or a discount out of [0, 1].
    """

    def __init__(self, kind: str = "turn", gamma: float = 0.9) -> None:
        if kind not in CREDITS:
            raise ConfigurationError(
                f"credit={kind!r}; choose from {list(CREDITS)}.{did_you_mean(kind, CREDITS)}"
            )
        if not 0 <= gamma <= 1:
            raise ConfigurationError(f"gamma={gamma}; it must be in [0, 1].")
        self.kind, self.gamma = kind, gamma

    def __call__(self, rewards: Sequence[float], parents: Parents) -> list[float]:
        """Return the credit of each turn of an episode; NaN where it is missing."""
        return CREDITS[self.kind](rewards, parents, self.gamma)


def tree_gae(
    rewards: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    parents: Parents,
    *,
    gamma: float,
    lam: float,
) -> list[list[float]]:
    """Generalised advantage estimation over the attacker's tokens of a tree.

    Schulman et al. 2015, arXiv 1506.02438, eq. 16. Time steps are the tokens of the attacker: the
    last token of an attack is followed by the first token of its next attack, regardless of the
    target's response in between. Where a turn has several continuations, the next value and
    advantage are means over them.

    Args:
        rewards: Reward of each token of each attack; for an attack without tokens, of the turn.
        values: Value estimate before each token; empty for an attack without tokens.
        parents: Index of the parent of each turn, see the module.
        gamma: Discount per token.
        lam: Lambda: 0 is the one-step TD error, 1 the Monte Carlo return.

    Returns:
        Advantage of each token; NaN where it depends on a missing reward.
    """
    children = _children(parents)
    advantages: list[list[float]] = [[] for _ in rewards]
    first_value = [math.nan] * len(rewards)
    first_advantage = [math.nan] * len(rewards)
    for turn in reversed(range(len(rewards))):
        known = [child for child in children[turn] if not is_missing(first_advantage[child])]
        if known:
            value = statistics.fmean(first_value[child] for child in known)
            advantage = statistics.fmean(first_advantage[child] for child in known)
        else:
            value = advantage = math.nan if children[turn] else 0.0
        if not values[turn]:
            # No token, so no value estimate: the value is the discounted return itself.
            first_value[turn] = rewards[turn][0] + gamma * (value + advantage)
            first_advantage[turn] = first_value[turn] * 0.0  # missing if the value is
            continue
        row = [0.0] * len(values[turn])
        for token in reversed(range(len(row))):
            delta = rewards[turn][token] + gamma * value - values[turn][token]
            row[token] = advantage = delta + gamma * lam * advantage
            value = values[turn][token]
        advantages[turn] = row
        first_value[turn], first_advantage[turn] = values[turn][0], row[0]
    return advantages


def _backup(
    rewards: Sequence[float],
    parents: Parents,
    gamma: float,
    over: Callable[[list[float]], float],
) -> list[float]:
    children = _children(parents)
    credit = turn_credit(rewards, parents, gamma)
    for turn in reversed(range(len(credit))):
        if children[turn]:
            credit[turn] += gamma * _over_present(over, (credit[c] for c in children[turn]))
    return credit


def _over_present(over: Callable[[list[float]], float], values: Iterable[float]) -> float:
    present = [value for value in values if not is_missing(value)]
    return over(present) if present else math.nan


def _children(parents: Parents) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in parents]
    for turn, parent in enumerate(parents):
        if parent is not None:
            children[parent].append(turn)
    return children
