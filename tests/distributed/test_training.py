"""A training on several processes equals that in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.distributed import cases
from tests.distributed.group import agreed

pytestmark = pytest.mark.slow


def test_two_processes_train_like_one_to_the_last_bit(processes: Any) -> None:
    alone = cases.train("grpo", lora=True)
    assert agreed(processes(2).run(cases.train, "grpo", lora=True)) == alone


FAMILIES = ("grpo", "ppo", "dpo", "trajectory_balance")
OTHERS = sorted(set(cases.NAMES) - set(FAMILIES))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 3) for name in FAMILIES),
        *(pytest.param(name, 3, marks=pytest.mark.exhaustive) for name in OTHERS),
        *(
            pytest.param(name, size, marks=pytest.mark.exhaustive)
            for name in sorted(cases.NAMES)
            for size in (2, 4)
        ),
    ],
)
def test_every_algorithm_gets_the_same_weights(name: str, size: int, processes: Any) -> None:
    alone = cases.train(name)
    assert agreed(processes(size).run(cases.train, name)) == alone


SHAPES: dict[str, dict[str, Any]] = {
    # Five episodes in shards of two and three, batches of seven, groups of one batch and more.
    "uneven": {"shards": 2, "batch_size": 7, "depth": 2},
    "accumulated": {"shards": 3, "batch_size": 4, "gradient_accumulation_steps": 3},
    # All processes but one have no episodes, no rows and no gradients.
    "idle process": {"shards": 2, "num_episodes_per_experience": 1, "seed": 1},
    "more shards than episodes": {"shards": 8, "num_episodes_per_experience": 2, "batch_size": 2},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_the_shape_of_a_step_does_not_matter(options: dict[str, Any], processes: Any) -> None:
    alone = cases.train("grpo", **options)
    assert agreed(processes(3).run(cases.train, "grpo", **options)) == alone


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        *(("grpo", 4, shape) for shape in SHAPES),
        *(("ppo", 2, shape) for shape in ("uneven", "idle process")),
        *(
            pytest.param(name, size, shape, marks=pytest.mark.exhaustive)
            for name in sorted(cases.NAMES)
            for shape in SHAPES
            for size in (2, 4)
        ),
    ],
)
def test_gradients_of_the_fast_reduction_agree_to_rounding(
    name: str, size: int, shape: str, processes: Any
) -> None:
    options = SHAPES[shape]
    undivided = cases.first_gradient(name, **{**options, "shards": None})
    fast = agreed(processes(size).run(cases.first_gradient, name, reduction="fast", **options))
    assert cases.gradient_difference(fast, undivided) < 1e-5


def test_replicas_of_half_precision_weights_stay_equal(processes: Any) -> None:
    options = {"training_steps": 10, "num_episodes_per_experience": 2}
    alone = cases.half_precision(**options)
    assert agreed(processes(3).run(cases.half_precision, **options)) == alone


@pytest.mark.parametrize("what", ["nan", "out of memory"])
def test_a_bad_batch_in_one_process_is_one_decision(what: str, processes: Any) -> None:
    found = agreed(processes(3).run(cases.spoiled, what, 1))
    skipped = [row["skipped_updates"] for row in eval(found["logs"], {"nan": float("nan")})]
    assert sum(skipped) == (what == "nan")


def test_processes_that_differ_are_told_apart(processes: Any) -> None:
    message = agreed(processes(3).run(cases.diverging))
    assert "after training step 2 process 1 differs from process 0 in the weights" in message


def test_all_processes_start_from_the_weights_of_the_first(processes: Any) -> None:
    agreed(processes(3).run(cases.random_start))


def test_a_library_user_gets_the_checkpoints_of_one_process(processes: Any, tmp_path: Path) -> None:
    alone = cases.saved(str(tmp_path / "alone"))
    first, second = processes(2).run(cases.saved, str(tmp_path / "two"))
    assert first == alone
    assert first["difference"] == 0
    assert second == {"weights": alone["weights"]}


def test_a_target_of_the_users_own_is_called_by_the_first_process(processes: Any) -> None:
    _, alone = cases.own_target()
    first, *others = processes(2).run(cases.own_target)
    assert first[0] == 4  # two levels of two steps, for both processes together
    assert [calls for calls, _ in others] == [0]
    assert first[1] == others[0][1] == alone
