"""Text embeddings: mean last hidden states of a causal language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.forward import forward_shared_prefix
from astra_rl.models.generation import MAX_BATCH_ROWS
from astra_rl.models.memory import batch_limits
from astra_rl.models.scoring import MAX_SCORING_TOKENS


@torch.no_grad()
def mean_hidden_states(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean of the last hidden states over the tokens of each of B sequences.

    Args:
        model: A causal language model, in evaluation mode.
        sequences: Token ids; the embedding of an empty row is zero.

    Returns:
        Embeddings, (B, H), float32.

    Raises:
        ModelError: The model's family is not supported, see `self_check.check_supported`.
    """
    width = model.config.get_text_config().hidden_size
    out = torch.zeros(len(sequences), width, device=model.device)
    rows = [row for row, sequence in enumerate(sequences) if sequence]

    def run(batch: Sequence[int]) -> Tensor:
        # No sharing, because the hidden states of all tokens are needed.
        output = forward_shared_prefix(
            model, [sequences[rows[index]] for index in batch], [0] * len(batch)
        )
        mask = output.mask[:, :, None].float()
        return (output.hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)

    max_rows, max_tokens = batch_limits(model, MAX_BATCH_ROWS, MAX_SCORING_TOKENS)
    batches = token_budget_batches(
        [len(sequences[row]) for row in rows],
        max_tokens=max_tokens,
        max_rows=max_rows,
    )
    for batch, means in in_batches(batches, run, doing="embedding texts"):
        chosen = [rows[index] for index in batch]
        out[torch.tensor(chosen, device=model.device)] = means
    return out
