import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.contracts import (
    check_length,
    check_logprobs,
    check_loss,
    checked_logprobs,
    is_missing,
    mean_of_present,
    token_mask,
)
from astra_rl.core.text import Utterance
from astra_rl.errors import ContractError


def test_a_wrong_number_of_values_names_who_returned_it():
    check_length([1, 2], 2, source="moderate")
    with pytest.raises(ContractError, match="moderate returned 1 values for 2 inputs"):
        check_length([1], 2, source="moderate")


@pytest.mark.parametrize(
    "logprobs", [torch.zeros(2), torch.zeros(3, 4), torch.zeros(2, 4, 1), torch.zeros(2, 4).long()]
)
def test_logprobs_must_be_floating_rows(logprobs):
    check_logprobs(torch.zeros(2, 4), batch_size=2, source="me")
    with pytest.raises(ContractError, match=r"me returned .*expected a floating \(2, T\)"):
        check_logprobs(logprobs, batch_size=2, source="me")


def test_a_loss_must_be_a_scalar_with_a_gradient():
    check_loss(torch.zeros((), requires_grad=True), source="me")
    for loss in (torch.zeros(()), torch.zeros(2, requires_grad=True)):
        with pytest.raises(ContractError, match="me returned a loss"):
            check_loss(loss, source="me")


@pytest.mark.parametrize("outer", [True, False])
def test_autograd_is_on_only_where_it_is_asked_for(outer):
    weight = torch.tensor(-1.0, requires_grad=True)

    def score(contexts, continuations):
        return weight.expand(len(contexts), 2).bfloat16()

    with torch.set_grad_enabled(outer):
        with_gradient = checked_logprobs(score, ["a"], ["b"], grad=True)
        without = checked_logprobs(score, ["a"], ["b"], grad=False)
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert without.dtype == torch.float32


def test_a_scorer_that_returns_the_wrong_shape_is_named():
    def get_attacker_logprobs(contexts, continuations):
        return torch.zeros(len(contexts))

    with pytest.raises(ContractError, match="get_attacker_logprobs returned"):
        checked_logprobs(get_attacker_logprobs, ["a"], ["b"], grad=False)


def test_trailing_zeros_are_padding_and_zeros_within_are_tokens():
    logprobs = torch.tensor(
        [[-1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0]]
    )
    assert token_mask(logprobs, ["a", "b", "c"]).tolist() == [
        [True, True, True, False],
        [False] * 4,
        [True] * 4,
    ]


def test_a_remembered_last_token_of_probability_one_is_no_padding():
    logprobs = torch.tensor([[-1.0, 0.0, 0.0]])
    assert token_mask(logprobs, [Utterance("a", token_ids=[5, 6])]).sum() == 2
    assert token_mask(logprobs, [Utterance("a")]).sum() == 1
    assert token_mask(logprobs, [Utterance("a", token_ids=range(9))]).sum() == 3


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (0, 3)])
def test_a_batch_without_rows_or_tokens_has_a_mask_too(shape):
    logprobs = torch.zeros(shape)
    mask = token_mask(logprobs, [Utterance("", token_ids=[])] * shape[0])
    assert mask.shape == shape
    assert mask.dtype == torch.bool


rows = st.lists(st.lists(st.floats(-9, -0.01), max_size=5), min_size=1, max_size=5)


@given(rows, st.integers(0, 3))
def test_the_mask_finds_the_length_of_every_row_whatever_the_padding(lists, extra):
    width = max(map(len, lists)) + extra
    logprobs = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in lists])
    mask = token_mask(logprobs.reshape(len(lists), width), ["x"] * len(lists))
    assert mask.sum(dim=1).tolist() == [len(row) for row in lists]


def test_only_finite_numbers_are_present():
    assert [is_missing(x) for x in (0.0, -1.0, math.nan, math.inf, -math.inf)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_means_leave_missing_values_out_and_a_mean_of_nothing_is_missing():
    assert mean_of_present([1.0, math.nan, 2.0]) == 1.5
    assert math.isnan(mean_of_present([math.nan]))
    assert math.isnan(mean_of_present([]))
