"""Resolve a configuration to a plan: everything about a run that is known without loading a model.

Checks, cost estimates, budgets and construction all read the `Plan`; the configuration is
interpreted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astra_rl.config.construct import Bound, bind_section, build_reward_part
from astra_rl.config.parts import (
    DeferredModerator,
    DeferredTarget,
    EndpointUse,
    PartResolver,
    endpoints_of_target,
    queried_target,
    remote_target,
    resolve_moderator,
)
from astra_rl.config.prompts import Openings, read_openings
from astra_rl.config.schema import (
    PromptedAttackerConfig,
    RunConfig,
)
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_terms
from astra_rl.core.moderator import Moderator
from astra_rl.datasets.scenario_files import read_scenario_file
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_problem import ASTEnvironment, SiblingSets
from astra_rl.methods.curriculum import Curriculum
from astra_rl.moderators.direction import warn_of_direction
from astra_rl.rewards import RewardPart
from astra_rl.rewards.base import readings, walk
from astra_rl.rewards.terms import recording_response_harm
from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget
from astra_rl.training.trackers import check_trackers

EVALUATED_TOGETHER = 128
"""Number of conversations that an evaluation plays and judges in one batch."""
MOST_TURNS = 10_000_000
"""Most turns of a training step; all of them are in memory together."""


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before a model is loaded.

    A plan is used for one run: it holds the reward and target objects of the run.

    Attributes:
        config: The configuration that it was resolved from.
        openings: Opening contexts of training and evaluation.
        reward: The reward; it also records the harm score of each response.
        moderator: Moderator of the training.
        judge: Moderator of the evaluation; None means `moderator`.
        target: A target that is only queried: a remote one, or a local model without an attacker.
            None if it is a local model that the attacker may share weights with.
        environment: The class of the environment and its options; call it with a problem and
            opening contexts.
        algorithm: The class of the algorithm and its options; call it with a problem.
        curriculum: Draws the prompts of training; None draws them uniformly.
        endpoints: All remote endpoints that the run calls.
        deferred: Moderators and models inside rewards, loaded before the run begins.
        places: Place in the configuration of moderators and targets inside rewards, by ``id()``.
        attacker: An attacker that is prompted and not trained; None if it is a local model, or if
            there is none.
    """

    config: RunConfig
    openings: Openings
    reward: RewardPart
    moderator: DeferredModerator
    judge: DeferredModerator | None
    target: Target | None
    environment: Bound
    algorithm: Bound
    curriculum: Curriculum | None
    endpoints: tuple[EndpointUse, ...]
    deferred: tuple[DeferredModerator | DeferredTarget, ...]
    places: Mapping[int, str]
    attacker: Target | None = None

    @property
    def budget(self) -> Budget:
        """Limits of the run."""
        return self.config.budget

    @property
    def evaluation_judge(self) -> DeferredModerator:
        """The moderator that decides the outcomes of an evaluation."""
        return self.judge or self.moderator

    @property
    def value_count(self) -> int:
        """Number of value heads that the algorithm needs."""
        return int(self.algorithm.factory.values_needed(**self.algorithm.options))

    def reward_parts(self) -> list[RewardPart]:
        """Return all parts of the reward, and of rewards among the options of the environment."""
        own = self.environment.factory.rewards_of(**self.environment.settings())
        return [part for whole in (self.reward, *own) for part in walk(whole)]

    def turns_by_level(self, *, straight: bool = False) -> list[int]:
        """Return the maximum number of turns of an episode by level; see `ASTEnvironment`."""
        counts: list[int] = self.environment.factory.turns_by_level(
            straight=straight, **self.environment.settings()
        )
        return counts

    def siblings_by_level(self) -> list[SiblingSets]:
        """Return the most sets of siblings of a training episode; see `ASTEnvironment`."""
        found: list[SiblingSets] = self.environment.factory.siblings_by_level(
            **self.environment.settings()
        )
        return found

    @property
    def epochs(self) -> int:
        """Passes of the algorithm over the batches of a training step."""
        return int(self.algorithm.options.get("epochs", self.algorithm.factory.epochs))

    @property
    def rounds(self) -> int:
        """How often the episodes of a training step are played at most."""
        return int(self.algorithm.factory.rounds_of_play(**self.algorithm.settings()))

    def load_deferred(self) -> None:
        """Load the judge, and the moderators and models that rewards use.

        It is called before the models are loaded and anything is played, so that a package that is
        not installed costs no work.

        Raises:
            AstraError: One cannot be loaded.
        """
        for each in (*self.deferred, *([] if self.judge is None else [self.judge])):
            each.load()

    def unload(self) -> None:
        """Release loaded moderators and models, to free memory for another plan."""
        judges = [self.moderator, *([] if self.judge is None else [self.judge])]
        for each in (*judges, *self.deferred):
            each.unload()


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
    resolver = PartResolver(config)
    resolved = (
        resolve_moderator(config.moderator)
        if moderator is None
        else DeferredModerator("moderator", Bound("moderator", lambda: moderator, {}), [], None)
    )
    own_judge = config.evaluation.judge
    judge = None if own_judge is None else resolve_moderator(own_judge, "evaluation.judge")
    target = queried_target(config) if target is None else target
    if isinstance(config.attacker, PromptedAttackerConfig):
        attacker = attacker or remote_target(config.attacker, "attacker")
    endpoints = [
        *([] if target is None else endpoints_of_target("target", target)),
        *([] if attacker is None else endpoints_of_target("attacker", attacker)),
        *resolved.endpoints(),
        *([] if judge is None else judge.endpoints()),
    ]
    algorithm = bind_section(
        "algorithm",
        config.algorithm,
        resolver,
        base=Algorithm,
        supplied=1,
        advice=_of_another_type("algorithm", config.algorithm.type),
    )
    reward = build_reward_part("reward", config.reward, resolver)
    reward = recording_response_harm(reward)
    if target is not None and "inside" in readings(reward):
        raise ConfigurationError(
            f"reward: it reads the hidden states of the target, and {target.name} is remote. Leave "
            "out response_likelihood and embedder: target, or test a local model."
        )
    if attacker is not None:
        _check_without_probabilities(reward, attacker)
        if config.environment.type == "self_play":
            raise ConfigurationError(
                f"environment.type: self_play trains one model in both roles, and the attacker "
                f"{attacker.name} is prompted only. Use best_of_n, attempts, few_shot or tree."
            )
    environment = bind_section(
        "environment",
        config.environment,
        resolver,
        base=ASTEnvironment,
        supplied=2,
        advice=_of_another_type("environment", config.environment.type),
    )
    chosen = config.environment.curriculum
    curriculum = (
        None
        if chosen is None
        else bind_section("environment.curriculum", chosen, resolver, base=Curriculum)
    )
    plan = Plan(
        config,
        read_openings(config.prompts, seed=config.seed, trained=config.has_local_attacker),
        reward,
        resolved,
        judge,
        target,
        environment,
        algorithm,
        None if curriculum is None else curriculum(),
        (*endpoints, *resolver.endpoints),
        tuple(resolver.deferred),
        resolver.places,
        attacker,
    )
    environment.check()
    if config.evaluation.embedder is not None:
        # Here, because a configuration is checked without torch.
        from astra_rl.rewards.embedding import named_embedder

        named_embedder(config.evaluation.embedder)
    _warn_of_direction(plan)
    check_prices(plan.budget, plan.endpoints)
    return plan


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


def _warn_of_direction(plan: Plan) -> None:
    """Warn of moderators that count good behaviour as harm, unless the scenario is about that."""
    name = plan.config.prompts.scenario
    scenario = None if name is None else read_scenario_file(name)
    own = [] if scenario is None else [scenario.moderator, scenario.judge]
    intended = {section["type"] for section in own if section is not None}
    sections = (plan.config.moderator, plan.config.evaluation.judge)
    for section, each in zip(sections, (plan.moderator, plan.judge), strict=True):
        if section and each and each.measures_good_behavior and section.type not in intended:
            warn_of_direction(each.where)


def check_training(plan: Plan) -> None:
    """Check what training needs: options of the algorithm, sampling, reward terms, trackers.

    They do not apply to an evaluation, which may sample at any temperature.

    Raises:
        ConfigurationError: An option is out of range, the algorithm needs other sampling
            parameters, or a reward term is missing.
        MissingDependencyError: The package of a tracker is not installed.
    """
    check_trackers(plan.config.trackers)
    factory = plan.algorithm.factory
    factory.check_sampling(is_exact=plan.config.trained.sampling().is_exact)
    plan.algorithm.check()
    if plan.config.training.sync_ref_model and not factory.uses_reference(
        **plan.algorithm.settings()
    ):
        raise ConfigurationError(
            f"training.sync_ref_model: true given, but {plan.config.algorithm.type} has no KL "
            "penalty, so nothing reads the reference. Set algorithm.options.kl_in_loss, or leave "
            "sync_ref_model out."
        )
    episodes = plan.config.training.episodes_per_step * plan.rounds
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
