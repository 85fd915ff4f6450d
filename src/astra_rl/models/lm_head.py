"""From hidden states to log-probabilities: the only place where logits of a vocabulary exist.

One row of logits of a vocabulary of 49,152 is 197 kB in float32, a thousand of them more than a
small model. So only wanted positions come here, a few at a time, and training computes the logits
of each few again in the backward pass instead of keeping them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGIT_BYTES = 24 * 2**20
"""Size of the logits that exist at one time.

Blocks below 32 MiB are also what the allocator of glibc hands out again without asking the system
for fresh pages, which costs more than filling them.
"""


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Apply the head to hidden states (N, H); returns float32 logits (N, V)."""
    # On the CPU a frozen head takes a slow batched path for slices that are not contiguous.
    logits: Tensor = model.get_output_embeddings()(hidden.contiguous()).float()
    config = model.config.get_text_config()
    # What some families do to logits in their own forward (Cohere, Granite, Gemma 2).
    if getattr(config, "logit_scale", None) is not None:
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def token_logprobs(model: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token after each hidden state.

    Args:
        model: A causal language model.
        hidden: Last hidden states, (N, H).
        tokens: Token ids, (N,), int64.

    Returns:
        Natural logarithms, (N,), float32, with gradients if `hidden` or the head has some.
    """
    vocabulary = model.config.get_text_config().vocab_size
    rows = max(1, MAX_LOGIT_BYTES // (4 * vocabulary))
    if len(hidden) <= rows:
        return _few_logprobs(model, hidden, tokens)
    parts = zip(torch.split(hidden, rows), torch.split(tokens, rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_few_logprobs(model, *part) for part in parts])
    return torch.cat(
        [checkpoint(_few_logprobs, model, *part, use_reentrant=False) for part in parts]
    )


def _few_logprobs(model: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    logits = logits_of(model, hidden)
    return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
