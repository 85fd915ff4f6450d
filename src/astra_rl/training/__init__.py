"""The optimisation loop and what it needs."""

from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.harness import Harness
from astra_rl.training.trainer import Trainer

__all__ = ["Harness", "Trainer", "TrainingConfiguration"]
