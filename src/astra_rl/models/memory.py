"""Sizes of batches and blocks by the memory of a device.

They depend on the total memory of a device, not on what is free, so that a resumed run has the
batches of the run that it continues.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from astra_rl.core.device_memory import machine_bytes, total_bytes

BATCH_SHARE = 4
"""A batch without gradients may take a fourth of the memory; models take most of the rest."""

LOGITS_SHARE = 128
"""A block of logits may take this part of it; several copies are made."""

BACKWARD_SHARES = {"cuda": 4, "cpu": 8}
"""The activations of a backward pass may take this part of it, by type of device; other processes
use the memory of a machine too."""
LEAST_BACKWARD_TOKENS = 512
"""At least this number of tokens, below which a matrix product loses speed."""

COPIES_OF_LOGITS = 5
"""Tensors of the size of a row's logits that sampling makes, in float32."""


def batch_limits(model: PreTrainedModel, rows: int, tokens: int) -> tuple[int, int]:
    """Return the largest numbers of rows and of tokens of a batch without gradients.

    Args:
        model: A causal language model.
        rows: Rows of a batch where the memory of the device is not known, and at least anywhere.
        tokens: The same for tokens.
    """
    memory = total_bytes(model.device)
    if memory is None:
        return rows, tokens
    share = memory // BATCH_SHARE
    config = model.config.get_text_config()
    of_row = 4 * COPIES_OF_LOGITS * config.vocab_size
    # Logits may take an eighth of the share, so that rows of short texts do not fill it.
    return (
        max(rows, share // 8 // of_row),
        max(tokens, share // token_bytes(config, model.dtype.itemsize)),
    )


def token_bytes(config: Any, itemsize: int) -> int:
    """Return the memory of a token in a forward pass without gradients, in bytes.

    Its keys and values in all layers, and the activations of one layer.

    Args:
        config: Configuration of a text model.
        itemsize: Bytes of a number.
    """
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    cache = 2 * config.num_hidden_layers * key_heads * size
    return int(itemsize * (cache + 8 * config.hidden_size + 3 * inner))


def logit_bytes(device: torch.device, least: int) -> int:
    """Return the largest size of a block of logits, in bytes.

    Args:
        device: The device.
        least: The size where the memory of the device is not known, and at least anywhere.
    """
    memory = total_bytes(device)
    return least if memory is None else max(least, memory // LOGITS_SHARE)


def backward_tokens(model: PreTrainedModel) -> int:
    """Return the most tokens of a forward pass with gradients, by the memory of the device.

    Args:
        model: A causal language model.
    """
    share = BACKWARD_SHARES.get(model.device.type, 8)
    memory = total_bytes(model.device)
    if memory is None:
        memory = machine_bytes()
    return max(LEAST_BACKWARD_TOKENS, memory // share // activation_bytes(model.config))


def activation_bytes(config: Any, *, recomputed: bool = False) -> int:
    """Return the memory that a token takes from its forward pass to the backward pass, in bytes.

    An estimate, for all weights or LoRA adapters: in each layer 8 vectors of the hidden size and 3
    of the size of the feed-forward layer, with four bytes a number, also in half precision, where
    attention weights are kept. Measured for SmolLM2-135M with contexts of 96 to 400 tokens: 0.7 MB
    in float32, 0.7 to 1.2 MB in bfloat16; the estimate is 1.1 MB.

    Args:
        config: Configuration of a model.
        recomputed: Whether layers are recomputed, so that all but one keep their input only.
    """
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = 8 * text.hidden_size + 3 * inner
    layers = text.num_hidden_layers
    numbers = layer + layers * text.hidden_size if recomputed else layer * layers
    return int(4 * numbers)
