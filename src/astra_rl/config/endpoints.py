"""What a configuration would ask over a network or of a function, before anything is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.config.making import StandIn, asked_target, checking_makers, section_of
from astra_rl.config.parts import construct, make_reward
from astra_rl.config.schema import ModeratorConfig, RunConfig, TargetConfig
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.moderators.registry import moderator_class
from astra_rl.rewards.base import RewardPart, walk
from astra_rl.targets.base import Target
from astra_rl.targets.budget import ASSUMED_OUTPUT, Budget, Prices
from astra_rl.targets.remote import made


@dataclass(frozen=True)
class EndpointUse:
    """Something that a run asks, and pays if it costs something.

    Attributes:
        where: Its place in the configuration.
        whose: The place of the target or moderator that it answers for.
        writes: Most tokens of a reply.
        prices: Of its tokens; None if nobody says.
        together: Texts in one request.
        is_judge: Whether it judges.
        reads_conversation: Whether it is told all that was said, or only the text that is judged.
    """

    where: str
    whose: str
    writes: int
    prices: Prices | None
    together: int = 1
    is_judge: bool = True
    reads_conversation: bool = True


def asked_in(config: RunConfig) -> list[EndpointUse]:
    """Return everything that a run asks: targets and judges, those inside of rewards too.

    A class of your own that asks somebody is not known here.

    Raises:
        ConfigurationError: Something in the configuration is wrong.
    """
    found: list[EndpointUse] = []
    if isinstance(config.target, TargetConfig):
        found.append(_answering("target", "target", config.target, is_judge=False))
    found += asked_by("moderator", config.moderator)
    if config.evaluation.judge is not None:
        found += asked_by("evaluation.judge", config.evaluation.judge)
    for part in parts_of(config):
        for each in (*part.others, part.moderator):
            if not isinstance(each, StandIn):
                continue
            if isinstance(each.section, ModeratorConfig):
                found += asked_by(each.where, each.section)
            elif isinstance(each.section, TargetConfig):
                found.append(_answering(each.where, each.where, each.section, is_judge=False))
    return found


def checked_reward(config: RunConfig) -> RewardPart:
    """Make the reward with stand-ins for its moderators, which load nothing.

    Raises:
        ConfigurationError: An unknown part or option.
    """
    return make_reward(config.reward, checking_makers())


def checked_environment(config: RunConfig, openings: Sequence[str]) -> ASTEnvironment:
    """Make the environment with stand-ins, which ask and load nothing.

    Raises:
        ConfigurationError: An unknown option, or one out of range.
    """
    factory, options = ENVIRONMENTS[config.environment.type], config.environment.arguments()
    # An environment only keeps its problem, so its options can be tried without one.
    environment: ASTEnvironment = construct(
        "environment", factory, options, checking_makers(), None, openings
    )
    return environment


def parts_of(config: RunConfig) -> list[RewardPart]:
    """Return all parts of all rewards of a run, made with stand-ins for what they ask."""
    environment = checked_environment(config, [Conversation("-")])
    own = [each for each in vars(environment).values() if isinstance(each, RewardPart)]
    return [part for whole in (checked_reward(config), *own) for part in walk(whole)]


def check_prices(budget: Budget, asked: Sequence[EndpointUse]) -> None:
    """Refuse a budget of money if nobody says what anything costs.

    Raises:
        ConfigurationError: So it is.
    """
    if budget.max_cost is not None and all(each.prices is None for each in asked):
        raise ConfigurationError(
            "budget.max_cost: no target and no judge says what it costs. Give its options prices: "
            "{input: ..., output: ...}, per million tokens."
        )


def asked_by(where: str, judge: ModeratorConfig, whose: str | None = None) -> Iterator[EndpointUse]:
    """Yield what a moderator asks, and those that it is made of."""
    whose = where if whose is None else whose
    complete = judge.options.get("complete")
    if isinstance(complete, Mapping):
        place = f"{where}.options.complete"
        yield _answering(place, whose, section_of(TargetConfig, place, complete), is_judge=True)
    kind: Any = moderator_class(judge.type)
    is_class = isinstance(kind, type) and issubclass(kind, Moderator)
    at_once = kind.texts_per_request if is_class else None
    if at_once is not None:
        yield EndpointUse(
            where,
            whose,
            writes=0,
            prices=made(Prices, f"{where}.options.prices", judge.options.get("prices")),
            together=_whole_number(
                judge.options.get("batch_size", at_once), f"{where}.options.batch_size"
            ),
            reads_conversation=False,
        )
    for index, part in enumerate(judge.of):
        yield from asked_by(f"{where}.of.{index}", part, whose)


def _whole_number(value: Any, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{where}={value!r}; it must be a whole number, at least 1.")
    return value


def longest_reply(target: Target) -> int:
    """Return how many tokens a reply of a target has at most, as far as anybody limits it."""
    most = target.most_output_tokens
    return ASSUMED_OUTPUT if most is None else most


def _answering(where: str, whose: str, section: TargetConfig, *, is_judge: bool) -> EndpointUse:
    target = asked_target(section, where)
    return EndpointUse(
        where,
        whose,
        writes=longest_reply(target),
        prices=target.prices,
        is_judge=is_judge,
    )
