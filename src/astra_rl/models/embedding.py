"""Texts as vectors, by a language model that is in memory anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.models.forward import read, token_budget_batches
from astra_rl.models.generation import MAX_BATCH_ROWS
from astra_rl.models.scoring import MAX_SCORING_TOKENS


@torch.no_grad()
def mean_hidden_states(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean of the last hidden states over the tokens of each sequence.

    Args:
        model: A causal language model, in evaluation mode.
        sequences: Token ids; a row without any becomes all zero.

    Returns:
        Vectors, (B, H), float32.

    Raises:
        ModelError: The model is of a family that cannot be read.
    """
    width = model.config.get_text_config().hidden_size
    out = torch.zeros(len(sequences), width, device=model.device)
    rows = [row for row, sequence in enumerate(sequences) if sequence]

    def run(batch: Sequence[int]) -> Tensor:
        # Nothing may be shared: every token's state is wanted.
        reading = read(model, [sequences[rows[index]] for index in batch], [0] * len(batch))
        mask = reading.mask[:, :, None].float()
        return (reading.hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)

    batches = token_budget_batches(
        [len(sequences[row]) for row in rows],
        max_tokens=MAX_SCORING_TOKENS,
        max_rows=MAX_BATCH_ROWS,
    )
    for batch, means in in_batches(batches, run, doing="embedding texts"):
        chosen = [rows[index] for index in batch]
        out[torch.tensor(chosen, device=model.device)] = means
    return out
