"""How an attacker learns from episodes."""

from astra_rl.algorithms.dpo import DPO, IPO, DPOBatch, DPOStep
from astra_rl.algorithms.grpo import GRPO, GRPOBatch, GRPOStep

__all__ = ["DPO", "GRPO", "IPO", "DPOBatch", "DPOStep", "GRPOBatch", "GRPOStep"]
