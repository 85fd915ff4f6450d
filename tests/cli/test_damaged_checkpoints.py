"""Whatever is damaged of a checkpoint or a state is noticed, and the last good one is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cases import also
from tests.cli.running import astra_rl

from astra_rl.errors import ModelError
from astra_rl.infra.checkpointing import CHECKSUMS, damage_of
from astra_rl.models.loading import load_model

pytestmark = pytest.mark.slow


HARM: dict[str, Callable[[bytes], bytes | None]] = {
    **{f"cut at {n} tenths": lambda data, n=n: data[: len(data) * n // 10] for n in range(10)},
    "a bit flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "missing": lambda data: None,
}


def harmed(path: Path, harm: str) -> None:
    data = HARM[harm](path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["last", "best"])
def test_every_file_of_a_checkpoint_is_checked_when_it_is_loaded(
    trained: Path, tmp_path: Path, name: str, harm: str
) -> None:
    checkpoint = trained / "checkpoints" / name
    names = files_of(checkpoint)
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.json", CHECKSUMS} <= {
        str(each) for each in names
    }
    for file in names:
        copy = tmp_path / str(file)
        shutil.copytree(checkpoint, copy)
        assert damage_of(copy) is None
        harmed(copy / file, harm)
        if (str(file), harm) == (CHECKSUMS, "missing"):  # as in a folder that is none of ours
            load_model(copy, dtype="float32")
            continue
        with pytest.raises(ModelError, match=f"{file} is damaged: '.*delete its {CHECKSUMS}"):
            load_model(copy, dtype="float32")


def test_a_damaged_attacker_is_one_error_and_another_can_be_evaluated(
    trained: Path, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    harmed(run / "checkpoints" / "last" / "model.safetensors", "a bit flipped")
    done = astra_rl("evaluate", str(run), cwd=workplace)
    assert done.returncode == 2
    assert "'model.safetensors' differs from its checksum" in done.stderr
    assert "Traceback" not in done.stderr
    best = str(run / "checkpoints" / "best")
    done = astra_rl("evaluate", str(run), "--attacker", best, cwd=workplace)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "harm"),
    [  # all of it is in tests/training/test_states.py, without a run
        ("state.json", "cut at 9 tenths"),
        also("state.json", "missing"),
        also("tensors.safetensors", "cut at 0 tenths"),
        ("tensors.safetensors", "a bit flipped"),
    ],
)
def test_a_run_goes_on_from_the_state_before_one_that_is_damaged_and_says_so(
    stopped: Path, whole: Path, workplace: Path, tmp_path: Path, file: str, harm: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    newest = sorted((run / "states").iterdir())[-1]
    assert [str(each) for each in files_of(newest)] == ["state.json", "tensors.safetensors"]
    harmed(newest / file, harm)
    done = astra_rl("resume", str(run), cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is damaged" in " ".join(done.stderr.split())
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["continued"][0]["at_step"] == 1
    for result in ("evaluation_after.json", "failures.jsonl"):
        assert (run / result).read_bytes() == (whole / result).read_bytes()
    weights = "checkpoints/last/model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    """A run that keeps the states of both of its steps."""
    arguments = ["train", "config.yaml", "--output", "whole", "--set", "training.save_every=1"]
    done = astra_rl(*arguments, cwd=workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "whole"


@pytest.fixture(scope="module")
def stopped(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as it was when it was killed after its training."""
    run = tmp_path_factory.mktemp("stopped") / "whole"
    shutil.copytree(whole, run)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["seconds"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "evaluation_after.json").unlink()
    shutil.rmtree(run / "checkpoints" / "last")
    return run
