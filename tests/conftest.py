"""For all tests: one thread per process, no network beyond loopback, the system's own browser."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

OFFLINE = Path(__file__).parent / "offline"
LOGS = "astra-rl-tests-network-"

# As many processes as cores, each with one thread: more threads than cores make everything slower.
# Set before torch is imported; the processes that tests start inherit it.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)

# Importing readline, as pytest does, puts the terminal's size into the environment of workers, and
# a rich console made there would keep that width whatever a test sets.
for _variable in ("COLUMNS", "LINES"):
    os.environ.pop(_variable, None)

# How long an example takes depends on what else the machine does.
_ANY_SPEED = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)

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
    """Choose how many examples hypothesis draws, and block the network.

    It is blocked here and in every process that a test starts, and each attempt is logged.

    Every xdist worker has a log of its own. What one logs is read after each of its tests. The name
    of a log begins with the number of its process, so that the log of a killed one can be removed.
    """
    spec = importlib.util.spec_from_file_location(
        "astra_rl_tests_offline", OFFLINE / "sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    offline = importlib.util.module_from_spec(spec)
    _choose_examples(config)
    blocked = os.environ.pop("ASTRA_RL_TESTS_BLOCKED_NETWORK", None) is not None
    spec.loader.exec_module(offline)
    _remove_logs_of_killed_processes()
    descriptor, log = tempfile.mkstemp(prefix=f"{LOGS}{os.getpid()}-")
    os.close(descriptor)
    config.add_cleanup(lambda: Path(log).unlink(missing_ok=True))
    os.environ[offline.LOG_VARIABLE] = log
    if blocked:  # by sitecustomize, in a worker
        return
    path = [str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    offline.block_network(log)


def _choose_examples(config: pytest.Config) -> None:
    """Draw the same examples in every run, or others with the option ``--hypothesis-seed``."""
    changes: dict[str, Any] = {"derandomize": config.getoption("--hypothesis-seed") is None}
    if "not exhaustive" in config.option.markexpr:
        changes["max_examples"] = 30
    hypothesis.settings.register_profile("chosen", _ANY_SPEED, **changes)
    hypothesis.settings.load_profile("chosen")


def pytest_runtest_setup() -> None:
    """Give each test, and the fixtures that it is the first to use, the same random numbers.

    Else they would depend on the tests before it, which differ from run to run in processes that
    share the tests.
    """
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _remove_logs_of_killed_processes() -> None:
    """A process that was killed removed none."""
    for path in Path(tempfile.gettempdir()).glob(f"{LOGS}*-*"):
        number = path.name.removeprefix(LOGS).partition("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):  # of another user, or removed meanwhile
                path.unlink()
        except (ValueError, OverflowError, PermissionError):  # none of ours, or of another user
            pass


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no worker begins a long test when others end.

    Modules stay whole, because of what their fixtures share.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking over all modules again in each full collection."""
    gc.freeze()


@pytest.fixture(autouse=True)
def blocked_network() -> Iterator[Path]:
    """Fail a test that tried to reach another machine, even if the exception was swallowed.

    Yields the log; a test that is meant to try empties it.
    """
    log = Path(os.environ["ASTRA_RL_TESTS_BLOCKED_NETWORK"])
    yield log
    tried = log.read_text(encoding="utf-8")
    log.write_text("", encoding="utf-8")
    assert tried == "", f"tried to leave this machine: {tried}"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt here, and interrupt the processes that the test starts.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's own browser; nothing is downloaded."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail(WHY_NOT)
        pytest.skip(WHY_NOT)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:  # every context has a fresh profile
        running = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=300_000)
        yield running
        running.close()
