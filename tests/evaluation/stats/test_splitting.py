import itertools
import math

import numpy as np
import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import (
    RareProbability,
    SplitRun,
    rare_probability,
    split_once,
)

TURNS = 10


def exact(up, goal):
    """Probability that a walk, reflected at 0, reaches `goal` in `TURNS` turns; by enumeration."""
    chances = np.zeros(goal + 1)
    chances[0] = 1
    for _ in range(TURNS):
        following = np.zeros(goal + 1)
        following[goal] = chances[goal]
        for height in range(goal):
            following[height + 1] += up * chances[height]
            following[max(0, height - 1)] += (1 - up) * chances[height]
        chances = following
    return chances[goal]


def walk(up, goal, rng):
    """A conversation in which the target gives in, or recovers, turn by turn."""

    def step(states):
        heights = [
            h + 1 if won else max(0, h - 1)
            for (_, h), won in zip(states, rng.random(len(states)) < up, strict=True)
        ]
        return [
            ((t + 1, h), h / goal, t + 1 >= TURNS)
            for (t, _), h in zip(states, heights, strict=True)
        ]

    return step


def estimated(seed, up, goal, *, size, runs):
    rng = np.random.default_rng(seed)
    step = walk(up, goal, rng)
    return rare_probability(
        [split_once([(0, 0)] * size, step, threshold=1.0, generator=rng) for _ in range(runs)]
    )


@pytest.mark.slow
def test_the_estimate_is_unbiased_and_its_interval_covers():
    truth = exact(0.2, 4)
    found = [estimated(seed, 0.2, 4, size=20, runs=6) for seed in range(60)]
    values = np.array([each.estimate for each in found])
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / np.sqrt(len(values))
    covered = [each.seen.low <= truth <= each.seen.high for each in found]
    assert np.mean(covered) >= 0.93 - 2 * 0.033  # two standard errors of 60 repetitions


def test_one_in_a_million_is_found_with_few_turns():
    """Plain sampling needs 11 million conversations for a relative error of 30%."""
    up = 0.07516714899953648
    assert exact(up, 6) == pytest.approx(1e-6)
    found = estimated(0, up, 6, size=150, runs=8)
    assert found.turns < 50_000
    assert found.seen.low < 1e-6 < found.seen.high
    assert 0.4e-6 < found.estimate < 2.5e-6


def test_failures_are_conversations_that_reached_the_threshold():
    rng = np.random.default_rng(0)
    found = split_once([(0, 0)] * 50, walk(0.3, 4, rng), threshold=1.0, generator=rng)
    assert found.failures
    for path in found.failures:
        assert path.states[0] == (0, 0)
        assert path.states[-1][1] == 4
        heights = [height for _, height in path.states]
        assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(heights))


def test_a_failure_that_cannot_be_reached_has_probability_zero():
    rng = np.random.default_rng(0)
    runs = [
        split_once([(0, 0)] * 10, walk(0.0, 4, rng), threshold=1.0, generator=rng) for _ in range(3)
    ]
    found = rare_probability(runs)
    assert found.estimate == 0
    assert found.interval.high == found.plain.interval.high == Rate(0, 30).interval.high
    assert "no run reached a failure" in found.text


def test_a_failure_at_once_needs_no_stages():
    found = split_once(
        ["a"] * 10,
        lambda states: [(state, 1.0, True) for state in states],
        threshold=0.5,
        generator=np.random.default_rng(0),
    )
    assert (found.estimate, found.stages, found.turns) == (1.0, 0, 10)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="at least two"):
        split_once([1], lambda states: [], threshold=1, generator=np.random.default_rng(0))
    with pytest.raises(ConfigurationError, match="no runs"):
        rare_probability([])


@pytest.mark.slow
def test_a_mode_that_does_not_rise_is_within_the_bound_of_all_failures():
    """A walk to the failure with 1e-6, and a sudden failure with 1e-3 in the first turn."""
    truth, missed = 1e-3 + 1e-6, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        walked = walk(0.07516714899953648, 6, rng)

        def step(states, walked=walked, rng=rng):
            sudden = rng.random(len(states)) < 1e-3
            return [
                (state, 1.0 if now and at == 0 else score, ended)
                for (at, _), now, (state, score, ended) in zip(
                    states, sudden, walked(states), strict=True
                )
            ]

        runs = [split_once([(0, 0)] * 40, step, threshold=1.0, generator=rng) for _ in range(3)]
        found = rare_probability(runs)
        missed += not found.interval.low <= truth <= found.interval.high
    assert missed <= 0.05 * 40


def test_runs_that_all_fail_have_a_probability_and_no_relative_error():
    found = rare_probability([SplitRun(1.0, 3, 0, (), Rate(3, 3))] * 2)
    assert (found.estimate, found.relative_error) == (1.0, 0.0)
    assert math.isnan(found.plain_calls)
    assert found.text.startswith("about 1 (95% interval 0.54 to 1) from 2 runs and 6 target calls;")


def frequent(rates, size, rng):
    """Eight runs of one turn with a score of 0 or 1; prompt i fails with probability rates[i]."""

    def step(states):
        return [(each, float(rng.random() < rates[each]), True) for each in states]

    return rare_probability(
        [
            split_once(
                rng.integers(len(rates), size=size // 8).tolist(),
                step,
                threshold=1.0,
                generator=rng,
            )
            for _ in range(8)
        ]
    )


def test_conversations_of_a_prompt_are_alike():
    """Ten prompts, 5% of all prompts fail in half of their conversations: the truth is 2.5%."""
    rng = np.random.default_rng(0)
    above = below = 0
    for _ in range(40):
        found = frequent(np.where(rng.random(10) < 0.05, 0.5, 0.0), 160, rng).interval
        above += found.low > 0.025
        below += found.high < 0.025
    assert below == 0
    assert above <= 3
    none = frequent(np.zeros(10), 400, rng)
    assert none.plain.interval == Rate(0, 10).interval
    assert RareProbability.from_dict(none.as_dict()).plain == none.plain


@pytest.mark.slow
def test_the_interval_of_a_rare_failure_covers_the_choice_of_prompts():
    """One prompt in ten gives in easily. Without clusters 21% of the lower ends are too high."""
    rng = np.random.default_rng(0)
    truth, above, below = 0.1 * exact(0.4, 4) + 0.9 * exact(0.1, 4), 0, 0
    for _ in range(60):
        ups = np.where(rng.random(10) < 0.1, 0.4, 0.1)

        def step(states, ups=ups):
            found = []
            for prompt, turn, height in states:
                won = rng.random() < ups[prompt]
                height = height + 1 if won else max(0, height - 1)
                found.append(((prompt, turn + 1, height), height / 4, turn + 1 >= TURNS))
            return found

        runs = []
        for _ in range(8):
            drawn = rng.integers(10, size=25).tolist()
            states = [(prompt, 0, 0) for prompt in drawn]
            runs.append(split_once(states, step, threshold=1.0, generator=rng, prompts=drawn))
        covering = rare_probability(runs).interval
        above += covering.low > truth
        below += covering.high < truth
    assert above <= 4
    assert below == 0


def test_the_interval_includes_prompts_that_were_not_drawn():
    """Ten prompts, none of the one in ten that fails easily: all failures are not those seen."""
    truth = 0.1 * exact(0.4, 4) + 0.9 * exact(0.1, 4)
    rng = np.random.default_rng(1)
    step = walk(0.1, 4, rng)
    prompts = [*range(10)] * 5
    runs = [
        split_once([(0, 0)] * 50, step, threshold=1.0, generator=rng, prompts=prompts)
        for _ in range(8)
    ]
    found = rare_probability(runs)
    assert found.seen.high < truth < found.interval.high
    assert found.interval.high == found.plain.interval.high
    data = found.as_dict()
    assert (data["low"], data["high"]) == found.interval
    assert (data["seen_low"], data["seen_high"]) == found.seen
    assert f"(95% interval {found.interval.low:.2g} to {found.interval.high:.2g})" in found.text
    assert found.text.endswith(f"{found.seen.low:.2g} to {found.seen.high:.2g}")
    assert RareProbability.from_dict(data) == found


def test_a_turn_without_a_score_is_refused():
    with pytest.raises(ConfigurationError, match="not known is not safe"):
        split_once(
            ["a", "b"],
            lambda states: [(state, math.nan, True) for state in states],
            threshold=0.5,
            generator=np.random.default_rng(0),
        )


def test_parts_of_the_prompts_add_up_to_the_estimate():
    rng = np.random.default_rng(2)
    found = split_once(
        [(0, 0)] * 40, walk(0.3, 4, rng), threshold=1.0, generator=rng, prompts=[*range(4)] * 10
    )
    assert found.stages > 0
    assert sum(each.part for each in found.prompts.values()) == pytest.approx(found.estimate)
    assert sum(each.conversations for each in found.prompts.values()) == 40
    assert sum(each.failures for each in found.prompts.values()) == found.plain.successes
    with pytest.raises(ConfigurationError, match="3 prompts for 2 openings"):
        split_once([(0, 0)] * 2, walk(0.3, 4, rng), threshold=1.0, generator=rng, prompts=[1, 2, 3])
