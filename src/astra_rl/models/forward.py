"""Forward passes of a batch of token sequences that compute a common prefix once.

Rows with a common prefix (siblings of a tree, questions behind one system prompt) compute it once
per group; its key-value cache is copied to the rows, and only the differing suffixes are computed
per row. Gradients flow through the copy. Sampling continues rows (`forward_shared_prefix`); scoring
and training need states of any position, so rows may be branches of a tree (`preceding_states`).

Model families that cannot run this way, such as recurrent ones, are rejected on first use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.token_limit import count_tokens
from astra_rl.errors import ModelError
from astra_rl.models.activations import lean_activations
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.kv_cache import repeated
from astra_rl.models.lm_head import token_logprobs
from astra_rl.models.memory import backward_tokens
from astra_rl.models.positions import attention_window, position_limit
from astra_rl.models.prefix_plan import (
    Level,
    distinct_prompts,
    plan_alone,
    plan_levels,
    plan_levels_after_cache,
    plan_tree,
)
from astra_rl.models.segments import ForwardOutput, forward_levels, unwrap_peft
from astra_rl.models.self_check import check_boundaries, check_supported


def forward_shared_prefix(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    max_shared: Sequence[int],
    *,
    reserve: int = 0,
    prefix_cache: ConversationCache | None = None,
) -> ForwardOutput:
    """Run the backbone on token sequences and compute each shared prefix once.

    Args:
        model: A causal language model, in evaluation mode.
        sequences: Token ids of each row; none may be empty.
        max_shared: Maximum number of leading tokens of each row that may be shared, less than its
            length. Hidden states are returned from this position on, or from an earlier one.
        reserve: Number of tokens by which each row will be continued; the cache is allocated for
            them.
        prefix_cache: Key-value cache of earlier calls. It is read and updated; only for calls
            without gradients.

    Raises:
        ModelError: The model's family does not support this forward pass, or a row is longer than
            the limit of its position embeddings.
    """
    _check(model, max(map(len, sequences)) + reserve)
    levels = plan_levels(sequences, max_shared)
    window = attention_window(model)
    if window is not None and sum(level.width for level in levels) + reserve > window:
        # A window counts cached positions, including the padding between segments.
        levels = [Level([list(sequence) for sequence in sequences], [0] * len(sequences), None)]
    if prefix_cache is None or window is not None:
        return forward_levels(model, levels, reserve=reserve)
    prompts, prompt_of = distinct_prompts(sequences, max_shared)
    cached = prefix_cache.lookup(prompts)
    if cached is not None:
        levels = plan_levels_after_cache(cached.rows, cached.lengths, prompts, prompt_of, sequences)
    output = forward_levels(model, levels, reserve=reserve, cached=cached)
    prefix_cache.store(sequences, output.kv_cache, output.mask)
    return output


def preceding_states(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Tensor:
    """Return the hidden states from which the ends of rows are predicted.

    What rows share is computed once. Gradients flow if they are enabled.

    Args:
        model: A causal language model, in evaluation mode.
        sequences: Token ids of each row; none may be empty.
        starts: Position of the first predicted token of each row, at least 1; its length for none.

    Returns:
        One state per predicted token, one row after the other, (tokens, H).

    Raises:
        ModelError: See `forward_shared_prefix`.
        TooManyTokens: See `astra_rl.core.token_limit`.
    """
    # The last token predicts none of its row, so it is left out.
    heads = [
        sequence[: max(start, len(sequence) - 1)]
        for sequence, start in zip(sequences, starts, strict=True)
    ]
    _check(model, max(map(len, heads)))
    tree = plan_tree(heads)
    window = attention_window(model)
    if window is not None and sum(level.width for level in tree.levels) > window:
        tree = plan_alone(heads)
    count_tokens(tree.tokens, lambda: backward_tokens(model))
    with lean_activations():
        states = forward_levels(model, tree.levels).states
    places = [
        place
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True))
        for place in tree.places(row, start - 1, len(sequence) - 1)
    ]
    index = torch.tensor(places, dtype=torch.long, device=model.device)
    return repeated(torch.cat([each.flatten(0, 1) for each in states]), index)


def suffix_logprobs(
    model: PreTrainedModel,
    output: ForwardOutput,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> Tensor:
    """Log-probabilities of each row's tokens from position `starts` on.

    Args:
        model: The model of the forward pass.
        output: Result of `forward_shared_prefix` whose suffixes include position ``start - 1``.
        sequences: Token ids of each row.
        starts: Position of each row's first scored token, at least 1.

    Returns:
        Natural logarithms, (B, longest scored part), float32, right-padded with zeros.
    """
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    device = output.hidden.device
    row_index, column_index = flat_index(counts, device)
    first = torch.tensor(starts, device=device) - 1 - output.suffix_starts
    hidden = output.hidden[row_index, first[row_index] + column_index]
    return logprobs_of(model, hidden, sequences, starts)


def logprobs_of(
    model: PreTrainedModel,
    hidden: Tensor,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float = 1.0,
) -> Tensor:
    """Log-probabilities of each row's tokens from position `starts` on.

    Gradients flow if the forward pass was run with them.

    Args:
        model: The model of the forward pass.
        hidden: States from which these tokens are predicted, one row after the other, (tokens, H).
        sequences: Token ids of each row.
        starts: Position of each row's first scored token, at least 1.
        temperature: Divisor of the logits, above 0.

    Returns:
        Natural logarithms, (B, longest scored part), float32, right-padded with zeros.
    """
    scored = [sequence[start:] for sequence, start in zip(sequences, starts, strict=True)]
    counts = list(map(len, scored))
    targets = torch.tensor(
        [token for tokens in scored for token in tokens], dtype=torch.long, device=hidden.device
    )
    values = token_logprobs(model, hidden, targets, temperature)
    out = values.new_zeros(len(sequences), max(counts, default=0))
    return out.index_put(flat_index(counts, hidden.device), values)


def flat_index(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column of each entry of rows with these numbers of entries, int64."""
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [column for count in counts for column in range(count)]
    return (
        torch.tensor(rows, dtype=torch.long, device=device),
        torch.tensor(columns, dtype=torch.long, device=device),
    )


def _check(model: PreTrainedModel, length: int) -> None:
    """Raise unless texts of this length can be read in segments."""
    check_supported(model)
    _check_positions(model, length)
    check_boundaries(model, length)


def _check_positions(model: PreTrainedModel, length: int) -> None:
    limit = position_limit(model.config)
    if limit is not None and length > limit:
        raise ModelError(
            f"a text of {length} tokens is longer than the {limit} up to which "
            f"{type(unwrap_peft(model)).__name__} has the same position embeddings: beyond it, "
            "sampled tokens would have other probabilities than scored ones. Use shorter texts, or "
            "another model."
        )
