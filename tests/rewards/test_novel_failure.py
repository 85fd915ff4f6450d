"""The reward for many likely failures."""

from __future__ import annotations

import math

import pytest

from astra_rl.core.text import Exchange, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.novel_failure import NovelFailureReward
from astra_rl.rewards.terms import AttackNLL, Novelty
from astra_rl.testing import ScriptedModerator, ToyProblem


def exchange(attack: str, response: str, nats: float = 1.0) -> Exchange:
    """An exchange whose attack the target found this unlikely, per token."""
    return Exchange("ctx", attack, Utterance(response, heard_logprobs=[-nats, -nats]))


def rule(**options: float) -> NovelFailureReward:
    return NovelFailureReward(nll=AttackNLL("target"), **options)  # type: ignore[arg-type]


PROBLEM = ToyProblem(ScriptedModerator({"boom": 1.0, "broken": math.nan}))


def test_a_new_attack_earns_all_its_harm_and_a_repeated_one_only_its_unconditional_share() -> None:
    """Two equal attacks have novelty 0, so harm 1 earns 1 - 0.4 = 0.6; the third shares no word."""
    rewards, terms = rule(novelty_share=0.4, nll_weight=0.0)(
        PROBLEM, [exchange("a b", "boom"), exchange("a b", "boom"), exchange("c d", "boom")]
    )
    # The nearest 4 siblings of the first are the second (similarity 1) and the third (0).
    assert [row["novelty"] for row in terms] == [0.5, 0.5, 1.0]
    assert rewards == pytest.approx([0.8, 0.8, 1.0])


def test_being_different_earns_nothing_without_harm() -> None:
    rewards, _ = rule(novelty_share=1.0, nll_weight=0.0)(
        PROBLEM, [exchange("a", "calm"), exchange("b", "calm")]
    )
    assert rewards == [0.0, 0.0]


def test_only_nats_above_the_free_ones_cost() -> None:
    """0.5 a nat above 2: at 1.5 nats nothing, at 3 nats half a point."""
    rewards, _ = rule(novelty_share=0.0, nll_weight=0.5, free_nll=2.0)(
        PROBLEM, [exchange("a", "boom", nats=1.5), exchange("b", "boom", nats=3.0)]
    )
    assert rewards == pytest.approx([1.0, 0.5])


def test_a_missing_score_makes_the_reward_missing_and_leaves_siblings_alone() -> None:
    rewards, _ = rule()(PROBLEM, [exchange("a", "broken"), exchange("b", "boom")])
    assert math.isnan(rewards[0])
    assert math.isfinite(rewards[1])


def test_a_missing_likelihood_is_never_free() -> None:
    rewards, _ = rule(nll_weight=0.1)(
        ToyProblem(), [exchange("calm", "boom"), Exchange("ctx", "", "boom")]
    )
    assert math.isnan(rewards[1])


@pytest.mark.parametrize("options", [{"novelty_share": 1.1}, {"nll_weight": -0.1}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="it must be"):
        NovelFailureReward(**options)  # type: ignore[arg-type]


def test_to_be_of_another_kind_is_enough() -> None:
    """Similarity 2/6 is below the kind's 0.5: as new as an attack that shares no word.

    Similarity 3/5 is above it: (1 - 0.6) / (1 - 0.5) = 0.8.
    """
    novelty = Novelty(nearest=1, kind=0.5)
    other_kind = [exchange("a b c d", "boom"), exchange("a b e f", "boom")]
    assert list(novelty(PROBLEM, other_kind)) == [1.0, 1.0]
    same_kind = [exchange("a b c d", "boom"), exchange("a b c e", "boom")]
    assert novelty(PROBLEM, same_kind) == pytest.approx([0.8, 0.8])


def test_a_kind_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kind=1"):
        Novelty(kind=1.0)
