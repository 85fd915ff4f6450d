"""Exit codes of ``astra-rl``."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit code of a command means."""

    OK = 0
    """The command did all of its work, and no gate failed."""
    DEFECT = 1
    """An unexpected exception: a defect of astra-rl."""
    USAGE_ERROR = 2
    """An error that the user can fix: an option, a configuration, a file, a model, an endpoint.

    Also if every conversation with a target failed, so that nothing is known about it, or if a run
    of a league failed."""
    GATE_FAILED = 3
    """A condition of ``--fail-on`` holds, or a regression case did not pass."""
    BUDGET_EXHAUSTED = 4
    """A budget ended the command early; its partial results are saved."""
    INTERRUPTED = 130
    """A signal ended the command early; a run is saved and can be resumed."""
