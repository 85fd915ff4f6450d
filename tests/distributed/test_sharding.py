"""A training with shards of weights, gradients and optimizer states equals that in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.distributed import cases, sharded
from tests.distributed.group import Group, agreed

from astra_rl import TrainingConfiguration
from astra_rl.errors import ConfigurationError

pytestmark = pytest.mark.slow

SIZES = (2, pytest.param(4, marks=pytest.mark.exhaustive))


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Return the largest difference in parts of the largest number."""
    assert len(ours) == len(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(map(abs, theirs))


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("grpo", 2, {}),
        ("ppo", 4, {}),
        ("grpo", 4, {"lora": True}),
        # Five episodes, batches of seven: shards, and numbers of backward passes, are uneven.
        ("grpo", 4, {"shards": 5, "batch_size": 7, "depth": 2}),
        ("grpo", 2, {"shards": 3, "batch_size": 4, "gradient_accumulation_steps": 3}),
        # One process has no episodes, no rows and no gradients.
        ("grpo", 4, {"shards": 2, "num_episodes_per_experience": 1, "seed": 1}),
        # Each leaf is computed in several backward passes, more in one process than in another.
        ("grpo", 2, {"shards": 2, "batch_size": 20, "micro_batch_tokens": 40}),
        *(
            pytest.param(name, 4, {}, marks=pytest.mark.exhaustive)
            for name in sorted(set(cases.NAMES) - {"grpo", "ppo"})
        ),
    ],
)
def test_gradients_are_those_of_one_process(
    name: str, size: int, options: dict[str, Any], processes: Any
) -> None:
    undivided = {**options, "shards": None, "micro_batch_tokens": None}
    alone = cases.first_gradient(name, **undivided)
    found = agreed(processes(size).run(cases.first_gradient, name, **options, **sharded.SHARDED))
    assert cases.gradient_difference(found, alone) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop", "adagrad"])
def test_an_update_is_that_of_one_process(kind: str, dtype: str, size: int, processes: Any) -> None:
    alone = sharded.updated(kind, dtype)
    for resumed in (False, True):
        first, *others = processes(size).run(sharded.updated, kind, dtype, resumed=resumed)
        assert all(each["weights"] == first["weights"] for each in others)
        assert first["inner"].keys() == alone["inner"].keys()
        pairs = [
            *zip(first["weights"], alone["weights"], strict=True),
            *zip(first["masters"], alone["masters"], strict=True),
            *((first["inner"][name], alone["inner"][name]) for name in alone["inner"]),
        ]
        assert all(a == pytest.approx(b, rel=1e-5, abs=1e-6) for a, b in pairs)


def test_each_process_keeps_its_part_of_the_float32_weights_and_states(processes: Any) -> None:
    found = processes(4).run(sharded.kept_bytes, **sharded.SHARDED)
    kept, expected, (weights, *_) = zip(*found, strict=True)
    assert sum(kept) == 12 * weights  # float32 weights, and two moments of Adam
    assert expected == kept  # a gradient takes as much as a float32 weight
    assert max(kept) < 1.1 * 12 * weights / 4


def test_gradients_of_few_layers_wait_for_each_other(processes: Any) -> None:
    for name in ("grpo", "ppo"):
        most, weights = processes(2).run(sharded.waiting_gradients, name)[0]
        assert most < weights / 2  # there are two layers


@pytest.mark.parametrize(("name", "steps"), [("grpo", 10), ("ppo", 2)])
def test_replicas_of_half_precision_weights_stay_equal(
    name: str, steps: int, processes: Any
) -> None:
    options = {"training_steps": steps, "num_episodes_per_experience": 2}
    found = agreed(processes(2).run(sharded.half_precision, name, **options, **sharded.SHARDED))
    alone = sharded.half_precision(name, **options)
    assert found["attacks"] == alone["attacks"]
    assert largest_difference(found["masters"], alone["masters"]) < 5e-3  # Adam magnifies rounding


def test_gradients_are_clipped_by_the_norm_of_all_shards(processes: Any) -> None:
    options = {"max_grad_norm": 1e-3, "optimizer": "sgd", "lr": 10.0, "training_steps": 1}
    alone = sharded.train("grpo", **options)
    found = agreed(processes(4).run(sharded.train, "grpo", **options, **sharded.SHARDED))
    assert alone["norms"][0] > 1e-2
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert largest_difference(found["numbers"], alone["numbers"]) < 1e-6


@pytest.mark.parametrize("what", ["nan", "out of memory"])
def test_a_bad_batch_in_one_process_is_one_decision(what: str, processes: Any) -> None:
    found = agreed(processes(2).run(cases.spoiled, what, 1, **sharded.SHARDED))
    skipped = [row["skipped_updates"] for row in eval(found["logs"], {"nan": float("nan")})]
    assert sum(skipped) == (what == "nan")


def test_a_backward_pass_without_memory_starts_again_everywhere(processes: Any) -> None:
    alone = sharded.train("grpo", training_steps=1)
    options = ("out of memory", 1)
    found = agreed(processes(2).run(sharded.failing_backward, *options, training_steps=1))
    assert found["attacks"] == alone["attacks"]
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)


def test_a_process_without_memory_for_one_row_ends_all(processes: Any) -> None:
    message = agreed(processes(2).run(sharded.failing_backward, "never enough memory", 1))
    assert message.startswith("OutOfMemoryError: out of memory in an update, with a batch that")


def test_a_defect_in_a_backward_pass_of_one_process_ends_all(processes: Any) -> None:
    first, second = processes(2).run(sharded.failing_backward, "defect", 1)
    assert first == "ProcessFailedError: process 1 failed: ZeroDivisionError: a defect"
    assert second == "ZeroDivisionError: a defect"


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_the_saved_attacker_has_the_gathered_weights(
    tied: bool, processes: Any, tmp_path: Path
) -> None:
    alone = sharded.saved(str(tmp_path / "alone"), tied=tied)
    options = {"tied": tied, **sharded.SHARDED}
    first, second = processes(2).run(sharded.saved, str(tmp_path / "two"), **options)
    assert first["difference"] == 0
    assert first["tied"] == tied
    assert {**first, "config": json.loads(first["config"])} == {
        **alone,
        "config": json.loads(alone["config"]),
    }
    assert second == {}


def test_a_state_is_that_of_one_process_and_resumes_on_any_number(
    processes: Any, tmp_path: Path
) -> None:
    def run(size: int, name: str, until: int) -> Any:
        options = {"until": until, **sharded.SHARDED}
        if size == 1:
            return sharded.interrupted(str(tmp_path / name), **options)
        return agreed(processes(size).run(sharded.interrupted, str(tmp_path / name), **options))

    whole = run(2, "whole", 4)
    assert (run(2, "two", 2)["step"], run(1, "one", 2)["step"]) == (2, 2)
    keys = [sharded.state_keys(str(tmp_path / name)) for name in ("two", "one")]
    assert keys[0] == keys[1]
    for name in ("to one", "to four"):
        shutil.copytree(tmp_path / "two", tmp_path / name)
    assert run(2, "two", 4) == whole  # to the last bit
    for size, name in ((1, "to one"), (4, "to four"), (2, "one")):
        found = run(size, name, 4)
        assert (found["step"], found["attacks"]) == (4, whole["attacks"])
        assert largest_difference(found["numbers"], whole["numbers"]) < 1e-2


def test_a_second_call_of_train_goes_on_with_the_shards(processes: Any) -> None:
    once, twice = agreed(processes(2).run(sharded.trained_again))
    assert once == twice


def test_a_state_that_every_process_asks_for_in_a_callback_is_refused(processes: Any) -> None:
    found = processes(2).run(sharded.asked_by_all)
    assert all("the training state is gathered in process 0" in each for each in found)


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed by a callback"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_memory_for_a_state_ends_all(rank: int, swallowed: bool) -> None:
    group = Group(2)
    try:
        found = group.run(sharded.failing_gathering, rank, swallowed=swallowed)
    finally:
        group.close()
    assert all(each.startswith("ProcessLostError: ") for each in found), found


def test_a_parameter_without_dimensions_is_refused(processes: Any) -> None:
    assert "a trained parameter is a single number" in agreed(processes(2).run(sharded.scalar))


def test_a_gradient_that_is_computed_in_several_parts_is_refused(processes: Any) -> None:
    """The later parts would be lost, or added to the gradient of the next pass."""
    found = agreed(processes(2).run(sharded.computed_twice))
    assert "of shape (2, 2) was computed more than once in a backward pass" in found


def test_a_fixed_order_of_additions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="sharding: fsdp and reduction: exact given"):
        TrainingConfiguration(sharding="fsdp", reduction="exact")
    with pytest.raises(ConfigurationError, match="sharding='ddp'; choose from"):
        TrainingConfiguration(sharding="ddp")  # type: ignore[arg-type]


def test_one_process_has_nothing_to_shard() -> None:
    assert cases.train("grpo", **sharded.SHARDED) == cases.train("grpo")
