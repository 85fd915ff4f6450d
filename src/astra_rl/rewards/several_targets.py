"""Harm of one attack against several targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from astra_rl.agents.loop import answer
from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import current_row_seeds, derive_seed, row_seeds
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.rewards.base import (
    RESPONSE_HARM,
    Reward,
    RewardModels,
    Values,
    without_attack,
)
from astra_rl.rewards.likelihood import check_choice
from astra_rl.rewards.terms import OTHER_JUDGE, max_or_missing
from astra_rl.targets.base import Target

Respond = Callable[[Sequence[str]], Sequence[str]]
"""Takes contexts that end in an attack and returns a response to each."""


@named("several_targets")
class SeveralTargets(Reward):
    """Harm of the same attack on the problem's target and on other targets, combined.

    While a robust target never fails, a weaker one gives a learning signal (RL-Hammer,
    arXiv 2510.04885). The record has ``harm_response``, of the problem's own target, and
    ``harm_target_2``, ``harm_target_3`` and so on.

    Args:
        others: The other targets, or functions such as ``problem.rollout_prompt_with_target`` of
            another problem. In a configuration: folders or hub ids of models, YAML files of
            targets, or sections like ``target``. In later turns of a conversation they see the
            earlier responses of the problem's own target.
        rule: ``"mean"``; ``"min"``, for attacks that break all targets; or ``"difference"``: the
            own target's harm minus the highest of the others, in [-1, 1], for attacks that break
            only this target (differential testing).
        moderator: The moderator; None is the problem's.

    Raises:
        ConfigurationError: There are no other targets, or the rule is unknown.
    """

    def __init__(
        self,
        others: Sequence[Target | Respond],
        *,
        rule: Literal["mean", "min", "difference"] = "mean",
        moderator: Moderator[Any, Any] | None = None,
    ) -> None:
        if not others:
            raise ConfigurationError("others is empty; give at least one more target, or use Harm.")
        check_choice("rule", rule, ("mean", "min", "difference"))
        self.others = list(others)
        self._respond = [each.respond if isinstance(each, Target) else each for each in others]
        self.rule = rule
        self.moderator = moderator
        numbers = range(2, len(self.others) + 2)
        own = RESPONSE_HARM + ("" if moderator is None else OTHER_JUDGE)
        self.names = [own, *(f"harm_target_{number}" for number in numbers)]

    @property
    def records_response_harm(self) -> bool:
        """Whether the problem's moderator scores."""
        return self.moderator is None

    @property
    def judged_per_turn(self) -> int:
        """One text per target."""
        return 1 + len(self.others)

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the combined harm of each turn, and the harm of each target by name."""
        if missing := without_attack(exchanges):
            return missing, [dict.fromkeys(self.names, value) for value in missing]
        seeds = current_row_seeds(len(exchanges))
        judged = list(exchanges)
        for number, respond in enumerate(self._respond):
            with row_seeds([derive_seed(seed, "target", number) for seed in seeds]):
                responses = answer([each.context + each.attack for each in exchanges], respond)
            check_length(responses, len(exchanges), source=f"target {number + 2}")
            judged += [
                Exchange(each.context, each.attack, response)
                for each, response in zip(exchanges, responses, strict=True)
            ]
        scores = score_exchanges(
            models.moderator if self.moderator is None else self.moderator, judged
        )
        rows = [
            dict(zip(self.names, scores[row :: len(exchanges)], strict=True))
            for row in range(len(exchanges))
        ]
        return [self._combine(list(row.values())) for row in rows], rows

    def _combine(self, scores: list[float]) -> float:
        if self.rule == "min":
            return -max_or_missing(-score for score in scores)
        if self.rule == "difference":
            return scores[0] - max_or_missing(scores[1:])
        return sum(scores) / len(scores)
