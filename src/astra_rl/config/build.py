"""From a configuration to objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from astra_rl.algorithms import ALGORITHMS
from astra_rl.config.endpoints import asked_in, check_prices, checked_environment, checked_reward
from astra_rl.config.loading import check_credentials
from astra_rl.config.making import (
    build_moderator,
    build_target,
    check_arguments,
    check_moderator_options,
    check_target,
    construct_named,
    makers,
    sampling_of,
)
from astra_rl.config.parts import Makers, construct, make_reward
from astra_rl.config.prompts import read_openings
from astra_rl.config.schema import (
    AlgorithmConfig,
    EnvironmentConfig,
    PromptsConfig,
    RunConfig,
    SpeakerConfig,
    TargetConfig,
)
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_terms
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed, seeded
from astra_rl.datasets.files import Source
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.value import HFValueProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.baseline_attacker import BaselineAttackerProblem
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.models.generation import Sampler, generate
from astra_rl.models.generation_transformers import generate_with_transformers
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards.base import RewardPart, readings, walk
from astra_rl.training.config import TrainingConfiguration

EVALUATED_TOGETHER = 128
"""Number of conversations that an evaluation plays and judges in one batch."""
_SAMPLERS: dict[str, Sampler] = {"own": generate, "transformers": generate_with_transformers}


@dataclass(frozen=True)
class Experiment:
    """What a run consists of.

    Attributes:
        problem: The models.
        environment: Plays training episodes.
        algorithm: Learns from them.
        evaluation_environment: Plays evaluation episodes, from held-out openings.
        held_out: Openings that training does not see.
        judge: Moderator that scores evaluations.
        training: Hyperparameters of the loop.
        sources: Where its prompts came from, with checksums.
        categories: Kinds of its prompts, see `Openings`.
    """

    problem: HFASTProblem
    environment: ASTEnvironment
    algorithm: Algorithm[str, str, Any, Any]
    evaluation_environment: ASTEnvironment
    held_out: Sequence[str]
    judge: Moderator[Any, Any]
    training: TrainingConfiguration
    sources: Sequence[Source] = ()
    categories: Mapping[str, str] = field(default_factory=dict)

    def forget_scores(self) -> None:
        """Forget what was kept to compute nothing twice, see `Moderator.forget`."""
        self.problem.forget_scores()
        self.judge.forget()


def check_options(config: RunConfig) -> None:
    """Check all that can be checked without loading a model.

    Raises:
        ConfigurationError: An option that its class does not take, or a file that cannot be read.
    """
    check_credentials(config)
    check_moderator_options(config.moderator)
    if config.evaluation.judge is not None:
        check_moderator_options(config.evaluation.judge, "evaluation.judge")
    check_arguments(
        "algorithm.options", ALGORITHMS[config.algorithm.type], config.algorithm.options
    )
    check_target(config.target)
    reward = checked_reward(config)
    if isinstance(config.target, TargetConfig) and "inside" in readings(reward):
        raise ConfigurationError(
            f"reward: it looks inside the target, and {config.target.name} only answers. Leave out "
            "response_likelihood and embedder: target, or test a local model."
        )
    _, openings = load_openings(config.prompts, seed=config.seed)
    checked_environment(config, openings)
    check_prices(config.budget.budget(), asked_in(config))


def check_training_options(config: RunConfig) -> None:
    """Check also whether the algorithm can be made, and can learn from such attacks.

    What only evaluates need not: it may sample at any temperature.

    Raises:
        ConfigurationError: See `check_options`, or an option of the algorithm is out of range.
    """
    check_options(config)
    # An algorithm only asks its problem how it samples, so it can be made without any model.
    without_models = HFValueProblem.__new__(HFValueProblem)
    without_models.attacker_sampling = sampling_of(config.attacker)
    build_algorithm(config.algorithm, without_models)
    algorithm = config.algorithm
    check_terms(
        ALGORITHMS[algorithm.type].terms_needed(**algorithm.options),
        {each.name for each in walk(checked_reward(config)) if each.name is not None},
        source="algorithm.options.constraints",
    )


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
    return Experiment(
        problem,
        build_environment(config.environment, problem, openings.train, makers(config)),
        build_algorithm(config.algorithm, problem),
        build_environment(config.environment, problem, openings.test, makers(config)),
        openings.test,
        build_judge(config, problem),
        _training(config),
        openings.sources,
        openings.categories,
    )


def build_judge(config: RunConfig, problem: HFASTProblem) -> Moderator[Any, Any]:
    """Return the moderator that scores evaluations; without one of its own, the training one."""
    judge = config.evaluation.judge
    return problem.moderator if judge is None else build_moderator(judge, "evaluation.judge")


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
        attacker_sampling=sampling_of(speaker),
        target_sampling=None if local is None else sampling_of(local),
        attacker_chat=speaker.chat,
        target_chat=None if local is None else local.chat,
        attacker_stops_at_newline=speaker.stop_at_newline,
        lora=LoraOptions(**lora.model_dump()) if lora is not None else None,
        trainable_layers=speaker.trainable_layers if attacker is None else None,
        trust_remote_code=config.trust_remote_code,
    )


def ordinary_use(config: RunConfig, problem: HFASTProblem) -> BaselineAttackerProblem:
    """Return the problem in which the baseline of a configuration speaks."""
    return BaselineAttackerProblem(
        problem, problem.rollout_prompt_with_baseline, brief=config.evaluation.ordinary_brief
    )


def build_algorithm(
    config: AlgorithmConfig, problem: HFASTProblem
) -> Algorithm[str, str, Any, Any]:
    """Make an algorithm of its name and options."""
    algorithm: Algorithm[str, str, Any, Any] = construct_named(
        "algorithm.options", ALGORITHMS[config.type], config.options, problem
    )
    return algorithm


def build_reward(config: RunConfig) -> RewardPart:
    """Make the reward of its parts."""
    return make_reward(config.reward, makers(config))


def build_environment(
    config: EnvironmentConfig, problem: HFASTProblem, openings: Sequence[str], make: Makers
) -> ASTEnvironment:
    """Make an environment of its name and options.

    Args:
        config: Which.
        problem: The models.
        openings: Opening contexts.
        make: Makes the moderators and targets of the rewards among its options.
    """
    factory, options = ENVIRONMENTS[config.type], config.arguments()
    environment: ASTEnvironment = construct(
        "environment", factory, options, make, problem, openings
    )
    return environment


def load_openings(config: PromptsConfig, *, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Return opening contexts for training and for evaluation; see `read_openings`."""
    openings = read_openings(config, seed=seed)
    return openings.train, openings.test


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
