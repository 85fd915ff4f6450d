"""Shared-prefix forward pass of a batch of token sequences, used by sampling and scoring.

Rows with a common prefix (siblings of a tree, questions behind one system prompt) compute it once
per group; its key-value cache is copied to the rows, and only the differing suffixes are computed
per row. Gradients flow through the copy, so training uses the same code.

Segments are padded on the right, padding is always masked, and position ids are always explicit, so
models with absolute (GPT-2) and rotary positions compute each token at its own position. Model
families that cannot run this way, such as recurrent ones, are rejected on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from astra_rl.errors import AstraError, ModelError, first_line
from astra_rl.models.attention import fused_attention
from astra_rl.models.conversation_cache import CachedPrefixes, ConversationCache
from astra_rl.models.kv_cache import preallocated_cache
from astra_rl.models.lm_head import lm_head_logits, token_logprobs
from astra_rl.models.positions import position_limit
from astra_rl.models.prefix_plan import (
    Level,
    distinct_prompts,
    plan_levels,
    plan_levels_after_cache,
)


@dataclass
class ForwardOutput:
    """Result of a shared-prefix forward pass of B sequences.

    Attributes:
        kv_cache: Key-value cache of all rows, prefix and suffix segments, padding included.
        mask: 1 for real, 0 for padded cache positions, (B, prefix + suffix), int64.
        lengths: Number of real tokens per row, (B,), int64.
        suffix_starts: Position in the sequence of each row's first suffix token, (B,), int64.
        hidden: Last hidden states of the suffix segments, (B, S, H).
    """

    kv_cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    suffix_starts: Tensor
    hidden: Tensor


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
    check_supported(model)
    longest = max(map(len, sequences)) + reserve
    _check_positions(model, longest)
    check_windows(model, longest)
    levels = plan_levels(sequences, max_shared)
    window = attention_window(model)
    if window is not None and sum(level.width for level in levels) + reserve > window:
        # A sliding window counts cached positions, including the padding between segments.
        levels = [Level([list(sequence) for sequence in sequences], [0] * len(sequences), None)]
    if prefix_cache is None or window is not None:
        return _forward_levels(model, levels, reserve=reserve)
    prompts, prompt_of = distinct_prompts(sequences, max_shared)
    cached = prefix_cache.lookup(prompts)
    if cached is not None:
        levels = plan_levels_after_cache(cached.rows, cached.lengths, prompts, prompt_of, sequences)
    output = _forward_levels(model, levels, reserve=reserve, cached=cached)
    prefix_cache.store(sequences, output.kv_cache, output.mask)
    return output


def suffix_logprobs(
    model: PreTrainedModel,
    output: ForwardOutput,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> Tensor:
    """Log-probabilities of each row's tokens from position `starts` on.

    Gradients flow if the forward pass was run with them.

    Args:
        model: The model of the forward pass.
        output: Result of `forward_shared_prefix` whose suffixes include position ``start - 1``.
        sequences: Token ids of each row.
        starts: Position of each row's first scored token, at least 1.

    Returns:
        Natural logarithms, (B, longest scored part), float32, right-padded with zeros.
    """
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [column for count in counts for column in range(count)]
    device = output.hidden.device
    row_index = torch.tensor(rows, dtype=torch.long, device=device)
    column_index = torch.tensor(columns, dtype=torch.long, device=device)
    first = torch.tensor(starts, device=device) - 1 - output.suffix_starts
    targets = torch.tensor(
        [
            token
            for sequence, start in zip(sequences, starts, strict=True)
            for token in sequence[start:]
        ],
        dtype=torch.long,
        device=device,
    )
    hidden = output.hidden[row_index, first[row_index] + column_index]
    values = token_logprobs(model, hidden, targets)
    out = values.new_zeros(len(sequences), max(counts, default=0))
    return out.index_put((row_index, column_index), values)


def _check_positions(model: PreTrainedModel, length: int) -> None:
    limit = position_limit(model.config)
    if limit is not None and length > limit:
        raise ModelError(
            f"a text of {length} tokens is longer than the {limit} up to which "
            f"{type(unwrap_peft(model)).__name__} has the same position embeddings: beyond it, "
            "sampled tokens would have other probabilities than scored ones. Use shorter texts, or "
            "another model."
        )


def attention_window(model: PreTrainedModel) -> int | None:
    """Return the smallest sliding attention window of the model's layers, in tokens.

    None if all layers attend to the whole sequence.
    """
    return min(attention_windows(model), default=None)


def attention_windows(model: PreTrainedModel) -> set[int]:
    """Return the sizes of all sliding windows and chunks of the model's layers, in tokens."""
    layers = DynamicCache(config=model.config).layers
    windows = {
        layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)
    }
    if "local" in getattr(model.config, "attention_layers", ()):  # GPT-Neo: not a cache layer type
        windows.add(model.config.window_size)
    return windows


def _forward_levels(
    model: PreTrainedModel,
    levels: Sequence[Level],
    *,
    reserve: int = 0,
    cached: CachedPrefixes | None = None,
) -> ForwardOutput:
    device = model.device
    capacity = reserve + sum(level.width for level in levels)
    if cached is None:
        kv_cache = preallocated_cache(model, capacity)
        mask = torch.zeros(0, 0, dtype=torch.long, device=device)
    else:
        kv_cache, mask = cached.kv_cache(model, capacity), cached.mask
    hidden = torch.empty(0)
    for level in levels:
        if level.parents is not None:
            rows = torch.tensor(level.parents, device=device)
            kv_cache.batch_select_indices(rows.clamp(min=0))
            mask = mask[rows]  # -1 selects the last row of `CachedPrefixes.mask`, which is empty
        ids, segment_mask = pad_right(level.segments, device)
        starts = torch.tensor(level.starts, device=device)
        # Padding could exceed a table of absolute positions, so its position is set to 0.
        positions = (starts[:, None] + torch.arange(ids.shape[1], device=device)) * segment_mask
        mask = segment_mask if level.parents is None else torch.cat([mask, segment_mask], dim=1)
        hidden = hidden_states(model, ids, mask, positions, kv_cache)
    return ForwardOutput(kv_cache, mask, mask.sum(dim=1), starts, hidden)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, longest row), int64; padding has id 0 and mask 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def backbone(model: Any) -> nn.Module:
    """Return a causal language model without its head, adapters included."""
    inner = unwrap_peft(model)
    prefix = inner.base_model_prefix
    # Llama 4 as a text model names a part that only the multimodal model has.
    body: nn.Module = getattr(inner, prefix if hasattr(inner, prefix) else "model")
    return body


def unwrap_peft(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, kv_cache: DynamicCache
) -> Tensor:
    """Run the backbone on one segment and append it to the key-value cache.

    Args:
        model: A causal language model.
        ids: Token ids of the segment, (B, S), int64.
        mask: Mask of the cached positions and the segment, (B, cached + S), int64.
        positions: Position ids of the segment, (B, S), int64.
        kv_cache: Extended in place.

    Returns:
        Last hidden states, (B, S, H).
    """
    output = backbone(model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=kv_cache,
        use_cache=True,
    )
    last: Tensor = output.last_hidden_state
    return last


_supported_models: WeakSet[nn.Module] = WeakSet()

# transformers 5.17 and 5.20 to 5.22 have no DummyLayer: there, layers without a cache of their own
# are not in the cache.
_SUPPORTED_LAYERS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    getattr(cache_utils, "DummyLayer", DynamicLayer),
}


@torch.no_grad()
def check_supported(model: PreTrainedModel) -> None:
    """Check once per model that segmented computation reproduces the model's own logits.

    Families differ in position ids, cache layout and post-processing of logits. For a family that
    this module does not handle, all probabilities would be silently wrong.

    Raises:
        ModelError: The cache layers are not attention layers, the segmented pass fails, or its
            logits differ from those of ``model.forward``.
    """
    inner = unwrap_peft(model)
    if inner in _supported_models or model.training:
        return
    name = type(inner).__name__
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    unknown = kinds - _SUPPORTED_LAYERS
    if unknown:
        names = sorted(kind.__name__ for kind in unknown)
        raise ModelError(
            f"{name} is not supported: its cache layers {names} cannot be shared or padded. Use a "
            "model with attention layers only."
        )
    try:
        segmented, reference = _segmented_and_reference_logits(model)
    except AstraError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} is not supported: it does not run on cached segments with explicit positions "
            f"({first_line(error)})."
        ) from error
    if not torch.isfinite(reference).all():
        return  # sampling reports non-finite weights, with advice
    _compare(model, segmented, reference, "")
    _supported_models.add(inner)


_checked_windows: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


@torch.no_grad()
def check_windows(model: PreTrainedModel, length: int) -> None:
    """Check once per attention window shorter than `length` that sampling across it is exact.

    Tokens are appended to the cache one by one across the window, and compared with the model's own
    forward pass of the whole text. The check is made when a text first exceeds the window, because
    it costs as much as reading a text of this length.

    Raises:
        ModelError: The logits differ.
    """
    inner = unwrap_peft(model)
    checked = _checked_windows.setdefault(inner, set())
    for window in sorted(attention_windows(model) - checked):
        if window >= length or model.training:
            continue
        count = window + 4
        vocabulary = model.config.get_text_config().vocab_size
        whole = torch.tensor([[(7 * index + 3) % vocabulary for index in range(count)]])
        whole = whole.to(model.device)
        start = max(1, window - 2)
        output = _forward_levels(
            model, [Level([whole[0, :start].tolist()], [0], None)], reserve=count - start
        )
        steps = [
            hidden_states(
                model,
                whole[:, index : index + 1],
                torch.ones_like(whole[:, : index + 1]),
                torch.full_like(whole[:, :1], index),
                output.kv_cache,
            )[0]
            for index in range(start, count)
        ]
        with fused_attention(model):
            own = backbone(model)(input_ids=whole, attention_mask=torch.ones_like(whole))
        _compare(
            model,
            lm_head_logits(model, torch.cat(steps)),
            lm_head_logits(model, own.last_hidden_state[0, start:]),
            f" across its attention window of {window} tokens",
        )
        checked.add(window)


def _compare(model: PreTrainedModel, segmented: Tensor, reference: Tensor, where: str) -> None:
    is_exact = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tolerance = (1e-3 if is_exact else 0.1) * float(reference.max() - reference.min())
    if not (gap := float((segmented - reference).abs().max())) <= tolerance:
        raise ModelError(
            f"{type(unwrap_peft(model)).__name__} is not supported: logits computed in "
            f"segments{where} differ from those of its own forward pass by up to {gap:.3g}. Use a "
            "model of another family."
        )


def _segmented_and_reference_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Logits of a few tokens, from ragged segments and from ``model.forward``."""
    vocabulary = model.config.get_text_config().vocab_size
    heads = [[token % vocabulary for token in head] for head in ([1, 2, 3], [4, 5])]
    tails = [[token % vocabulary for token in tail] for tail in ([6], [7, 8], [9])]
    parents = [0, 0, 1]
    output = _forward_levels(model, [Level(heads, [0, 0], None), Level(tails, [3, 3, 2], parents)])
    segmented, reference = [], []
    for tail, parent, hidden in zip(tails, parents, output.hidden, strict=True):
        segmented.append(lm_head_logits(model, hidden[: len(tail)]))
        whole = torch.tensor([heads[parent] + tail], device=model.device)
        with fused_attention(model):
            result = model(input_ids=whole, attention_mask=torch.ones_like(whole))
        reference.append(result.logits[0, -len(tail) :].float())
    return torch.cat(segmented), torch.cat(reference)
