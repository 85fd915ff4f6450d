"""ASTRA-RL: adaptive stress testing of language models by reinforcement learning.

Importing this package imports the standard library only, so that the command line answers at once.
A name is imported when it is first used, and a subpackage too.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from astra_rl.errors import (
    AstraError,
    ConfigurationError,
    ContractError,
    MissingDependencyError,
    ModelError,
    NonFiniteLossError,
    TrainingError,
)
from astra_rl.infra.lazy_names import load_name, modules_of

if TYPE_CHECKING:
    from astra_rl.actions.redteam import redteam
    from astra_rl.algorithms.actor_critic import A2C, PPO
    from astra_rl.algorithms.dpo import CDPO, DPO, IPO, DPOBatch, DPOStep, Hinge, MarginIPO, SimPO
    from astra_rl.algorithms.gflownet import ContrastiveBalance, TrajectoryBalance
    from astra_rl.algorithms.grpo import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO
    from astra_rl.algorithms.imitation import ExpertIteration, WarmStart
    from astra_rl.algorithms.kto import KTO
    from astra_rl.algorithms.lagrangian import PPOLagrangian
    from astra_rl.algorithms.policy_gradient import PolicyGradient
    from astra_rl.algorithms.policy_steps import PolicyBatch, PolicyStep
    from astra_rl.algorithms.reinforce import (
        REINFORCE,
        ReinforcePlusPlus,
        ReinforcePlusPlusBaseline,
    )
    from astra_rl.core.algorithm import Algorithm
    from astra_rl.core.environment import Environment
    from astra_rl.core.evaluator import Evaluator, GraphMetrics
    from astra_rl.core.graph import Graph, Node
    from astra_rl.core.moderator import Moderator
    from astra_rl.core.problem import Problem, ValueFunctionProblem
    from astra_rl.core.text import Conversation, Exchange, Utterance
    from astra_rl.datasets import Scenario, load_scenario
    from astra_rl.methods.ast_problem import ASTEnvironment, ASTEvaluator, ASTNode, ASTProblem
    from astra_rl.moderators import (
        DetoxifyModerator,
        FunctionModerator,
        HFClassifierModerator,
        LlamaGuardModerator,
        ProfanityModerator,
        SecretLeakModerator,
    )
    from astra_rl.runs.result import RunResult, open_run
    from astra_rl.training.config import TrainingConfiguration
    from astra_rl.training.harness import Harness
    from astra_rl.training.trainer import Trainer

__version__ = "0.1.0"

_LAZY = modules_of(
    __name__,
    {
        "actions.redteam": "redteam",
        "algorithms.actor_critic": "A2C PPO",
        "algorithms.dpo": "CDPO DPO IPO DPOBatch DPOStep Hinge MarginIPO SimPO",
        "algorithms.gflownet": "ContrastiveBalance TrajectoryBalance",
        "algorithms.grpo": "CISPO DAPO GRPO GSPO RLOO DrGRPO",
        "algorithms.imitation": "ExpertIteration WarmStart",
        "algorithms.kto": "KTO",
        "algorithms.lagrangian": "PPOLagrangian",
        "algorithms.policy_gradient": "PolicyGradient",
        "algorithms.policy_steps": "PolicyBatch PolicyStep",
        "algorithms.reinforce": "REINFORCE ReinforcePlusPlus ReinforcePlusPlusBaseline",
        "core.algorithm": "Algorithm",
        "core.environment": "Environment",
        "core.evaluator": "Evaluator GraphMetrics",
        "core.graph": "Graph Node",
        "core.moderator": "Moderator",
        "core.problem": "Problem ValueFunctionProblem",
        "core.text": "Conversation Exchange Utterance",
        "datasets": "Scenario load_scenario",
        "methods.ast_problem": "ASTEnvironment ASTEvaluator ASTNode ASTProblem",
        "moderators": "DetoxifyModerator FunctionModerator HFClassifierModerator "
        "LlamaGuardModerator ProfanityModerator SecretLeakModerator",
        "runs.result": "RunResult open_run",
        "training.config": "TrainingConfiguration",
        "training.harness": "Harness",
        "training.trainer": "Trainer",
    },
)
"""Module of each name that is imported when it is first used."""

__all__ = [
    "A2C",
    "CDPO",
    "CISPO",
    "DAPO",
    "DPO",
    "GRPO",
    "GSPO",
    "IPO",
    "KTO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "ASTEnvironment",
    "ASTEvaluator",
    "ASTNode",
    "ASTProblem",
    "Algorithm",
    "AstraError",
    "ConfigurationError",
    "ContractError",
    "ContrastiveBalance",
    "Conversation",
    "DPOBatch",
    "DPOStep",
    "DetoxifyModerator",
    "DrGRPO",
    "Environment",
    "Evaluator",
    "Exchange",
    "ExpertIteration",
    "FunctionModerator",
    "Graph",
    "GraphMetrics",
    "HFClassifierModerator",
    "Harness",
    "Hinge",
    "LlamaGuardModerator",
    "MarginIPO",
    "MissingDependencyError",
    "ModelError",
    "Moderator",
    "Node",
    "NonFiniteLossError",
    "PPOLagrangian",
    "PolicyBatch",
    "PolicyGradient",
    "PolicyStep",
    "Problem",
    "ProfanityModerator",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "RunResult",
    "Scenario",
    "SecretLeakModerator",
    "SimPO",
    "Trainer",
    "TrainingConfiguration",
    "TrainingError",
    "TrajectoryBalance",
    "Utterance",
    "ValueFunctionProblem",
    "WarmStart",
    "load_scenario",
    "open_run",
    "redteam",
]


_PACKAGES = ("algorithms", "core", "ext", "infra", "methods", "models", "moderators", "training")

_FORMER = {
    "ASTSampler": "ASTEnvironment",
    "ASTSystem": "ASTProblem",
    "DetoxifyScorer": "DetoxifyModerator",
    "HFASTSystem": "ext.transformers.HFASTProblem",
    "Sampler": "Environment",
    "Scorer": "Moderator",
    "System": "Problem",
}
"""Names of the first toolbox, and what has their place."""
_ALIASES = ("ASTSampler", "DetoxifyScorer", "HFASTSystem")
"""Those that are constructed with the same arguments here. The others are base classes, whose
methods have other names."""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _ALIASES:
        place, _, now = f"{__name__}.{_FORMER[name]}".rpartition(".")
        warnings.warn(
            f"{__name__}.{name} is called {place}.{now} here", DeprecationWarning, stacklevel=2
        )
        return getattr(importlib.import_module(place), now)
    if name in _FORMER:
        raise AttributeError(
            f"{__name__}.{name} is of the first ASTRA-RL; here it is {__name__}.{_FORMER[name]}, "
            "see docs/coming-from-the-first-toolbox.md"
        )
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_PACKAGES})
