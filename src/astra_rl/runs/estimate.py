"""What a configuration would ask of endpoints, before anything is sent or loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from astra_rl.core.contracts import mean_of_present
from astra_rl.core.text import Conversation
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.rewards.base import walk
from astra_rl.rewards.terms import Harm
from astra_rl.runs.build import (
    asked_in,
    build_environment,
    build_target,
    checked_reward,
    load_openings,
)
from astra_rl.runs.config import RunConfig, TargetConfig
from astra_rl.targets.ledger import Prices

ASSUMED_REPLY = 256
"""Tokens of a reply whose length nobody limits."""
INSTRUCTIONS = 600
"""Tokens that a judge is told besides the conversation."""


@dataclass(frozen=True)
class EstimateRow:
    """What one endpoint would be asked at most.

    Attributes:
        name: Its place in the configuration.
        requests: Calls, without tries again.
        input: Tokens it would read: a quarter of the characters.
        output: Tokens it would write, if every reply is as long as it may be.
        cost: By its prices; None without.
    """

    name: str
    requests: int
    input: int
    output: int
    cost: float | None


def estimate(config: RunConfig, *, training: bool = True) -> list[EstimateRow]:
    """Estimate the calls of a run, or of an evaluation alone, from above.

    Conversations that end early, turns that are judged only once and replies that are shorter than
    they may be make it less.

    Raises:
        ConfigurationError: The configuration is wrong.
    """
    asked = dict(asked_in(config))
    if not asked:
        return []
    turns = list(_turns(config, training))
    target = build_target(config.target)
    longest = config.target
    reply = (
        longest.max_new_tokens
        if not isinstance(longest, TargetConfig)
        else getattr(target, "most_output_tokens", None) or ASSUMED_REPLY
    )
    attack = config.attacker.max_new_tokens
    harms = sum(isinstance(part, Harm) for part in walk(checked_reward(config)))
    judge = config.evaluation.judge
    rows = []
    for place, section in asked.items():
        calls = read = 0.0
        for stage, turn, count, opening in turns:
            before = opening + turn * (attack + reply) + attack
            times = {"target": 1}.get(place, _times(place, stage, harms, judge is not None))
            if stage == "watch" and place == "target":
                times = 0
            calls += times * count
            read += times * count * (before if place == "target" else before + reply + INSTRUCTIONS)
        written = calls * (reply if place == "target" else _limit(section))
        prices = section.options.get("prices")
        known = Prices(**prices) if isinstance(prices, Mapping) else None
        cost = None if known is None else (read * known.input + written * known.output) / 1e6
        rows.append(EstimateRow(place, round(calls), round(read), round(written), cost))
    return rows


def _times(place: str, stage: str, harms: int, has_judge: bool) -> int:
    """How often a judge is asked about one turn."""
    trains = place.startswith("moderator")
    if stage == "watch":
        return 0 if trains else 1
    if stage == "training":
        return max(1, harms) if trains else 0
    # In evaluation the reward is computed too, and a judge of its own comes on top.
    return max(1, harms) if trains else int(has_judge)


def _turns(config: RunConfig, training: bool) -> Iterator[tuple[str, int, float, float]]:
    """Yield stage, turns before, how many such turns, and tokens of the opening."""
    train, test = load_openings(config.prompts, seed=config.seed)
    environment = build_environment(config.environment, cast("HFASTProblem", None), train)
    if training:
        episodes = config.training.steps * config.training.episodes_per_step
        levels = environment.turns_by_level()
        for turn, count in enumerate(levels):
            yield "training", turn, episodes * count, _mean_length(train)
        if config.evaluation.judge is not None:
            most = min(config.evaluation.watch, config.training.episodes_per_step * sum(levels))
            yield "watch", 0, config.training.steps * most, _mean_length(train)
    evaluations = config.evaluation.trials * (1 + int(training and config.evaluation.before))
    for turn, count in enumerate(environment.turns_by_level(straight=True)):
        yield "evaluation", turn, evaluations * len(test) * count, _mean_length(test)


def _mean_length(openings: Any) -> float:
    known = [Conversation.of(each) for each in openings]
    return mean_of_present((len(each.prompt) + len(each.system or "")) / 4 for each in known)


def _limit(section: TargetConfig) -> int:
    told = section.options.get("max_tokens", ASSUMED_REPLY)
    return told if isinstance(told, int) else ASSUMED_REPLY
