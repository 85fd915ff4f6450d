"""Language-model head: logits and token log-probabilities from hidden states.

Full-vocabulary logits exist only in this module. One row for a vocabulary of 49,152 takes 197 kB in
float32. Therefore only the positions whose log-probabilities are needed are projected, in blocks,
and training recomputes each block in the backward pass (activation checkpointing).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from astra_rl.models.memory import logit_bytes

MAX_LOGIT_BYTES = 24 * 2**20
"""Maximum size of one block of logits, in bytes; on CUDA it may be larger.

glibc's allocator reuses blocks below 32 MiB; larger ones are mapped anew each time, which takes
longer than computing them.
"""


def lm_head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return the logits, (N, V) float32, of hidden states (N, H)."""
    # On the CPU, a linear layer with frozen weights is slow for inputs that are not contiguous.
    logits: Tensor = model.get_output_embeddings()(hidden.contiguous()).float()
    config = model.config.get_text_config()
    # Post-processing in the forward pass of some families (Cohere, Granite, Gemma 2).
    if getattr(config, "logit_scale", None) is not None:
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def token_logprobs(model: Any, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of one token at each hidden state.

    Args:
        model: A causal language model.
        hidden: Last hidden states, (N, H).
        tokens: Token ids, (N,), int64.
        temperature: Divisor of the logits, above 0.

    Returns:
        Natural logarithms, (N,), float32, with gradients if `hidden` or the head requires them.
    """
    vocabulary = model.config.get_text_config().vocab_size
    rows = max(1, logit_bytes(hidden.device, MAX_LOGIT_BYTES) // (4 * vocabulary))
    if len(hidden) <= rows:
        return _block_logprobs(model, hidden, tokens, temperature)
    parts = zip(torch.split(hidden, rows), torch.split(tokens, rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_block_logprobs(model, *part, temperature) for part in parts])
    return torch.cat(
        [
            checkpoint(_block_logprobs, model, *part, temperature, use_reentrant=False)
            for part in parts
        ]
    )


def _block_logprobs(model: Any, hidden: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logits = lm_head_logits(model, hidden)
    if temperature != 1:
        logits = logits / temperature
    return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
