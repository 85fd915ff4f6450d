"""How many processes were started together, as torchrun and accelerate say in the environment."""

from __future__ import annotations

import os

from astra_rl.errors import ConfigurationError

WORLD_SIZE = "WORLD_SIZE"
"""Environment variable with the number of processes that were started together."""


def world_size() -> int:
    """Return the number of processes that were started together; 1 without a launcher.

    Raises:
        ConfigurationError: The environment variable is not a positive number.
    """
    text = os.environ.get(WORLD_SIZE, "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(
            f"{WORLD_SIZE}={text!r} in the environment; it must be the number of processes, 1 or "
            "more, as torchrun and accelerate set it. Unset it to run one process."
        )
    return int(text)


def is_first_process() -> bool:
    """Whether this process is the first of those that were started together, or the only one."""
    return os.environ.get("RANK", "0").strip() in ("", "0")


def check_one_process(what: str) -> None:
    """Raise if several processes were started together: each would do the whole work.

    Args:
        what: What does not run on several processes, to begin the message with.

    Raises:
        ConfigurationError: They were.
    """
    if (count := world_size()) > 1:
        raise ConfigurationError(
            f"{what} runs in one process, and {count} were started ({WORLD_SIZE}={count} in the "
            f"environment). Start it without torchrun or accelerate, or unset {WORLD_SIZE}."
        )
