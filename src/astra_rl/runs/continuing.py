"""Going on with a run that ended early: that it is the same run, and how it is told to stop."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from astra_rl.core.jsonio import json_line
from astra_rl.errors import ConfigurationError
from astra_rl.logging import logger
from astra_rl.runs.config import RunConfig
from astra_rl.runs.folder import RunFolder

_MAY_CHANGE = ("budget", "cache")
"""Sections of the configuration that change nothing of what is found."""


def check_can_run_in(folder: Path) -> None:
    """Refuse a folder that holds something else than a run that ended early.

    Raises:
        ConfigurationError: It does.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"{folder} is not empty; choose a new folder for this run.")
    manifest = folder / "manifest.json"
    if manifest.is_file() and "seconds" in json.loads(manifest.read_text(encoding="utf-8")):
        raise ConfigurationError(f"{folder} holds a run that is done; choose a new folder.")


def check_same_run(config: RunConfig, folder: RunFolder, *, force: bool = False) -> None:
    """Refuse to go on with a run whose configuration was another.

    Raises:
        ConfigurationError: It was; the settings that differ are named.
    """
    then = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    now = yaml.safe_load(config.to_yaml())
    changes = list(differences(_fixed(then), _fixed(now)))
    if not changes:
        if then != now:
            folder.write_text(folder.config, config.to_yaml())
        return
    if not force:
        raise ConfigurationError(
            f"{folder.path} was begun with another configuration:\n  "
            + "\n  ".join(changes)
            + "\nUse the configuration it was begun with, choose another --output, or go on all "
            "the same with --force."
        )
    logger.warning("going on although the configuration changed: %s", "; ".join(changes))
    folder.write_text(folder.config, config.to_yaml())


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _MAY_CHANGE}


def differences(then: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each setting that differs, by its name."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in {**then, **now}:
            name = f"{place}.{key}" if place else str(key)
            yield from differences(then.get(key), now.get(key), name)
    elif then != now:
        yield f"{place}: {then!r} then, {now!r} now"


def check_same_prompts(now: list[dict[str, Any]], folder: RunFolder) -> None:
    """Refuse to go on with prompts that have changed.

    Raises:
        ConfigurationError: A source has another checksum.
    """
    if not folder.manifest.is_file():
        return
    then = json.loads(folder.manifest.read_text(encoding="utf-8")).get("prompts", [])
    known = {source["name"]: source["sha256"] for source in then}
    for source in now:
        if known.get(source["name"], source["sha256"]) != source["sha256"]:
            raise ConfigurationError(
                f"the prompts {source['name']} have changed since {folder.path} was begun. Restore "
                "them, or go on all the same with --force."
            )


def kept_metrics(folder: RunFolder, step: int) -> list[dict[str, float]]:
    """Return the metrics of the steps up to this one, and drop later ones from the file."""
    if not folder.metrics.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in folder.metrics.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):  # a line that was cut off
            row = json.loads(line)
            if row["step"] <= step:
                rows.append(row)
    folder.write_text(folder.metrics, "".join(json_line(row) + "\n" for row in rows))
    return [
        {name: float("nan") if value is None else float(value) for name, value in row.items()}
        for row in rows
    ]


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM inside the block; a second signal ends at once."""
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        logger.warning("finishing the step and saving; once more to end at once")
        for each, handler in before.items():
            signal.signal(each, handler)
        stop()

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
