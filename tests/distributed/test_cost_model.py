"""The cost model of docs/scaling.md, against a simulation of single events."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale_simulation.py"


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("scale_simulation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize("staleness", range(5))
def test_the_formulas_are_within_a_tenth_of_the_simulation(staleness, engines, model):
    work, machine = model.Work(rows=48), model.Machine()
    seen = model.simulate(work, machine, staleness=staleness, engines=engines, steps=16)
    predicted = model.predicted_period(work, machine, staleness, engines)
    assert seen.period == pytest.approx(predicted, rel=0.1)
    assert seen.oldest <= staleness
    assert seen.versions <= staleness + 2  # as many as an EngineSampler keeps


def test_without_staleness_a_step_is_rollout_and_update_one_after_the_other(model):
    work, machine = model.Work(rows=16, stop=0), model.Machine()
    seen = model.simulate(work, machine, staleness=0, engines=4, steps=8)
    both = model.predicted_rollout(work, machine) + model.predicted_update(work, machine)
    assert seen.period == pytest.approx(both, rel=1e-2)
    assert seen.oldest == 0


def test_the_staleness_that_is_needed_keeps_the_trainer_busy_and_none_does_not(model):
    work, machine = model.Work(rows=48), replace(model.Machine(), prefill_share=0.9)
    needed = model.staleness_needed(work, machine)
    assert needed >= 2
    busy = {
        each: model.simulate(work, machine, staleness=each, engines=8, steps=40).busy
        for each in (0, needed)
    }
    assert busy[0] < 0.6
    assert busy[needed] > 0.9


def test_a_formula_by_hand(model):
    work = model.Work(parameters=1e9, kv=1e5, rows=10, prompt=100, attack=2, response=0, stop=0)
    machine = model.Machine(
        flops=1e12, bandwidth=1e10, prefill_share=0.5, decode_share=0.5, launch=0.01, network=84e6
    )
    # Memory: (2e9 + 10 x 101 x 1e5) / 1e10 = 0.21 s; arithmetic: 2e9 x 10 / 5e11 = 0.04 s.
    assert model.decode_seconds(work, machine, 10, 101) == pytest.approx(0.2201)
    # 1 s to send; 1000 tokens of prompts, then 1020: 4 s and 4.08 s; two steps.
    work = replace(work, response=1)
    rollout = 1 + 4 + 2 * 0.2201 + 4.08 + model.decode_seconds(work, machine, 10, 102.5)
    assert model.predicted_rollout(work, machine) == pytest.approx(rollout)
    assert model.predicted_update(work, machine) == pytest.approx((2 + 4) * 1e9 * 1020 / 5e11)
    assert model.staleness_needed(work, machine) == math.ceil(rollout / 12.24)
