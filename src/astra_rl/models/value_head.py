"""A value function: returns estimated from the hidden states of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.errors import ModelError
from astra_rl.models.forward import Reading, read, token_budget_batches
from astra_rl.models.generation import MAX_BATCH_ROWS
from astra_rl.models.scoring import MAX_SCORING_TOKENS

FILE_NAME = "value_head.safetensors"
"""Where the weights of a value head are, in the folder of its model."""


class ValueHead(nn.Module):
    """Two layers on top of hidden states; float32. It begins by estimating zero everywhere.

    Args:
        hidden_size: Width of the hidden states.
        count: How many returns are estimated.
        seed: Of the first weights.
    """

    def __init__(self, hidden_size: int, count: int = 1, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(hidden_size, hidden_size)
            self.outer = nn.Linear(hidden_size, count)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    @property
    def count(self) -> int:
        """How many returns are estimated."""
        return self.outer.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        """Estimate the returns, (..., count), from hidden states (..., hidden_size)."""
        estimates: Tensor = self.outer(torch.tanh(self.inner(hidden.float())))
        return estimates

    def save(self, folder: Path) -> None:
        """Write the weights into a folder, as safetensors."""
        save_file(self.state_dict(), folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Read the weights from a folder.

        Raises:
            ModelError: They are those of another model, or of another number of returns.
        """
        try:
            self.load_state_dict(load_file(folder / FILE_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder / FILE_NAME} does not fit a model of hidden size "
                f"{self.inner.in_features} whose {self.count} returns are estimated. Delete the "
                "file to begin with a fresh value head."
            ) from error


def predictor_states(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    """Return the hidden state before each token of the continuations, that which predicts it.

    With autograd on, all rows are one graph; with autograd off, rows are cut into batches of
    similar length.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        continuations: Token ids; may be empty.

    Returns:
        (B, longest continuation, hidden size), zero where a row has ended.

    Raises:
        ModelError: The model is of a family that cannot be read.
    """
    width = max((len(ids) for ids in continuations), default=0)
    out = torch.zeros(
        len(prompts), width, model.config.get_text_config().hidden_size, device=model.device
    )
    lengths = [len(a) + len(b) for a, b in zip(prompts, continuations, strict=True)]

    def run(rows: Sequence[int]) -> Reading:
        # The last token of a sequence is predicted, and predicts nothing that is asked for.
        heads = [[*prompts[row], *continuations[row][:-1]] for row in rows]
        return read(model, heads, [len(prompts[row]) - 1 for row in rows])

    readings: Iterable[tuple[Sequence[int], Reading]]
    if torch.is_grad_enabled():
        every = range(len(prompts))
        readings = [(every, run(every))] if prompts else []
    else:
        batches = token_budget_batches(
            lengths, max_tokens=MAX_SCORING_TOKENS, max_rows=MAX_BATCH_ROWS
        )
        readings = in_batches(batches, run, doing="estimating values")
    for rows, reading in readings:
        for index, row in enumerate(rows):
            count = len(continuations[row])
            start = len(prompts[row]) - 1 - int(reading.suffix_starts[index])
            out[row, :count] = reading.hidden[index, start : start + count].to(out.dtype)
    return out
