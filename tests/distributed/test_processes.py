"""What is decided before the processes of a run work together."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_rl.config.schema import RunConfig
from astra_rl.distributed.ranks import Ranks
from astra_rl.errors import ConfigurationError
from astra_rl.runs.processes import check_can_divide, with_shards
from astra_rl.runs.resume import interruptible
from astra_rl.training.callbacks.best import LoadBest


def config(shards: int | None = None, **sections: Any) -> RunConfig:
    given = {
        "attacker": {"model": "m", "lora": {}},
        "target": {"model": "m"},
        "moderator": {"type": "keyword", "options": {"patterns": ["a"]}},
        "prompts": {"file": "p.txt"},
        **sections,
    }
    made = RunConfig.model_validate(given)
    return made.model_copy(update={"training": replace(made.training, shards=shards)})


def folder(path: Path, shards: int | None) -> Path:
    (path / "config.yaml").write_text(config(shards).to_yaml())
    return path


@pytest.mark.parametrize(
    ("given", "processes", "expected"), [(6, 1, 6), (6, 4, 6), (None, 1, None), (None, 4, 4)]
)
def test_a_new_run_has_a_shard_per_process_unless_the_number_is_given(
    given: int | None, processes: int, expected: int | None, tmp_path: Path
) -> None:
    for output in (None, tmp_path, tmp_path / "new"):
        assert with_shards(config(given), output, processes).training.shards == expected


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_resumed_run_keeps_its_shards(processes: int, tmp_path: Path) -> None:
    found = with_shards(config(), folder(tmp_path, 4), processes)
    assert found.training.shards == 4


def test_a_run_without_shards_is_resumed_on_several_processes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = with_shards(config(), folder(tmp_path, None), 4)
    assert found.training.shards is None
    assert "resumes on 4 processes, but not bit-exactly" in caplog.text


def test_a_damaged_configuration_is_left_to_the_start_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("- not a mapping\n")
    assert with_shards(config(), tmp_path, 4).training.shards is None


def test_engines_are_for_one_process() -> None:
    for role in ("attacker", "target", "judge"):
        engines = config(rollout={role: "vllm"})
        check_can_divide(engines, 1)
        with pytest.raises(ConfigurationError, match=rf"{role}: vllm.* 2 processes were started"):
            check_can_divide(engines, 2)
    check_can_divide(config(), 2)


def test_the_best_attacker_is_loaded_in_one_process() -> None:
    best = config(training={"load_best_model_at_end": True})
    check_can_divide(best, 1)
    with pytest.raises(ConfigurationError, match="2 processes were started; it needs one"):
        check_can_divide(best, 2)


def test_a_training_of_several_processes_has_no_best_attacker_to_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Two(Ranks):
        size = 2

    monkeypatch.setattr("astra_rl.training.callbacks.best.join", Two)
    with pytest.raises(ConfigurationError, match="2 processes were started; it needs one"):
        LoadBest(None).on_train_begin(None)  # type: ignore[arg-type]


def test_the_settings_are_refused_by_name() -> None:
    for name, value in (("shards", 0), ("shards", 1.5), ("reduction", "any"), ("sharding", 2)):
        text = yaml.safe_dump({"training": {name: value}})
        with pytest.raises((ConfigurationError, ValueError), match=name):
            config(**yaml.safe_load(text))


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_a_launcher_repeats_is_one_signal() -> None:
    stops: list[int] = []
    with interruptible(lambda: stops.append(1), grace=60):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert stops == [1]


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_without_grace_is_not_caught() -> None:
    stops: list[int] = []

    def twice() -> None:
        with interruptible(lambda: stops.append(1)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert stops == [1]
