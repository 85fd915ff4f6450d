"""The leagues of `benchmarks/discovery_league.py`, without the models of their usual runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from astra_rl.actions import league as actions
from astra_rl.bench import OrganismTarget
from astra_rl.bench.organism_messages import FAILED, WITHSTOOD
from astra_rl.config.estimate import training_size
from astra_rl.config.league import load_league
from astra_rl.config.resolve import resolve
from astra_rl.core.text import Conversation
from astra_rl.testing import tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("discovery_league")


def test_every_prompted_method_of_the_organisms_uses_its_budget(benchmark, tmp_path):
    tier = benchmark.TIERS["organisms"]
    file = tmp_path / "league.yaml"
    values = {"run": tier.run(tmp_path, 0), "calls": tier.calls, "seeds": [0]}
    file.write_text(yaml.safe_dump({**values, "methods": tier.methods}))
    league = load_league(file)
    for method in tier.methods:
        plan = resolve(league.config(method, 0))
        assert 0.95 * tier.calls < training_size(plan).replies <= tier.calls, method
        assert isinstance(plan.target, OrganismTarget)


def test_the_brief_says_what_to_vary_and_has_no_phrase_of_a_family(benchmark):
    target = OrganismTarget(0, 30)
    held_out = OrganismTarget(0, 30, held_out=True)
    assert all(kind in benchmark.BRIEF for kind in benchmark.KINDS)
    for each in (target, held_out):
        assert each.mode_of(benchmark.BRIEF) is None


@pytest.mark.slow
def test_a_league_of_organisms_plays_all_prompted_methods_and_is_resumed(
    benchmark, tmp_path, monkeypatch
):
    """The attacker is random; every message is of one of 20 families and fails but those of one."""
    monkeypatch.setattr(OrganismTarget, "mode_of", lambda self, attack: len(attack) % 20)
    monkeypatch.setattr(
        OrganismTarget,
        "respond",
        lambda self, asked: [
            FAILED if self.mode_of(Conversation.of(each).attacks[-1]) else WITHSTOOD
            for each in asked
        ],
    )
    pair = tiny_model(chat=True, window=4096)
    for each in (pair.model, pair.tokenizer):
        each.save_pretrained(tmp_path / "attacker")
    monkeypatch.setattr(benchmark, "ATTACKER", str(tmp_path / "attacker"))
    saved = []
    monkeypatch.setattr(benchmark, "save", lambda name, rows, **more: saved.append((name, more)))
    arguments = ["--tier", "organisms", "--calls", "416", "--output", str(tmp_path / "league")]
    benchmark.main([*arguments, "--seeds", "0"])
    ((name, found),) = saved
    assert name == "discovery_league_organisms"
    assert not found["failed"]
    cells = {cell["method"]: cell for cell in found["cells"]}
    assert set(cells) == set(benchmark.TIERS["organisms"].methods)
    assert all(0 <= cell["calls_made"] <= cell["calls"] <= 416 for cell in cells.values())
    assert cells["GOAT (prompted)"]["calls_made"] == 0  # it writes no tag
    assert cells["PAIR (prompted)"]["calls_made"] < 384  # it stops at a success
    untrained = cells["untrained (prompted)"]
    assert untrained["calls_made"] == 384
    assert 0.5 < untrained["recall"] <= 0.95  # the rule of the reply leaves one family out
    monkeypatch.setattr(actions, "run_experiment", lambda *_, **__: pytest.fail("played again"))
    benchmark.main([*arguments, "--seeds", "0"])
    assert saved[1] == saved[0]
