"""The learning-rate schedule of a configuration."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from astra_rl.config.schema import TrainingConfig
from astra_rl.errors import ConfigurationError
from astra_rl.runs.trainer import schedule_of


def test_the_learning_rate_is_constant_unless_asked_otherwise() -> None:
    limits = TrainingConfig(lr=0.1, steps=10)
    assert [schedule_of(limits)(step) for step in (0, 5, 9)] == [0.1, 0.1, 0.1]


def test_the_learning_rate_goes_to_its_final_value_in_a_straight_line() -> None:
    """Five steps from 1.0 to 0.2: four intervals of 0.2 each."""
    limits = TrainingConfig(lr=1.0, final_lr=0.2, steps=5)
    rates = [schedule_of(limits)(step) for step in range(5)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_learning_rate_rises_during_the_warm_up() -> None:
    limits = TrainingConfig(lr=1.0, steps=10, warmup_steps=4)
    rates = [schedule_of(limits)(step) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_one_training_step_has_a_learning_rate() -> None:
    assert schedule_of(TrainingConfig(lr=1.0, final_lr=0.2, steps=1))(0) == 1.0


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedules_of_transformers_have_its_learning_rates(kind: str, warmup: int) -> None:
    if kind == "constant" and warmup:
        with pytest.raises(ConfigurationError, match="constant_with_warmup"):
            TrainingConfig(lr_scheduler_type=kind, warmup_steps=warmup)
        return
    limits = TrainingConfig(lr=0.1, steps=10, lr_scheduler_type=kind, warmup_steps=warmup)
    found = [schedule_of(limits)(step) for step in range(10)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected)


def test_a_schedule_of_transformers_has_no_final_rate_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        TrainingConfig(lr_scheduler_type="cosine", final_lr=1e-6)
