"""Exit codes of the command line."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What an exit code of ``astra-rl`` means; docs/runs.md has the same table."""

    OK = 0
    DEFECT = 1
    """An unexpected exception: a defect of astra-rl."""
    USAGE_ERROR = 2
    """An error that the user can fix: configuration, files, models, endpoints."""
    GATE_FAILED = 3
    """A --fail-on condition holds or cannot be decided, or a regression case failed."""
    BUDGET_EXHAUSTED = 4
    """A budget ended the command early; what was paid for is recorded."""
    INTERRUPTED = 130
    """SIGINT or SIGTERM ended the command."""
