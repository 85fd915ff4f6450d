"""Advantage estimators of the policy-gradient family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from astra_rl.algorithms.advantages import (
    RunningBaseline,
    Scale,
    batch_divisor,
    group_divisor,
    is_tied,
    whiten,
)
from astra_rl.algorithms.credit import Credit
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
        reward or on the unknown future of a truncated turn.

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
        weights = [steps[row].weight for row in rows]
        _put(advantages, rows, self.baseline.advantages([credit[row] for row in rows], weights))
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
        compare: Maps the credits of a group to advantages, without scaling them.
        scale: What advantages are divided by: the standard deviation of the credits of the
            ``"group"``, the root mean square of the advantages of the ``"batch"``, both without
            the KL penalty in the reward, or ``"none"``. Where these are all equal, nothing.
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
        scale: Scale = "none",
        decay: float = 0.9,
        keep_dead: bool = True,
    ) -> None:
        self.credit = credit
        for name, value, kind in (("group", group, Group), ("scale", scale, Scale)):
            if value not in get_args(kind):
                raise ConfigurationError(f"{name}={value!r}; choose from {list(get_args(kind))}.")
        self.group: Group = group
        self.compare, self.scale = compare, scale
        self.baseline = RunningBaseline(decay)
        self.plain_baseline = RunningBaseline(decay)
        self.keep_dead = keep_dead
        self._metrics: Metrics = {}

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`.

        Raises:
            ConfigurationError: `scale` is ``"group"``, and turns were selected at random.
        """
        self._check_selection(steps)
        groups = self._known_groups(steps)
        self._metrics = _dead_share(groups)
        credit = penalized_credit(steps, self.credit)
        plain_credit = credit_of(steps, [step.reward for step in steps], self.credit)
        advantages = self._compared(steps, groups, credit, self.baseline)
        plain = self._compared(steps, groups, plain_credit, self.plain_baseline)
        weights = [step.weight for step in steps]
        divisors = [1.0 if self.scale != "batch" else batch_divisor(plain, weights)] * len(steps)
        if self.scale == "group":
            for members, _ in groups:
                rows = [row for row in members if steps[row].old_logprobs]
                divisor = group_divisor([plain_credit[row] for row in rows])
                _put(divisors, rows, [divisor] * len(rows))
        return _with_advantages(
            steps,
            [value / divisor for value, divisor in zip(advantages, divisors, strict=True)],
            [value / divisor for value, divisor in zip(plain, divisors, strict=True)],
        )

    def _check_selection(self, steps: Sequence[ScoredStep]) -> None:
        """Raise if advantages whose credits were made unbiased would be divided by their spread.

        The spread of a group then holds the factor ``1 / p`` of the turns that were drawn.
        """
        drawn = any(step.place.continuation.probability is not None for step in steps)
        if drawn and self.scale == "group" and self.credit.kind not in ("turn", "max_backup"):
            raise ConfigurationError(
                f"scale='group' with credit={self.credit.kind!r} and turns selected at random "
                "(selection='sampled'): the unbiased credits are divided by a spread that depends "
                "on the draw. Use scale='batch' or 'none', or selection='best'."
            )

    def _compared(
        self,
        steps: Sequence[ScoredStep],
        groups: Sequence[tuple[Sequence[int], bool]],
        credit: Sequence[float],
        baseline: RunningBaseline,
    ) -> list[float]:
        """Return the advantages before scaling; NaN where a step has none."""
        advantages = [math.nan] * len(steps)
        alone: list[int] = []
        for members, is_live in groups:
            rows = [row for row in members if steps[row].old_logprobs]
            if len(rows) == 1:
                alone += rows
            elif is_live or self.keep_dead:
                _put(advantages, rows, self.compare([credit[row] for row in rows]))
        weights = [steps[row].weight for row in alone]
        _put(advantages, alone, baseline.advantages([credit[row] for row in alone], weights))
        return advantages

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
        """Return the running averages of credits with and without the KL penalty."""
        return {**self.baseline.state_dict(), "without_penalty": self.plain_baseline.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the running averages."""
        self.baseline.load_state_dict(state)
        self.plain_baseline.value = state["without_penalty"]

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
                differ = len(rows) == 1 or not is_tied(values)
                found.append((rows, differ))
        return found


class BatchNormalized(AdvantageEstimator):
    """Advantages normalised over all tokens of the experience: the estimator of REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, sec. 3: the return of a token is the credit of its turn minus
    the KL penalties of this and later tokens, and returns are whitened over the whole batch. The
    standard deviation is that of the advantages without the KL penalty, so that the KL coefficient
    keeps its meaning when all rewards tie.

    Args:
        inner: Estimates the advantages that are normalised.
    """

    def __init__(self, inner: AdvantageEstimator) -> None:
        self.inner = inner

    def estimate(self, steps: Sequence[ScoredStep]) -> list[PreparedStep]:
        """See `AdvantageEstimator.estimate`."""
        found = self.inner.estimate(steps)
        rows = whiten(
            [_without_past_penalties(step) for step in found],
            [step.weight for step in found],
            measured=[step.unpenalized or step.advantages for step in found],
        )
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
        plain = credit_of(steps, [step.reward for step in steps], self.credit)
        return _with_advantages(steps, penalized_credit(steps, self.credit), plain)


def credit_of(steps: Sequence[PolicyStep], rewards: Sequence[float], credit: Credit) -> list[float]:
    """Return the credit of each step, its reward passed back along the tree; NaN if missing."""
    out = [math.nan] * len(steps)
    for rows, parents in episodes_of(steps):
        how = [steps[row].place.continuation for row in rows]
        _put(out, rows, credit([rewards[row] for row in rows], parents, how))
    return out


def penalized_credit(steps: Sequence[ScoredStep], credit: Credit) -> list[float]:
    """Return the credit of each step with the KL penalty subtracted from the reward.

    ``"leaf"`` passes back the reward of the last turn only. A penalty is no such outcome: those of
    all turns from the step on count, or only last turns would be kept near the reference.
    """
    if credit.kind != "leaf":
        return credit_of(steps, [step.penalized_reward for step in steps], credit)
    outcomes = credit_of(steps, [step.reward for step in steps], credit)
    penalties = credit_of(steps, [step.penalty for step in steps], Credit("return_to_go"))
    return [outcome - penalty for outcome, penalty in zip(outcomes, penalties, strict=True)]


def _dead_share(groups: Sequence[tuple[Sequence[int], bool]]) -> Metrics:
    signals = [is_live for rows, is_live in groups if len(rows) > 1]
    return {"frac_reward_zero_std": signals.count(False) / len(signals)} if signals else {}


def _put(values: list[Any], rows: Sequence[int], found: Sequence[Any]) -> None:
    for row, value in zip(rows, found, strict=True):
        values[row] = value


def _with_advantages(
    steps: Sequence[ScoredStep],
    advantages: Sequence[float],
    unpenalized: Sequence[float] | None = None,
) -> list[PreparedStep]:
    """Give all tokens of an attack its advantage; leave out attacks without tokens or advantage."""
    plain = advantages if unpenalized is None else unpenalized
    return [
        replace(
            step.prepared((advantage,) * len(step.old_logprobs)),
            unpenalized=(without,) * len(step.old_logprobs),
        )
        for step, advantage, without in zip(steps, advantages, plain, strict=True)
        if step.old_logprobs and not is_missing(advantage)
    ]


def _without_past_penalties(step: PreparedStep) -> tuple[float, ...]:
    """Return the advantages of the tokens without the KL penalties of the tokens before them."""
    if not step.penalty:
        return step.advantages
    past, out = 0.0, []
    for advantage, penalty in zip(step.advantages, token_penalties(step), strict=True):
        out.append(advantage + past)
        past += penalty
    return tuple(out)


def token_penalties(step: ScoredStep) -> tuple[float, ...]:
    """Return the KL penalty of each token of an attack.

    Raises:
        ConfigurationError: It is not known, because the baseline has another tokenizer.
    """
    if step.penalties is None:
        raise ConfigurationError(
            "this algorithm needs the KL penalty per token, and the baseline has another tokenizer "
            "than the attacker. Set kl_in_reward to 0, or use a baseline with the same tokenizer."
        )
    return step.penalties
