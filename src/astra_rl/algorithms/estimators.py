"""How much better than expected each attack of an experience was."""

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
from astra_rl.algorithms.policy_steps import Group, PolicyStep, episodes_of, groups_of
from astra_rl.core.common import Metrics
from astra_rl.core.contracts import is_missing
from astra_rl.errors import ConfigurationError


class AdvantageEstimator(ABC):
    """Gives the steps of an experience their advantages."""

    @abstractmethod
    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """Return the steps with advantages, but for those that miss a reward that they need.

        Args:
            steps: All of an experience, with old log-probabilities, penalties and values.
        """

    def metrics(self) -> Metrics:
        """Return numbers about the latest experience."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027, most have no state
        """Take back what `state_dict` returned."""


class RunningMeanBaseline(AdvantageEstimator):
    """Compares each attack with the average of those before.

    Args:
        credit: How turns are credited.
        decay: Of the average.
    """

    def __init__(self, credit: Credit, decay: float = 0.9) -> None:
        self.credit = credit
        self.baseline = RunningBaseline(decay)

    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """See `AdvantageEstimator.estimate`."""
        credit = credit_of(steps, self.credit)
        rows = [row for row, step in enumerate(steps) if step.old_logprobs]
        advantages = [math.nan] * len(steps)
        _put(advantages, rows, self.baseline.advantages([credit[row] for row in rows]))
        return [_spread(step, value) for step, value in zip(steps, advantages, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return self.baseline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the average."""
        self.baseline.load_state_dict(state)


class GroupBaseline(AdvantageEstimator):
    """Compares each attack with the others of its group, or with a running average if it has none.

    Args:
        credit: How turns are credited.
        group: Which attacks are compared with each other.
        compare: Credits of a group to advantages.
        scale: Advantages of all groups to those that are used.
        decay: Of the running average.
        keep_dead: Whether a group whose members were all credited alike stays in the batch. Its
            advantages are zero (but for a divergence in the reward), yet it counts in the means.

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

    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """See `AdvantageEstimator.estimate`."""
        credit = credit_of(steps, self.credit)
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
        return [
            _spread(step, value) for step, value in zip(steps, self.scale(advantages), strict=True)
        ]

    def live(self, steps: Sequence[PolicyStep]) -> list[bool]:
        """Return for each step whether it can be told from others of its group; True if alone."""
        live = [False] * len(steps)
        for rows, is_live in self._known_groups(steps):
            _put(live, rows, [is_live] * len(rows))
        return live

    def measure(self, steps: Sequence[PolicyStep]) -> Metrics:
        """Return the share of groups without signal, if there are groups."""
        return _dead_share(self._known_groups(steps))

    def metrics(self) -> Metrics:
        """Return the share of groups without signal in the latest experience."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the running average."""
        return self.baseline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the running average."""
        self.baseline.load_state_dict(state)

    def _known_groups(self, steps: Sequence[PolicyStep]) -> list[tuple[list[int], bool]]:
        """Return the members of each group whose credit is known, and whether they differ.

        A divergence in the reward is left out: it differs always, and says nothing of the target.
        """
        credit = credit_of([replace(step, penalty=0.0) for step in steps], self.credit)
        found = []
        for members in groups_of(steps, self.group):
            rows = [row for row in members if not is_missing(credit[row])]
            values = [credit[row] for row in rows]
            if rows:
                differ = len(rows) == 1 or max(values) - min(values) >= TIE_TOLERANCE
                found.append((rows, differ))
        return found


class BatchNormalized(AdvantageEstimator):
    """Compares each token with all tokens of the experience: the estimator of REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, sec. 3: the return of a token is the credit of its turn less
    the divergence that is still to come, and returns are normalised over the whole batch.

    Args:
        inner: Estimates what is normalised.
    """

    def __init__(self, inner: AdvantageEstimator) -> None:
        self.inner = inner

    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """See `AdvantageEstimator.estimate`."""
        steps = self.inner.estimate(steps)
        rows = [step for step in steps if step.is_trainable]
        normal = whiten([_with_past_penalties(step) for step in rows], [s.weight for s in rows])
        return [replace(step, advantages=row) for step, row in zip(rows, normal, strict=True)]

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
    """Each attack its own credit: nothing is compared.

    Args:
        credit: How turns are credited.
    """

    def __init__(self, credit: Credit) -> None:
        self.credit = credit

    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """See `AdvantageEstimator.estimate`."""
        credit = credit_of(steps, self.credit)
        return [_spread(step, value) for step, value in zip(steps, credit, strict=True)]


class GAE(AdvantageEstimator):
    """Compares each token with what the value function expected, see `tree_gae`.

    Args:
        gamma: Discount per token.
        lam: 0 trusts the values, 1 the rewards.
        normalise: Whether advantages, of each estimated return by itself, are shifted and scaled
            to mean 0 and deviation 1.

    Raises:
        ConfigurationError: A value is out of [0, 1].
    """

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, *, normalise: bool = True) -> None:
        for name, value in (("gamma", gamma), ("gae_lambda", lam)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name}={value}; it must be in [0, 1].")
        self.gamma, self.lam, self.normalise = gamma, lam, normalise
        self._metrics: Metrics = {}

    def estimate(self, steps: Sequence[PolicyStep]) -> list[PolicyStep]:
        """See `AdvantageEstimator.estimate`; the returns that the values are fitted to as well."""
        outcomes = [self.outcomes(step) for step in steps]
        by_head = [
            self._advantages(steps, rewards, head)
            for head, rewards in enumerate(zip(*outcomes, strict=True))
        ]
        by_step = list(zip(*by_head, strict=True))
        known = [not any(map(is_missing, chain(*heads))) for heads in by_step]
        steps = [
            replace(step, returns=_returns(step, heads))
            for step, heads in zip(steps, by_step, strict=True)
        ]
        self._measure(steps, known)
        if self.normalise:
            weights = [step.weight * is_known for step, is_known in zip(steps, known, strict=True)]
            by_step = list(zip(*(whiten(rows, weights) for rows in by_head), strict=True))
        return [
            replace(step, advantages=tuple(map(self.combine, zip(*heads, strict=True))))
            if is_known
            else step
            for step, heads, is_known in zip(steps, by_step, known, strict=True)
        ]

    def outcomes(self, step: PolicyStep) -> list[float]:
        """Return what each estimated return is the return of; the first is the reward."""
        return [step.reward]

    def combine(self, advantages: Sequence[float]) -> float:
        """Make one advantage of those of each estimated return."""
        return advantages[0]

    def metrics(self) -> Metrics:
        """Return how good the estimates were."""
        return dict(self._metrics)

    def _advantages(
        self, steps: Sequence[PolicyStep], rewards: Sequence[float], head: int
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

    def _measure(self, steps: Sequence[PolicyStep], known: Sequence[bool]) -> None:
        pairs = [
            pair
            for step, is_known in zip(steps, known, strict=True)
            if is_known and step.returns
            for pair in zip(_values(step, 0), step.returns[0], strict=True)
        ]
        values, outcomes = [value for value, _ in pairs], [outcome for _, outcome in pairs]
        self._metrics = {"explained_variance": explained_variance(values, outcomes)}
        if values:
            self._metrics["value/mean"] = math.fsum(values) / len(values)


def credit_of(steps: Sequence[PolicyStep], credit: Credit) -> list[float]:
    """Return the credit of each step, its reward less its penalty passed back; NaN if missing."""
    out = [math.nan] * len(steps)
    for rows, parents in episodes_of(steps):
        _put(out, rows, credit([steps[row].reward - steps[row].penalty for row in rows], parents))
    return out


def _values(step: PolicyStep, head: int) -> tuple[float, ...]:
    return () if step.values is None else step.values[head]


def _returns(
    step: PolicyStep, advantages: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """What the estimates should have been: themselves and their advantages."""
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


def _spread(step: PolicyStep, advantage: float) -> PolicyStep:
    """Give every token of the attack the same advantage."""
    tokens = None if is_missing(advantage) else (advantage,) * len(step.old_logprobs)
    return replace(step, advantages=tokens)


def _with_past_penalties(step: PolicyStep) -> tuple[float, ...]:
    """Give back to each token what the divergence of the tokens before it cost."""
    if step.advantages is None or not step.penalty:
        return step.advantages or ()
    past, out = 0.0, []
    for advantage, penalty in zip(step.advantages, _penalties(step), strict=True):
        out.append(advantage + past)
        past += penalty
    return tuple(out)


def _token_rewards(step: PolicyStep, outcome: float, head: int) -> list[float]:
    """The outcome of a turn comes with its last token; divergence costs where it happens."""
    if not step.old_logprobs:
        return [outcome]
    charged = _penalties(step) if head == 0 and step.penalty else (0.0,) * len(step.old_logprobs)
    rewards = [-penalty for penalty in charged]
    rewards[-1] += outcome
    return rewards


def _penalties(step: PolicyStep) -> tuple[float, ...]:
    if step.penalties is None:
        raise ConfigurationError(
            "this algorithm charges divergence token by token, and the baseline has another "
            "tokenizer than the attacker. Set kl_in_reward to 0, or use a baseline with the same "
            "tokenizer."
        )
    return step.penalties
