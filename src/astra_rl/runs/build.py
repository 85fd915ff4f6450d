"""From a configuration to objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.algorithms import DPO, GRPO, IPO
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed
from astra_rl.datasets.planted_secrets import planted_secrets
from astra_rl.datasets.text_files import load_prompts
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import LoraOptions
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.registry import moderator_class
from astra_rl.rewards.base import Reward, WeightedSum
from astra_rl.rewards.failure import NovelFailureReward
from astra_rl.rewards.terms import AttackNLL, Harm, Novelty
from astra_rl.runs.config import (
    AlgorithmConfig,
    ModeratorConfig,
    PromptsConfig,
    RewardConfig,
    RunConfig,
    SpeakerConfig,
)
from astra_rl.training.config import TrainingConfiguration

_ALGORITHMS: dict[str, Callable[..., Algorithm[str, str, Any, Any]]] = {
    "dpo": DPO,
    "ipo": IPO,
    "grpo": GRPO,
}


@dataclass(frozen=True)
class Experiment:
    """What a run consists of.

    Attributes:
        problem: The models.
        environment: Plays training episodes.
        algorithm: Learns from them.
        evaluator: Plays held-out conversations and judges them.
        training: Hyperparameters of the loop.
    """

    problem: HFASTProblem
    environment: ASTEnvironment
    algorithm: Algorithm[str, str, Any, Any]
    evaluator: ASTEvaluator
    training: TrainingConfiguration


def check_options(config: RunConfig) -> None:
    """Check all that can be checked without loading a model.

    Raises:
        ConfigurationError: An option that its class does not take, or a file that cannot be read.
    """
    check_moderator_options(config.moderator)
    if config.evaluation.judge is not None:
        check_moderator_options(config.evaluation.judge, "evaluation.judge")
    _check_arguments(
        "algorithm.options", _ALGORITHMS[config.algorithm.type], config.algorithm.options
    )
    load_openings(config.prompts, seed=config.seed)


def build(config: RunConfig) -> Experiment:
    """Load the models and put everything together.

    Raises:
        AstraError: Something cannot be had or does not fit; the message says what.
    """
    check_options(config)
    train, test = load_openings(config.prompts, seed=config.seed)
    moderator = build_moderator(config.moderator)
    problem = build_problem(config, moderator)
    environment = ASTEnvironment(
        problem, train, config.environment.tree_width, config.environment.tree_depth
    )
    return Experiment(
        problem,
        environment,
        build_algorithm(config.algorithm, problem),
        build_evaluator(config, problem, test),
        _training(config),
    )


def build_evaluator(
    config: RunConfig, problem: HFASTProblem, openings: Sequence[str]
) -> ASTEvaluator:
    """Make what plays the held-out conversations and lets the judge score them."""
    judge = config.evaluation.judge
    return ASTEvaluator(
        ASTEnvironment(problem, openings, 1, config.environment.tree_depth),
        openings,
        threshold=config.evaluation.threshold,
        judge=None if judge is None else build_moderator(judge, "evaluation.judge"),
        batch_size=128,
    )


def build_problem(
    config: RunConfig, moderator: Moderator[str, str], *, attacker: str | None = None
) -> HFASTProblem:
    """Load attacker, target and baseline.

    Args:
        config: The configuration.
        moderator: The training moderator.
        attacker: A trained attacker to load instead of the one that the configuration starts from.
            It is loaded as it is: an adapter that it brings is part of it.
    """
    speaker = config.attacker
    lora = speaker.lora if attacker is None else None
    return HFASTProblem(
        attacker or speaker.model,
        config.target.model,
        config.baseline or speaker.model,
        moderator,
        config.device,
        dtype=config.dtype,
        reward=build_reward(config.reward),
        attacker_sampling=_sampling(speaker),
        target_sampling=_sampling(config.target),
        attacker_chat=speaker.chat,
        target_chat=config.target.chat,
        attacker_stops_at_newline=speaker.stop_at_newline,
        lora=LoraOptions(**lora.model_dump()) if lora is not None else None,
        trainable_layers=speaker.trainable_layers if attacker is None else None,
        trust_remote_code=config.trust_remote_code,
    )


def check_moderator_options(config: ModeratorConfig, where: str = "moderator") -> None:
    """Check a moderator's options, and those of the moderators it is made of.

    Raises:
        ConfigurationError: An option that its class does not take; `where` is named.
    """
    chosen = moderator_class(config.type)
    given: dict[str, Any] = {"moderators": ()} if config.of else {}
    _check_arguments(f"{where}.options", chosen, config.options)
    _check_required(where, chosen, {**given, **config.options})
    for index, part in enumerate(config.of):
        check_moderator_options(part, f"{where}.of.{index}")


def build_moderator(config: ModeratorConfig, where: str = "moderator") -> Moderator[str, str]:
    """Make a moderator of its name and options; the same text is never judged twice.

    Raises:
        AstraError: It cannot be made; the message says where in the configuration and why.
    """
    parts = [build_moderator(part, f"{where}.of.{index}") for index, part in enumerate(config.of)]
    return CachedModerator(
        _construct(
            f"{where}.options",
            moderator_class(config.type),
            config.options,
            *([parts] if parts else []),
        )
    )


def build_algorithm(
    config: AlgorithmConfig, problem: HFASTProblem
) -> Algorithm[str, str, Any, Any]:
    """Make an algorithm of its name and options."""
    algorithm: Algorithm[str, str, Any, Any] = _construct(
        "algorithm.options", _ALGORITHMS[config.type], config.options, problem
    )
    return algorithm


def build_reward(config: RewardConfig) -> Reward:
    """Make the reward: a weighted sum, or the novelty rule if novelty has a share."""
    nll = AttackNLL(config.attack_nll_under)
    if config.novelty or config.attack_nll_above is not None:
        if config.harm_response != 1 or config.harm_exchange != 0:
            raise ConfigurationError(
                "reward.novelty and reward.attack_nll_above go with harm_response=1 and "
                "harm_exchange=0; leave those out."
            )
        return NovelFailureReward(
            novelty_share=config.novelty,
            nll_weight=config.attack_nll,
            free_nll=config.attack_nll_above or 0.0,
            nll=nll,
            novelty=Novelty(nearest=config.novelty_nearest, kind=config.novelty_kind),
        )
    return WeightedSum(
        {
            Harm("response"): config.harm_response,
            Harm("exchange"): config.harm_exchange,
            nll: -config.attack_nll,
        }
    )


def load_openings(config: PromptsConfig, *, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Return opening contexts for training and for evaluation; they share none.

    The held-out ones are the same for every seed, so that runs can be compared.
    """
    if config.scenario == "planted_secrets":
        train = planted_secrets("train", config.train, seed=derive_seed(seed, "openings"))
        return train, planted_secrets("test", config.test)
    train_prompts = load_prompts(_path(config.file))
    test_prompts = load_prompts(_path(config.test_file))
    shared = set(train_prompts) & set(test_prompts)
    if shared:
        raise ConfigurationError(
            f"{config.file} and {config.test_file} share {len(shared)} prompts, for instance "
            f"{min(shared)[:60]!r}. Evaluate on prompts that were not trained on."
        )
    return train_prompts, test_prompts


def _path(file: Path | None) -> Path:
    if file is None:
        raise ConfigurationError("prompts.file and prompts.test_file must both be given.")
    return file


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
        seed=config.seed,
    )


def _check_arguments(where: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(factory).parameters if name != "problem"]
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"{where}.{name}: unknown key.{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}."
            )


def _check_required(where: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> None:
    for name, parameter in inspect.signature(factory).parameters.items():
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if named and parameter.default is parameter.empty and name not in given:
            raise ConfigurationError(f"{where}.options.{name}: missing; it must be given.")


def _construct(
    where: str, factory: Callable[..., Any], options: Mapping[str, Any], *arguments: Any
) -> Any:
    _check_arguments(where, factory, options)
    try:
        return factory(*arguments, **options)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}.") from error
