import math
import re

import numpy as np
import pytest
import torch

from astra_rl.core.text import Exchange
from astra_rl.errors import ContractError
from astra_rl.moderators import FunctionModerator


def test_scores_come_back_as_floats_in_order():
    moderator = FunctionModerator(lambda texts: [len(text) / 10 for text in texts])
    assert moderator.moderate(["abc", "", "a"]) == [0.3, 0.0, 0.1]


@pytest.mark.parametrize(
    "returned",
    [[0, 1], (False, True), np.array([0.0, 1.0]), torch.tensor([0.0, 1.0]), iter([0.0, 1.0])],
)
def test_any_kind_of_numbers_will_do(returned):
    scores = FunctionModerator(lambda texts: returned).moderate(["a", "b"])
    assert scores == [0.0, 1.0]
    assert all(isinstance(score, float) for score in scores)


def test_nan_and_none_are_missing_scores():
    scores = FunctionModerator(lambda texts: [math.nan, None, 0.5]).moderate(["a", "b", "c"])
    assert math.isnan(scores[0])
    assert math.isnan(scores[1])
    assert scores[2] == 0.5


@pytest.mark.parametrize(
    "wrong", [-0.1, 1.0001, math.inf, -math.inf, "0.5", "high", [0.5], object()]
)
def test_a_score_that_is_no_number_in_range_is_refused_and_shown(wrong):
    with pytest.raises(ContractError, match=re.escape(f"{wrong!r} for text 1")):
        FunctionModerator(lambda texts: [0.5, wrong]).moderate(["a", "b"])


def test_another_number_of_scores_is_refused_by_the_name_of_the_function():
    def always_one(texts):
        return [1.0]

    with pytest.raises(ContractError, match="always_one returned 1 values for 2 inputs"):
        FunctionModerator(always_one).moderate(["a", "b"])


def test_a_single_number_for_all_texts_is_refused():
    with pytest.raises(ContractError, match=r"returned 0\.5 for 2 texts"):
        FunctionModerator(lambda texts: 0.5).moderate(["a", "b"])


def test_the_function_sees_the_exchanges_of_an_episode():
    moderator = FunctionModerator(lambda texts: [float("sesame" in text.attack) for text in texts])
    assert moderator.moderate([Exchange("", "open sesame", "no"), Exchange("", "hi", "no")]) == [
        1,
        0,
    ]


def test_without_texts_the_function_is_not_called():
    assert FunctionModerator(lambda texts: 1 / 0).moderate([]) == []
