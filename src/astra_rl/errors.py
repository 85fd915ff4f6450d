"""Every error this library raises on purpose.

```
AstraError
├── ConfigurationError(ValueError)       a setting, a prompt or a file of the user's is wrong
├── ContractError(ValueError)            a Problem, Environment, ... broke its contract
├── ModelError(RuntimeError)             a model cannot be loaded, or cannot do what was asked of it
│   └── OutOfMemoryError                 memory is not enough for a single row
├── EndpointError(RuntimeError)          calls of an endpoint fail again and again
├── BudgetSpentError(RuntimeError)       nothing more may be spent
├── TrainingError(RuntimeError)          training cannot go on
│   ├── NonFiniteLossError               too many losses in a row were not finite
│   └── UnscoredError                    too many training steps in a row without a reward
├── ModeratorError(RuntimeError)         a moderator failed before it ever gave a score
├── StorageError(OSError)                what a run writes cannot be written
└── MissingDependencyError(ImportError)  an optional package is not installed
```

Each child also inherits the standard type it refines, so ``except ValueError`` keeps working.
A message says what came, what is allowed, and what to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType


class AstraError(Exception):
    """Root of every error this library raises on purpose."""


class ConfigurationError(AstraError, ValueError):
    """A setting, a prompt or a file given by the user is wrong; the message says how to mend it."""


class ContractError(AstraError, ValueError):
    """A Problem, Environment, Moderator or Algorithm broke its documented contract."""


class ModelError(AstraError, RuntimeError):
    """A model cannot be loaded, or cannot do what was asked of it."""


class OutOfMemoryError(ModelError):
    """The memory of the device is not enough, even for a single row of a batch."""


class EndpointError(AstraError, RuntimeError):
    """Calls of an endpoint fail again and again for one reason, so there is no use in going on."""


class BudgetSpentError(AstraError, RuntimeError):
    """Nothing more may be spent.

    Args:
        limit: Name of the limit, for instance ``"max_requests"``.
        most: Its value.
        spent: What was spent.
        needed: What the next call may take at most, if that is why it was not sent.
    """

    def __init__(self, limit: str, most: float, spent: float, needed: float = 0.0) -> None:
        super().__init__(
            f"the budget {limit}={most:g} is too small for the next call, which may take "
            f"{needed:.4g} ({spent:.4g} is spent)"
            if needed
            else f"the budget {limit}={most:g} is spent ({spent:.4g})"
        )
        self.limit, self.most, self.spent, self.needed = limit, most, spent, needed

    @property
    def enough_to_go_on(self) -> float:
        """A limit with which it goes on for a while."""
        return 2 * max(self.most, self.spent + self.needed)

    def __reduce__(self) -> tuple[type[BudgetSpentError], tuple[str, float, float, float]]:
        """What a copy in another process is built from."""
        return type(self), (self.limit, self.most, self.spent, self.needed)


class InterruptedRunError(AstraError):
    """A signal ended a run early; everything is saved, and it can be continued."""


class BudgetEndedError(InterruptedRunError):
    """A budget ended a run early; everything is saved, and it can be continued."""


class TrainingError(AstraError, RuntimeError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """Too many losses in a row were not finite. The weights are those of the last finite one.

    Args:
        message: What happened and what to do.
        step: The training step it happened in, counted from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[str, int]]:
        """What a copy in another process is built from."""
        return type(self), (str(self), self.step)


class UnscoredError(TrainingError):
    """In too many training steps in a row not one reward could be computed."""


class ModeratorError(AstraError, RuntimeError):
    """A moderator failed, and has never given a score."""


class StorageError(AstraError, OSError):
    """A file of a run cannot be written: the disk is full, or the folder is read-only."""


class MissingDependencyError(AstraError, ImportError):
    """An optional package is needed and not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Name to import, for instance ``"detoxify"``.
        extra: The extra of this distribution that installs it.

    Raises:
        MissingDependencyError: The package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed. Install it with: pip install 'astra-rl[{extra}]'"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    nearest = get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if there is no message.

    All lines are joined if the first ends in a colon, that is, only introduces the others.
    """
    lines = str(error).strip().splitlines()
    if lines and lines[0].rstrip().endswith(":"):
        return " ".join(map(str.strip, lines))
    return lines[0] if lines else type(error).__name__
