import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from astra_rl.models.attention import use_cpu_attention
from astra_rl.models.kv_cache import PreallocatedLayer, preallocated_cache
from astra_rl.testing import tiny_model

# What happens to a cache: so many tokens are appended, or rows are chosen.
events = st.lists(
    st.one_of(st.integers(1, 5), st.lists(st.integers(0, 100), min_size=1, max_size=4)), max_size=6
)


@settings(deadline=None)
@given(events, st.integers(1, 20), st.booleans(), st.booleans())
@torch.no_grad()
def test_it_holds_what_the_cache_of_transformers_holds(
    events, capacity, return_padded, is_training
):
    plain, preallocated = DynamicLayer(), PreallocatedLayer(capacity, return_padded=return_padded)
    generator = torch.Generator().manual_seed(0)
    rows = 3
    with torch.set_grad_enabled(is_training):
        for event in [2, *events]:
            if isinstance(event, list):
                indices = torch.tensor([index % rows for index in event])
                rows = len(event)
                plain.batch_select_indices(indices)
                preallocated.batch_select_indices(indices)
            else:
                promised, _ = preallocated.get_mask_sizes(event)
                new = torch.randn(2, rows, 2, event, 4, generator=generator)
                plain.update(*new)
                keys, values = preallocated.update(*new)
                assert keys.shape[-2] == values.shape[-2] == promised
                length = preallocated.get_seq_length()
                assert torch.equal(keys[:, :, :length], plain.keys)
                assert torch.equal(values[:, :, :length], plain.values)
                assert not keys[:, :, length:].any()  # hidden by the mask, but never NaN
            assert preallocated.get_seq_length() == plain.get_seq_length()
            assert torch.equal(preallocated.keys, plain.keys)
            assert torch.equal(preallocated.values, plain.values)


def test_gradients_flow_through_what_was_appended():
    layer = PreallocatedLayer(8, return_padded=True)
    first, second = (torch.randn(2, 1, 1, 2, 4, requires_grad=True) for _ in range(2))
    layer.update(*first)
    keys, values = layer.update(*second)
    (keys.sum() + values.square().sum()).backward()
    assert first.grad is not None
    torch.testing.assert_close(second.grad[1], 2 * second[1])


def test_tokens_are_written_in_place_as_long_as_there_is_room():
    layer = PreallocatedLayer(4, return_padded=False)
    with torch.no_grad():
        places = set()
        for _ in range(4):
            keys, _ = layer.update(*torch.randn(2, 1, 1, 1, 4))
            places.add(keys.data_ptr())
    assert len(places) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_attention_that_knows_of_it_gets_to_see_the_room(family):
    model = tiny_model(family).model
    assert not any(layer.return_padded for layer in preallocated_cache(model, 9).layers)
    half = model.bfloat16()
    use_cpu_attention(half)
    assert all(layer.return_padded for layer in preallocated_cache(half, 9).layers)


def test_layers_that_look_back_on_a_window_stay_as_they_are():
    import transformers

    config = transformers.MistralConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=40, sliding_window=16,
    )  # fmt: skip
    layers = preallocated_cache(transformers.MistralForCausalLM(config), 9).layers
    assert {type(layer) for layer in layers} == {DynamicSlidingWindowLayer}
