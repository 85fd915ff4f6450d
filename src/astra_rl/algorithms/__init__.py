"""Algorithms: how an attacker learns from episodes."""

from typing import Any

from astra_rl.algorithms.actor_critic import A2C, PPO
from astra_rl.algorithms.dpo import CDPO, DPO, IPO, DPOBatch, DPOStep, Hinge, MarginIPO, SimPO
from astra_rl.algorithms.gflownet import ContrastiveBalance, TrajectoryBalance
from astra_rl.algorithms.grpo import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO
from astra_rl.algorithms.imitation import ExpertIteration, WarmStart
from astra_rl.algorithms.kto import KTO
from astra_rl.algorithms.lagrangian import PPOLagrangian
from astra_rl.algorithms.policy_gradient import PolicyGradient
from astra_rl.algorithms.policy_steps import PolicyBatch, PolicyStep
from astra_rl.algorithms.reinforce import REINFORCE, ReinforcePlusPlus, ReinforcePlusPlusBaseline
from astra_rl.core.algorithm import Algorithm
from astra_rl.infra.registry import Registry, declared_in

ALGORITHMS: Registry[type[Algorithm[Any, Any, Any, Any]]] = Registry(
    "algorithm",
    "astra_rl.algorithms",
    declared_in("astra_rl.algorithms"),
)
"""Algorithm classes by the names that a configuration may give."""

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
