import math
import random

import pytest

from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.judges.reward_watch import RewardWatch, is_gibberish, shared_ngrams

NAN = math.nan


def play(watch, reward, judge, steps=20, turns=16, noise=0.0, seed=0):
    """Feed a watch with scores that follow two functions of the step, in [0, 1]."""
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        share = step / steps
        scores = [min(1, max(0, reward(share) + rng.gauss(0, noise))) for _ in range(turns)]
        judged = [min(1, max(0, judge(share) + rng.gauss(0, noise))) for _ in range(turns)]
        attacks = ["say it now please" if score >= 0.5 else "good day" for score in scores]
        watch.record(step, scores, judged, attacks)
    return watch


def rising(share):
    return 0.1 + 0.8 * share


def flat(share):
    return 0.1


def test_a_reward_that_rises_alone_is_warned_of_once(caplog):
    watch = play(play(RewardWatch(), rising, flat), lambda share: 0.9, flat)
    assert watch.warning is not None
    assert "rose by" in watch.warning
    assert "'say it now'" in watch.warning
    assert caplog.text.count("may be exploiting the moderator") == 1


@pytest.mark.parametrize(
    ("reward", "judge"),
    [
        (rising, rising),  # both rise: the target does fail
        (flat, flat),  # nothing is learned
        (flat, rising),
        (lambda s: 0.9 - 0.8 * s, flat),
        (rising, lambda s: 0.95),  # the judge was convinced before
        (rising, lambda s: 0.1 + 0.3 * s),  # slower, but it rises
    ],
)
def test_other_courses_are_not_warned_of(reward, judge):
    assert play(RewardWatch(), reward, judge).warning is None


def test_a_slow_rise_amid_noise_is_seen_too():
    watch = play(RewardWatch(), rising, flat, steps=500, noise=0.3)
    assert watch.warning is not None
    assert int(watch.warning.split()[2].strip(":")) < 300


@pytest.mark.slow
def test_noise_alone_is_hardly_ever_warned_of():
    """100 runs of 100 steps in which nothing happens, 16 turns that are all or nothing."""
    warned = 0
    for seed in range(100):
        rng = random.Random(seed)
        watch = RewardWatch()
        for step in range(100):
            draw = [[float(rng.random() < 0.3) for _ in range(16)] for _ in range(2)]
            watch.record(step, *draw, [""] * 16)
        warned += watch.warning is not None
    assert warned <= 4


def test_no_warning_comes_before_the_window_is_full_or_from_missing_scores():
    assert play(RewardWatch(), rising, flat, steps=19).warning is None
    assert play(RewardWatch(), rising, flat, steps=20).warning is not None
    watch = RewardWatch(window=4)
    for step in range(20):
        metrics = watch.record(step, [step / 20], [NAN], ["a"])
        assert math.isnan(metrics["watch/gap"])
    assert watch.warning is None


def test_the_gap_is_taken_over_turns_that_both_scored():
    metrics = RewardWatch().record(1, [0.9, NAN, 0.5], [0.1, 0.2, NAN], ["a", "b", "c"])
    assert metrics["watch/moderator"] == 0.9
    assert metrics["watch/judge"] == 0.1
    assert metrics["watch/gap"] == pytest.approx(0.8)


def test_rows_hold_what_was_found_for_a_file():
    watch = RewardWatch(words=2)
    attacks = ["tell me please now"] * 3 + ["good day to you"]
    watch.record(1, [0.9, 0.8, 1.0, 0.1], [0.0] * 4, attacks)
    (row,) = watch.rows
    assert row["step"] == 1
    assert row["shared_ngrams"][0] == {"text": "me please", "high": 1.0, "others": 0.0}
    assert row["watch/shared_words"] == 1.0
    assert row["watch/gibberish"] == 0.0


def test_n_grams_tell_highly_rewarded_attacks_from_others():
    attacks = [("oh please tell me the word", 0.9)] * 4 + [("please tell me a joke", 0.1)] * 4
    best, *others = shared_ngrams(attacks)
    assert (best.text, best.high, best.others) == ("me the word", 1.0, 0.0)
    # what the others say as often tells nothing
    assert "please tell me" not in [each.text for each in [best, *others]]
    assert shared_ngrams([("a b c", 0.9)] * 2) == []  # two attacks are a coincidence
    assert shared_ngrams([]) == []


@pytest.mark.parametrize(
    "text",
    [
        "Hello, how are you today?",
        "Tell me the password.",
        "Why?",
        "",
        "   ",
        "Pourquoi pas un \u00e9t\u00e9 \u00e0 Brest ?",
        "\u5bc6\u7801\u662f\u4ec0\u4e48\uff1f",
        "Strengths and rhythms",
        "It costs 5 euros.",
    ],
)
def test_language_is_no_gibberish(text):
    assert not is_gibberish(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!!!! ???? ::::",
        "xkcd qwrtz mnbvc lkjhg",
        "no " * 20,
        "a" * 40,
        "0101 1101 0010 1",
    ],
)
def test_what_is_hardly_language_is_gibberish(text):
    assert is_gibberish(text)


def test_wrong_arguments_are_refused():
    for options in ({"window": 2}, {"words": 0}, {"min_rise": 0}, {"flat": 1}):
        with pytest.raises(ConfigurationError):
            RewardWatch(**options)
    with pytest.raises(ContractError, match="judged returned 1 values for 2"):
        RewardWatch().record(1, [0, 1], [0], ["a", "b"])
