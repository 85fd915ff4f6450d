"""Log-probabilities of given continuations, computed without logits of the prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.forward import logprobs_of, preceding_states
from astra_rl.models.generation import MAX_BATCH_ROWS
from astra_rl.models.memory import batch_limits

MAX_SCORING_TOKENS = 16_384
"""Maximum number of tokens of a batch without gradients, padding included; on CUDA more."""


def continuation_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probability of each token of B continuations.

    With autograd enabled, all rows are one batch, whose size is the caller's responsibility. With
    autograd disabled, rows are split into batches of similar length, which are halved on
    out-of-memory errors.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        continuations: Token ids; an empty row is all padding.
        temperature: Divisor of the logits, above 0.

    Returns:
        Natural logarithms, (B, longest continuation), float32, right-padded with zeros.

    Raises:
        ModelError: The model's family is not supported, see `self_check.check_supported`.
    """
    sequences = [
        [*prompt, *continuation]
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    starts = [len(prompt) for prompt in prompts]
    if not sequences:
        return torch.zeros(0, 0, device=model.device)
    if torch.is_grad_enabled():
        return _score_batch(model, sequences, starts, temperature)
    width = max((len(continuation) for continuation in continuations), default=0)
    out = torch.zeros(len(prompts), width, device=model.device)

    def run(rows: Sequence[int]) -> Tensor:
        return _score_batch(
            model, [sequences[row] for row in rows], [starts[row] for row in rows], temperature
        )

    max_rows, max_tokens = batch_limits(model, MAX_BATCH_ROWS, MAX_SCORING_TOKENS)
    batches = token_budget_batches(
        [len(sequence) for sequence in sequences],
        max_tokens=max_tokens,
        max_rows=max_rows,
    )
    for rows, part in in_batches(batches, run, doing="scoring"):
        out[torch.tensor(rows, device=model.device), : part.shape[1]] = part
    return out


def prompt_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]] | None,
) -> list[tuple[float, ...]]:
    """Return log-probabilities of a span of each prompt, for samplers that do not return them.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: Token ids; none may be empty.
        spans: For each prompt, start and end of the scored tokens; start is at least 1 unless the
            span is empty. None scores nothing.

    Returns:
        Natural logarithms of the tokens of each span.
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


def _score_batch(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float,
) -> Tensor:
    hidden = preceding_states(model, sequences, starts)
    return logprobs_of(model, hidden, sequences, starts, temperature)
