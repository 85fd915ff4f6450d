"""Decoding with fixed places gives the texts of decoding with a growing cache."""

import copy

import pytest
import torch

from astra_rl.models import decoding, generation, static_decoding
from astra_rl.models.attention import use_cpu_attention
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.static_decoding import StaticDecoding

SHARED = [2, 9, 10, 11, 12, 13, 14, 15, 16, 17]
PROMPTS = [[2], [*SHARED, 5], [*SHARED, 6, 7], [4, 8, 20], [*SHARED, 5], [30, 31, 32, 33]]
STOP = frozenset(range(3, 8))


@pytest.fixture
def static(monkeypatch):
    """Sampling with fixed places on the CPU, and the number of steps that were computed so."""
    steps = []
    inner = StaticDecoding._advance
    monkeypatch.setattr(StaticDecoding, "_advance", lambda self: steps.append(1) or inner(self))
    monkeypatch.setattr(decoding, "STEPS_PER_CHECK", {"cpu": 4})

    monkeypatch.setattr(generation, "can_replay", lambda model: True)
    return steps


@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 6, 7]] * 6], ids=["ragged", "equal"])
def test_texts_are_the_same(model, static, prompts):
    sampling = Sampling(max_new_tokens=60)
    texts = []
    for on in (False, True):
        cache = ConversationCache()
        first = generate(
            model, prompts, sampling, range(6), stop_ids=STOP, prefix_cache=cache, cuda_graphs=on
        )
        second = generate(
            model,
            [[*a, *b.token_ids, 9] for a, b in zip(prompts, first, strict=True)],
            Sampling(max_new_tokens=30),
            range(6),
            stop_ids=STOP,
            prefix_cache=cache,
            cuda_graphs=on,
        )
        texts.append(first + second)
    assert static
    for a, b in zip(*texts, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_the_check_passes_for_a_model_that_decodes_alike(llama):
    half = copy.deepcopy(llama).bfloat16()
    use_cpu_attention(half)
    assert static_decoding._is_exact(llama)
    assert static_decoding._is_exact(half)


def test_a_model_that_decodes_differently_is_not_replayed(llama, monkeypatch, caplog):
    real = static_decoding.hidden_states
    monkeypatch.setattr(
        static_decoding, "hidden_states", lambda *args: 2 * real(*args) + torch.ones(())
    )
    assert not static_decoding._is_exact(llama)
    assert "not replayed as a CUDA graph" in caplog.text


def test_a_model_whose_steps_fail_is_not_replayed(llama, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(static_decoding, "hidden_states", fail)
    assert not static_decoding._is_exact(llama)
    assert "operation not permitted" in caplog.text


def test_nothing_is_replayed_on_a_cpu(llama):
    assert not static_decoding.can_replay(llama)
