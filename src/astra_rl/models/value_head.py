"""Value head: estimates of returns from the hidden states of a language model."""

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
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.forward import flat_index, preceding_states
from astra_rl.models.generation import MAX_BATCH_ROWS
from astra_rl.models.memory import batch_limits
from astra_rl.models.scoring import MAX_SCORING_TOKENS

FILE_NAME = "value_head.safetensors"
"""File of the value head's weights in the folder of its model."""


class ValueHead(nn.Module):
    """Two-layer perceptron on hidden states, in float32. Its initial estimates are zero.

    Args:
        hidden_size: Size of the hidden states.
        count: Number of estimated returns, K.
        seed: Seed of the initial weights.
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
        """Number of estimated returns, K."""
        return self.outer.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        """Return estimates, (..., K) float32, from hidden states (..., hidden_size)."""
        estimates: Tensor = self.outer(torch.tanh(self.inner(hidden.float())))
        return estimates

    def save(self, folder: Path) -> None:
        """Write the weights into a folder, in safetensors format."""
        save_file(self.state_dict(), folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Load the weights from a folder.

        Raises:
            ModelError: The file cannot be read, or its hidden size or number of returns differs.
        """
        try:
            self.load_state_dict(load_file(folder / FILE_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder / FILE_NAME} does not fit a value head with hidden size "
                f"{self.inner.in_features} and {self.count} returns. Delete the file to start with "
                "a newly initialised value head."
            ) from error


def preceding_hidden_states(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    """Return the hidden state from which each token of B continuations is predicted.

    With autograd enabled, all rows are one batch; otherwise rows are split into batches of similar
    length.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        continuations: Token ids; may be empty.

    Returns:
        (B, longest continuation, hidden size), float32, right-padded with zeros.

    Raises:
        ModelError: The model's family is not supported, see `self_check.check_supported`.
    """
    width = max((len(ids) for ids in continuations), default=0)
    out = torch.zeros(
        len(prompts), width, model.config.get_text_config().hidden_size, device=model.device
    )
    lengths = [len(a) + len(b) for a, b in zip(prompts, continuations, strict=True)]

    def run(rows: Sequence[int]) -> Tensor:
        sequences = [[*prompts[row], *continuations[row]] for row in rows]
        return preceding_states(model, sequences, [len(prompts[row]) for row in rows])

    outputs: Iterable[tuple[Sequence[int], Tensor]]
    if torch.is_grad_enabled():
        every = range(len(prompts))
        outputs = [(every, run(every))] if prompts else []
    else:
        max_rows, max_tokens = batch_limits(model, MAX_BATCH_ROWS, MAX_SCORING_TOKENS)
        batches = token_budget_batches(
            lengths,
            max_tokens=max_tokens,
            max_rows=max_rows,
        )
        outputs = in_batches(batches, run, doing="estimating values")
    for rows, hidden in outputs:
        index, column = flat_index([len(continuations[row]) for row in rows], model.device)
        row_of = torch.tensor(list(rows), dtype=torch.long, device=model.device)
        out[row_of[index], column] = hidden.to(out.dtype)
    return out
