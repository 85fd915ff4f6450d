"""Gradient checkpointing with shared prefixes gives the gradients without it."""

import contextlib
import copy

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from astra_rl.errors import ConfigurationError
from astra_rl.models import forward, recomputation
from astra_rl.models.recomputation import check_recomputable, recomputed_layers
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import make_trainable, transformer_layers
from astra_rl.testing import tiny_model

SHARED = list(range(5, 25))
PROMPTS = [[*SHARED, 7], [*SHARED, 7], [*SHARED, 8, 9], [*SHARED, 8, 9], [4, 5], [30]]
TEXTS = [[9, 10], [11], [12, 13, 14], [5], [6, 7], [8]]


def gradients(model, context):
    for parameter in model.parameters():
        parameter.grad = None
    with context:
        logprobs = continuation_logprobs(model, PROMPTS, TEXTS)
    (logprobs * torch.arange(1.0, 7)[:, None]).sum().backward()
    return logprobs.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.fixture(scope="module")
def gemma(sharpened):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    return sharpened(Gemma2ForCausalLM(config))


@pytest.fixture(params=["gpt2", "llama", "gemma", "lora", "last layer"])
def trained(request, sharpened, with_adapter):
    if request.param == "gpt2":
        return sharpened(tiny_model("gpt2").model).requires_grad_(True)
    if request.param in ("llama", "gemma"):
        return copy.deepcopy(request.getfixturevalue(request.param)).requires_grad_(True)
    llama = copy.deepcopy(request.getfixturevalue("llama"))
    if request.param == "last layer":
        return make_trainable(llama, layers=1)
    return with_adapter(llama)


def test_gradients_are_those_without_it(trained):
    check_recomputable(trained)
    logprobs, expected = gradients(trained, contextlib.nullcontext())
    with_it, found = gradients(trained, recomputed_layers(trained))
    torch.testing.assert_close(with_it, logprobs)
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def saved_bytes(model, context, monkeypatch):
    """Bytes of the tensors that a forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    monkeypatch.setattr(forward, "lean_activations", lambda: hooks)
    with context:
        continuation_logprobs(model, PROMPTS * 4, TEXTS * 4)
    return sum(size for size, _ in kept.values())


def test_activations_of_layers_are_not_kept(llama, monkeypatch):
    model = copy.deepcopy(llama).requires_grad_(True)
    without = saved_bytes(model, contextlib.nullcontext(), monkeypatch)
    assert saved_bytes(model, recomputed_layers(model), monkeypatch) < 0.3 * without


def test_dropout_of_a_model_in_training_mode_is_that_of_the_forward_pass():
    # This family alone has dropout by default.
    model = tiny_model("gpt2").model.requires_grad_(True).train()
    torch.manual_seed(0)
    _, expected = gradients(model, contextlib.nullcontext())
    torch.manual_seed(0)
    _, found = gradients(model, recomputed_layers(model))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_the_layers_are_as_before_after_it(llama):
    model = copy.deepcopy(llama).requires_grad_(True)
    with pytest.raises(RuntimeError, match="in the middle"), recomputed_layers(model):
        raise RuntimeError("in the middle")
    assert all("forward" not in vars(block) for block in transformer_layers(model))


def test_a_family_whose_layers_share_caches_is_refused(llama, monkeypatch):
    monkeypatch.setattr(recomputation, "transformer_layers", lambda model: [None] * 3)
    with pytest.raises(ConfigurationError, match="has 3 layers but 2 key-value caches"):
        check_recomputable(llama)
