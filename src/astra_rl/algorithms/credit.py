"""Credit assignment: reward passed back through an episode, as pure functions of a tree.

A tree is two lists: the reward of each turn, and the index of its parent (None for a first turn),
parents before their children. A turn with a missing reward has a missing credit (NaN) and is
ignored by its ancestors: they use the mean (or maximum) over the continuations that have a credit.
If none has, their credit is missing too.

A turn without children is terminated or truncated, see `Node.truncated`. The future of a terminated
turn is 0. That of a truncated one is unknown: all rules except ``turn`` give it a missing credit,
and `tree_gae` the value of the next state, if it is estimated.
If turns were selected for continuation at random, with a known probability p, the future of a turn
has the unbiased estimate (Horvitz and Thompson 1952) ``future / p`` if it was continued, and 0 if
not; all rules use it except ``max_backup``, because a maximum is not an expectation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError, did_you_mean

Parents = Sequence[int | None]


class Continuation(NamedTuple):
    """How a turn was continued.

    Attributes:
        truncated: See `Node.truncated`.
        probability: See `Node.continuation_probability`.
    """

    truncated: bool = False
    probability: float | None = None


CONTINUED_OR_ENDED = Continuation()
"""A turn that was continued if possible, and not selected at random."""
Continuations = Sequence[Continuation]
CreditRule = Callable[[Sequence[float], Parents, float, Continuations], list[float]]


def turn_credit(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """The reward of the turn itself."""
    return [math.nan if is_missing(reward) else reward for reward in rewards]


def return_to_go(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """The reward of the turn plus the mean return of its continuations, undiscounted."""
    return _backup(rewards, parents, 1.0, statistics.fmean, how)


def mean_backup(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """``r + gamma * mean`` of the children's credit: the expected discounted return."""
    return _backup(rewards, parents, gamma, statistics.fmean, how)


def max_backup(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """``r + gamma * max`` of the children's credit: the return of the best continuation.

    For a policy gradient this is optimistic on purpose: a turn is credited with the best outcome it
    allows, not with the expected return of the policy.
    """
    unweighted = [each._replace(probability=None) for each in how]
    return _backup(rewards, parents, gamma, max, unweighted)


def leaf_credit(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """The expected reward of the last turn of a conversation through the turn.

    The mean over the children of their credit, not over all leaves: a child that ended counts as
    much as a sibling with three leaves, because a conversation takes either with equal probability.
    """
    children = _children(parents)
    credit = turn_credit(rewards, parents, gamma, how)
    for turn in reversed(range(len(credit))):
        below = [credit[child] for child in children[turn]]
        credit[turn] = _future(statistics.fmean, below, how[turn], terminated=credit[turn])
    return credit


def trajectory_credit(
    rewards: Sequence[float], parents: Parents, gamma: float, how: Continuations
) -> list[float]:
    """The expected total reward of a conversation through the turn: before, here and after.

    As for `leaf_credit`, an ended child counts as much as a sibling with many leaves.
    """
    credit = return_to_go(rewards, parents, gamma, how)
    before: list[float] = []
    for parent in parents:
        before.append(0.0 if parent is None else before[parent] + rewards[parent])
    totals = [past + rest for past, rest in zip(before, credit, strict=True)]
    return [math.nan if is_missing(total) else total for total in totals]


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

    def __call__(
        self, rewards: Sequence[float], parents: Parents, how: Continuations | None = None
    ) -> list[float]:
        """Return the credit of each turn of an episode; NaN where it is missing.

        Args:
            rewards: Reward of each turn.
            parents: Index of the parent of each turn, see the module.
            how: How each turn was continued; None: none is truncated.
        """
        return CREDITS[self.kind](rewards, parents, self.gamma, _known(how, len(rewards)))


def tree_gae(
    rewards: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    parents: Parents,
    *,
    gamma: float,
    lam: float,
    how: Continuations | None = None,
    after: Sequence[float] | None = None,
) -> list[list[float]]:
    """Generalised advantage estimation over the attacker's tokens of a tree.

    Schulman et al. 2015, arXiv 1506.02438, eq. 16. Time steps are the tokens of the attacker: the
    last token of an attack is followed by the first token of its next attack, regardless of the
    target's response in between. Where a turn has several continuations, the next value and
    advantage are means over them. After a terminated turn both are 0. After a truncated one the
    next value is that of `after` and the advantage 0, as usual where an episode is cut off; both
    are missing without an estimate. After one that was selected at random they are divided by its
    probability, or 0, see the module.

    Args:
        rewards: Reward of each token of each attack; for an attack without tokens, of the turn.
        values: Value estimate before each token; empty for an attack without tokens.
        parents: Index of the parent of each turn, see the module.
        gamma: Discount per token.
        lam: Lambda: 0 is the one-step TD error, 1 the Monte Carlo return.
        how: How each turn was continued; None: none is truncated.
        after: Value estimate of the state after each truncated turn; NaN: not known, as None for
            all. Those of other turns are not read.

    Returns:
        Advantage of each token; NaN where it depends on a missing reward, or on a truncated turn
        without an estimate.
    """
    how = _known(how, len(rewards))
    children = _children(parents)
    advantages: list[list[float]] = [[] for _ in rewards]
    first_value = [math.nan] * len(rewards)
    first_advantage = [math.nan] * len(rewards)
    for turn in reversed(range(len(rewards))):
        below = children[turn]
        known = [child for child in below if not is_missing(first_advantage[child])] or below
        value = _future(statistics.fmean, [first_value[child] for child in known], how[turn])
        advantage = _future(statistics.fmean, [first_advantage[c] for c in known], how[turn])
        if after is not None and how[turn].truncated and how[turn].probability is None:
            value = after[turn]
            advantage = value * 0.0  # missing if the value is
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
    how: Continuations,
) -> list[float]:
    children = _children(parents)
    credit = turn_credit(rewards, parents, gamma, how)
    for turn in reversed(range(len(credit))):
        below = [credit[child] for child in children[turn]]
        credit[turn] += gamma * _future(over, below, how[turn])
    return credit


def _future(
    over: Callable[[list[float]], float],
    below: Sequence[float],
    how: Continuation,
    *,
    terminated: float = 0.0,
) -> float:
    """Return the future of a turn from that of its children; `terminated` is that of an ended one.

    It is missing if the turn is truncated, or if no child has one.
    """
    if below:
        present = [value for value in below if not is_missing(value)]
        return over(present) / (how.probability or 1.0) if present else math.nan
    if not how.truncated:
        return terminated
    return math.nan if how.probability is None else 0.0


def _known(how: Continuations | None, count: int) -> Continuations:
    return [CONTINUED_OR_ENDED] * count if how is None else how


def _children(parents: Parents) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in parents]
    for turn, parent in enumerate(parents):
        if parent is not None:
            children[parent].append(turn)
    return children
