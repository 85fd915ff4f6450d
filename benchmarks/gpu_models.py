"""Models with random weights at the shapes of real ones, and the limits of a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from astra_rl.core.out_of_memory import release_memory
from astra_rl.models.attention import use_cpu_attention


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama: layers, hidden size, size of the MLP, heads, key heads, vocabulary."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
        )

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, in bytes of bfloat16."""
        return 2 * 2 * self.layers * self.key_heads * (self.hidden // self.heads)


SHAPES = {
    "tiny": Shape(2, 128, 256, 4, 2, 512, tied=True),
    "135M": Shape(30, 576, 1536, 9, 3, 49_152, tied=True),  # SmolLM2-135M
    "1.5B": Shape(28, 1536, 8960, 12, 2, 151_936, tied=True),  # Qwen2.5-1.5B
    "8B": Shape(32, 4096, 14_336, 32, 8, 128_256, tied=False),  # Llama-3.1-8B
}


def random_model(shape: Shape, device: str) -> Any:
    """Return a frozen bfloat16 model with random weights, made on the device."""
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(shape.config())
        finally:
            torch.set_default_dtype(before)
    use_cpu_attention(model)
    return model.requires_grad_(False).eval()


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one word for each token of a model."""
    words = ["<pad>", "<end>", *(f"w{index}" for index in range(vocabulary - 2))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    )


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any]) -> float:
    """Duration of a call, all work on the device included."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def peak_gib(run: Callable[[], Any]) -> float | None:
    """Peak memory of a call on a GPU, in GiB, all that was allocated before included."""
    if not torch.cuda.is_available():
        run()
        return None
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device: bytes per second of a copy, and operations per second."""

    bandwidth: float
    operations: float

    @classmethod
    def measure(cls, device: str) -> Limits:
        size = 2**30 if device != "cpu" else 2**22
        side = 8192 if device != "cpu" else 256
        source = torch.empty(size, dtype=torch.bfloat16, device=device).normal_()
        target = torch.empty_like(source)
        a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))

        def each(run: Callable[[], Any], count: int = 10) -> float:
            run()
            return seconds(lambda: [run() for _ in range(count)]) / count

        return cls(
            2 * 2 * size / each(lambda: target.copy_(source)), 2 * side**3 / each(lambda: a @ b)
        )

    def decoding(self, shape: Shape, weights: int, rows: int, context: int) -> float:
        """Least time of a decoding step: reading weights and cache once, or all products.

        Args:
            shape: Shape of the model.
            weights: Number of its weights that a step multiplies with.
            rows: Rows of the batch.
            context: Tokens of each row in the cache.
        """
        read = (2 * weights + rows * context * shape.cache_bytes) / self.bandwidth
        return max(read, 2 * weights * rows / self.operations)
