"""A run on tiny models, made once per module."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models, prompts and a configuration."""
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
def trained(workplace: Path) -> Path:
    """The folder of a finished run."""
    done = astra_rl("train", "config.yaml", "--output", "run", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert "after training" in done.stdout
    return workplace / "run"
