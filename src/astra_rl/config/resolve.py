"""Resolve a configuration to a plan: everything about a run that is known without loading a model.

Checks, cost estimates, budgets and construction all read the `Plan`; the configuration is
interpreted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from astra_rl.algorithms import ALGORITHMS
from astra_rl.config.construct import Bound, Context, bind, build, build_reward_part
from astra_rl.config.loading import check_credentials, load_target, validated
from astra_rl.config.prompts import Openings, read_openings
from astra_rl.config.schema import LocalModelConfig, ModeratorConfig, RunConfig, TargetConfig
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_terms
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.secondary_target import SecondaryTarget
from astra_rl.infra.registry import Registry
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.curriculum import CURRICULA, Curriculum
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.fault_tolerant import FaultTolerantModerator
from astra_rl.moderators.reasoning import WithReasoning
from astra_rl.moderators.registry import moderator_class
from astra_rl.rewards import RewardPart
from astra_rl.rewards.base import readings, walk
from astra_rl.rewards.terms import recording_response_harm
from astra_rl.targets.base import Target
from astra_rl.targets.budget import ASSUMED_OUTPUT, Budget, Prices
from astra_rl.targets.network import check_network_settings
from astra_rl.targets.openai_client import OPENAI_URL
from astra_rl.targets.registry import target_factory
from astra_rl.targets.remote import made

MOST_TURNS = 10_000_000
"""Most turns of a training step; all of them are in memory together."""


@dataclass(frozen=True)
class EndpointUse:
    """A remote endpoint that a run calls, and what its calls cost.

    Attributes:
        where: Its place in the configuration.
        owner: Place of the target or moderator that makes the calls.
        max_output: Maximum number of tokens of a reply.
        prices: Prices of its tokens; None if not given.
        texts_per_request: Texts per request.
        is_judge: Whether it scores texts instead of answering them.
        reads_conversation: Whether requests hold the whole conversation, or only the judged text.
    """

    where: str
    owner: str
    max_output: int
    prices: Prices | None
    texts_per_request: int = 1
    is_judge: bool = True
    reads_conversation: bool = True


class DeferredModerator(Moderator[str, str]):
    """A moderator with checked options whose model or client is constructed by `load`.

    Using it loads it as well. Loaded moderators cache scores, and if one fails, the score is
    missing; see `CachedModerator` and `FaultTolerantModerator`.

    Args:
        where: Place in the configuration.
        bound: The class and its options.
        parts: The moderators that it combines.
        time_limit: Timeout of a call in seconds; None means no timeout.
        reasoning: Whether it also judges the reasoning of the target, see `WithReasoning`.

    Attributes:
        where: Place in the configuration.
    """

    def __init__(
        self,
        where: str,
        bound: Bound,
        parts: Sequence[DeferredModerator],
        time_limit: float | None,
        reasoning: bool = False,
    ) -> None:
        self.where = where
        self._bound = bound
        self._parts = list(parts)
        self._time_limit = time_limit
        self._reasoning = reasoning

    def load(self) -> CachedModerator[str, str]:
        """Construct the moderator; later calls return the same object.

        Raises:
            AstraError: It cannot be constructed; the message has its place in the configuration.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> CachedModerator[str, str]:
        parts = [part.load() for part in self._parts]
        moderator = self._bound(*([parts] if parts else []))
        if not isinstance(moderator, Moderator):
            raise ConfigurationError(
                f"{self.where}: {type(moderator).__name__} is not a Moderator. Name a class or "
                "function that returns one."
            )
        if self._reasoning:
            moderator = WithReasoning(moderator)
        return CachedModerator(FaultTolerantModerator(moderator, time_limit=self._time_limit))

    def unload(self) -> None:
        """Release what `load` constructed."""
        vars(self).pop("_loaded", None)

    @property
    def identity_stands_for(self) -> Moderator[str, str]:
        """The moderator whose scores these are."""
        return self.load()

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text; see `Moderator.moderate`."""
        return self.load().moderate(x)

    def forget(self) -> None:
        """Drop cached scores, if it is loaded."""
        if "_loaded" in vars(self):
            self._loaded.forget()

    def endpoints(self, owner: str | None = None) -> list[EndpointUse]:
        """Return the endpoints that it calls, and those of the moderators that it combines."""
        owner = owner or self.where
        place = f"{self.where}.options"
        found = [
            _answering(f"{place}.{name}", owner, value, is_judge=True)
            for name, value in self._bound.options.items()
            if isinstance(value, Target)
        ]
        kind = self._bound.factory
        is_class = isinstance(kind, type) and issubclass(kind, Moderator)
        if is_class and kind.texts_per_request is not None:
            size = kind.texts_per_request
            options = self._bound.options
            check_network_settings(options.get("base_url") or OPENAI_URL)
            found.append(
                EndpointUse(
                    self.where,
                    owner,
                    max_output=0,
                    prices=made(Prices, f"{place}.prices", options.get("prices")),
                    texts_per_request=_at_least_one(
                        options.get("batch_size", size), f"{place}.batch_size"
                    ),
                    reads_conversation=False,
                )
            )
        return found + [each for part in self._parts for each in part.endpoints(owner)]


class DeferredTarget(Target):
    """A local model as a target, loaded by `load` or when it is first used.

    Args:
        section: The model and its sampling parameters.
        config: Has device and dtype.
    """

    def __init__(self, section: LocalModelConfig, config: RunConfig) -> None:
        self.name = section.model
        self._section = section
        self._config = config

    def load(self) -> Target:
        """Load the model; later calls return the same target.

        Raises:
            ModelError: It cannot be loaded.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> Target:
        return SecondaryTarget(
            self._section.model,
            sampling=self._section.sampling(),
            chat=self._section.chat,
            chat_template_kwargs=self._section.chat_template_kwargs,
            device=self._config.device,
            dtype=self._config.dtype,
            trust_remote_code=self._config.trust_remote_code,
        )

    def unload(self) -> None:
        """Release the model."""
        vars(self).pop("_loaded", None)

    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Sample one reply per conversation."""
        return self.load().respond(conversations)


@dataclass
class _Resolver:
    """Constructs moderators and targets in options, and records the endpoints and models they use.

    Attributes:
        config: Has device and dtype of secondary models; None where only moderators are resolved.
        endpoints: Endpoints of the moderators and targets, in order.
        deferred: Moderators and models to load before the run begins.
        places: Place in the configuration of each moderator and target, by ``id()``.
    """

    config: RunConfig | None = None
    endpoints: list[EndpointUse] = field(default_factory=list)
    deferred: list[DeferredModerator | DeferredTarget] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)

    def moderator(self, where: str, value: Any) -> DeferredModerator:
        section = validated(
            ModeratorConfig, {"type": value} if isinstance(value, str) else value, where=where
        )
        moderator = resolve_moderator(section, where)
        self.endpoints += moderator.endpoints()
        self.deferred.append(moderator)
        self.places[id(moderator)] = where
        return moderator

    def target(self, where: str, value: Any) -> Target:
        section = _target_section(where, value)
        target: Target
        if isinstance(section, TargetConfig):
            target = remote_target(section, where)
            self.endpoints.append(_answering(where, where, target, is_judge=False))
        elif self.config is None:
            raise ConfigurationError(
                f"{where}: a local model cannot be given here; write a section of a remote "
                "target, with type and options."
            )
        else:
            target = DeferredTarget(section, self.config)
            self.deferred.append(target)
        self.places[id(target)] = where
        return target


def resolve_moderator(config: ModeratorConfig, where: str = "moderator") -> DeferredModerator:
    """Check the options of a moderator and of those that it combines; nothing is loaded.

    Raises:
        ConfigurationError: An unknown option, or a value of another type.
    """
    parts = [resolve_moderator(part, f"{where}.of.{index}") for index, part in enumerate(config.of)]
    bound = bind(
        f"{where}.options",
        _loaded(f"{where}.type", moderator_class, config.type),
        config.options,
        _Resolver(),
        supplied=1 if parts else 0,
    )
    if isinstance(bound.factory, type) and issubclass(bound.factory, Moderator):
        bound.check(**({"moderators": parts} if parts else {}))
    return DeferredModerator(where, bound, parts, config.time_limit, config.reasoning)


def build_moderator(config: ModeratorConfig, where: str = "moderator") -> CachedModerator[str, str]:
    """Construct a moderator; see `DeferredModerator`.

    Raises:
        AstraError: It cannot be constructed; the message has its place in the configuration.
    """
    return resolve_moderator(config, where).load()


def remote_target(config: TargetConfig, where: str = "target") -> Target:
    """Construct a remote target; nothing is sent.

    Raises:
        ConfigurationError: An unknown option, a value out of range, or a missing API key.
    """
    factory = _loaded(f"{where}.type", target_factory, config.type)
    target: Target = bind(f"{where}.options", factory, config.options, _Resolver())()
    return target


def _target_section(where: str, value: Any) -> LocalModelConfig | TargetConfig:
    """Return the section of a target, from a model's name, a YAML file or the section itself."""
    if isinstance(value, str):
        return load_target(value)
    if isinstance(value, TargetConfig | LocalModelConfig):
        return value
    if isinstance(value, Mapping) and "type" in value:
        return validated(TargetConfig, value, where=where)
    return validated(LocalModelConfig, value, where=where)


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
        target: A remote target; None if the target is a local model.
        environment: The class of the environment and its options; call it with a problem and
            opening contexts.
        algorithm: The class of the algorithm and its options; call it with a problem.
        curriculum: Draws the prompts of training; None draws them uniformly.
        endpoints: All remote endpoints that the run calls.
        deferred: Moderators and models inside rewards, loaded before the run begins.
        places: Place in the configuration of moderators and targets inside rewards, by ``id()``.
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

    @property
    def epochs(self) -> int:
        """Passes of the algorithm over the batches of a training step."""
        return int(self.algorithm.options.get("epochs", self.algorithm.factory.epochs))

    def load_deferred(self) -> None:
        """Load the moderators and models that rewards use.

        Raises:
            AstraError: One cannot be loaded.
        """
        for each in self.deferred:
            each.load()

    def unload(self) -> None:
        """Release loaded moderators and models, to free memory for another plan."""
        judges = [self.moderator, *([] if self.judge is None else [self.judge])]
        for each in (*judges, *self.deferred):
            each.unload()


def resolve(config: RunConfig) -> Plan:
    """Resolve a configuration; no model is loaded and nothing is sent.

    Raises:
        ConfigurationError: An unknown option, a value of another type or out of range, prompts that
            cannot be read, or parts that do not fit together; the message has the place.
    """
    check_credentials(config)
    moderator = resolve_moderator(config.moderator)
    judge = config.evaluation.judge
    resolved_judge = None if judge is None else resolve_moderator(judge, "evaluation.judge")
    target, endpoints = None, []
    if isinstance(config.target, TargetConfig):
        target = remote_target(config.target)
        endpoints.append(_answering("target", "target", target, is_judge=False))
    endpoints += moderator.endpoints()
    endpoints += [] if resolved_judge is None else resolved_judge.endpoints()
    resolver = _Resolver(config)
    algorithm = bind(
        "algorithm.options",
        _subclass("algorithm.type", ALGORITHMS, config.algorithm.type, Algorithm),
        config.algorithm.options,
        resolver,
        supplied=1,
    )
    reward = recording_response_harm(build_reward_part("reward", config.reward, resolver))
    if target is not None and "inside" in readings(reward):
        raise ConfigurationError(
            f"reward: it reads the hidden states of the target, and {target.name} is remote. Leave "
            "out response_likelihood and embedder: target, or test a local model."
        )
    shape = config.environment.shape()
    environment = bind(
        "environment.options",
        _subclass("environment.type", ENVIRONMENTS, config.environment.type, ASTEnvironment),
        {**shape, **config.environment.options},
        resolver,
        supplied=2,
        places={name: f"environment.{name}" for name in shape},
    )
    plan = Plan(
        config,
        read_openings(config.prompts, seed=config.seed),
        reward,
        moderator,
        resolved_judge,
        target,
        environment,
        algorithm,
        _curriculum(config, resolver),
        (*endpoints, *resolver.endpoints),
        tuple(resolver.deferred),
        resolver.places,
    )
    environment.check()
    check_prices(plan.budget, plan.endpoints)
    return plan


def _loaded(where: str, load: Callable[[str], Any], name: str) -> Any:
    """Return what a name stands for; an error of it names the place in the configuration."""
    try:
        return load(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _subclass(where: str, registry: Registry[Any], name: str, base: type[Any]) -> Any:
    found = _loaded(where, registry.load, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigurationError(
            f"{where}: {name!r} given; it must be a subclass of {base.__name__}."
        )
    return found


def _curriculum(config: RunConfig, context: Context) -> Curriculum | None:
    chosen = config.environment.curriculum
    if chosen is None:
        return None
    where = "environment.curriculum"
    kind = _subclass(f"{where}.type", CURRICULA, chosen.type, Curriculum)
    built: Curriculum = build(f"{where}.options", kind, chosen.options, context)
    return built


def check_training(plan: Plan) -> None:
    """Check the requirements of training: options of the algorithm, sampling, reward terms.

    They do not apply to an evaluation, which may sample at any temperature.

    Raises:
        ConfigurationError: An option is out of range, the algorithm needs other sampling
            parameters, or a reward term is missing.
    """
    factory = plan.algorithm.factory
    factory.check_sampling(is_exact=plan.config.attacker.sampling().is_exact)
    plan.algorithm.check()
    turns = plan.config.training.episodes_per_step * sum(plan.turns_by_level())
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


def max_output_tokens(target: Target) -> int:
    """Return the maximum number of tokens of a target's reply; a default if it is unlimited."""
    most = target.most_output_tokens
    return ASSUMED_OUTPUT if most is None else most


def _answering(where: str, owner: str, target: Target, *, is_judge: bool) -> EndpointUse:
    return EndpointUse(
        where,
        owner,
        max_output=max_output_tokens(target),
        prices=target.prices,
        is_judge=is_judge,
    )


def _at_least_one(value: Any, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{where}={value!r}; it must be a whole number, at least 1.")
    return value
