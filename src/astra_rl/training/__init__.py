"""The training loop, its callbacks and its configuration."""

from astra_rl.training.callback import TrainerCallback
from astra_rl.training.config import TrainingConfiguration
from astra_rl.training.harness import Harness
from astra_rl.training.trainer import Trainer

__all__ = ["Harness", "Trainer", "TrainerCallback", "TrainingConfiguration"]
