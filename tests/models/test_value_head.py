import pytest
import torch
from safetensors.torch import load_file, save_file

from astra_rl.errors import ModelError
from astra_rl.models import value_head
from astra_rl.models.value_head import FILE_NAME, ValueHead, preceding_hidden_states

SHARED = [2, 9, 10, 11, 12, 13, 14, 15, 16, 17]
PROMPTS = [[*SHARED, 4], [5], [*SHARED, 4], [*SHARED, 6, 7, 8, 9], [20, 21, 22]]
CONTINUATIONS = [[6, 7, 3], [], [8], [9, 10, 11, 12, 3], [30, 31]]


def plain_states(model, prompt, continuation):
    """By the model's own forward: the last hidden states from the prompt's last token on."""
    ids = torch.tensor([[*prompt, *continuation]])
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    return hidden[len(prompt) - 1 : len(prompt) - 1 + len(continuation)]


@pytest.mark.parametrize("with_gradients", [False, True])
def test_the_state_before_each_token_is_that_of_a_plain_forward(model, with_gradients, monkeypatch):
    monkeypatch.setattr(value_head, "MAX_BATCH_ROWS", 2)
    with torch.set_grad_enabled(with_gradients):
        states = preceding_hidden_states(model, PROMPTS, CONTINUATIONS)
    assert states.shape == (5, 5, 32)
    for row, (prompt, continuation) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
        count = len(continuation)
        alone = plain_states(model, prompt, continuation)
        torch.testing.assert_close(states[row, :count], alone, atol=1e-4, rtol=1e-4)
        assert not states[row, count:].any()


@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_rows_have_no_states(model, with_gradients):
    with torch.set_grad_enabled(with_gradients):
        assert preceding_hidden_states(model, [], []).shape == (0, 0, 32)
        assert preceding_hidden_states(model, [[2]], [[]]).shape == (1, 0, 32)


def test_a_fresh_head_expects_nothing_and_learns_from_half_precision_states():
    head = ValueHead(8, 3)
    estimates = head(torch.ones(2, 5, 8, dtype=torch.bfloat16))
    assert estimates.shape == (2, 5, 3)
    assert estimates.dtype == torch.float32
    assert not estimates.any()
    estimates.sum().backward()
    assert head.outer.bias.grad.any()


def test_a_head_begins_the_same_each_time_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    first, second, other = ValueHead(8), ValueHead(8), ValueHead(8, seed=1)
    assert torch.rand(2).tolist() == expected
    assert torch.equal(first.inner.weight, second.inner.weight)
    assert not torch.equal(first.inner.weight, other.inner.weight)


def test_a_head_is_saved_as_safetensors_and_read_back(tmp_path):
    head, twin = ValueHead(8, 2, seed=1), ValueHead(8, 2)
    torch.nn.init.ones_(head.outer.weight)
    head.save(tmp_path)
    assert set(load_file(tmp_path / FILE_NAME)) == set(head.state_dict())
    twin.load(tmp_path)
    hidden = torch.randn(4, 8)
    assert torch.equal(head(hidden), twin(hidden))


@pytest.mark.parametrize("spoil", ["count", "size", "bytes", "missing"])
def test_weights_that_do_not_fit_are_named(spoil, tmp_path):
    if spoil == "bytes":
        (tmp_path / FILE_NAME).write_bytes(b"no weights")
    elif spoil != "missing":
        save_file(ValueHead(8 if spoil == "count" else 4, 2).state_dict(), tmp_path / FILE_NAME)
    with pytest.raises(ModelError, match=r"value_head\.safetensors does not fit .* 1 returns"):
        ValueHead(8).load(tmp_path)
