import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.models import scoring
from astra_rl.models.scoring import continuation_logprobs

SHARED = [2, 9, 10, 11, 12, 13, 14, 15, 16, 17]
PROMPTS = [[*SHARED, 4], [5], [*SHARED, 4], [*SHARED, 6, 7, 8, 9], [20, 21, 22]]
CONTINUATIONS = [[6, 7, 3], [], [8], [9, 10, 11, 12, 3], [30, 31]]

ids = st.lists(st.integers(2, 36), max_size=6)


def check(model, plain_logprobs, prompts, continuations, scores):
    assert scores.dtype == torch.float32
    assert scores.shape == (len(prompts), max(map(len, continuations)))
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        alone = plain_logprobs(model, [*prompt, *continuation], len(prompt))
        torch.testing.assert_close(scores[row, : len(continuation)], alone, atol=1e-5, rtol=0)
        assert not scores[row, len(continuation) :].any()
    assert (scores <= 0).all()


@pytest.mark.parametrize("with_gradients", [False, True])
def test_ragged_rows_are_scored_as_by_a_plain_forward(model, plain_logprobs, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        scores = continuation_logprobs(model, PROMPTS, CONTINUATIONS)
    check(model, plain_logprobs, PROMPTS, CONTINUATIONS, scores)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([[], SHARED, SHARED[:8]]), ids.filter(bool), ids),
        min_size=1,
        max_size=6,
    )
)
def test_any_rows_are_scored_as_by_a_plain_forward(model, plain_logprobs, rows):
    prompts = [[*stem, *prompt] for stem, prompt, _ in rows]
    continuations = [continuation for _, _, continuation in rows]
    with torch.no_grad():
        scores = continuation_logprobs(model, prompts, continuations)
    check(model, plain_logprobs, prompts, continuations, scores)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_branches_of_a_tree_have_the_gradients_of_rows_alone(model, plain_logprobs, data):
    """Rows of different depth: turns of some are the context of others."""
    turn = st.lists(st.integers(2, 36), min_size=8, max_size=12)
    contexts, rows = [data.draw(turn)], []
    for _ in range(data.draw(st.integers(1, 6))):
        context, attack = data.draw(st.sampled_from(contexts)), data.draw(turn)
        rows.append((context, attack))
        contexts.append([*context, *attack, *data.draw(turn)])
    weights = torch.tensor([data.draw(st.integers(-2, 2)) for _ in rows]).double()
    trained = copy.deepcopy(model).requires_grad_(True)
    together = continuation_logprobs(trained, *map(list, zip(*rows, strict=True))).sum(dim=1)
    alone = torch.stack(
        [plain_logprobs(trained, [*each, *attack], len(each)).sum() for each, attack in rows]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    parameters = list(trained.parameters())
    ours = torch.autograd.grad((weights * together).sum(), parameters)
    theirs = torch.autograd.grad((weights * alone).sum(), parameters)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=0)


def test_batches_are_cut_without_a_trace(model, plain_logprobs, monkeypatch):
    monkeypatch.setattr(scoring, "MAX_BATCH_ROWS", 2)
    monkeypatch.setattr(scoring, "MAX_SCORING_TOKENS", 20)
    with torch.no_grad():
        scores = continuation_logprobs(model, PROMPTS, CONTINUATIONS)
    check(model, plain_logprobs, PROMPTS, CONTINUATIONS, scores)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_rows_without_continuations_are_all_padding(model, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        assert continuation_logprobs(model, [[2, 3], [4]], [[], []]).shape == (2, 0)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_rows_give_no_scores(model, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        assert continuation_logprobs(model, [], []).shape == (0, 0)


def test_lists_of_different_length_are_not_cut_to_the_shorter(model):
    with pytest.raises(ValueError, match="shorter"):
        continuation_logprobs(model, [[2], [3]], [[4]])


def test_half_precision_is_scored_in_float32(llama):
    half = copy.deepcopy(llama).to(torch.bfloat16)
    with torch.no_grad():
        scores = continuation_logprobs(half, PROMPTS, CONTINUATIONS)
        exact = continuation_logprobs(llama, PROMPTS, CONTINUATIONS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=0.1, rtol=0)
