"""Resume an interrupted run: consistency checks, and handling of signals."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from astra_rl.config.loading import parse_config
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import (
    BudgetSpentError,
    ConfigurationError,
    EndpointError,
    InterruptedRunError,
    ProcessFailedError,
    ProcessLostError,
    StorageError,
)
from astra_rl.infra.jsonio import json_line, parse_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.folder import RunFolder, new_run_folder, read_own
from astra_rl.runs.provenance import versions
from astra_rl.targets.accounts import LedgerFile

_MAY_CHANGE = ("budget", "cache", "harden", "log_completions", "report_to")
"""Sections of the configuration that do not affect results."""
_CALLS = "calls"
"""Setting of each endpoint that says how calls are made and retried; it may change, too."""


def check_can_run_in(folder: Path) -> None:
    """Check that a folder is empty, or has a run that can be resumed.

    Raises:
        ConfigurationError: It has other files, or a complete run.
    """
    # Temporary file of a run that was killed while it wrote its first file, the configuration.
    left = f".{RunFolder.CONFIG}."
    if not folder.is_dir() or all(each.name.startswith(left) for each in folder.iterdir()):
        return
    if not (folder / RunFolder.CONFIG).is_file():
        raise ConfigurationError(f"{folder} is not empty; choose a new folder for this run.")
    if is_complete(RunFolder(folder)):
        raise ConfigurationError(f"{folder} holds a completed run; choose a new folder.")


@contextlib.contextmanager
def starting_in(output: str | Path | None, name: str) -> Iterator[RunFolder]:
    """Yield the folder of a run that is started or resumed; a failed start leaves no folder.

    What was not there before is removed if an error comes up before anything was played or paid
    for. After an interruption the run can be resumed, so its folder is kept.

    Args:
        output: The folder; None creates one under ``runs``.
        name: Name of a new folder.

    Raises:
        ConfigurationError: The folder has other files, or a complete run.
    """
    if output is not None:
        check_can_run_in(Path(output))
    parent = Path("runs") if output is None else Path(output).parent
    had_parent, was_new = parent.exists(), output is None or not Path(output).exists()
    folder = new_run_folder(parent, name) if output is None else RunFolder(output)
    try:
        yield folder
    except (InterruptedRunError, BudgetSpentError, EndpointError, StorageError):
        raise
    except Exception:
        if was_new and not _has_results(folder):
            shutil.rmtree(folder.path, ignore_errors=True)
            if not had_parent:
                with contextlib.suppress(OSError):  # not empty
                    parent.rmdir()
        raise


def _has_results(folder: RunFolder) -> bool:
    """Whether anything was played, trained or paid for."""
    paths = (folder.attempts, folder.metrics, folder.failures)
    if folder.states.exists() or any(each.is_file() and each.stat().st_size for each in paths):
        return True
    ledger = folder.path / "ledger.json"
    return ledger.is_file() and bool(read_own(ledger, LedgerFile).get("total", {}).get("requests"))


def is_complete(run: RunFolder) -> bool:
    """Whether a run has ended and cannot be resumed."""
    # The report is written last, so a run without one is not complete.
    manifest = run.read_manifest() if run.manifest.is_file() else {}
    return "seconds" in manifest and run.report.is_file()


def check_same_run(
    settings: str, folder: RunFolder, *, digest: str | None = None, force: bool = False
) -> None:
    """Check that a run is resumed with the configuration that it was started with.

    Args:
        settings: The current configuration as YAML, without credentials.
        folder: Folder of the run.
        digest: Checksum of the configuration in its newest training state; None if unknown.
        force: Only warn about differences, and use the current configuration.

    Raises:
        ConfigurationError: The configurations differ; the message lists the settings.
    """
    then, now = _configuration_then(folder), yaml.safe_load(settings)
    changes = changed_settings(settings, folder)
    if digest is not None and digest not in _config_digests(folder):
        changes.append("config.yaml in the folder of the run was edited since its newest state")
    if not changes:
        if then != now:
            folder.write_text(folder.config, settings)
        return
    if not force:
        raise ConfigurationError(
            f"{folder.path} was started with another configuration:\n  "
            + "\n  ".join(changes)
            + "\nUse the original configuration, choose another --output, or use the changed "
            "one with --force."
        )
    logger.warning("resuming with a changed configuration (--force): %s", "; ".join(changes))
    folder.write_text(folder.config, settings)


def changed_settings(settings: str, folder: RunFolder) -> list[str]:
    """Return a line for each setting of a run that matters for its results and differs now.

    Args:
        settings: The current configuration as YAML, without credentials.
        folder: Folder of the run.
    """
    then, now = _configuration_then(folder), yaml.safe_load(settings)
    return list(differences(_fixed(then), _fixed(now)))


def _configuration_then(folder: RunFolder) -> Any:
    """Return the settings that a run was started with, with defaults for newer settings."""
    text = folder.config.read_text(encoding="utf-8", errors="replace")
    try:
        return yaml.safe_load(parse_config(text, source=str(folder.config)).to_yaml())
    except ConfigurationError:  # written by another version: compared without defaults
        with contextlib.suppress(yaml.YAMLError):
            return parse_yaml(text)
    return None


def config_digest(folder: RunFolder) -> str | None:
    """Return the checksum of the configuration of a run, as stored in its training states."""
    return next(_config_digests(folder), None)


def _config_digests(folder: RunFolder) -> Iterator[str]:
    """Yield the checksum of the configuration, and the one that earlier versions stored."""
    if not folder.config.is_file():
        return
    then = _configuration_then(folder)
    for fixed in (_fixed(then), _without_sections(then)):
        text = yaml.safe_dump(fixed, sort_keys=True)
        yield hashlib.sha256(text.encode()).hexdigest()


def check_versions(then: Mapping[str, str]) -> None:
    """Warn if package versions differ from those of a training state."""
    changes = list(differences(then, versions()))
    if changes:
        logger.warning(
            "resuming with other package versions, so the resume is not bit-exact: %s",
            "; ".join(changes),
        )


def check_machine(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warn if what the machine determined differs from a training state; see `RunIdentity`."""
    changes = list(differences(then, now)) if then else []
    if changes:
        logger.warning(
            "this machine differs from the one that wrote the training state, so the run resumes, "
            "but not bit-exactly: %s",
            "; ".join(changes),
        )


def _fixed(settings: Any) -> dict[str, Any]:
    """Return the settings that must not change."""
    return {name: _without_calls(value) for name, value in _without_sections(settings).items()}


def _without_sections(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {}
    return {name: value for name, value in settings.items() if name not in _MAY_CHANGE}


def _without_calls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_calls(each) for name, each in value.items() if name != _CALLS}
    return [_without_calls(each) for each in value] if isinstance(value, list) else value


def differences(then: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield one line per setting that differs."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in {**then, **now}:
            name = f"{place}.{key}" if place else str(key)
            yield from differences(then.get(key), now.get(key), name)
    elif then != now:
        yield f"{place}: {then!r} then, {now!r} now"


def check_same_prompts(now: list[dict[str, Any]], folder: RunFolder) -> None:
    """Check that the prompts of a run have not changed.

    Raises:
        ConfigurationError: A source has another checksum, is new, or is missing.
    """
    if not folder.manifest.is_file():
        return
    then = folder.read_manifest().get("prompts", [])
    known = {source["name"]: source["sha256"] for source in then}
    given = {source["name"]: source["sha256"] for source in now}
    changed = [name for name in {**known, **given} if known.get(name) != given.get(name)]
    if known and changed:
        raise ConfigurationError(
            f"the prompts {', '.join(changed)} have changed since {folder.path} was started. "
            "Restore them, choose another folder, or resume with the changed ones with --force."
        )


def check_same_files(now: Mapping[str, str], folder: RunFolder) -> None:
    """Check that files that parts of a run read have not changed.

    Args:
        now: SHA-256 of each file, by its path; other files of the run are not checked.
        folder: Folder of the run.

    Raises:
        ConfigurationError: One has another checksum.
    """
    if not folder.manifest.is_file():
        return
    then = folder.read_manifest().get("files", {})
    changed = [name for name, digest in now.items() if then.get(name, digest) != digest]
    if changed:
        raise ConfigurationError(
            f"the files {', '.join(map(ascii, changed))} have changed since {folder.path} was "
            "started. Restore them, choose another folder, or resume with the changed ones with "
            "--force."
        )


def kept_metrics(folder: RunFolder, step: int) -> list[dict[str, float]]:
    """Return the metrics of the steps up to this one, and remove later ones from the file."""
    if not folder.metrics.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in folder.metrics.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):  # an incomplete line
            row = parse_json(line)
            if is_row_of_metrics(row) and row["step"] <= step:
                rows.append(row)
    folder.write_text(folder.metrics, "".join(json_line(row) + "\n" for row in rows))
    return [
        {name: float("nan") if value is None else float(value) for name, value in row.items()}
        for row in rows
    ]


def is_row_of_metrics(row: Any) -> bool:
    """Whether a line has numbers by name and a finite step; a damaged one may not."""
    return (
        isinstance(row, dict)
        and row.get("step") is not None
        and all(value is None or _is_float(value) for value in row.values())
        and math.isfinite(row["step"])
    )


def _is_float(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and isinstance(float(value), float)
    except OverflowError:  # an integer that is too large
        return False


@contextlib.contextmanager
def interruptible(
    stop: Callable[[], None],
    *,
    message: str = "finishing the step and saving; send the signal again to stop now",
    grace: float = 0.0,
) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM inside the block; a second signal is not caught.

    Args:
        stop: Called in the main thread.
        message: What is logged.
        grace: Seconds after the first signal in which further ones are ignored: a launcher of
            several processes repeats the signal that a terminal has sent to all of them.
    """
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield
        return
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            logger.warning(message)
            stop()
        elif time.monotonic() - first >= grace:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def how_to_resume(folder: RunFolder) -> str:
    """Return the instruction that resumes a run, or the hardening that it is a part of."""
    if not folder.config.is_file():  # it ended before its first file was written
        return "Start the same command again."
    return f"Continue with: astra-rl resume {shlex.quote(str(folder.part_of or folder.path))}"


@contextlib.contextmanager
def resumable_errors(folder: RunFolder) -> Iterator[None]:
    """Turn signals and storage errors inside the block into errors that name the resume command.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM was received.
        StorageError: A file could not be written.
        ProcessLostError: Another process of the run has ended.
        ProcessFailedError: Another process of the run failed.
    """

    def stop() -> None:
        raise InterruptedRunError(
            f"interrupted; what was saved is in {folder.path}. {how_to_resume(folder)}"
        )

    try:
        # Errors that do not name a file are attributed to the folder of the run.
        with storing(folder.path), interruptible(stop, message="stopping"):
            yield
    except (StorageError, ProcessLostError, ProcessFailedError) as error:
        raise type(error)(f"{error} {how_to_resume(folder)}") from error
