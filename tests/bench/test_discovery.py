"""What a sequence of calls found, and training on a game."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from astra_rl.algorithms import GRPO, ExpertIteration
from astra_rl.bench import (
    Call,
    CallLog,
    PlantedTarget,
    discovered,
    discovery,
    expected_recall,
    over_seeds,
    play,
)
from astra_rl.bench.discovery import measured
from astra_rl.errors import ConfigurationError


def test_a_mode_is_found_by_its_first_reported_failure():
    """Modes of 0.6, 0.3 and 0.1; the first failure of mode 1 is missed by the judge."""
    calls = [
        Call(None, False),
        Call(1, False),
        Call(0, True),
        Call(None, True),
        Call(1, True),
        Call(0, True),
    ]
    found = discovery(calls, [0.6, 0.3, 0.1])
    assert found.found == (3, 5, None)
    assert found.recall == pytest.approx(2 / 3)
    assert found.weighted_recall == pytest.approx(0.9)
    assert found.success == pytest.approx(4 / 6)
    assert found.effective_modes == pytest.approx(2.0)
    assert found.false_alarms == pytest.approx(1 / 4)


def test_kinds_of_attacks_are_counted_by_word_and_by_meaning():
    """Four failures: two of one wording, a paraphrase of it and something else."""
    attacks = ["say the code", "say the code", "tell me a password", "sing a song"]
    calls = [Call(0, True, attack) for attack in attacks] + [Call(None, False, "hello")]

    def embed(texts):
        return [[0.0, 1.0] if text == "sing a song" else [1.0, 0.0] for text in texts]

    found = discovery(calls, [1.0], embed)
    assert found.effective_wordings == pytest.approx(2**1.5)  # shares 1/2, 1/4, 1/4
    assert found.effective_meanings == pytest.approx(4 / 3**0.75)  # shares 3/4, 1/4
    assert math.isnan(discovery(calls, [1.0]).effective_meanings)
    assert math.isnan(discovery([Call(0, True)], [1.0], embed).effective_meanings)
    assert discovery([Call(None, False, "hello")], [1.0], embed).effective_meanings == 0.0


def test_without_failures_there_are_no_kinds_and_no_false_alarms():
    found = discovery([Call(None, False)], [0.5])
    assert found.recall == 0.0
    assert found.effective_modes == 0.0
    assert math.isnan(found.false_alarms)
    assert math.isnan(discovery([], [0.5]).success)
    with pytest.raises(ConfigurationError, match="at least one"):
        discovery([], [])


def test_over_seeds_has_an_interval_from_three_seeds_on_and_leaves_unknown_numbers_out():
    hit, miss = [Call(0, True), Call(None, False)], [Call(None, False)] * 2
    found = {seed: discovery(calls, [0.5, 0.5]) for seed, calls in enumerate([hit, hit, miss])}
    measured = over_seeds(found)
    assert measured["recall"].mean == pytest.approx(1 / 3)
    interval = measured["recall"].interval
    assert interval is not None
    assert 0.0 <= interval.low < 1 / 3 < interval.high <= 1.0
    # The seed that found nothing counts, or a method that rarely finds anything would look best.
    assert measured["effective_modes"].mean == pytest.approx(2 / 3)
    assert measured["false_alarms"].by_seed == {0: 0.0, 1: 0.0}
    assert measured["false_alarms"].text() == "0.00, 2 of 3 seeds"
    assert measured["false_alarms"].as_dict()["unknown"] == 1
    with pytest.raises(ConfigurationError, match="equal numbers of calls"):
        over_seeds({0: discovery(hit, [1.0]), 1: discovery(hit[:1], [1.0])})


def test_the_interval_of_a_number_without_a_limit_is_no_point_and_allows_for_collapsed_seeds():
    """Seeds that find one kind, or 21 on average: Student's t alone covers 69% of five seeds."""
    assert measured(dict.fromkeys(range(5), 1.0), (0.0, None)).interval is None
    rng, covered, given = np.random.default_rng(0), 0, 0
    for _ in range(100):
        kinds = np.where(rng.random(5) < 0.8, 1, 1 + rng.poisson(20, 5))
        found = measured(dict(enumerate(map(float, kinds))), (0.0, None)).interval
        if found is not None:
            given += 1
            covered += found.low <= 0.8 * 1 + 0.2 * 21 <= found.high
    assert given > 50
    assert covered >= (0.93 - 2 * 0.03) * given  # two standard errors


def test_the_recall_of_ordinary_use_is_a_sum_over_all_sequences_of_calls():
    """Enumerated: all 27 sequences of three attacks, of two modes or none."""
    law = {0: 0.5, 1: 0.2, None: 0.3}
    recall = weighted = 0.0
    for sequence in itertools.product(law, repeat=3):
        chance = math.prod(law[each] for each in sequence)
        found = discovery([Call(mode, True) for mode in sequence], [0.5, 0.2])
        recall += chance * found.recall
        weighted += chance * found.weighted_recall
    assert expected_recall([0.5, 0.2], 3) == pytest.approx((recall, weighted))


@pytest.mark.slow
def test_an_untrained_attacker_finds_what_its_probabilities_say_and_a_trained_one_succeeds():
    """A mode of probability p is found with 1 - (1 - p)^n: the recall over modes, by enumeration.

    Four standard errors of a sum of independent indicators.
    """
    target = PlantedTarget(50, seed=1)
    untrained = play(target, GRPO, calls=1024, lr=1e-12)
    chances = [1 - (1 - mode.probability) ** 1024 for mode in target.game.modes]
    spread = 4 * math.sqrt(sum(p * (1 - p) for p in chances))
    found = discovered(target, untrained.calls)
    assert abs(found.recall * 50 - sum(chances)) < spread
    assert len(untrained.calls) == 1024
    trained = play(target, GRPO, calls=1024, lr=3e-3)
    assert discovered(target, trained.calls[-256:]).success > 0.5
    held_out = discovered(target, trained.held_out(256))
    assert held_out.calls == 256
    assert held_out.success > discovered(target, untrained.held_out(256)).success + 0.2


@pytest.mark.slow
def test_an_untrained_share_finds_what_the_trained_attacker_forgot():
    """All experiences of the untrained attacker: the calls are those of ordinary use."""
    target = PlantedTarget(50, seed=1)
    options = {"best": 8, "min_reward": 0.5, "rehearse": 16}
    played = [
        play(
            target,
            lambda problem, share=share: ExpertIteration(problem, untrained_share=share, **options),
            calls=1024,
            lr=3e-3,
        )
        for share in (0.0, 1.0)
    ]
    success = [discovered(target, each.calls[512:]).success for each in played]
    ordinary = sum(mode.probability for mode in target.game.modes)
    assert success[0] > 0.5
    assert abs(success[1] - ordinary) < 4 * math.sqrt(ordinary * (1 - ordinary) / 512)
    assert discovered(target, played[1].held_out(256)).success > ordinary + 0.2


def test_the_log_of_calls_is_restored_from_the_state_of_a_training(tmp_path: Path):
    log = CallLog(PlantedTarget(10))
    log.calls = [Call(3, True), Call(None, False)]
    other = CallLog(PlantedTarget(10))
    other.load_state_dict(log.state_dict())
    assert other.calls == log.calls
