"""Log-probabilities of given continuations, without ever making the prompt's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.models.forward import read, suffix_logprobs, token_budget_batches
from astra_rl.models.generation import MAX_BATCH_ROWS

MAX_SCORING_TOKENS = 16_384


def continuation_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    """Score continuations token by token at temperature 1.

    With autograd on, all rows are one graph; how many rows fit is the caller's choice. With
    autograd off, rows are cut into batches of similar length, and those halved where memory is not
    enough.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        continuations: Token ids; may be empty, such a row is all padding.

    Returns:
        Natural log-probabilities, (B, longest continuation), float32, zero where a row has ended.

    Raises:
        ModelError: The model is of a family that cannot be read.
    """
    sequences = [
        [*prompt, *continuation]
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    starts = [len(prompt) for prompt in prompts]
    if not sequences:
        return torch.zeros(0, 0, device=model.device)
    if torch.is_grad_enabled():
        return _score(model, sequences, starts)
    width = max((len(continuation) for continuation in continuations), default=0)
    out = torch.zeros(len(prompts), width, device=model.device)

    def run(rows: Sequence[int]) -> Tensor:
        return _score(model, [sequences[row] for row in rows], [starts[row] for row in rows])

    batches = token_budget_batches(
        [len(sequence) for sequence in sequences],
        max_tokens=MAX_SCORING_TOKENS,
        max_rows=MAX_BATCH_ROWS,
    )
    for rows, part in in_batches(batches, run, doing="scoring"):
        out[torch.tensor(rows, device=model.device), : part.shape[1]] = part
    return out


def prompt_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]] | None,
) -> list[tuple[float, ...]]:
    """Score a part of each prompt, for samplers that do not score while they read.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        spans: For each prompt, the first token to be scored, at least 1 unless there is none, and
            one past the last. None scores nothing.
    """
    if spans is None:
        return [()] * len(prompts)
    wanted = [row for row, (start, stop) in enumerate(spans) if stop > start]
    logprobs = continuation_logprobs(
        model,
        [prompts[row][: spans[row][0]] for row in wanted],
        [prompts[row][slice(*spans[row])] for row in wanted],
    )
    scored = dict(zip(wanted, logprobs.tolist(), strict=True))
    return [
        tuple(scored.get(row, ())[: max(0, stop - start)])
        for row, (start, stop) in enumerate(spans)
    ]


def _score(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Tensor:
    limits = [start - 1 for start in starts]
    # The last token of a sequence predicts nothing that is asked for, so it need not be read.
    heads = [
        sequence[:-1] if len(sequence) > start else sequence
        for sequence, start in zip(sequences, starts, strict=True)
    ]
    reading = read(model, heads, limits)
    return suffix_logprobs(model, reading, sequences, starts)
