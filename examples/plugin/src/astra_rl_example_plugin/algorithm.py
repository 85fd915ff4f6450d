"""An algorithm: how rollouts become a loss."""

from collections.abc import Sequence
from typing import Unpack

from astra_rl import PolicyGradient, Problem
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.estimators import GroupBaseline
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.algorithms.policy_gradient import PolicyOptions


def centered(rewards: Sequence[float]) -> list[float]:
    """Return the rewards of siblings minus their mean."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


class CenteredReinforce(PolicyGradient):
    """REINFORCE with the mean reward of the siblings as its baseline.

    Args:
        problem: Computes log-probabilities of the attacker and of the frozen reference.
        options: Options of `PolicyGradient`.
    """

    def __init__(self, problem: Problem[str, str], **options: Unpack[PolicyOptions]) -> None:
        estimator = GroupBaseline(Credit("turn"), "siblings", centered)
        loss = PolicyLoss(surrogate="reinforce", reduce="sequence_sum")
        super().__init__(problem, estimator, loss, **options)
