"""Moderators and targets of a configuration: checked at first, loaded when a run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from astra_rl.config.construct import Bound, bind_section
from astra_rl.config.engines import JudgeEngine, served_target
from astra_rl.config.loading import load_target, validated
from astra_rl.config.rollout import EngineConfig
from astra_rl.config.schema import LocalModelConfig, ModeratorConfig, RunConfig, TargetConfig
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.models.settings import Loading
from astra_rl.moderators.caching import CachedModerator
from astra_rl.moderators.composition import InverseModerator
from astra_rl.moderators.fault_tolerant import FaultTolerantModerator
from astra_rl.moderators.reasoning import WithReasoning
from astra_rl.targets.base import Target
from astra_rl.targets.budget import ASSUMED_OUTPUT, Prices


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
        engine: Runs its model; None: it runs where its options say.

    Attributes:
        where: Place in the configuration.
        name: Its type in the configuration; empty for an object of Python.
    """

    def __init__(
        self,
        where: str,
        bound: Bound,
        parts: Sequence[DeferredModerator],
        time_limit: float | None,
        reasoning: bool = False,
        engine: JudgeEngine | None = None,
    ) -> None:
        self.where = where
        self.name = bound.name
        self._bound = bound
        self._parts = list(parts)
        self._time_limit = time_limit
        self._reasoning = reasoning
        self._engine = engine if engine is not None and self._takes_engine() else None
        if self._engine is not None:
            self._engine.take(f"{where}.options", str(bound.settings()["model_id"]))

    def _takes_engine(self) -> bool:
        """Whether its model would be loaded here, and an engine can run it instead."""
        kind = self._bound.factory
        if not (isinstance(kind, type) and issubclass(kind, Moderator) and kind.takes_engine):
            return False
        settings = self._bound.settings()
        return bool(settings.get("model_id")) and settings.get("complete") is None

    def load(self) -> CachedModerator[str, str]:
        """Construct the moderator; later calls return the same object.

        Raises:
            AstraError: It cannot be constructed; the message has its place in the configuration.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> CachedModerator[str, str]:
        parts = [part.load() for part in self._parts]
        supplied = {} if self._engine is None else {"engine": self._engine.started}
        moderator = self._bound(*([parts] if parts else []), **supplied)
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

    @property
    def measures_good_behavior(self) -> bool:
        """Whether a high score means that the target behaved well; nothing is loaded."""
        kind = self._bound.factory
        if self._parts:
            return any(part.measures_good_behavior for part in self._parts) and (
                kind is not InverseModerator
            )
        is_class = isinstance(kind, type) and issubclass(kind, Moderator)
        return is_class and kind.scores_good_behavior(**self._bound.options)

    def endpoints(self, owner: str | None = None) -> list[EndpointUse]:
        """Return the endpoints that it calls, and those of the moderators that it combines."""
        owner = owner or self.where
        place = f"{self.where}.options"
        found = [
            endpoint_of(f"{place}.{name}", owner, value, is_judge=True)
            for name, value in self._bound.options.items()
            if isinstance(value, Target)
        ]
        kind = self._bound.factory
        if isinstance(kind, type) and issubclass(kind, Moderator) and kind.texts_per_request:
            settings = self._bound.settings()
            prices = settings["prices"]
            found.append(
                EndpointUse(
                    self.where,
                    owner,
                    max_output=0,
                    prices=Prices(**prices) if isinstance(prices, Mapping) else prices,
                    texts_per_request=settings["batch_size"],
                    reads_conversation=False,
                )
            )
        return found + [each for part in self._parts for each in part.endpoints(owner)]


class DeferredTarget(Target):
    """A local model as a target, loaded by `load` or when it is first used.

    Args:
        section: The model and its sampling parameters.
        loading: How it is loaded.
        engine: What samples its replies.
    """

    def __init__(
        self, section: LocalModelConfig, loading: Loading, engine: EngineConfig = "own"
    ) -> None:
        self.name = section.model
        self._section = section
        self._loading = loading
        self._engine = engine

    @property
    def most_output_tokens(self) -> int | None:
        """Most tokens of a reply."""
        return self._section.max_new_tokens

    def load(self) -> Target:
        """Load the model; later calls return the same target.

        Raises:
            ModelError: It cannot be loaded.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> Target:
        if self._engine != "own":
            return served_target(self._section, self._engine, self._loading)
        # Here, because a configuration is checked without the libraries of models.
        from astra_rl.ext.transformers.secondary_target import SecondaryTarget

        return SecondaryTarget(
            self._section.model,
            sampling=self._section.sampling(),
            chat=self._section.chat,
            chat_template_kwargs=self._section.chat_template_kwargs,
            **asdict(self._loading),
        )

    def unload(self) -> None:
        """Release the model."""
        vars(self).pop("_loaded", None)

    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Sample one reply per conversation."""
        return self.load().respond(conversations)


@dataclass
class PartResolver:
    """Constructs moderators and targets in options, and records the endpoints and models they use.

    Attributes:
        loading: How secondary models are loaded; None where only moderators are resolved.
        judge: Engine of the models of moderators; None: they run where their options say.
        endpoints: Endpoints of the moderators and targets, in order.
        deferred: Moderators and models to load before the run begins.
        places: Place in the configuration of each moderator and target, by ``id()``.
    """

    loading: Loading | None = None
    judge: JudgeEngine | None = None
    endpoints: list[EndpointUse] = field(default_factory=list)
    deferred: list[DeferredModerator | DeferredTarget] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)

    def moderator(self, where: str, value: Any) -> DeferredModerator:
        """See `astra_rl.config.construct.Context`."""
        section = validated(
            ModeratorConfig, {"type": value} if isinstance(value, str) else value, where=where
        )
        moderator = resolve_moderator(section, where, self.judge)
        self.endpoints += moderator.endpoints()
        self.deferred.append(moderator)
        self.places[id(moderator)] = where
        return moderator

    def target(self, where: str, value: Any) -> Target:
        """See `astra_rl.config.construct.Context`."""
        section = _target_section(where, value)
        target: Target
        if isinstance(section, TargetConfig):
            target = remote_target(section, where)
            self.endpoints += endpoints_of_target(where, target)
        elif self.loading is None:
            raise ConfigurationError(
                f"{where}: a local model cannot be given here; write a section of a remote "
                "target, with type and options."
            )
        else:
            target = DeferredTarget(section, self.loading)
            self.deferred.append(target)
        self.places[id(target)] = where
        return target


def resolve_moderator(
    config: ModeratorConfig, where: str = "moderator", engine: JudgeEngine | None = None
) -> DeferredModerator:
    """Check the options of a moderator and of those that it combines; nothing is loaded.

    Args:
        config: The moderator.
        where: Its place in the configuration.
        engine: Runs the models of moderators that an engine can run; None: none.

    Raises:
        ConfigurationError: An unknown option, or a value of another type.
    """
    parts = [
        resolve_moderator(part, f"{where}.of.{index}", engine)
        for index, part in enumerate(config.of)
    ]
    bound = bind_section(where, config, PartResolver(judge=engine), supplied=1 if parts else 0)
    if isinstance(bound.factory, type) and issubclass(bound.factory, Moderator):
        bound.check(**({"moderators": parts} if parts else {}))
    return DeferredModerator(where, bound, parts, config.time_limit, config.reasoning, engine)


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
    target: Target = bind_section(where, config, PartResolver())()
    return target


def queried_target(config: RunConfig) -> Target | None:
    """Return the target if it is only queried; None if an attacker may share its weights.

    Raises:
        ConfigurationError: See `remote_target`.
    """
    if isinstance(config.target, TargetConfig):
        return remote_target(config.target)
    engine = config.rollout.target
    if config.has_local_attacker and engine == "own":
        return None
    return DeferredTarget(config.target, config.loading, engine)


def _target_section(where: str, value: Any) -> LocalModelConfig | TargetConfig:
    """Return the section of a target, from a model's name, a YAML file or the section itself."""
    if isinstance(value, str):
        return load_target(value)
    if isinstance(value, TargetConfig | LocalModelConfig):
        return value
    if isinstance(value, Mapping) and "type" in value:
        return validated(TargetConfig, value, where=where)
    return validated(LocalModelConfig, value, where=where)


def max_output_tokens(target: Target) -> int:
    """Return the maximum number of tokens of a target's reply; a default if it is unlimited."""
    most = target.most_output_tokens
    return ASSUMED_OUTPUT if most is None else most


def endpoints_of_target(where: str, target: Target) -> list[EndpointUse]:
    """Return the use of the endpoint that a target calls; a local model calls none."""
    is_remote = not isinstance(target, DeferredTarget)
    return [endpoint_of(where, where, target, is_judge=False)] if is_remote else []


def endpoint_of(where: str, owner: str, target: Target, *, is_judge: bool) -> EndpointUse:
    """Return the use of the endpoint of a remote target."""
    return EndpointUse(
        where,
        owner,
        max_output=max_output_tokens(target),
        prices=target.prices,
        is_judge=is_judge,
    )
