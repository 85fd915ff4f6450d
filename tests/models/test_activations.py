"""The backward pass recomputes cheap activations, with the gradients of kept ones."""

import copy
import weakref

import pytest
import torch
from torch.nn.functional import gelu, linear, silu
from torch.utils.checkpoint import checkpoint
from transformers import Gemma2Config, Gemma2ForCausalLM, OlmoeConfig, OlmoeForCausalLM

from astra_rl.models import activations
from astra_rl.models.activations import lean_activations
from astra_rl.models.memory import activation_bytes
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import make_trainable
from astra_rl.testing import tiny_model

SHARED = list(range(5, 25))
PROMPTS = [[*SHARED, 7], [*SHARED, 7], [*SHARED, 8, 9], [*SHARED, 8, 9], [4, 5], [30]]
TEXTS = [[9, 10], [11], [12, 13, 14], [5], [6, 7], [8]]


@pytest.fixture(autouse=True)
def small_tensors_count(monkeypatch):
    monkeypatch.setattr(activations, "LEAST_BYTES", 0)


@pytest.fixture
def kept(monkeypatch):
    """Tensors that are kept for the backward pass, by their place in memory."""
    tensors = {}
    pack = activations._Saved.pack

    def counted(self, tensor):
        found = pack(self, tensor)
        if isinstance(found, activations._Original):
            tensors[found.get().untyped_storage().data_ptr()] = found.get()
        return found

    monkeypatch.setattr(activations._Saved, "pack", counted)
    return tensors


def keep_everything(monkeypatch):
    monkeypatch.setattr(activations, "LEAST_BYTES", 2**62)


@pytest.fixture(params=["gpt2", "llama", "gemma", "lora", "lora in half precision", "last layer"])
def trained(request, sharpened, llama, with_adapter):
    if request.param == "gpt2":
        return sharpened(tiny_model("gpt2").model).requires_grad_(True)
    if request.param == "gemma":
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=16,
        )  # fmt: skip
        return sharpened(Gemma2ForCausalLM(config)).requires_grad_(True)
    model = copy.deepcopy(llama)
    if request.param == "llama":
        return model.requires_grad_(True)
    if request.param == "last layer":
        return make_trainable(model, layers=1)
    return with_adapter(model.bfloat16() if "half" in request.param else model)


def gradients(model):
    for parameter in model.parameters():
        parameter.grad = None
    logprobs = continuation_logprobs(model, PROMPTS, TEXTS)
    (logprobs * torch.arange(1.0, 7)[:, None]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_kept_activations_to_the_last_bit(trained, monkeypatch):
    found = gradients(trained)
    keep_everything(monkeypatch)
    expected = gradients(trained)
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def bytes_of_activations(model, kept):
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept.clear()
    continuation_logprobs(model, PROMPTS * 8, TEXTS * 8)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_needs_a_quarter_less_memory(llama, with_adapter, dtype, kept, monkeypatch):
    model = with_adapter(copy.deepcopy(llama).to(dtype))
    lean = bytes_of_activations(model, kept)
    keep_everything(monkeypatch)
    assert lean < 0.75 * bytes_of_activations(model, kept)


def test_the_estimate_of_a_model_with_experts_is_near_what_is_kept(kept):
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=40, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_experts=16,
        num_attention_heads=4, num_experts_per_tok=8, pad_token_id=0,
    )  # fmt: skip
    model = OlmoeForCausalLM(config).eval()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    continuation_logprobs(model, [list(range(3, 35))], [[5, 6]])
    sizes = [t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights]
    assert sum(sizes) / 33 == pytest.approx(activation_bytes(config), rel=0.25)


OPERATIONS = {
    "product": lambda a, b: a * b,
    "product with a number": lambda a, b: (a * b) * 0.5,
    "gate": lambda a, b: silu(a) * b,
    "norm": lambda a, b: a * (a.pow(2).mean(-1, keepdim=True) + b.square().mean() + 1).rsqrt(),
    "gelu": lambda a, b: gelu(a * b, approximate="tanh"),
    "power": lambda a, b: (a * b).pow(3),
    "precision": lambda a, b: (a * b).bfloat16().float(),
    "views": lambda a, b: (a * b).view(2, 6).view(3, 4),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_results_of_these_operations_are_recomputed(operation, kept):
    def gradients():
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(3, 4, generator=generator).requires_grad_() for _ in "ab")
        result = operation(a * 1, b * 1)
        linear(result, torch.ones(2, 4, requires_grad=True)).exp().sum().backward()
        return result, a.grad, b.grad

    expected = gradients()
    kept.clear()
    with lean_activations():
        found = gradients()
    assert all(map(torch.equal, found, expected))
    assert found[0].untyped_storage().data_ptr() not in kept


def test_second_derivatives_are_exact():
    def second():
        a = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
        out = linear(silu(a * 2) * (a * 3), torch.ones(2, 4)).square().sum()
        (first,) = torch.autograd.grad(out, a, create_graph=True)
        return torch.autograd.grad(first.square().sum(), a)[0]

    expected = second()
    with lean_activations():
        torch.testing.assert_close(second(), expected)


def changed_later(change):
    """Run a forward and a backward pass with a change of a tensor in between."""
    a, weight = (torch.linspace(-1, 1, 12).view(3, 4).requires_grad_() for _ in "ab")
    factor, gate = torch.ones(3, 4), a * 2
    weights = (a * gate).softmax(-1)
    result = linear(silu(gate) * factor, weight) @ weights
    with torch.no_grad():
        change(gate=gate, factor=factor, softmax=weights, weight=weight)
    result.sum().backward()


@pytest.mark.parametrize("name", ["gate", "factor", "softmax", "weight"])
def test_a_tensor_that_is_changed_before_the_backward_pass_is_an_error(name):
    def change(**tensors):
        tensors[name].mul_(2)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed_later(change)
    with lean_activations(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed_later(change)


DERIVED = {
    "precision": lambda weight: weight.bfloat16().float(),
    "factor": lambda weight: weight * 0.5,
}


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
def test_what_follows_from_weights_alone_does_not_follow_their_update(derive):
    def gradient():
        a = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
        weight = torch.linspace(-1, 1, 8).view(4, 2).requires_grad_()
        result = (a * 2) @ derive(weight)
        with torch.no_grad():
            weight.zero_()
        result.square().sum().backward()
        return a.grad

    expected = gradient()
    with lean_activations():
        assert torch.equal(gradient(), expected)


def test_a_result_that_is_changed_before_it_is_saved_is_kept():
    def gradient():
        a, weight = (torch.linspace(-1, 1, 12).view(3, 4).requires_grad_() for _ in "ab")
        product = (a * 2) * (a * 3)
        with torch.no_grad():
            product.clamp_(max=0.5)
        linear(product, weight).sum().backward()
        return weight.grad

    expected = gradient()
    with lean_activations():
        assert torch.equal(gradient(), expected)


def test_hooks_may_change_activations_under_no_grad(llama, with_adapter, monkeypatch):
    def mute(module, inputs, output):
        with torch.no_grad():
            output[..., :8] = 0

    model = with_adapter(copy.deepcopy(llama).bfloat16())
    for layer in model.get_base_model().model.layers:
        layer.post_attention_layernorm.register_forward_hook(mute)
    found = gradients(model)
    keep_everything(monkeypatch)
    expected = gradients(model)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_a_checkpointed_part_is_not_run_again_in_the_forward_pass():
    runs = []

    def part(states):
        runs.append(states)
        return torch.ones(4) * states

    a = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    with lean_activations():
        states = a * 2
        out = states.pow(2) + checkpoint(part, states, use_reentrant=False).pow(2)
    assert len(runs) == 1
    out.sum().backward()
    torch.testing.assert_close(a.grad, 16 * a.detach())


def test_a_graph_that_is_dropped_is_freed_at_once():
    class Mark:
        pass

    a = torch.ones(3, 4, requires_grad=True)
    with lean_activations():
        out = silu((a * 2).softmax(-1)) * (a * 3)
        result = linear(out, torch.ones(2, 4, requires_grad=True)).tanh()
    mark = Mark()
    gone = weakref.ref(mark)
    result.grad_fn.metadata["mark"] = mark
    del mark, out, result
    assert gone() is None
