"""Build the objects of a run from its plan: models, environment, algorithm and evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from astra_rl.config.engines import attacker_sampler
from astra_rl.config.parts import DeferredTarget
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import check_training
from astra_rl.core.algorithm import Algorithm
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, seeded
from astra_rl.ext.transformers.evaluation_problem import HFEvaluationProblem
from astra_rl.ext.transformers.opponents import Opponent
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.value import HFValueProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.baseline_attacker import BaselineAttackerProblem
from astra_rl.models.generation import Sampler, generate
from astra_rl.models.generation_transformers import generate_with_transformers
from astra_rl.training.config import TrainingConfiguration

_SAMPLERS: dict[str, Sampler] = {
    "own": generate,
    "cuda_graphs": partial(generate, cuda_graphs=True),
    "transformers": generate_with_transformers,
}


@dataclass(frozen=True)
class Experiment:
    """The objects of a run.

    Attributes:
        problem: The models and the reward.
        environment: Plays training episodes.
        algorithm: Computes losses from them.
        evaluation_environment: Plays evaluation episodes, from held-out openings.
        held_out: Openings that training does not see.
        judge: Moderator that scores evaluations.
        training: Hyperparameters of the training loop.
    """

    problem: HFASTProblem
    environment: ASTEnvironment
    algorithm: Algorithm[str, str, Any, Any]
    evaluation_environment: ASTEnvironment
    held_out: Sequence[str]
    judge: Moderator[Any, Any]
    training: TrainingConfiguration

    def forget_scores(self) -> None:
        """Drop all cached scores, see `Moderator.forget`."""
        self.problem.forget_scores()
        self.judge.forget()


def build(plan: Plan) -> Experiment:
    """Load the models and construct everything that a run needs.

    Raises:
        AstraError: A model cannot be loaded, or parts do not fit; the message says what to do.
    """
    check_training(plan)
    with seeded(derive_seed(plan.seed, "models")):  # adapters and value heads start random
        problem = build_problem(plan, opponents=_opponents(plan))
    environment = build_environment(plan, problem, plan.openings.train)
    environment.curriculum = plan.curriculum
    return Experiment(
        problem,
        environment,
        build_algorithm(plan, problem),
        build_environment(plan, problem, plan.openings.test),
        plan.openings.test,
        build_judge(plan, problem),
        plan.training.for_trainer(seed=plan.seed),
    )


def build_problem(
    plan: Plan,
    *,
    attacker: str | None = None,
    moderator: Moderator[str, str] | None = None,
    opponents: Sequence[Opponent] = (),
) -> HFASTProblem:
    """Load attacker, target, baseline and moderators, and a value head if the algorithm needs one.

    Args:
        plan: The plan.
        attacker: A trained attacker to load instead of the one that the configuration starts from,
            including an adapter that it brings; it gets no new adapter and no value function.
        moderator: Moderator to use instead of the plan's.
        opponents: Targets that training attacks instead; without `attacker`.

    Raises:
        AstraError: A model cannot be loaded.
    """
    speaker, local = plan.trained, plan.models.target
    plan.load_deferred()
    target: Any = plan.target if plan.target is not None or local is None else local.model
    if isinstance(target, DeferredTarget):
        target = target.load()
    options: dict[str, Any] = {
        **asdict(plan.models.loading),
        "reward": plan.reward,
        "sampler": _SAMPLERS[plan.models.sampler],
        "attacker_sampler": attacker_sampler(
            plan.models.rollout.attacker, speaker.model, staleness=plan.training.max_staleness
        ),
        "attacker_sampling": speaker.sampling(),
        "target_sampling": None if local is None else local.sampling(),
        "attacker_chat": speaker.chat,
        "target_chat": None if local is None else local.chat,
        "attacker_chat_template_kwargs": speaker.chat_template_kwargs,
        "target_chat_template_kwargs": {} if local is None else local.chat_template_kwargs,
        "attacker_stops_at_newline": speaker.stop_at_newline,
        "attacker_extraction": plan.extraction,
    }
    moderator = moderator or plan.moderator.load()
    if attacker is not None:
        return HFEvaluationProblem(
            attacker, target, moderator, baseline_model_id=plan.baseline, **options
        )
    options |= {
        "lora": speaker.lora,
        "trainable_layers": speaker.trainable_layers,
        "gradient_checkpointing": plan.training.gradient_checkpointing,
        "opponents": opponents,
    }
    if plan.value_count:
        return HFValueProblem(
            speaker.model, target, plan.baseline, moderator, value_count=plan.value_count, **options
        )
    return HFASTProblem(speaker.model, target, plan.baseline, moderator, **options)


def _opponents(plan: Plan) -> list[Opponent]:
    target = plan.models.target
    known = () if target is None else target.opponents
    return [Opponent(each.model, each.weight) for each in known]


def build_environment(
    plan: Plan, problem: Problem[str, str], openings: Sequence[str]
) -> ASTEnvironment:
    """Construct the environment.

    Args:
        plan: The plan.
        problem: The models and the reward.
        openings: Opening contexts.

    Raises:
        ConfigurationError: An option is out of range.
    """
    environment: ASTEnvironment = plan.environment(problem, openings)
    return environment


def build_algorithm(plan: Plan, problem: HFASTProblem) -> Algorithm[str, str, Any, Any]:
    """Construct the algorithm.

    Raises:
        ConfigurationError: An option is out of range, or the problem does not fit.
    """
    algorithm: Algorithm[str, str, Any, Any] = plan.algorithm(problem)
    return algorithm


def build_judge(plan: Plan, problem: HFASTProblem) -> Moderator[Any, Any]:
    """Return the moderator that scores evaluations: the problem's, without one of its own."""
    return problem.moderator if plan.judge is None else plan.judge.load()


def ordinary_use(problem: HFASTProblem, brief: str | None) -> BaselineAttackerProblem:
    """Return the problem in which the baseline takes the attacker's place.

    Args:
        problem: The models.
        brief: Instructions of the baseline; None gives it those of the attacker.
    """
    return BaselineAttackerProblem(problem, problem.rollout_prompt_with_baseline, brief=brief)
