"""The learning-rate schedule of a configuration."""

from __future__ import annotations

import pytest

from astra_rl.config.schema import TrainingConfig
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
