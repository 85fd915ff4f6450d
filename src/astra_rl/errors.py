"""The exceptions of this library.

```
AstraError
├── ConfigurationError(ValueError)       a setting, a prompt or a file of the user is wrong
├── ContractError(ValueError)            a Problem, Environment, ... broke its contract
├── ModelError(RuntimeError)             a model cannot be loaded, or lacks a needed feature
│   └── OutOfMemoryError                 not enough memory for a batch of one row
├── EndpointError(RuntimeError)          calls of an endpoint fail repeatedly
├── BudgetSpentError(RuntimeError)       a budget is spent
├── TrainingError(RuntimeError)          training cannot continue
│   ├── NonFiniteLossError               too many consecutive losses were not finite
│   ├── UnscoredError                    too many consecutive steps without a valid reward
│   └── ReplicaError                     the processes of a training differ from each other
├── ProcessFailedError(RuntimeError)     another process of a training failed
├── ModeratorError(RuntimeError)         a moderator failed before it returned any score
├── StorageError(OSError)                a file of a run cannot be written
└── MissingDependencyError(ImportError)  an optional package is not installed
```

Each class also inherits from the standard exception in parentheses, so ``except ValueError`` works.
A message states the value that was given, the values that are allowed, and what to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from decimal import ROUND_CEILING, Context
from difflib import get_close_matches
from types import ModuleType

from astra_rl.distribution import how_to_install


class AstraError(Exception):
    """Base class of the exceptions of this library."""


class ConfigurationError(AstraError, ValueError):
    """A setting, a prompt or a file of the user is wrong; the message says how to fix it."""


class ContractError(AstraError, ValueError):
    """A Problem, Environment, Moderator or Algorithm broke its documented contract."""


class ModelError(AstraError, RuntimeError):
    """A model cannot be loaded, or lacks a feature that is needed."""


class OutOfMemoryError(ModelError):
    """The memory of the device does not suffice for a batch of one row."""


class EndpointError(AstraError, RuntimeError):
    """Calls of an endpoint fail repeatedly for the same reason; further calls would fail too."""


class BudgetSpentError(AstraError, RuntimeError):
    """A limit of the budget is reached, or the next call could exceed it.

    Args:
        limit: Name of the limit, for instance ``"max_requests"``.
        most: Value of the limit.
        spent: Amount spent so far.
        needed: Amount reserved for the next call, if that would exceed the limit; else 0.
        held: Part of the limit that is kept for later work.
    """

    def __init__(
        self, limit: str, most: float, spent: float, needed: float = 0.0, held: float = 0.0
    ) -> None:
        budget = f"the budget {limit}={most:.12g}"
        if held:
            budget += f", less {_amount(held)} kept for the final evaluation,"
        super().__init__(
            f"{budget} is too small for the next call, which may take "
            f"{_amount(needed)} ({_amount(spent)} is spent)"
            if needed
            else f"{budget} is spent ({_amount(spent)})"
        )
        self.limit, self.most, self.spent, self.needed, self.held = limit, most, spent, needed, held

    @property
    def sufficient_limit(self) -> float:
        """A suggested limit for resuming: twice the amount that is spent or needed.

        Rounded up to four significant digits, so that it suffices and can be read.
        """
        context = Context(prec=4, rounding=ROUND_CEILING)
        enough = 2.0 * max(self.most, self.spent + self.needed + self.held)
        return float(context.create_decimal(repr(enough)))

    def __reduce__(self) -> tuple[type[BudgetSpentError], tuple[str, float, float, float, float]]:
        """Return how to copy the exception to another process."""
        return type(self), (self.limit, self.most, self.spent, self.needed, self.held)


def _amount(value: float) -> str:
    """Return an amount with four significant digits, and whole from 1,000 on: 123457."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


class InterruptedRunError(AstraError):
    """A signal ended a run early; its state is saved and it can be resumed."""


class BudgetEndedError(InterruptedRunError):
    """A budget ended a run early; its state is saved and it can be resumed."""


class TrainingError(AstraError, RuntimeError):
    """Training cannot continue."""


class NonFiniteLossError(TrainingError):
    """Too many consecutive losses were not finite. The weights are those of the last finite one.

    Args:
        message: The message.
        step: Training step, counted from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[str, int]]:
        """Return how to copy the exception to another process."""
        return type(self), (str(self), self.step)


class UnscoredError(TrainingError):
    """Too many consecutive training steps had no valid reward."""


class ReplicaError(TrainingError):
    """The processes of a training, which must be equal, differ from each other."""


class ProcessFailedError(AstraError, RuntimeError):
    """Another process of the training failed; the message says which, and why."""


class ProcessLostError(InterruptedRunError):
    """Another process of the training has ended, for instance because it was killed."""


class ModeratorError(AstraError, RuntimeError):
    """A moderator failed and has never returned a score."""


class StorageError(AstraError, OSError):
    """A file of a run cannot be written: the disk is full, or the folder is read-only."""


class MissingDependencyError(AstraError, ImportError):
    """An optional package is not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Module to import, for instance ``"detoxify"``.
        extra: Extra of this distribution that installs it.

    Raises:
        MissingDependencyError: The package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed; it belongs to the extra {extra!r}. Install it with: "
            f"{how_to_install(extra)}"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string.

    Upper and lower case are the same.
    """
    by_folded = {each.casefold(): each for each in known}
    nearest = get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[nearest[0]]!r}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if there is no message.

    All lines are joined if the first ends in a colon, that is, only introduces the others.
    """
    lines = str(error).strip().splitlines()
    if lines and lines[0].rstrip().endswith(":"):
        return " ".join(map(str.strip, lines))
    return lines[0] if lines else type(error).__name__
