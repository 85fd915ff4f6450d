"""The plan of a run: everything that is known before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from astra_rl.config.construct import Bound
from astra_rl.config.parts import DeferredModerator, DeferredTarget, EndpointUse
from astra_rl.config.prompts import Openings
from astra_rl.config.record import ConfigRecord
from astra_rl.config.rollout import RolloutConfig
from astra_rl.config.schema import (
    AttackerConfig,
    EvaluationConfig,
    LocalTargetConfig,
    RunConfig,
    TrainingConfig,
)
from astra_rl.core.extraction import Extraction
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_environment import SiblingSets
from astra_rl.methods.curriculum import Curriculum
from astra_rl.models.settings import Loading
from astra_rl.rewards import RewardPart
from astra_rl.rewards.base import walk
from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget
from astra_rl.training.trackers import ReportTo


@dataclass(frozen=True)
class LocalModels:
    """The local models of a run, and how they are loaded and sampled.

    Attributes:
        attacker: The model that is trained; None if there is none.
        target: The target; None if it is remote.
        baseline: The frozen reference; None uses the model of the attacker.
        loading: Device and dtype.
        sampler: Name of the sampler of this process.
        rollout: Engines that sample attacks and responses instead.
    """

    attacker: AttackerConfig | None
    target: LocalTargetConfig | None
    baseline: str | None
    loading: Loading
    sampler: str
    rollout: RolloutConfig

    @classmethod
    def of(cls, config: RunConfig) -> LocalModels:
        """Return the local models of a configuration."""
        return cls(
            config.attacker if isinstance(config.attacker, AttackerConfig) else None,
            config.target if isinstance(config.target, LocalTargetConfig) else None,
            config.baseline,
            config.loading,
            config.sampler,
            config.rollout,
        )


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before a model is loaded.

    A plan is used for one run: it holds the reward and target objects of the run.

    Attributes:
        record: The configuration, for the files of the run.
        seed: Seed of all random numbers of the run.
        models: The local models.
        openings: Opening contexts of training and evaluation.
        reward: The reward; it also records the harm score of each response.
        moderator: Moderator of the training.
        judge: Moderator of the evaluation; None means `moderator`.
        target: A target that is only queried: a remote one, or a local model without an attacker.
            None if it is a local model that the attacker may share weights with.
        attacker: An attacker that is prompted and not trained; None if it is a local model, or if
            there is none.
        extraction: Part of the attacker's output that is sent; None sends all of it.
        environment: The class of the environment and its options; call it with a problem and
            opening contexts.
        algorithm: The class of the algorithm and its options; call it with a problem.
        curriculum: Draws the prompts of training; None draws them uniformly.
        training: Settings of the training loop.
        evaluation: Settings of evaluations; their judge is `judge`.
        budget: Limits of the run.
        cache: Whether replies of endpoints are cached, or the path of a cache file to keep.
        trackers: Names of the trackers that also get the metrics of training.
        log_completions: Whether they get a table of sampled conversations, too.
        endpoints: All remote endpoints that the run calls.
        deferred: Moderators and models inside rewards, loaded before the run begins.
        places: Place in the configuration of moderators and targets inside rewards, by ``id()``.
        files: SHA-256 of each file read for rewards, by its path; see `noting_files`.
    """

    record: ConfigRecord
    seed: int
    models: LocalModels
    openings: Openings
    reward: RewardPart
    moderator: DeferredModerator
    judge: DeferredModerator | None
    target: Target | None
    attacker: Target | None
    extraction: Extraction | None
    environment: Bound
    algorithm: Bound
    curriculum: Curriculum | None
    training: TrainingConfig
    evaluation: EvaluationConfig
    budget: Budget
    cache: bool | str
    trackers: tuple[ReportTo, ...]
    log_completions: bool
    endpoints: tuple[EndpointUse, ...]
    deferred: tuple[DeferredModerator | DeferredTarget, ...]
    places: Mapping[int, str]
    files: Mapping[str, str]

    @property
    def trained(self) -> AttackerConfig:
        """The attacker that is trained.

        Raises:
            ConfigurationError: There is none.
        """
        if self.models.attacker is not None:
            return self.models.attacker
        if self.attacker is None:
            raise ConfigurationError(
                "attacker: missing; it must be given to train or to play an attacker. Without one, "
                "'astra-rl test' sends the prompts as they are."
            )
        raise ConfigurationError(
            f"attacker: {self.attacker.name} is prompted only: it has no weights here to train, "
            "and gives no probabilities. This needs a local model: attacker.model."
        )

    @property
    def baseline(self) -> str:
        """The frozen reference model.

        Raises:
            ConfigurationError: There is none, because no attacker is trained.
        """
        return self.models.baseline or self.trained.model

    @property
    def evaluation_judge(self) -> DeferredModerator:
        """The moderator that decides the outcomes of an evaluation."""
        return self.judge or self.moderator

    @property
    def planned_conversations(self) -> int:
        """Number of conversations of an evaluation."""
        return len(self.openings.test) * self.evaluation.trials

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
