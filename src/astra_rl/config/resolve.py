"""Resolve a configuration to a plan: everything about a run that is known without loading a model.

Checks, cost estimates, budgets and construction all read the `Plan`; the configuration is
interpreted once.
"""

from __future__ import annotations

from collections.abc import Sequence

from astra_rl.config.construct import Bound, bind_section, build_reward_part
from astra_rl.config.engines import JudgeEngine
from astra_rl.config.parts import (
    DeferredModerator,
    EndpointUse,
    PartResolver,
    endpoints_of_target,
    queried_target,
    remote_target,
    resolve_moderator,
)
from astra_rl.config.plan import LocalModels
from astra_rl.config.plan import Plan as Plan
from astra_rl.config.prompts import read_openings
from astra_rl.config.record import ConfigRecord
from astra_rl.config.rollout import VLLMConfig
from astra_rl.config.schema import EnvironmentConfig, PromptedAttackerConfig, RunConfig
from astra_rl.config.signatures import parameters_of
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_terms
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.infra.user_files import noting_files
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.curriculum import Curriculum
from astra_rl.moderators.direction import warn_of_direction
from astra_rl.rewards import RewardPart
from astra_rl.rewards.base import readings, walk
from astra_rl.rewards.terms import recording_response_harm
from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget
from astra_rl.training.config import OPTIMIZERS
from astra_rl.training.trackers import check_trackers

EVALUATED_TOGETHER = 128
"""Number of conversations that an evaluation plays and judges in one batch."""
MOST_TURNS = 10_000_000
"""Most turns of a training step; all of them are in memory together."""


def resolve(
    config: RunConfig,
    *,
    target: Target | None = None,
    moderator: Moderator[str, str] | None = None,
    attacker: Target | None = None,
) -> Plan:
    """Resolve a configuration; no model is loaded and nothing is sent.

    Args:
        config: The configuration.
        target: Object to use as the target, in place of the section.
        moderator: Object to use as the moderator, in place of the section.
        attacker: Object to use as the attacker, in place of a section with a type.

    Raises:
        ConfigurationError: An unknown option, a value of another type or out of range, prompts that
            cannot be read, or parts that do not fit together; the message has the place.
    """
    openings = read_openings(config.prompts, seed=config.seed, trained=config.has_local_attacker)
    engine = config.rollout.judge
    judging = None if engine == "own" else JudgeEngine(engine, config.loading)
    parts = PartResolver(config.loading, judging)
    trained, judge = _moderators(config, moderator, judging, expected=openings.moderators)
    target = queried_target(config) if target is None else target
    if attacker is None and isinstance(config.attacker, PromptedAttackerConfig):
        attacker = remote_target(config.attacker, "attacker")
    called = [
        *([] if target is None else endpoints_of_target("target", target)),
        *([] if attacker is None else endpoints_of_target("attacker", attacker)),
        *trained.endpoints(),
        *([] if judge is None else judge.endpoints()),
    ]
    algorithm = bind_section(
        "algorithm",
        config.algorithm,
        parts,
        base=Algorithm,
        supplied=1,
        advice=_of_another_type("algorithm", config.algorithm.type),
    )
    with noting_files() as files:
        reward = build_reward_part("reward", config.reward, parts)
        environment = bind_section(
            "environment",
            config.environment,
            parts,
            base=ASTEnvironment,
            supplied=2,
            advice=_of_another_type("environment", config.environment.type),
        )
    _check_fits(reward, environment, target=target, attacker=attacker)
    if judging is not None and judging.model is None:
        raise ConfigurationError(
            f"rollout.judge: {engine} given, and no moderator has a language model that it could "
            "run: llm_judge, strong_reject, or a guard, with model_id and without complete. Use "
            "such a moderator, or rollout.judge: own."
        )
    environment.check()
    curriculum = _curriculum(config.environment, parts)
    plan = Plan(
        record=ConfigRecord.of(config),
        seed=config.seed,
        models=LocalModels.of(config),
        openings=openings,
        reward=recording_response_harm(reward),
        moderator=trained,
        judge=judge,
        target=target,
        attacker=attacker,
        extraction=None if config.attacker is None else config.attacker.extract,
        environment=environment,
        algorithm=algorithm,
        curriculum=curriculum,
        training=config.training,
        evaluation=config.evaluation,
        budget=config.budget,
        cache=config.cache,
        trackers=config.trackers,
        log_completions=config.log_completions,
        endpoints=(*called, *parts.endpoints),
        deferred=tuple(parts.deferred),
        places=parts.places,
        files=files,
    )
    check_prices(plan.budget, plan.endpoints)
    if config.evaluation.embedder is not None:
        # Here, because a configuration is checked without torch.
        from astra_rl.rewards.embedding import named_embedder

        named_embedder(config.evaluation.embedder)
    return plan


def _moderators(
    config: RunConfig,
    given: Moderator[str, str] | None,
    engine: JudgeEngine | None,
    *,
    expected: frozenset[str],
) -> tuple[DeferredModerator, DeferredModerator | None]:
    """Return the moderator of training, or an object of Python in its place, and the judge.

    It warns of those that count good behaviour as harm, unless the scenario names them.

    Args:
        config: The configuration.
        given: Object to use as the moderator, in place of the section.
        engine: Runs their language models; None: they run where their options say.
        expected: Types of the moderators of the scenario.
    """
    own_judge = config.evaluation.judge
    judge = None if own_judge is None else resolve_moderator(own_judge, "evaluation.judge", engine)
    if given is None:
        moderator = resolve_moderator(config.moderator, engine=engine)
    else:
        moderator = DeferredModerator("moderator", Bound("moderator", lambda: given, {}), [], None)
    for each in (moderator, judge):
        if each is not None and each.measures_good_behavior and each.name not in expected:
            warn_of_direction(each.where)
    return moderator, judge


def _curriculum(config: EnvironmentConfig, parts: PartResolver) -> Curriculum | None:
    if config.curriculum is None:
        return None
    where = "environment.curriculum"
    chosen: Curriculum = bind_section(where, config.curriculum, parts, base=Curriculum)()
    return chosen


def _check_fits(
    reward: RewardPart, environment: Bound, *, target: Target | None, attacker: Target | None
) -> None:
    """Refuse a reward or an environment that needs weights that are not here.

    Raises:
        ConfigurationError: It does; the message says of which model.
    """
    if target is not None and "inside" in readings(reward):
        raise ConfigurationError(
            f"reward: it reads the hidden states of the target, and {target.name} is remote. Leave "
            "out response_likelihood and embedder: target, or test a local model."
        )
    if attacker is None:
        return
    _check_without_probabilities(reward, attacker)
    if environment.name == "self_play":
        raise ConfigurationError(
            f"environment.type: self_play trains one model in both roles, and the attacker "
            f"{attacker.name} is prompted only. Use best_of_n, attempts, few_shot or tree."
        )
    if environment.name == "mutation":
        raise ConfigurationError(
            "environment.type: mutation replaces tokens by samples of a local attacker, and the "
            f"attacker {attacker.name} is prompted only. Use tap, archive, best_of_n or tree."
        )


def _of_another_type(section: str, kind: str) -> str:
    """Return how to change the type of a section whose other options belong to another type."""
    return f" To leave out all options of another type: --set '{section}={{type: {kind}}}'."


def _check_without_probabilities(reward: RewardPart, attacker: Target) -> None:
    """Refuse a reward that reads the weights of a model, for an attacker that is prompted.

    Raises:
        ConfigurationError: It does; the message names the parts.
    """
    found = sorted({each.name or type(each).__name__ for each in walk(reward) if each.reads_model})
    if found:
        raise ConfigurationError(
            f"reward: {', '.join(found)} given, which needs probabilities or hidden states of a "
            f"local model, and the attacker {attacker.name} is prompted only. Use reward: harm, or "
            "a local attacker."
        )


def check_training(plan: Plan) -> None:
    """Check what training needs: optimizer, algorithm, sampling, reward terms, trackers.

    They do not apply to an evaluation, which may sample at any temperature.

    Raises:
        ConfigurationError: An option is out of range, the algorithm needs other sampling
            parameters, or a reward term is missing.
        MissingDependencyError: The package of a tracker is not installed.
    """
    check_trackers(plan.trackers)
    _check_optimizer(plan.training.optimizer)
    factory = plan.algorithm.factory
    factory.check_sampling(is_exact=plan.trained.sampling().is_exact)
    factory.check_environment(plan.environment.factory)
    plan.algorithm.check()
    if plan.training.sync_ref_model and not factory.uses_reference(**plan.algorithm.settings()):
        raise ConfigurationError(
            f"training.sync_ref_model: true given, but {plan.algorithm.name} has no KL "
            "penalty, so nothing reads the reference. Set algorithm.options.kl_in_loss, or leave "
            "sync_ref_model out."
        )
    if plan.training.max_staleness:
        _check_can_play_ahead(plan)
    episodes = plan.training.episodes_per_step * plan.rounds
    turns = episodes * sum(plan.turns_by_level())
    if turns > MOST_TURNS:
        raise ConfigurationError(
            f"training.episodes_per_step and environment: a training step would play {turns:.3g} "
            f"turns; it must be at most {MOST_TURNS:,}. Use fewer episodes, or a smaller tree."
        )
    check_terms(
        factory.terms_needed(**plan.algorithm.options),
        {each.name for each in walk(plan.reward) if each.name is not None},
        source="algorithm.options.constraints",
    )


def _check_can_play_ahead(plan: Plan) -> None:
    """Raise unless episodes can be played with older weights than those that learn from them.

    Raises:
        ConfigurationError: They cannot; the message says why.
    """
    given, rollout = f"training.max_staleness: {plan.training.max_staleness}", plan.models.rollout
    if rollout.attacker == "own":
        raise ConfigurationError(
            f"{given} needs rollout.attacker: vllm, or servers; the sampler of this process has "
            "only the weights that are trained. Use an engine, or max_staleness: 0."
        )
    for role, engine in (("attacker", rollout.attacker), ("target", rollout.target)):
        if isinstance(engine, VLLMConfig) and engine.vllm.get("sleep"):
            raise ConfigurationError(
                f"{given} with sleep: true in rollout.{role}; the engine samples while the weights "
                "are trained. Leave sleep out, or use max_staleness: 0."
            )
    if plan.models.target is not None and plan.models.target.opponents:
        raise ConfigurationError(
            f"{given} with target.opponents, which are drawn step by step. Leave one out."
        )
    if not plan.algorithm.factory.is_off_policy(**plan.algorithm.settings()):
        raise ConfigurationError(
            f"{given} given, and {plan.algorithm.name} does not correct its loss for attacks of "
            "older weights. Set algorithm.options.old_logprobs: corrected if it has that option, "
            "choose another algorithm, or use max_staleness: 0."
        )


def _check_optimizer(name: str) -> None:
    """Raise unless an optimizer can be imported and takes what all are given.

    Raises:
        ConfigurationError: It cannot, or it does not.
    """
    try:
        taken = parameters_of(OPTIMIZERS.load(name))
    except ConfigurationError as error:
        raise ConfigurationError(f"training.optimizer: {error}") from error
    missing = [each for each in ("lr", "weight_decay") if each not in taken]
    if missing and not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        raise ConfigurationError(
            f"training.optimizer: {name} takes no {' and no '.join(missing)}; an optimizer is "
            "called with its parameters, lr and weight_decay."
        )


def check_prices(budget: Budget, endpoints: Sequence[EndpointUse]) -> None:
    """Refuse a limit on costs if no endpoint has prices.

    Raises:
        ConfigurationError: `max_cost` is set and no price is known.
    """
    if budget.max_cost is not None and all(each.prices is None for each in endpoints):
        raise ConfigurationError(
            "budget.max_cost: no target and no judge has prices, so costs are unknown. Add to its "
            "options prices: {input: ..., output: ...}, per million tokens."
        )
