"""What a configuration would ask of endpoints, before anything is sent or loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.config.build import EVALUATED_TOGETHER, load_openings
from astra_rl.config.endpoints import (
    EndpointUse,
    asked_in,
    checked_environment,
    longest_reply,
    parts_of,
)
from astra_rl.config.making import StandIn, asked_target
from astra_rl.config.schema import RunConfig, TargetConfig
from astra_rl.core.contracts import mean_of_present
from astra_rl.core.text import Conversation
from astra_rl.rewards.base import RewardPart

GIVEN_TOGETHER = 64
"""Given attacks that are said and judged together at least."""
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


@dataclass(frozen=True)
class _Level:
    """Turns of one tree level that are played together, and how often that happens.

    Attributes:
        stage: ``"training"``, ``"watch"``, ``"evaluation"``, or ``"given"`` if the attacks are
            given, so that no reward is computed.
        before: Turns that were said before.
        opening: Tokens of the opening.
        times: How often.
        turns: How many turns at a time.
    """

    stage: str
    before: int
    opening: float
    times: int
    turns: int


def estimate(
    config: RunConfig, *, training: bool = True, queries_per_turn: int = 1
) -> list[EstimateRow]:
    """Estimate the calls of a run, or of an evaluation alone, from above.

    Conversations that end early, turns that are judged only once and replies that are shorter than
    they may be make it less.

    Args:
        config: The run.
        training: Whether it is trained too.
        queries_per_turn: Attacks that an evaluation tries for each that counts.

    Raises:
        ConfigurationError: The configuration is wrong.
    """
    return _rows(config, list(_levels(config, training, queries_per_turn)))


def estimate_given(
    config: RunConfig, openings: Sequence[str], turns: Sequence[int]
) -> list[EstimateRow]:
    """Estimate the calls of saying given attacks, as `estimate` does.

    Args:
        config: Says who is asked.
        openings: Of the conversations.
        turns: How many attacks are said in each.
    """
    opening = _mean_length(openings)
    levels = []
    for before in range(max(turns, default=0)):
        said = sum(count > before for count in turns)
        batches, rest = divmod(said, GIVEN_TOGETHER)
        levels.append(_Level("given", before, opening, batches, GIVEN_TOGETHER))
        levels.append(_Level("given", before, opening, 1, rest))
    return _rows(config, levels)


def _rows(config: RunConfig, levels: Sequence[_Level]) -> list[EstimateRow]:
    asked = asked_in(config)
    if not asked:
        return []
    reply, attack = _longest_reply(config), config.attacker.max_new_tokens
    parts = parts_of(config)
    has_judge = config.evaluation.judge is not None
    return [_row(each, levels, parts, attack, reply, has_judge=has_judge) for each in asked]


def _row(
    asked: EndpointUse,
    levels: Sequence[_Level],
    parts: Sequence[RewardPart],
    attack: int,
    reply: int,
    *,
    has_judge: bool,
) -> EstimateRow:
    requests = read = 0.0
    for level in levels:
        texts = _texts_per_turn(asked.whose, level.stage, parts, has_judge=has_judge)
        requests += level.times * texts * math.ceil(level.turns / asked.together)
        said = level.opening + level.before * (attack + reply) + attack
        if asked.is_judge:
            said = said + reply + INSTRUCTIONS if asked.reads_conversation else attack + reply
        read += level.times * texts * level.turns * said
    written = requests * asked.writes
    cost = None if asked.prices is None else asked.prices.cost_of(read, written)
    return EstimateRow(asked.where, round(requests), round(read), round(written), cost)


def _texts_per_turn(whose: str, stage: str, parts: Sequence[RewardPart], *, has_judge: bool) -> int:
    """How many texts of one turn a target answers or a moderator judges."""
    if whose == "evaluation.judge":
        return int(stage != "training")
    if stage == "given":
        return int(whose == "target" or (whose == "moderator" and not has_judge))
    if stage == "watch":  # what the moderator says there is known from the reward
        return 0
    if whose == "target":
        return 1 + sum(part.replies_per_turn for part in parts)
    if whose == "moderator":
        judged = (p.judged_per_turn for p in parts if p.moderator is None)
        # The score of each turn is wanted, whatever the reward makes of it.
        return max(sum(judged), int(stage == "training" or not has_judge))
    judged = (p.judged_per_turn for p in parts if _place(p.moderator) == whose)
    answers = (1 for p in parts for each in p.others if _place(each) == whose)
    return sum(judged) + sum(answers)


def _place(found: Any) -> str | None:
    return found.where if isinstance(found, StandIn) else None


def _levels(config: RunConfig, training: bool, queries_per_turn: int) -> Iterator[_Level]:
    """Yield all that would be played, level by level."""
    train, test = load_openings(config.prompts, seed=config.seed)
    environment = checked_environment(config, train)
    steps, episodes = config.training.steps, config.training.episodes_per_step
    if training:
        opening, counts = _mean_length(train), environment.turns_by_level()
        for before, count in enumerate(counts):
            yield _Level("training", before, opening, steps, episodes * count)
        if config.evaluation.judge is not None:
            most = min(config.evaluation.watch, episodes * sum(counts))
            yield _Level("watch", len(counts) - 1, opening, steps, most)
    evaluations = 1 + int(training and config.evaluation.before)
    batches, rest = divmod(len(test) * config.evaluation.trials, EVALUATED_TOGETHER)
    opening = _mean_length(test)
    straight = [queries_per_turn * count for count in environment.turns_by_level(straight=True)]
    for before, count in enumerate(straight):
        yield _Level(
            "evaluation", before, opening, evaluations * batches, EVALUATED_TOGETHER * count
        )
        yield _Level("evaluation", before, opening, evaluations, rest * count)


def _longest_reply(config: RunConfig) -> int:
    if not isinstance(config.target, TargetConfig):
        return config.target.max_new_tokens
    return longest_reply(asked_target(config.target))


def _mean_length(openings: Sequence[str]) -> float:
    known = [Conversation.of(each) for each in openings]
    return mean_of_present((len(each.prompt) + len(each.system or "")) / 4 for each in known)
