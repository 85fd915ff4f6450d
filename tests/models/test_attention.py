import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from astra_rl.models import attention
from astra_rl.models.attention import (
    GROUPED_ATTENTION,
    SHORT_ATTENTION,
    grouped_attention,
    short_attention,
    use_cpu_attention,
)
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.self_check import check_supported

SEQUENCES = [[2, 9, 10, 11, 12, 13, 14, 15, 16, 17, 5], [2, 9, 10, 11, 12, 13, 14, 15, 16, 17], [4]]
CONTINUATIONS = [[6, 7, 8], [9], [20, 21]]


def layer(groups=1):
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True)


def tensors(rows, heads, groups, length, seen, *, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(heads, length, size=8):
        return torch.randn(rows, heads, length, size, generator=generator).to(dtype)

    return draw(heads * groups, length), draw(heads, seen), draw(heads, seen)


def reference(query, key, value, mask, **options):
    """The same in float32, by the kernel of torch, with keys and values repeated."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.float().repeat_interleave(groups, dim=1) for each in (key, value))
    out = scaled_dot_product_attention(query.float(), key, value, attn_mask=mask, **options)
    return out.transpose(1, 2)


shapes = st.tuples(*(st.integers(1, 4) for _ in range(3)), st.integers(1, 6), st.integers(0, 9))


@settings(deadline=None)
@given(shapes, st.integers(0, 1000), st.booleans())
def test_it_attends_as_the_fused_kernel_does(shape, seed, is_float_mask):
    rows, heads, groups, length, earlier = shape
    query, key, value = tensors(rows, heads, groups, length, length + earlier, seed=seed)
    visible = torch.rand(rows, 1, length, length + earlier, generator=torch.manual_seed(seed)) < 0.7
    visible[..., 0] = True
    mask = visible
    if is_float_mask:
        mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(~visible, -torch.inf)
    ours, weights = short_attention(layer(groups), query, key, value, mask)
    assert weights is None
    assert ours.shape == (rows, length, heads * groups, 8)
    torch.testing.assert_close(
        ours.float(), reference(query, key, value, visible), atol=0.04, rtol=0.04
    )


@pytest.mark.parametrize("seen", [5, 9])
def test_without_a_mask_it_does_not_look_ahead(seen):
    query, key, value = tensors(2, 2, 3, 5, seen)
    ours, _ = short_attention(layer(3), query, key, value, None)
    # A cache with room holds keys that were not written yet.
    causal = reference(query, key[:, :, :5], value[:, :, :5], None, is_causal=True)
    torch.testing.assert_close(ours.float(), causal, atol=0.04, rtol=0.04)


def test_without_a_mask_a_single_query_sees_everything():
    query, key, value = tensors(2, 2, 3, 1, 9)
    ours, _ = short_attention(layer(3), query, key, value, None)
    torch.testing.assert_close(
        ours.float(), reference(query, key, value, None), atol=0.04, rtol=0.04
    )


def test_its_gradients_are_those_of_the_fused_kernel():
    parts = [each.float().requires_grad_() for each in tensors(2, 2, 2, 4, 7)]
    halves = [each.detach().bfloat16().requires_grad_() for each in parts]
    mask = torch.ones(4, 7, dtype=torch.bool).tril(3)[None, None].expand(2, 1, 4, 7)
    reference(*parts, mask).square().sum().backward()
    short_attention(layer(2), *halves, mask)[0].float().square().sum().backward()
    for exact, ours in zip(parts, halves, strict=True):
        scale = float(exact.grad.abs().max())
        torch.testing.assert_close(ours.grad.float(), exact.grad, atol=0.03 * scale, rtol=0)


def test_a_query_of_padding_that_sees_nothing_stays_a_number():
    query, key, value = tensors(1, 1, 1, 2, 3)
    mask = torch.tensor([[True, True, True], [False, False, False]])[None, None]
    assert torch.isfinite(short_attention(layer(), query, key, value, mask)[0]).all()


@pytest.mark.parametrize("why", ["float32", "long", "position_bias"])
def test_what_it_is_not_made_for_goes_to_the_fused_kernel(why, monkeypatch):
    sent = []
    fused = attention.grouped_attention
    monkeypatch.setattr(
        attention,
        "grouped_attention",
        lambda *args, **kwargs: sent.append(why) or fused(*args, **kwargs),
    )
    if why == "long":
        monkeypatch.setattr(attention, "MAX_SCORES", 10)
    dtype = torch.float32 if why == "float32" else torch.bfloat16
    query, key, value = tensors(2, 2, 2, 3, 5, dtype=dtype)
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    options = {}
    if why == "position_bias":
        options["position_bias"] = torch.zeros(2, 4, 3, 5, dtype=dtype)
    ours, _ = short_attention(layer(2), query, key, value, mask, **options)
    assert sent == [why]
    torch.testing.assert_close(
        ours.float(), reference(query, key, value, mask), atol=0.04, rtol=0.04
    )


@pytest.mark.parametrize("is_training", [False, True])
def test_a_model_in_half_precision_says_nearly_the_same_with_it(llama, is_training):
    half = copy.deepcopy(llama).bfloat16()
    with torch.set_grad_enabled(is_training):
        fused = continuation_logprobs(half, SEQUENCES, CONTINUATIONS)
        use_cpu_attention(half)
        assert half.config._attn_implementation == SHORT_ATTENTION
        short = continuation_logprobs(half, SEQUENCES, CONTINUATIONS)
    exact = continuation_logprobs(llama, SEQUENCES, CONTINUATIONS)
    # Neither is nearer to the truth: what is lost, half precision loses.
    error = (fused - exact).abs().max()
    assert (short - exact).abs().max() < 2 * error + 0.02


def test_the_check_of_a_family_compares_it_with_the_fused_kernel(llama, monkeypatch):
    half = copy.deepcopy(llama).bfloat16()
    use_cpu_attention(half)
    seen = []
    forward = half.forward
    monkeypatch.setattr(
        half,
        "forward",
        lambda **kwargs: seen.append(half.config._attn_implementation) or forward(**kwargs),
    )
    check_supported(half)
    assert set(seen) == {"sdpa"}
    assert half.config._attn_implementation == SHORT_ATTENTION


def test_a_text_of_one_token_attends_to_nothing_that_is_not_written_yet(llama):
    half = copy.deepcopy(llama).bfloat16()
    with torch.no_grad():
        expected = half(torch.tensor([[5]])).logits[0, -1].float().log_softmax(-1)
    use_cpu_attention(half)
    sample = generate(half, [[5]], Sampling(max_new_tokens=2), [0], stop_ids=frozenset())[0]
    assert sample.logprobs[0] == pytest.approx(float(expected[sample.token_ids[0]]), abs=0.05)


@settings(deadline=None)
@given(shapes, st.integers(0, 1000))
def test_fused_attention_without_copies_is_that_with_them(shape, seed):
    rows, heads, groups, length, earlier = shape
    parts = tensors(rows, heads, groups, length, length + earlier, dtype=torch.float32, seed=seed)
    mask = torch.rand(rows, 1, length, length + earlier, generator=torch.manual_seed(seed)) < 0.7
    mask[..., 0] = True

    def gradients(attend):
        leaves = [each.clone().requires_grad_() for each in parts]
        out = attend(*leaves)
        out.square().sum().backward()
        return out, *(each.grad for each in leaves)

    ours = gradients(lambda *each: grouped_attention(layer(groups), *each, mask)[0])
    for found, expected in zip(ours, gradients(lambda *e: reference(*e, mask)), strict=True):
        torch.testing.assert_close(found, expected)


def test_it_keeps_no_copies_of_keys_and_values_for_the_backward_pass():
    query, key, value = (
        each.requires_grad_() for each in tensors(2, 1, 8, 4, 99, dtype=torch.float32)
    )
    mask = torch.ones(2, 1, 4, 99, dtype=torch.bool)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        grouped_attention(layer(8), query, key, value, mask)
    assert key.shape in shapes
    assert torch.Size([2, 8, 99, 8]) not in shapes


def test_models_in_full_precision_use_it(llama):
    model = copy.deepcopy(llama)
    use_cpu_attention(model)
    assert model.config._attn_implementation == GROUPED_ATTENTION
    for is_training in (False, True):
        with torch.set_grad_enabled(is_training):
            found, expected = (
                continuation_logprobs(each, SEQUENCES, CONTINUATIONS) for each in (model, llama)
            )
        torch.testing.assert_close(found, expected)


def test_a_saved_model_does_not_ask_for_it(llama, tmp_path):
    half = copy.deepcopy(llama).bfloat16()
    use_cpu_attention(half)
    half.save_pretrained(tmp_path)
    assert SHORT_ATTENTION not in (tmp_path / "config.json").read_text("utf-8")
