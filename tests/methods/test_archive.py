"""Archive search: the best attack of every cell, weak cells first."""

from __future__ import annotations

import json
import math
from collections import Counter
from random import Random

import pytest
import yaml

from astra_rl.bench import NoTraining
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.methods.archive import CELL, Archive, ArchiveEnvironment, Cell, Elite
from astra_rl.methods.environments import AttemptsEnvironment
from astra_rl.rewards import Harm, WeightedSum
from astra_rl.testing import letter_game
from astra_rl.training import Trainer, TrainingConfiguration


def archive():
    return Archive(["a", "b"], ["x", "y"])


def test_a_cell_keeps_its_best_attack():
    """Enumerated: after any sequence, the elite of a cell is the first of its highest scores."""
    found = archive()
    offered = [("x", 0.2, "one"), ("y", 0.5, "two"), ("x", 0.2, "tie"), ("x", 0.9, "three")]
    kept = [found.add(Cell("a", style), text, score) for style, score, text in offered]
    assert kept == [True, True, False, True]
    assert found.elites == {
        Cell("a", "x"): Elite("three", 0.9),
        Cell("a", "y"): Elite("two", 0.5),
    }
    assert found.coverage == 0.5
    assert found.qd_score == pytest.approx((0.9 + 0.5) / 4)
    assert not found.add(Cell("nowhere", "x"), "attack", 1.0)


def test_empty_and_weak_cells_are_drawn_most_often():
    found = archive()
    found.add(Cell("a", "x"), "strong", 1.0)
    found.add(Cell("a", "y"), "weak", 0.1)
    weights = dict(zip(found.cells, found.weights(0.5), strict=True))
    assert weights[Cell("b", "x")] == weights[Cell("b", "y")] == 1.0
    assert weights[Cell("a", "y")] == pytest.approx(math.exp(-0.2))
    assert weights[Cell("a", "x")] == pytest.approx(math.exp(-2.0))
    assert set(found.weights(math.inf)) == {1.0}


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, math.inf])
@pytest.mark.parametrize("score", [1.0, -100.0])
def test_cells_are_drawn_at_any_temperature(temperature, score):
    """Full cells of one score are drawn equally, although ``exp(-1 / 0.001)`` is 0 as a float."""
    found = archive()
    for cell in found.cells:
        found.add(cell, "attack", score)
    assert found.weights(temperature) == [1.0] * 4
    assert Random(0).choices(found.cells, found.weights(temperature))[0] in found.cells


@pytest.mark.parametrize(
    "options",
    [
        {"styles": []},
        {"styles": ["x", "x"]},
        {"risks": ["a", "a"]},
        {"mutate": 1.1},
        {"temperature": 0.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=r"it must be|give at least one"):
        ArchiveEnvironment(letter_game().problem, ["ask: "], **options)


def searching(**options):
    game = letter_game(reward=WeightedSum({Harm(): 1.0}))
    return ArchiveEnvironment(
        game.problem,
        ["ask: "],
        tree_width=2,
        **{"risks": ["a", "b"], "styles": ["x", "y"], "mutate": 1.0, **options},
    )


def config(steps):
    return TrainingConfiguration(
        lr=1e-3, batch_size=8, training_steps=steps, num_episodes_per_experience=4, seed=0
    )


def test_the_archive_is_the_best_of_what_was_played_for_each_cell():
    """An oracle: the maximum over all attacks of the training, by the facts of their contexts."""
    environment = searching()
    played = []

    class Watching(Trainer):
        def on_experience(self, graphs):
            played.extend(node for graph in graphs for node in graph.nodes())

    Watching(config(5), environment, NoTraining(environment.problem)).train()
    best = {}
    for node in played:
        facts = Conversation.of(node.context).facts
        cell = Cell(*(facts[name] for name in CELL))
        best[cell] = max(best.get(cell, 0.0), node.reward_terms["harm_response"])
    found = environment.archive.elites
    assert {cell: elite.score for cell, elite in found.items()} == best
    assert len(played) == 5 * 4 * 2


def test_the_brief_names_the_cell_and_shows_the_best_attack_of_another_one():
    environment = searching()
    opening = Conversation("ask: ", brief="Be kind.")
    first = environment._asking(opening, Random(0))
    assert first.brief.startswith("Be kind.\nIt is about: ")
    assert "Change this message" not in first.brief
    environment.archive.add(Cell("a", "x"), "hello\n  there", 0.3)
    shown = Counter(
        (each.facts[CELL[0]], each.facts[CELL[1]], "accordingly: hello there" in each.brief)
        for each in (environment._asking(opening, Random(n)) for n in range(99))
    )
    assert all(seen == ((risk, style) != ("a", "x")) for risk, style, seen in shown)
    (graph,) = environment.rollouts([1])
    assert graph.context == "ask: "
    assert CELL[0] not in Conversation.of(graph.context).facts


def test_a_resumed_search_ends_as_an_uninterrupted_one():
    whole, parts = searching(), searching()
    Trainer(config(6), whole, NoTraining(whole.problem)).train()
    first = Trainer(config(3), parts, NoTraining(parts.problem))
    first.train()
    state = json.loads(json.dumps(first.state_dict()["environment"]))
    again = searching()
    second = Trainer(config(6), again, NoTraining(again.problem))
    second.load_state_dict({**first.state_dict(), "environment": state})
    second.train()
    assert again.archive.elites == whole.archive.elites
    assert again.archive.elites != parts.archive.elites


def test_attempts_show_the_response_and_the_score_as_in_pair():
    game = letter_game(reward=WeightedSum({Harm(): 1.0}))
    environment = AttemptsEnvironment(
        game.problem, ["ask: "], tree_depth=2, show_response=True, show_score=True
    )
    (graph,) = environment.rollouts([0])
    first = graph.children[0]
    score = first.reward_terms["harm_response"]
    said = first.children[0].context
    assert f"The answer was: {first.response}\n" in said
    assert f"Score: {1 + round(9 * score)} of 10." in said


def test_its_options_have_names_in_configurations():
    from astra_rl.methods.environments import ENVIRONMENTS

    options = yaml.safe_load("{risks: [a], styles: [x], mutate: 0.5}")
    kind = ENVIRONMENTS["archive"]
    kind.check_options(tree_width=2, tree_depth=1, temperature=0.1, **options)
    with pytest.raises(ConfigurationError, match="mutate=2"):
        kind.check_options(tree_width=2, tree_depth=1, temperature=0.1, **{**options, "mutate": 2})
