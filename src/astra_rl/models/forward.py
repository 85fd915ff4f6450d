"""One way to read a batch of token sequences, shared by sampling and scoring.

Rows that begin alike (siblings of a tree, questions behind one system prompt) share that beginning:
it is read once per group, its key-value cache is copied to the rows, and only what differs is read
per row. Gradients flow through the copy, so the same code serves training.

Padding is always on the right of a segment and always masked, and positions are always explicit:
models with absolute positions (GPT-2) and rotary ones see every token where it belongs. Models that
cannot be read this way, such as recurrent ones, are refused when they are first read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from astra_rl.errors import AstraError, ModelError
from astra_rl.models.attention import fused_attention
from astra_rl.models.conversation_cache import ConversationCache, Recalled
from astra_rl.models.kv_cache import roomy_cache
from astra_rl.models.lm_head import logits_of, token_logprobs
from astra_rl.models.loading import first_line

MIN_SHARED_TOKENS = 8
"""A shared beginning shorter than this costs more to handle than to read again."""


@dataclass(frozen=True)
class PrefixGroup:
    """Rows that begin with the same `length` tokens."""

    length: int
    rows: tuple[int, ...]


def shared_prefix_groups(
    sequences: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[PrefixGroup]:
    """Group rows by a common beginning.

    Greedy over the sorted sequences: a row joins the group before it if they still share at least
    `MIN_SHARED_TOKENS` and half of what the group shared so far.

    Args:
        sequences: Token ids of each row.
        limits: The most tokens of each row that may be shared.
    """
    order = sorted(range(len(sequences)), key=lambda row: tuple(sequences[row]))
    groups: list[PrefixGroup] = []
    for row in order:
        if groups:
            last = groups[-1]
            first = sequences[last.rows[0]]
            common = _common_length(first, sequences[row], min(last.length, limits[row]))
            if common >= max(MIN_SHARED_TOKENS, last.length / 2):
                groups[-1] = PrefixGroup(common, (*last.rows, row))
                continue
        groups.append(PrefixGroup(limits[row], (row,)))
    return groups


def _common_length(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    for index in range(limit):
        if a[index] != b[index]:
            return index
    return limit


@dataclass
class Reading:
    """What a model knows after it has read a batch of sequences.

    Attributes:
        cache: Key-value cache of all rows, prefix and suffix segments, padding included.
        mask: Which cached positions are real, (B, prefix + suffix), int64.
        lengths: Number of real tokens per row, (B,), int64.
        suffix_starts: Index in the sequence of each row's first token of the suffix segment.
        hidden: Last hidden states of the suffix segment, (B, S, H).
    """

    cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    suffix_starts: Tensor
    hidden: Tensor


def read(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    room: int = 0,
    memory: ConversationCache | None = None,
) -> Reading:
    """Read token sequences, each shared beginning once.

    Args:
        model: A causal language model, in evaluation mode.
        sequences: Token ids of each row; none may be empty.
        limits: For each row how many leading tokens may be shared, less than its length. Hidden
            states are returned from there on at the latest.
        room: Tokens that each row will be continued by.
        memory: What the model has read before, and where this is remembered; without gradients.

    Raises:
        ModelError: The model is of a family that cannot be read in segments.
    """
    check_family(model)
    levels = _levels(sequences, limits)
    window = attention_window(model)
    if window is not None and sum(level.width for level in levels) + room > window:
        # Layers that look back on a window count what is cached, padding between segments too.
        levels = [_Level([list(sequence) for sequence in sequences], [0] * len(sequences), None)]
    if memory is None or window is not None:
        return _read_levels(model, levels, room=room)
    prompts, prompt_of = _distinct(sequences, limits)
    recalled = memory.recall(prompts)
    if recalled is not None:
        levels = _levels_after(recalled, prompts, prompt_of, sequences)
    reading = _read_levels(model, levels, room=room, recalled=recalled)
    memory.remember(sequences, reading.cache, reading.mask)
    return reading


def suffix_logprobs(
    model: PreTrainedModel,
    reading: Reading,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> Tensor:
    """Log-probability of each row's tokens from `starts` on, padded with zeros to (B, T), float32.

    Gradients flow if the reading was done with them.
    """
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [column for count in counts for column in range(count)]
    device = reading.hidden.device
    row_index = torch.tensor(rows, dtype=torch.long, device=device)
    column_index = torch.tensor(columns, dtype=torch.long, device=device)
    first = torch.tensor(starts, device=device) - 1 - reading.suffix_starts
    targets = torch.tensor(
        [
            token
            for sequence, start in zip(sequences, starts, strict=True)
            for token in sequence[start:]
        ],
        dtype=torch.long,
        device=device,
    )
    hidden = reading.hidden[row_index, first[row_index] + column_index]
    values = token_logprobs(model, hidden, targets)
    out = values.new_zeros(len(sequences), max(counts, default=0))
    return out.index_put((row_index, column_index), values)


def attention_window(model: PreTrainedModel) -> int | None:
    """Return how far back the model's narrowest layer looks; None if all layers see everything."""
    layers = DynamicCache(config=model.config).layers
    windows = [
        layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)
    ]
    if "local" in getattr(model.config, "attention_layers", ()):  # GPT-Neo, before there was a name
        windows.append(model.config.window_size)
    return min(windows, default=None)


def _read_levels(
    model: PreTrainedModel,
    levels: Sequence[_Level],
    *,
    room: int = 0,
    recalled: Recalled | None = None,
) -> Reading:
    device = model.device
    room += sum(level.width for level in levels)
    cache = roomy_cache(model, room) if recalled is None else recalled.cache(model, room)
    mask = torch.zeros(0, 0, dtype=torch.long, device=device)
    if recalled is not None:
        mask = recalled.mask
    hidden = torch.empty(0)
    for level in levels:
        if level.parents is not None:
            rows = torch.tensor(level.parents, device=device)
            cache.batch_select_indices(rows.clamp(min=0))
            mask = mask[rows]  # -1 is the last row of what was recalled: nothing
        ids, segment_mask = pad_right(level.segments, device)
        starts = torch.tensor(level.starts, device=device)
        # Padding may lie beyond the table of a model with absolute positions; any index will do.
        positions = (starts[:, None] + torch.arange(ids.shape[1], device=device)) * segment_mask
        mask = segment_mask if level.parents is None else torch.cat([mask, segment_mask], dim=1)
        hidden = hidden_states(model, ids, mask, positions, cache)
    return Reading(cache, mask, mask.sum(dim=1), starts, hidden)


@dataclass(frozen=True)
class _Level:
    """Segments that are read together, each after the segment of its parent in the level before."""

    segments: list[list[int]]
    starts: list[int]
    parents: list[int] | None

    @property
    def width(self) -> int:
        """What the level adds to the cache, padding included."""
        return max(map(len, self.segments))


def _levels(sequences: Sequence[Sequence[int]], limits: Sequence[int]) -> list[_Level]:
    """Plan the reading: what groups of prompts share, what each prompt is, what each row adds.

    A level that nothing is gained by is left out; without any sharing one level remains.
    """
    prompts, prompt_of = _distinct(sequences, limits)
    if len(prompts) == len(sequences) or min(map(len, prompts)) < MIN_SHARED_TOKENS:
        prompts = []
    # Prompts, or rows, that begin alike, for instance with the same instructions.
    units: Sequence[Sequence[int]] = prompts or sequences
    unit_limits = [len(prompt) for prompt in prompts] if prompts else limits
    groups = shared_prefix_groups(units, unit_limits)
    if len(groups) == len(units) or min(group.length for group in groups) < MIN_SHARED_TOKENS:
        groups = []

    levels: list[_Level] = []
    reached = [0] * len(units)
    parents: list[int] | None = None
    if groups:
        levels.append(
            _Level(
                [list(units[group.rows[0]][: group.length]) for group in groups],
                [0] * len(groups),
                None,
            )
        )
        parents = [0] * len(units)
        for index, group in enumerate(groups):
            for unit in group.rows:
                reached[unit], parents[unit] = group.length, index
    levels.append(
        _Level(
            [list(unit[start:]) for unit, start in zip(units, reached, strict=True)],
            reached,
            parents,
        )
    )
    if prompts:
        levels.append(_tails(sequences, prompts, prompt_of, prompt_of))
    return levels


def _distinct(
    sequences: Sequence[Sequence[int]], limits: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the different beginnings, for instance of siblings of a tree, and whose is which."""
    index_of: dict[tuple[int, ...], int] = {}
    prompt_of = [
        index_of.setdefault(tuple(sequence[:limit]), len(index_of))
        for sequence, limit in zip(sequences, limits, strict=True)
    ]
    return list(index_of), prompt_of


def _levels_after(
    recalled: Recalled,
    prompts: Sequence[tuple[int, ...]],
    prompt_of: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> list[_Level]:
    """Plan the reading of what comes after texts that were read before."""
    new = _Level(
        [list(prompt[known:]) for prompt, known in zip(prompts, recalled.lengths, strict=True)],
        recalled.lengths,
        recalled.rows,
    )
    if new.width == 0:
        parents = [recalled.rows[index] for index in prompt_of]
        return [_tails(sequences, prompts, prompt_of, parents)]
    return [new, _tails(sequences, prompts, prompt_of, prompt_of)]


def _tails(
    sequences: Sequence[Sequence[int]],
    prompts: Sequence[tuple[int, ...]],
    prompt_of: Sequence[int],
    parents: Sequence[int],
) -> _Level:
    """Plan the reading of what each row adds to its prompt."""
    starts = [len(prompts[index]) for index in prompt_of]
    tails = [list(sequence[start:]) for sequence, start in zip(sequences, starts, strict=True)]
    return _Level(tails, starts, list(parents))


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, longest row), int64; padding is id 0, mask 0."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def backbone(model: Any) -> nn.Module:
    """Return the part of a causal language model below its head, adapters included."""
    inner = base_of(model)
    body: nn.Module = getattr(inner, inner.base_model_prefix)
    return body


def base_of(model: Any) -> Any:
    """Return the model itself, without what peft wraps around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    """Run the backbone on one segment and append it to `cache`; returns (B, S, H)."""
    output = backbone(model)(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    last: Tensor = output.last_hidden_state
    return last


_readable: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def check_family(model: PreTrainedModel) -> None:
    """Check, once per model, that reading in segments gives the logits that the model itself gives.

    Families differ in how they count positions, what they cache and what they do to their logits;
    with one that this module does not know, every probability would be wrong without a sign of it.

    Raises:
        ModelError: It does not.
    """
    inner = base_of(model)
    if inner in _readable or model.training:
        return
    name = type(inner).__name__
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    unknown = kinds - {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
    if unknown:
        names = sorted(kind.__name__ for kind in unknown)
        raise ModelError(
            f"{name} cannot be used: it keeps its past in {names}, which cannot be shared or "
            "padded. Use a model with attention layers only."
        )
    try:
        ours, theirs = _logits_both_ways(model)
    except AstraError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} cannot be used: it does not run on cached segments with explicit positions "
            f"({first_line(error)})."
        ) from error
    if not torch.isfinite(theirs).all():
        return  # broken weights are told from sampling, with what to do about them
    is_exact = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tolerance = (1e-3 if is_exact else 0.1) * float(theirs.max() - theirs.min())
    if not (off := float((ours - theirs).abs().max())) <= tolerance:
        raise ModelError(
            f"{name} cannot be used: read in segments, its logits are off by up to {off:.3g}. "
            "Its family does something that this version does not know."
        )
    _readable.add(inner)


def _logits_both_ways(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Logits of a few tokens, read in ragged segments and by the model's own forward."""
    vocabulary = model.config.get_text_config().vocab_size
    heads = [[token % vocabulary for token in head] for head in ([1, 2, 3], [4, 5])]
    tails = [[token % vocabulary for token in tail] for tail in ([6], [7, 8], [9])]
    parents = [0, 0, 1]
    reading = _read_levels(model, [_Level(heads, [0, 0], None), _Level(tails, [3, 3, 2], parents)])
    ours, theirs = [], []
    for tail, parent, hidden in zip(tails, parents, reading.hidden, strict=True):
        ours.append(logits_of(model, hidden[: len(tail)]))
        whole = torch.tensor([heads[parent] + tail], device=model.device)
        with fused_attention(model):
            output = model(input_ids=whole, attention_mask=torch.ones_like(whole))
        theirs.append(output.logits[0, -len(tail) :].float())
    return torch.cat(ours), torch.cat(theirs)


def token_budget_batches(
    lengths: Sequence[int], *, max_tokens: int, max_rows: int
) -> Iterator[list[int]]:
    """Cut rows into batches of similar length, at most `max_tokens` padded tokens each.

    Yields indices into `lengths`. A row longer than `max_tokens` forms a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in order:
        # Sorted downwards, so the first row of a batch is its widest.
        full = batch and (
            len(batch) >= max_rows or lengths[batch[0]] * (len(batch) + 1) > max_tokens
        )
        if full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
