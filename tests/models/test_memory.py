"""Sizes of batches by the memory of a device."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from astra_rl.models import memory
from astra_rl.models.memory import batch_limits, logit_bytes, token_bytes

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def on(monkeypatch, gib):
    monkeypatch.setattr(memory, "total_bytes", lambda device: int(gib * 2**30))
    return SimpleNamespace(config=LLAMA_8B, device=torch.device("cuda"), dtype=torch.bfloat16)


def test_on_the_cpu_the_limits_are_those_given(model):
    assert batch_limits(model, 128, 32_768) == (128, 32_768)
    assert logit_bytes(torch.device("cpu"), 1000) == 1000


@pytest.mark.parametrize(("gib", "least_rows"), [(141, 512), (24, 128), (8, 128)])
def test_on_a_gpu_batches_fit_their_share_of_the_memory(monkeypatch, gib, least_rows):
    rows, tokens = batch_limits(on(monkeypatch, gib), 128, 16_384)
    assert rows >= least_rows
    assert tokens >= 16_384
    if gib == 141:
        # Keys and values of Llama 3.1 8B take 128 KiB a token in bfloat16.
        assert 128 * 1024 * tokens < gib * 2**30 / 4
        assert 4 * 128_256 * rows < gib * 2**30 / 32
        assert logit_bytes(torch.device("cuda"), 0) == gib * 2**30 // 128


def test_the_cache_of_a_token_is_counted_for_any_family():
    assert token_bytes(LLAMA_8B, 2) > 128 * 1024
    small = GPT2Config(n_embd=32, n_layer=2, n_head=2)
    assert token_bytes(small, 4) == 4 * (2 * 2 * 32 + 8 * 32 + 3 * 4 * 32)
