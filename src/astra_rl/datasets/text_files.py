"""Prompts from the user's own files."""

from __future__ import annotations

from pathlib import Path

from astra_rl.errors import ConfigurationError


def load_prompts(path: str | Path) -> list[str]:
    """Read a UTF-8 text file with one prompt per line; empty lines are left out.

    Raises:
        ConfigurationError: It cannot be read, a line is not UTF-8 (named by its number), or there
            is no prompt in it.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read the prompts {path}: {error.strerror}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{path}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8."
            ) from error
        if text:
            prompts.append(text)
    if not prompts:
        raise ConfigurationError(f"{path} holds no prompt; write one per line.")
    return prompts
