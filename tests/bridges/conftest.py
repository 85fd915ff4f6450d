"""A finished run, made without training, and what tests of the real tools share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml
from tests.bridges.making import ATTEMPTS
from tests.tiny_models import save_tiny_models

from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import plan_attempts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests marked ``bridge`` only where the package that they name is installed."""
    for item in items:
        for mark in item.iter_markers("bridge"):
            if not _is_installed(mark.args[0]):
                item.add_marker(
                    pytest.mark.skip(reason=f"{mark.args[0]} is not installed: make bridges")
                )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: a tiny attacker of random weights, and a few conversations."""
    folder = RunFolder(tmp_path_factory.mktemp("bridges") / "run")
    save_tiny_models(folder.checkpoints, last=0)
    config = {
        "attacker": {"model": "attacker", "max_new_tokens": 6},
        "target": {"model": "target"},
        "moderator": {
            "type": "secret_leak", "options": {"secret": "leak", "partial_per_word": 0.0}
        },
        "prompts": {"scenario": "planted_secrets"},
        "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip
    folder.config.write_text(yaml.safe_dump(config))
    with AttemptLog(folder.attempts, write=True) as log:
        for each in ATTEMPTS:
            log.append(each)
    plan_attempts(folder, "after", len(ATTEMPTS) + 1)  # one was never made
    return folder.path
