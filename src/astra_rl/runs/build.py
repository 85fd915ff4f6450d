"""From a configuration to objects."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from astra_rl.algorithms import ALGORITHMS
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed, seeded
from astra_rl.datasets.files import Source
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.value import HFValueProblem
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.methods.ordinary_use import OrdinaryUse
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.hf_generation import generate_with_transformers
from astra_rl.models.loading import LoraOptions
from astra_rl.moderators import FunctionModerator
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.registry import moderator_class
from astra_rl.moderators.tolerant import TolerantModerator
from astra_rl.rewards.base import RewardPart, readings
from astra_rl.runs.config import (
    AlgorithmConfig,
    EnvironmentConfig,
    ModeratorConfig,
    PromptsConfig,
    RunConfig,
    SpeakerConfig,
    TargetConfig,
)
from astra_rl.runs.config_files import check_credentials
from astra_rl.runs.parts import MakeModerator, construct, make_part
from astra_rl.runs.prompts import read_openings
from astra_rl.targets.base import Target
from astra_rl.targets.registry import target_factory
from astra_rl.training.config import TrainingConfiguration

_SAMPLERS: dict[str, Sampler] = {"own": generate, "transformers": generate_with_transformers}


@dataclass(frozen=True)
class Experiment:
    """What a run consists of.

    Attributes:
        problem: The models.
        environment: Plays training episodes.
        algorithm: Learns from them.
        evaluator: Plays held-out conversations and judges them.
        training: Hyperparameters of the loop.
        sources: Where its prompts came from, with checksums.
        categories: Kinds of its prompts, see `Openings`.
    """

    problem: HFASTProblem
    environment: ASTEnvironment
    algorithm: Algorithm[str, str, Any, Any]
    evaluator: ASTEvaluator
    training: TrainingConfiguration
    sources: Sequence[Source] = ()
    categories: Mapping[str, str] = field(default_factory=dict)


def check_options(config: RunConfig) -> None:
    """Check all that can be checked without loading a model.

    Raises:
        ConfigurationError: An option that its class does not take, or a file that cannot be read.
    """
    check_credentials(config)
    check_moderator_options(config.moderator)
    if config.evaluation.judge is not None:
        check_moderator_options(config.evaluation.judge, "evaluation.judge")
    _check_arguments(
        "algorithm.options", ALGORITHMS[config.algorithm.type], config.algorithm.options
    )
    check_target(config.target)
    reward = checked_reward(config)
    if isinstance(config.target, TargetConfig) and "inside" in readings(reward):
        raise ConfigurationError(
            f"reward: it looks inside the target, and {config.target.name} only answers. Leave out "
            "response_likelihood and embedder: target, or test a local model."
        )
    _check_prices(config)
    _, openings = load_openings(config.prompts, seed=config.seed)
    # An environment only keeps its problem, so its options can be tried without one.
    _make_environment(
        config.environment, cast("HFASTProblem", None), openings, _checked_moderator_at
    )


def checked_reward(config: RunConfig) -> RewardPart:
    """Make the reward with stand-ins for its moderators, which load nothing.

    Raises:
        ConfigurationError: An unknown part or option.
    """
    return make_part("reward", config.reward, _checked_moderator_at)


def check_training_options(config: RunConfig) -> None:
    """Check also whether the algorithm can be made, and can learn from such attacks.

    What only evaluates need not: it may sample at any temperature.

    Raises:
        ConfigurationError: See `check_options`, or an option of the algorithm is out of range.
    """
    check_options(config)
    # An algorithm only asks its problem how it samples, so it can be made without any model.
    without_models = HFValueProblem.__new__(HFValueProblem)
    without_models.attacker_sampling = _sampling(config.attacker)
    build_algorithm(config.algorithm, without_models)


def build(config: RunConfig) -> Experiment:
    """Load the models and put everything together.

    Raises:
        AstraError: Something cannot be had or does not fit; the message says what.
    """
    check_training_options(config)
    openings = read_openings(config.prompts, seed=config.seed)
    moderator = build_moderator(config.moderator)
    with seeded(derive_seed(config.seed, "models")):  # adapters and value heads begin at random
        problem = build_problem(config, moderator)
    environment = build_environment(config.environment, problem, openings.train)
    return Experiment(
        problem,
        environment,
        build_algorithm(config.algorithm, problem),
        build_evaluator(config, problem, openings.test),
        _training(config),
        openings.sources,
        openings.categories,
    )


def build_evaluator(
    config: RunConfig, problem: HFASTProblem, openings: Sequence[str]
) -> ASTEvaluator:
    """Make what plays the held-out conversations and lets the judge score them."""
    judge = config.evaluation.judge
    return ASTEvaluator(
        build_environment(config.environment, problem, openings),
        openings,
        threshold=config.evaluation.threshold,
        judge=None if judge is None else build_moderator(judge, "evaluation.judge"),
        batch_size=128,
    )


def build_problem(
    config: RunConfig, moderator: Moderator[str, str], *, attacker: str | None = None
) -> HFASTProblem:
    """Load attacker, target and baseline; with a value function if the algorithm needs one.

    Args:
        config: The configuration.
        moderator: The training moderator.
        attacker: A trained attacker to load instead of the one that the configuration starts from.
            It is loaded as it is: an adapter that it brings is part of it.
    """
    speaker = config.attacker
    local = config.target if isinstance(config.target, SpeakerConfig) else None
    lora = speaker.lora if attacker is None else None
    kind: Callable[..., HFASTProblem] = HFASTProblem
    algorithm = config.algorithm
    count = ALGORITHMS[algorithm.type].values_needed(**algorithm.options)
    if attacker is None and count:
        kind = partial(HFValueProblem, value_count=count)
    return kind(
        attacker or speaker.model,
        build_target(config.target),
        config.baseline or speaker.model,
        moderator,
        config.device,
        dtype=config.dtype,
        reward=build_reward(config),
        sampler=_SAMPLERS[config.sampler],
        attacker_sampling=_sampling(speaker),
        target_sampling=None if local is None else _sampling(local),
        attacker_chat=speaker.chat,
        target_chat=None if local is None else local.chat,
        attacker_stops_at_newline=speaker.stop_at_newline,
        lora=LoraOptions(**lora.model_dump()) if lora is not None else None,
        trainable_layers=speaker.trainable_layers if attacker is None else None,
        trust_remote_code=config.trust_remote_code,
    )


def check_target(config: SpeakerConfig | TargetConfig, where: str = "target") -> None:
    """Check the options of a target that is asked; nothing is sent.

    Raises:
        ConfigurationError: An option that its class does not take, a value out of range, or a key
            that is not there; `where` is named.
    """
    if isinstance(config, TargetConfig):
        _asked(config, where)


def build_target(config: SpeakerConfig | TargetConfig) -> str | Target:
    """Return the name of a model to load, or a target that is asked."""
    return _asked(config, "target") if isinstance(config, TargetConfig) else config.model


def _asked(config: TargetConfig, where: str) -> Target:
    factory = target_factory(config.type)
    _check_arguments(f"{where}.options", factory, config.options)
    try:
        return factory(**config.options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}.options: {error}") from error


def asked_in(config: RunConfig) -> Iterator[tuple[str, TargetConfig]]:
    """Yield everything that a run asks over a network or a function, with its place."""
    if isinstance(config.target, TargetConfig):
        yield "target", config.target
    judges = [("moderator", config.moderator), ("evaluation.judge", config.evaluation.judge)]
    while judges:
        where, judge = judges.pop(0)
        if judge is None:
            continue
        judges += [(f"{where}.of.{index}", part) for index, part in enumerate(judge.of)]
        complete = judge.options.get("complete")
        if isinstance(complete, Mapping):
            place = f"{where}.options.complete"
            yield place, _target_config(place, complete)


def _check_prices(config: RunConfig) -> None:
    asked = [each for _, each in asked_in(config)]
    if config.budget.max_cost is not None and not any("prices" in each.options for each in asked):
        raise ConfigurationError(
            "budget.max_cost: no target and no judge says what it costs. Give its options prices: "
            "{input: ..., output: ...}, per million tokens."
        )


def _target_config(where: str, values: Any) -> TargetConfig:
    return _section_of(TargetConfig, where, values)


def _completers(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a moderator's options with what answers it made of what the file says."""
    complete = options.get("complete")
    if not isinstance(complete, Mapping):
        return dict(options)
    place = f"{where}.complete"
    target = _asked(_target_config(place, complete), place)
    if not callable(target):
        raise ConfigurationError(f"{place}: {type(target).__name__} cannot answer chats.")
    return {**options, "complete": target}


def ordinary_use(config: RunConfig, problem: HFASTProblem) -> OrdinaryUse:
    """Return the problem in which the baseline of a configuration speaks."""
    return OrdinaryUse(
        problem, problem.rollout_prompt_with_baseline, brief=config.evaluation.ordinary_brief
    )


def check_moderator_options(config: ModeratorConfig, where: str = "moderator") -> None:
    """Check a moderator's options, and those of the moderators it is made of.

    Raises:
        ConfigurationError: An option that its class does not take; `where` is named.
    """
    chosen = moderator_class(config.type)
    given_otherwise = ["moderators"] if config.of else []
    _check_arguments(f"{where}.options", chosen, config.options, given_otherwise)
    _completers(f"{where}.options", config.options)
    for index, part in enumerate(config.of):
        check_moderator_options(part, f"{where}.of.{index}")


def build_moderator(config: ModeratorConfig, where: str = "moderator") -> Moderator[str, str]:
    """Make a moderator of its name and options; the same text is never judged twice.

    What goes wrong in it later is a missing score, see `TolerantModerator`.

    Raises:
        AstraError: It cannot be made; the message says where in the configuration and why.
    """
    parts = [build_moderator(part, f"{where}.of.{index}") for index, part in enumerate(config.of)]
    moderator = _construct(
        f"{where}.options",
        moderator_class(config.type),
        _completers(f"{where}.options", config.options),
        *([parts] if parts else []),
    )
    return CachedModerator(TolerantModerator(moderator, time_limit=config.time_limit))


def build_algorithm(
    config: AlgorithmConfig, problem: HFASTProblem
) -> Algorithm[str, str, Any, Any]:
    """Make an algorithm of its name and options."""
    algorithm: Algorithm[str, str, Any, Any] = _construct(
        "algorithm.options", ALGORITHMS[config.type], config.options, problem
    )
    return algorithm


def build_reward(config: RunConfig) -> RewardPart:
    """Make the reward of its parts."""
    return make_part("reward", config.reward, _moderator_at)


def build_environment(
    config: EnvironmentConfig, problem: HFASTProblem, openings: Sequence[str]
) -> ASTEnvironment:
    """Make an environment of its name and options."""
    return _make_environment(config, problem, openings, _moderator_at)


def _make_environment(
    config: EnvironmentConfig,
    problem: HFASTProblem,
    openings: Sequence[str],
    make_moderator: MakeModerator,
) -> ASTEnvironment:
    factory, options = ENVIRONMENTS[config.type], config.arguments()
    environment: ASTEnvironment = construct(
        "environment", factory, options, make_moderator, problem, openings
    )
    return environment


def _moderator_at(where: str, value: Any) -> Moderator[str, str]:
    """Make a moderator that a part of a reward asks for."""
    return build_moderator(_moderator_config(where, value), where)


def _checked_moderator_at(where: str, value: Any) -> Moderator[str, str]:
    """Check what a file says of a moderator; its stand-in loads nothing."""
    check_moderator_options(_moderator_config(where, value), where)
    return FunctionModerator(lambda texts: [math.nan] * len(texts))


def _moderator_config(where: str, value: Any) -> ModeratorConfig:
    return _section_of(ModeratorConfig, where, {"type": value} if isinstance(value, str) else value)


SectionT = TypeVar("SectionT", bound=BaseModel)


def _section_of(kind: type[SectionT], where: str, value: Any) -> SectionT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigurationError(f"{place}: {message} (it is {first['input']!r}).") from error


def load_openings(config: PromptsConfig, *, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Return opening contexts for training and for evaluation; see `read_openings`."""
    openings = read_openings(config, seed=seed)
    return openings.train, openings.test


def _sampling(speaker: SpeakerConfig) -> Sampling:
    return Sampling(
        max_new_tokens=speaker.max_new_tokens,
        temperature=speaker.temperature,
        top_k=speaker.top_k,
        top_p=speaker.top_p,
    )


def _training(config: RunConfig) -> TrainingConfiguration:
    training = config.training
    return TrainingConfiguration(
        lr=training.lr,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        training_steps=training.steps,
        num_episodes_per_experience=training.episodes_per_step,
        max_grad_norm=training.max_grad_norm,
        max_nonfinite_losses=training.max_nonfinite_losses,
        max_unscored_steps=training.max_unscored_steps,
        seed=config.seed,
    )


def _check_arguments(
    where: str,
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    given_otherwise: Sequence[str] = (),
) -> None:
    _check_names(where, factory, options)
    for name, is_required in option_names(factory).items():
        if is_required and name not in (*options, *given_otherwise):
            raise ConfigurationError(f"{where}.{name}: missing; it must be given.")


def _check_names(where: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = option_names(factory)
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"{where}.{name}: unknown key.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )


def option_names(factory: Callable[..., Any]) -> dict[str, bool]:
    """Return what a factory may be given by name, and whether it must be.

    Where a class passes named arguments on to its base, those of the base are among them.
    """
    kinds: list[Callable[..., Any]] = [factory]
    if inspect.isclass(factory):
        kinds = [vars(kind)["__init__"] for kind in factory.__mro__ if "__init__" in vars(kind)]
    names: dict[str, bool] = {}
    for kind in kinds:
        parameters = inspect.signature(kind).parameters.values()
        for each in parameters:
            by_name = each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
            if by_name and each.name not in ("self", "problem"):
                names.setdefault(each.name, each.default is each.empty)
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return names


def _construct(
    where: str, factory: Callable[..., Any], options: Mapping[str, Any], *arguments: Any
) -> Any:
    _check_names(where, factory, options)
    try:
        return factory(*arguments, **options)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}.") from error
