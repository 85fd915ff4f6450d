"""For all tests: no network but this machine's own, and no browser but the system's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OFFLINE = Path(__file__).parent / "offline"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WHY_NOT = "no chromium: apt-get install chromium (or the package of your system)"


def pytest_configure(config: pytest.Config) -> None:
    """Block the network here and in every process that a test starts."""
    spec = importlib.util.spec_from_file_location(
        "astra_rl_tests_offline", OFFLINE / "sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    offline = importlib.util.module_from_spec(spec)
    os.environ.pop("ASTRA_RL_TESTS_BLOCKED_NETWORK", None)
    spec.loader.exec_module(offline)
    descriptor, log = tempfile.mkstemp(prefix="astra-rl-tests-network-")
    os.close(descriptor)
    config.add_cleanup(lambda: Path(log).unlink(missing_ok=True))
    os.environ[offline.LOG_VARIABLE] = log
    path = [str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    offline.block_network(log)


@pytest.fixture(autouse=True)
def blocked_network() -> Iterator[Path]:
    """Fail a test that tried to leave this machine, also if it went on all the same.

    One that should try empties the file.
    """
    log = Path(os.environ["ASTRA_RL_TESTS_BLOCKED_NETWORK"])
    yield log
    tried = log.read_text(encoding="utf-8")
    log.write_text("", encoding="utf-8")
    assert tried == "", f"tried to leave this machine: {tried}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's own browser; nothing is downloaded."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:  # every context has a fresh profile
        running = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()
