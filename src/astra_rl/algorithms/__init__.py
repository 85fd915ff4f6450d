"""Algorithms: how an attacker learns from episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.algorithms.registry import ALGORITHMS
from astra_rl.infra.lazy_names import load_name, modules_of

if TYPE_CHECKING:
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

_MODULES = modules_of(
    __name__,
    {
        "actor_critic": "A2C PPO",
        "dpo": "CDPO DPO IPO DPOBatch DPOStep Hinge MarginIPO SimPO",
        "gflownet": "ContrastiveBalance TrajectoryBalance",
        "grpo": "CISPO DAPO GRPO GSPO RLOO DrGRPO",
        "imitation": "ExpertIteration WarmStart",
        "kto": "KTO",
        "lagrangian": "PPOLagrangian",
        "policy_gradient": "PolicyGradient",
        "policy_steps": "PolicyBatch PolicyStep",
        "reinforce": "REINFORCE ReinforcePlusPlus ReinforcePlusPlusBaseline",
    },
)

__all__ = [
    "A2C",
    "ALGORITHMS",
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
    "ContrastiveBalance",
    "DPOBatch",
    "DPOStep",
    "DrGRPO",
    "ExpertIteration",
    "Hinge",
    "MarginIPO",
    "PPOLagrangian",
    "PolicyBatch",
    "PolicyGradient",
    "PolicyStep",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "SimPO",
    "TrajectoryBalance",
    "WarmStart",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
