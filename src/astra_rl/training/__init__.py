"""The training loop, its callbacks and its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.infra.lazy_names import load_name, modules_of

if TYPE_CHECKING:
    from astra_rl.training.callback import TrainerCallback
    from astra_rl.training.config import TrainingConfiguration
    from astra_rl.training.harness import Harness
    from astra_rl.training.trainer import Trainer

_MODULES = modules_of(
    __name__,
    {
        "callback": "TrainerCallback",
        "config": "TrainingConfiguration",
        "harness": "Harness",
        "trainer": "Trainer",
    },
)

__all__ = ["Harness", "Trainer", "TrainerCallback", "TrainingConfiguration"]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
