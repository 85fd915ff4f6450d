import pytest
import torch

from astra_rl.models.embedding import mean_hidden_states

ROWS = [[5, 6, 7, 8], [9], [], [5, 6, 7, 8, 9, 10, 11]]


def test_vectors_are_means_of_the_model_s_own_last_hidden_states(model):
    vectors = mean_hidden_states(model, ROWS)
    assert vectors.dtype == torch.float32
    for vector, row in zip(vectors, ROWS, strict=True):
        if row:
            own = model.base_model(torch.tensor([row])).last_hidden_state[0].mean(dim=0)
            torch.testing.assert_close(vector, own, rtol=1e-4, atol=1e-4)
    assert not vectors[2].any()


def test_a_vector_does_not_depend_on_its_batch(model):
    together = mean_hidden_states(model, ROWS)
    for vector, row in zip(together, ROWS, strict=True):
        torch.testing.assert_close(mean_hidden_states(model, [row])[0], vector)


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_no_tokens_need_no_model(model, rows):
    assert mean_hidden_states(model, rows).shape == (len(rows), model.config.hidden_size)
