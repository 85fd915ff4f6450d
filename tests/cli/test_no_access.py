"""Folders and files that may not be written or read: one error that names the path, exit code 2."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.running import Done, astra_rl
from tests.privileges import permissions_apply

pytestmark = pytest.mark.slow


@pytest.fixture
def run(workplace: Path, trained: Path) -> Iterator[Path]:
    """A copy of a finished run without an index, which its owner may change again."""
    folder = workplace / "guarded"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.index*"))
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(folder)


def forbid_writing(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def run_command(*arguments: str, cwd: Path) -> Done:
    with permissions_apply():
        return astra_rl(*arguments, cwd=cwd)


def check_error(done: Done, *parts: str) -> None:
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (("score", "guarded", "-m", "refusal"), "attempts_after_RefusalModerator"),
        (("report", "guarded"), "learning_curve.svg"),
        (("failures", "guarded"), "most_likely.json"),
        (("replay", "guarded"), "planned.json"),
        (("export", "guarded", "-f", "jsonl"), "failures.jsonl"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_run_that_may_not_be_changed(
    workplace: Path, run: Path, arguments: tuple[str, ...], file: str
) -> None:
    forbid_writing(run)
    done = run_command(*arguments, cwd=workplace)
    check_error(done, f"cannot write guarded/{file}", "Permission denied")


@pytest.mark.parametrize("name", ["checkpoints/last/model.safetensors", "checkpoints/last"])
def test_a_checkpoint_that_may_not_be_read(workplace: Path, run: Path, name: str) -> None:
    (run / name).chmod(0)
    done = run_command("evaluate", "guarded", "-o", "elsewhere", cwd=workplace)
    check_error(done, "cannot load the", f"guarded/{name}", "Permission denied")


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "guarded"),
        ("score", "guarded", "-m", "refusal"),
        ("train", "config.yaml", "-o", "guarded/new"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_may_not_be_entered(
    workplace: Path, run: Path, arguments: tuple[str, ...]
) -> None:
    run.chmod(0)
    check_error(run_command(*arguments, cwd=workplace), "no access to guarded", "Permission denied")


def test_info_without_a_home_says_so_and_prints_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    for name in ("ASTRA_RL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = astra_rl("info", cwd=tmp_path)
    assert done.returncode == 0
    (cache,) = [line for line in done.stdout.splitlines() if line.startswith("model cache")]
    assert "no cache folder: Could not determine home directory." in cache
    assert "Set ASTRA_RL_CACHE" in cache


def test_a_path_that_the_system_refuses_is_named(workplace: Path) -> None:
    (workplace / "loop").symlink_to("loop")
    for path in ("x" * 300, "loop/run"):
        done = astra_rl("validate", path, cwd=workplace)
        check_error(done, path)
        done = astra_rl("demo", "--output", path, cwd=workplace)
        check_error(done, path)


def test_python_without_docstrings_is_refused(workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "astra_rl", "info"],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Python runs with -OO" in done.stderr
    assert "Traceback" not in done.stderr
