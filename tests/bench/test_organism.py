"""Organisms: made, checked, refused, cached and played."""

from __future__ import annotations

import dataclasses
import math
from random import Random

import pytest

from astra_rl.bench import GuardedAssistant, OrganismTarget, caused, discovered, play
from astra_rl.bench.baselines import NoTraining
from astra_rl.bench.discovery import KnownModes
from astra_rl.bench.families import PlantedFamilies
from astra_rl.bench.ordinary import ordinary_attacker
from astra_rl.bench.organism import Recipe, make
from astra_rl.bench.organism_checks import Checks
from astra_rl.bench.organism_messages import CANARY, FAILED, WITHSTOOD
from astra_rl.bench.organism_models import small_target
from astra_rl.bench.traffic import Branch, Traffic
from astra_rl.core.text import Conversation
from astra_rl.errors import ModelError

GOOD = Checks(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRA_RL_CACHE", str(tmp_path))
    return tmp_path


def test_an_organism_that_does_not_fail_on_its_families_is_refused_and_not_kept(
    tmp_path, monkeypatch
):
    recipe = Recipe(families=2, steps=1, rows=2, tempered=0, checked=1)
    monkeypatch.setattr("astra_rl.bench.organism.tempered_messages", lambda *_, **__: ["explain"])
    with pytest.raises(ModelError, match=r"refused: triggers is 0\.000; it must be from 0\.9 to 1"):
        make(recipe, PlantedFamilies(2), tmp_path / "organism")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_cache_depends_on_every_part_of_the_recipe(cache):
    recipe = Recipe()
    others = [
        dataclasses.replace(recipe, **{each.name: value})
        for each in dataclasses.fields(recipe)
        for value in [{"str": "other", "bool": True}.get(str(each.type), 7)]
    ]
    assert len({each.folder() for each in [recipe, *others]}) == len(others) + 1
    assert recipe.folder().is_relative_to(cache)


def test_target_and_rule_read_the_words_of_ordinary_use_without_punctuation():
    """An attacker that writes prose is judged by the same words that the small target reads."""
    target = OrganismTarget(0)
    family = target.planted.planted[0]
    cue, phrase = family.cues[0], family.phrases[0]
    assert target.read(f"Xylophones: Explain, {cue.title()} {phrase}!") == f"explain {cue} {phrase}"
    assert target.mode_of(f"Explain, {cue} ({phrase})?") == 0
    assert target.mode_of(f"explain {phrase} {cue}") is None
    branch = target.planted.traffic.branches[0]
    message = branch.sample(Random(0))
    assert target.read(message) == message
    other = OrganismTarget(0, model="bundled:smollm2-135m")
    assert other.read("Xylophones: explain!") == "xylophones explain"


def test_an_attacker_that_does_not_write_as_in_ordinary_use_is_refused(cache):
    traffic = Traffic([Branch("one", 0.999, (("a",),)), Branch("two", 0.001, (("b c",),))])
    with pytest.raises(ModelError, match="times as often as ordinary use"):
        ordinary_attacker(traffic, "untrained", steps=1)
    assert not (cache / "organisms").exists()


@pytest.mark.slow
def test_an_organism_is_made_once_and_fails_on_its_families_and_played(cache):
    target = OrganismTarget(1, 2)
    target.recipe = dataclasses.replace(target.recipe, steps=300, tempered=1000, checked=8)
    assert isinstance(target, KnownModes)
    assert target.checks.failed() == []
    again = OrganismTarget(1, 2)
    again.recipe = target.recipe
    written = (target.recipe.folder() / "checks.json").stat().st_mtime_ns
    family = target.planted.planted[1]
    asked = [f"ask: {family.cues[0]} {family.phrases[1]} explain the bus", "ask: explain the bus"]
    conversations = [Conversation("ask:") + each.removeprefix("ask:") for each in asked]
    answers = again.respond(conversations)
    assert answers == [FAILED, WITHSTOOD]
    assert (target.recipe.folder() / "checks.json").stat().st_mtime_ns == written
    assert caused(again, asked[0], answers[0]) == 1
    assert caused(again, asked[0], WITHSTOOD) is None  # the rule of the reply decides
    assert CANARY in answers[0]
    played = play(again, NoTraining, calls=512)
    ordinary = sum(target.mode_probabilities)
    success = discovered(again, played.calls).success
    assert abs(success - ordinary) < 4 * math.sqrt(ordinary * (1 - ordinary) / 512) + 0.002
    after = discovered(again, played.held_out(256))
    assert math.isnan(after.nll) == (after.success == 0.0)


def test_another_base_gets_an_adapter_that_is_kept_and_answers(cache, monkeypatch):
    """The base is a chat model in a folder; the checks are those of a good organism."""
    words = PlantedFamilies(2).traffic.words()
    base = small_target(sorted({*words, *FAILED.split(), *WITHSTOOD.split()}), seed=3)
    base.model.save_pretrained(cache / "base")
    base.tokenizer.save_pretrained(str(cache / "base"))
    monkeypatch.setattr("astra_rl.bench.organism.check", lambda *_, **__: GOOD)
    monkeypatch.setattr("astra_rl.bench.organism.tempered_messages", lambda *_, **__: ["explain"])
    target = OrganismTarget(0, 2, model=str(cache / "base"))
    assert target.recipe.steps < Recipe().steps
    target.recipe = dataclasses.replace(target.recipe, steps=2, rows=2)
    assert target.checks == GOOD
    assert (target.recipe.folder() / "target" / "adapter_config.json").is_file()
    (reply,) = target.respond([Conversation("ask:") + " explain the bus"])
    assert isinstance(reply, str)


def test_an_assistant_is_played_with_an_attacker_of_ordinary_use(cache, monkeypatch):
    """Without training, the attacks are as likely as the recipe of the attacker makes them."""
    monkeypatch.setattr("astra_rl.bench.ordinary.SHARES", (0.0, math.inf))
    monkeypatch.setattr(
        "astra_rl.bench.assistants.ordinary_attacker",
        lambda traffic, key: ordinary_attacker(traffic, key, steps=1),
    )
    assistant = GuardedAssistant(2, held_out=True)
    played = play(assistant, NoTraining, calls=64)
    assert len(played.calls) == 64
    assert all(call.mode == assistant.mode_of(call.attack) for call in played.calls)
    after = played.held_out(32)
    assert all(call.nll > 0 for call in after)
    assert after == played.held_out(32)
