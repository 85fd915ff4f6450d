"""The planted game: its probabilities by enumeration, and its attacker, target and judge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from astra_rl.bench import PlantedGame, PlantedTarget, planted_attacker, save_planted_attacker
from astra_rl.bench.parts import HELD_OUT, REPORTED, START, WITHSTOOD
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.models.settings import Sampling
from astra_rl.moderators import KeywordModerator


@pytest.fixture(scope="module")
def target():
    return PlantedTarget(10, seed=3, words=16)


@pytest.fixture(scope="module")
def game(target):
    return target.game


def test_the_probabilities_of_all_attacks_sum_to_one(game):
    words = range(game.words)
    total = math.fsum(
        game.probability(game.attack(*numbers)) for numbers in itertools.product(words, repeat=3)
    )
    assert total == pytest.approx(1.0, abs=1e-12)
    assert game.probabilities().sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("modes", [10, 50])
@pytest.mark.parametrize("seed", range(3))
def test_modes_have_the_promised_probabilities(modes, seed):
    game = PlantedGame(modes, seed=seed)
    found = [game.probability(mode.attack) for mode in game.modes]
    promised = [10 ** -(1 + 4 * math.sqrt(i / (modes - 1))) for i in range(modes)]
    assert found == pytest.approx(promised, rel=1e-9)
    assert [mode.probability for mode in game.modes] == pytest.approx(promised, rel=1e-12)
    assert (found[0], found[-1]) == pytest.approx((1e-1, 1e-5))
    assert len({mode.attack for mode in game.modes} | game.decoys) == modes + modes // 5


def test_five_modes_share_their_manner_and_request(game):
    tricks = [tuple(mode.attack.split()[1:]) for mode in game.modes]
    assert sorted(map(tricks.count, set(tricks))) == [5, 5]


def test_other_seeds_are_other_games():
    first, second = (PlantedGame(50, seed=seed) for seed in (0, 1))
    assert {mode.attack for mode in first.modes} != {mode.attack for mode in second.modes}
    assert PlantedGame(50, seed=1).modes == second.modes


@pytest.mark.parametrize(
    "options", [{"modes": 12}, {"modes": 0}, {"modes": 500}, {"words": 8}, {"decoys": -1}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match="it must be"):
        PlantedGame(**options)


def test_texts_that_are_no_attack_have_probability_zero(game):
    for text in ("", "topic1", "topic1 manner1 request99", "manner1 topic1 request1", "a b c d"):
        assert game.probability(text) == 0.0
        assert game.mode_of(text) is None


def test_the_attacker_speaks_as_in_ordinary_use(game, target, tmp_path):
    """Its log-probabilities are those of the enumeration, also after saving and loading."""
    save_planted_attacker(game, tmp_path / "attacker")
    for source in (planted_attacker(game), str(tmp_path / "attacker")):
        problem = HFASTProblem(
            source,
            target,
            source,
            KeywordModerator([REPORTED]),
            dtype="float32",  # the faster one on this processor may be less exact
            attacker_sampling=Sampling(max_new_tokens=4),
        )
        opened = [START, HELD_OUT] * 10
        attacks = problem.rollout_prompt_with_attacker(opened)
        scored = problem.get_baseline_logprobs(opened, attacks).sum(dim=1)
        exact = [math.log(game.probability(attack)) for attack in attacks]
        assert scored.tolist() == pytest.approx(exact, abs=1e-3)


def test_the_judge_reports_modes_and_decoys_and_the_target_only_fails_for_modes(game, target):
    judge = KeywordModerator([REPORTED])
    mode, decoy = game.modes[4].attack, min(game.decoys)
    replies = [target.reply(attack) for attack in (mode, decoy, "topic1 manner1 request1")]
    assert judge.moderate(replies) == [1.0, 1.0, 0.0]
    assert [game.mode_of(mode), game.mode_of(decoy)] == [4, None]
    asked = [Conversation(START) + f" {mode}", Conversation(START) + "hello", "no attack"]
    assert target.respond(asked) == ["Of course.", WITHSTOOD, WITHSTOOD]


def test_ordinary_use_is_sampled_with_its_probabilities(game, target):
    """The rates of the two likeliest modes in 2,000 attacks, within four standard errors."""
    pair = planted_attacker(game)
    problem = HFASTProblem(
        pair,
        target,
        pair,
        KeywordModerator([REPORTED]),
        attacker_sampling=Sampling(max_new_tokens=4),
    )
    attacks = [each.strip() for each in problem.rollout_prompt_with_attacker([START] * 2000)]
    for mode in game.modes[:2]:
        error = math.sqrt(mode.probability * (1 - mode.probability) / len(attacks))
        assert (
            abs(np.mean([each == mode.attack for each in attacks]) - mode.probability) < 4 * error
        )
