"""Advantage estimators of the policy-gradient family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

from astra_rl.algorithms.advantages import (
    TIE_TOLERANCE,
    RunningBaseline,
    explained_variance,
    whiten,
)
from astra_rl.algorithms.credit import Credit, tree_gae
from astra_rl.algorithms.policy_steps import (
    Group,
    PolicyStep,
    PreparedStep,
    ScoredStep,
    episodes_of,
    groups_of,
)
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError


class AdvantageEstimator(ABC):
    """Computes the advantages of all tokens of an experience."""

    @abstractmethod
    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """Return the steps with advantages; those that cannot be trained on are left out.

        A step is left out if its attack has no tokens, or if its advantage depends on a missing
        reward.

        Args:
            steps: All steps of an experience.
        """

    def metrics(self) -> Metrics:
        """Return metrics of the latest experience."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027, most have no state
        """Restore what `state_dict` returned."""


class RunningMeanBaseline(AdvantageEstimator):
    """Advantage: the credit of the attack minus an exponential moving average of earlier ones.

    Args:
        credit: Assigns credit to turns.
        decay: Decay of the average, in [0, 1).
    """

    def __init__(self, credit: Credit, decay: float = 0.9) -> None:
        self.credit = credit
        self.baseline = RunningBaseline(decay)

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`."""
        credit = penalized_credit(steps, self.credit)
        rows = [row for row, step in enumerate(steps) if step.old_logprobs]
        advantages = [math.nan] * len(steps)
        _put(advantages, rows, self.baseline.advantages([credit[row] for row in rows]))
        return _with_advantages(steps, advantages)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self.baseline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the average."""
        self.baseline.load_state_dict(state)


class GroupBaseline(AdvantageEstimator):
    """Advantage relative to the other attacks of the group, as in GRPO and RLOO.

    An attack without others in its group is compared with a running average of credits instead.

    Args:
        credit: Assigns credit to turns.
        group: Which attacks form a group.
        compare: Maps the credits of a group to advantages.
        scale: Maps the advantages of all groups to the final ones.
        decay: Decay of the running average, in [0, 1).
        keep_dead: Whether a group whose members all have the same credit stays in the batch. Its
            advantages are zero (apart from a KL penalty in the reward), but its tokens count in the
            denominator of the loss.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        credit: Credit,
        group: Group,
        compare: Callable[[Sequence[float]], list[float]],
        *,
        scale: Callable[[Sequence[float]], list[float]] = list,
        decay: float = 0.9,
        keep_dead: bool = True,
    ) -> None:
        self.credit = credit
        if group not in get_args(Group):
            raise ConfigurationError(f"group={group!r}; choose from {list(get_args(Group))}.")
        self.group: Group = group
        self.compare, self.scale = compare, scale
        self.baseline = RunningBaseline(decay)
        self.keep_dead = keep_dead
        self._metrics: Metrics = {}

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`."""
        credit = penalized_credit(steps, self.credit)
        advantages = [math.nan] * len(steps)
        alone: list[int] = []
        groups = self._known_groups(steps)
        for members, is_live in groups:
            rows = [row for row in members if steps[row].old_logprobs]
            if len(rows) == 1:
                alone += rows
            elif is_live or self.keep_dead:
                _put(advantages, rows, self.compare([credit[row] for row in rows]))
        _put(advantages, alone, self.baseline.advantages([credit[row] for row in alone]))
        self._metrics = _dead_share(groups)
        return _with_advantages(steps, self.scale(advantages))

    def live(self, steps: Sequence[PolicyStep]) -> list[bool]:
        """Return for each step whether credits within its group differ; True for a group of one."""
        live = [False] * len(steps)
        for rows, is_live in self._known_groups(steps):
            _put(live, rows, [is_live] * len(rows))
        return live

    def measure(self, steps: Sequence[PolicyStep]) -> Metrics:
        """Return the share of groups of more than one attack whose credits are all equal."""
        return _dead_share(self._known_groups(steps))

    def metrics(self) -> Metrics:
        """Return the share of groups without a learning signal in the latest experience."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the running average."""
        return self.baseline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the running average."""
        self.baseline.load_state_dict(state)

    def _known_groups(self, steps: Sequence[PolicyStep]) -> list[tuple[list[int], bool]]:
        """Return the members of each group that have a credit, and whether their credits differ.

        The KL penalty is excluded: it differs between any two attacks, whatever the target did.
        """
        credit = credit_of(steps, [step.reward for step in steps], self.credit)
        found = []
        for members in groups_of(steps, self.group):
            rows = [row for row in members if not is_missing(credit[row])]
            values = [credit[row] for row in rows]
            if rows:
                differ = len(rows) == 1 or max(values) - min(values) >= TIE_TOLERANCE
                found.append((rows, differ))
        return found


class BatchNormalized(AdvantageEstimator):
    """Advantages normalised over all tokens of the experience: the estimator of REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, sec. 3: the return of a token is the credit of its turn minus
    the KL penalties of this and later tokens, and returns are whitened over the whole batch.

    Args:
        inner: Estimates the advantages that are normalised.
    """

    def __init__(self, inner: AdvantageEstimator) -> None:
        self.inner = inner

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`."""
        found = self.inner.estimate(steps)
        rows = whiten([_without_past_penalties(step) for step in found], [s.weight for s in found])
        return [replace(step, advantages=tuple(row)) for step, row in zip(found, rows, strict=True)]

    def metrics(self) -> Metrics:
        """Return those of the inner estimator."""
        return self.inner.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return that of the inner estimator."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back that of the inner estimator."""
        self.inner.load_state_dict(state)


class MonteCarloReturn(AdvantageEstimator):
    """Advantage: the credit of the attack itself, without a baseline.

    Args:
        credit: Assigns credit to turns.
    """

    def __init__(self, credit: Credit) -> None:
        self.credit = credit

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`."""
        return _with_advantages(steps, penalized_credit(steps, self.credit))


class GAE(AdvantageEstimator):
    """Generalised advantage estimation with a value function, see `tree_gae`.

    Args:
        gamma: Discount per token, in [0, 1].
        lam: Lambda of GAE, in [0, 1]: 0 is the one-step TD error, 1 the Monte Carlo return.
        normalise: Whether advantages are whitened (mean 0, standard deviation 1), separately for
            each value head.

    Raises:
        ConfigurationError: A value is out of [0, 1].
    """

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, *, normalise: bool = True) -> None:
        for name, value in (("gamma", gamma), ("gae_lambda", lam)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name}={value}; it must be in [0, 1].")
        self.gamma, self.lam, self.normalise = gamma, lam, normalise
        self._metrics: Metrics = {}

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`; also sets the returns that values are fitted to."""
        outcomes = [self.outcomes(step) for step in steps]
        by_head = [
            self._advantages(steps, rewards, head)
            for head, rewards in enumerate(zip(*outcomes, strict=True))
        ]
        by_step = list(zip(*by_head, strict=True))
        known = [not any(map(is_missing, chain(*heads))) for heads in by_step]
        returns = [_returns(step, heads) for step, heads in zip(steps, by_step, strict=True)]
        self._measure(steps, returns, known)
        if self.normalise:
            weights = [step.weight * is_known for step, is_known in zip(steps, known, strict=True)]
            by_step = list(zip(*(whiten(rows, weights) for rows in by_head), strict=True))
        return [
            step.prepared(tuple(map(self.combine, zip(*heads, strict=True))), targets)
            for step, heads, targets, is_known in zip(steps, by_step, returns, known, strict=True)
            if is_known and step.old_logprobs
        ]

    def outcomes(self, step: ScoredStep) -> list[float]:
        """Return the quantities that the value heads predict the returns of; first the reward."""
        return [step.reward]

    def combine(self, advantages: Sequence[float]) -> float:
        """Return the advantage of a token from its advantages for each value head."""
        return advantages[0]

    def metrics(self) -> Metrics:
        """Return the explained variance and the mean of the value estimates."""
        return dict(self._metrics)

    def _advantages(
        self, steps: Sequence[ScoredStep], rewards: Sequence[float], head: int
    ) -> list[Sequence[float]]:
        out: list[Sequence[float]] = [()] * len(steps)
        for rows, parents in episodes_of(steps):
            found = tree_gae(
                [_token_rewards(steps[row], rewards[row], head) for row in rows],
                [_values(steps[row], head) for row in rows],
                parents,
                gamma=self.gamma,
                lam=self.lam,
            )
            for row, advantages in zip(rows, found, strict=True):
                out[row] = advantages
        return out

    def _measure(
        self,
        steps: Sequence[ScoredStep],
        returns: Sequence[tuple[tuple[float, ...], ...]],
        known: Sequence[bool],
    ) -> None:
        pairs = [
            pair
            for step, targets, is_known in zip(steps, returns, known, strict=True)
            if is_known and targets
            for pair in zip(_values(step, 0), targets[0], strict=True)
        ]
        values, outcomes = [value for value, _ in pairs], [outcome for _, outcome in pairs]
        self._metrics = {"explained_variance": explained_variance(values, outcomes)}
        if values:
            self._metrics["value/mean"] = math.fsum(values) / len(values)


def credit_of(steps: Sequence[PolicyStep], rewards: Sequence[float], credit: Credit) -> list[float]:
    """Return the credit of each step, its reward passed back along the tree; NaN if missing."""
    out = [math.nan] * len(steps)
    for rows, parents in episodes_of(steps):
        _put(out, rows, credit([rewards[row] for row in rows], parents))
    return out


def penalized_credit(steps: Sequence[ScoredStep], credit: Credit) -> list[float]:
    """Return the credit of each step with the KL penalty subtracted from the reward."""
    return credit_of(steps, [step.penalized_reward for step in steps], credit)


def _values(step: ScoredStep, head: int) -> tuple[float, ...]:
    return () if step.values is None else step.values[head]


def _returns(
    step: ScoredStep, advantages: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """Targets of the value heads: value plus advantage of each token."""
    return tuple(
        tuple(a + v for a, v in zip(mine, _values(step, head), strict=True))
        for head, mine in enumerate(advantages)
    )


def _dead_share(groups: Sequence[tuple[Sequence[int], bool]]) -> Metrics:
    signals = [is_live for rows, is_live in groups if len(rows) > 1]
    return {"frac_reward_zero_std": signals.count(False) / len(signals)} if signals else {}


def _put(values: list[Any], rows: Sequence[int], found: Sequence[Any]) -> None:
    for row, value in zip(rows, found, strict=True):
        values[row] = value


def _with_advantages(
    steps: Sequence[ScoredStep], advantages: Sequence[float]
) -> list[PreparedStep]:
    """Give all tokens of an attack its advantage; leave out attacks without tokens or advantage."""
    return [
        step.prepared((advantage,) * len(step.old_logprobs))
        for step, advantage in zip(steps, advantages, strict=True)
        if step.old_logprobs and not is_missing(advantage)
    ]


def _without_past_penalties(step: PreparedStep) -> tuple[float, ...]:
    """Return the advantages of the tokens without the KL penalties of the tokens before them."""
    if not step.penalty:
        return step.advantages
    past, out = 0.0, []
    for advantage, penalty in zip(step.advantages, _penalties(step), strict=True):
        out.append(advantage + past)
        past += penalty
    return tuple(out)


def _token_rewards(step: ScoredStep, outcome: float, head: int) -> list[float]:
    """Return the reward of each token: minus its KL penalty, plus the outcome at the last token."""
    if not step.old_logprobs:
        return [outcome]
    charged = _penalties(step) if head == 0 and step.penalty else (0.0,) * len(step.old_logprobs)
    rewards = [-penalty for penalty in charged]
    rewards[-1] += outcome
    return rewards


def _penalties(step: ScoredStep) -> tuple[float, ...]:
    if step.penalties is None:
        raise ConfigurationError(
            "this algorithm needs the KL penalty per token, and the baseline has another tokenizer "
            "than the attacker. Set kl_in_reward to 0, or use a baseline with the same tokenizer."
        )
    return step.penalties
