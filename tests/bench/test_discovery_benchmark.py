"""The methods of `benchmarks/discovery.py` that no algorithm of the package has."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

from astra_rl.bench import NoTraining, PlantedTarget, discovered, play
from astra_rl.bench.parts import START

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("discovery")


def test_a_new_attacker_that_imitates_the_causes_of_a_search_succeeds_and_makes_no_calls(benchmark):
    target = PlantedTarget(10)
    target.openings = (START, START)  # little of 40 steps carries over to another opening
    search = play(target, NoTraining, calls=512)
    untrained = discovered(target, search.held_out(256))
    trained = benchmark.imitates_causes(search, search.calls, 0, steps=40)
    assert not trained.calls
    imitated = discovered(target, trained.held_out(256))
    assert imitated.success > untrained.success + 0.2
    assert imitated.effective_modes > untrained.effective_modes


def test_a_search_without_a_success_leaves_its_attacker_as_it_was(benchmark):
    search = play(PlantedTarget(10), NoTraining, calls=64)
    assert benchmark.imitates_causes(search, [], 0) is search


def test_attacks_of_ordinary_use_have_the_likelihood_of_the_game():
    target = PlantedTarget(10)
    modes = {f" {mode.attack}": mode.probability for mode in target.game.modes}
    found = play(target, NoTraining, calls=64).nll(list(modes))
    assert found == pytest.approx({each: -math.log(p) for each, p in modes.items()}, abs=1e-3)
