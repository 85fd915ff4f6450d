"""A run on tiny models, made once; every module has a copy of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.endpoint import Endpoint, serving
from tests.tiny_models import save_tiny_models


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """An endpoint on this machine that fails in any way it is told to."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def workplace_to_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `workplace` copies."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny_models(folder, attacker=0, target=1)
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\n<script>alert(1)</script>\n")
    config = {
        "title": "a tiny test",
        "attacker": {"model": "attacker", "max_new_tokens": 6},
        "target": {"model": "target", "max_new_tokens": 6},
        "moderator": {"type": "secret_leak", "options": {"secret": "a", "partial_per_word": 0.0}},
        "prompts": {"file": "train.txt", "test_file": "test.txt"},
        "environment": {"tree_width": 2, "tree_depth": 2},
        "algorithm": {"type": "grpo"},
        "reward": {"novel_failure": {"novelty_share": 0.2}},
        "training": {"steps": 2, "episodes_per_step": 2, "batch_size": 4, "lr": 1e-3},
        "dtype": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def workplace(workplace_to_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models, prompts and a configuration."""
    return shutil.copytree(workplace_to_copy, tmp_path_factory.mktemp("cli") / "workplace")


@pytest.fixture(scope="session")
def trained_to_copy(workplace_to_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `trained` copies."""
    done = astra_rl("train", "config.yaml", "--output", "run", cwd=workplace_to_copy, draws=True)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert "after training" in done.stdout
    run = tmp_path_factory.mktemp("cli") / "run"
    return (workplace_to_copy / "run").rename(run)


@pytest.fixture(scope="module")
def trained(workplace: Path, trained_to_copy: Path) -> Path:
    """The folder of a finished run."""
    return shutil.copytree(trained_to_copy, workplace / "run")
