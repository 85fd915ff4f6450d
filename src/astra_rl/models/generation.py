"""Sampling: token ids in, token ids and log-probabilities out.

Why not `generate` of transformers: it samples every row from one generator, so a row's text depends
on what else is in the batch; it reads a shared beginning once per row; it keeps decoding rows that
have finished; and it returns logits of the whole vocabulary where one number per token is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.text import FinishReason
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.forward import (
    Reading,
    attention_window,
    hidden_states,
    read,
    suffix_logprobs,
    token_budget_batches,
)
from astra_rl.models.lm_head import logits_of

MAX_BATCH_ROWS = 128
MAX_BATCH_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: At most this many tokens, the end token included.
        temperature: Divides the logits; 0 takes the likeliest token. On-policy algorithms need 1.
        top_k: Keep only the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with at least this probability; 1 keeps all.

    Raises:
        ConfigurationError: A value is out of range.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigurationError(
                f"max_new_tokens={self.max_new_tokens}; it must be at least 1."
            )
        # Below, logits overflow when divided.
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"temperature={self.temperature}; it must be 0 (greedy) or at least 1e-6."
            )
        if self.top_k < 0:
            raise ConfigurationError(f"top_k={self.top_k}; it must be 0 (off) or positive.")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p={self.top_p}; it must be in (0, 1].")

    @property
    def is_exact(self) -> bool:
        """Whether tokens come from the model's own distribution, as on-policy learning needs."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1


@dataclass(frozen=True)
class Sample:
    """One sampled continuation.

    Attributes:
        token_ids: The sampled tokens, the end token included.
        logprobs: Log-probability of each under the distribution it was sampled from.
        finish_reason: ``"stop"`` after an end token, ``"length"`` otherwise.
        prompt_logprobs: Log-probability at temperature 1 of those of the prompt's tokens that
            were asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_logprobs: tuple[float, ...] = ()


class Sampler(Protocol):
    """What samples continuations: `generate`, or another function with its arguments."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score: Sequence[tuple[int, int]] | None = None,
        memory: ConversationCache | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    stop_ids: frozenset[int],
    score: Sequence[tuple[int, int]] | None = None,
    memory: ConversationCache | None = None,
) -> list[Sample]:
    """Sample one continuation per prompt.

    Each row draws from a generator of its own, so its text depends on its prompt, its seed and the
    weights, not on the rest of the batch (exactly in float32, but for ties within rounding; in
    bfloat16 the rounding of a matrix product depends on the shape of the batch).

    Args:
        model: A causal language model.
        prompts: Token ids; none may be empty.
        sampling: How tokens are chosen.
        seeds: One per prompt.
        stop_ids: A row ends with any of these tokens.
        score: For each prompt, which of its own tokens are scored while it is read: the index of
            the first, at least 1, and one past the last. None scores nothing.
        memory: What the model has read before, and where this is remembered.

    Returns:
        One sample per prompt, in order.

    Raises:
        ModelError: The model's logits are not finite, or it is of a family that cannot be read.
        OutOfMemoryError: Memory is not enough for a single row; before that, batches are halved.
    """
    if sampling.temperature == 0:
        same = _first_of_same(prompts, score)
        if len(set(same)) < len(prompts):  # the likeliest text is the same each time
            distinct = sorted(set(same))
            samples = generate(
                model,
                [prompts[row] for row in distinct],
                sampling,
                [seeds[row] for row in distinct],
                stop_ids=stop_ids,
                score=None if score is None else [score[row] for row in distinct],
                memory=memory,
            )
            by_row = dict(zip(distinct, samples, strict=True))
            return [by_row[row] for row in same]
    results: list[Sample | None] = [None] * len(prompts)
    lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]

    def run(rows: Sequence[int]) -> list[Sample]:
        return _generate_batch(
            model,
            [prompts[row] for row in rows],
            sampling,
            [seeds[row] for row in rows],
            stop_ids,
            None if score is None else [score[row] for row in rows],
            memory,
        )

    forget = memory.forget if memory is not None else lambda: None
    batches = _batches(model, lengths)
    for rows, batch in in_batches(batches, run, doing="sampling", release=forget):
        for row, sample in zip(rows, batch, strict=True):
            results[row] = sample
    return [result for result in results if result is not None]


def _first_of_same(
    prompts: Sequence[Sequence[int]], score: Sequence[tuple[int, int]] | None
) -> list[int]:
    """For each row, the first row with the same prompt of which the same is asked."""
    first: dict[tuple[object, ...], int] = {}
    keys = [(tuple(prompt), score[row] if score else None) for row, prompt in enumerate(prompts)]
    return [first.setdefault(key, row) for row, key in enumerate(keys)]


def _batches(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[list[int]]:
    window = attention_window(model)
    for rows in token_budget_batches(lengths, max_tokens=MAX_BATCH_TOKENS, max_rows=MAX_BATCH_ROWS):
        if window is None or lengths[rows[0]] <= window:
            yield rows
        else:
            # Past the window, layers would count padding between prompt and answer: have none.
            for _, alike in groupby(rows, key=lambda row: lengths[row]):
                yield list(alike)


def _generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: frozenset[int],
    score: Sequence[tuple[int, int]] | None,
    memory: ConversationCache | None,
) -> list[Sample]:
    device = model.device
    limits = [len(prompt) - 1 for prompt in prompts]
    if score is not None:
        # The token before the first scored one predicts it, so it must be in the suffix.
        limits = [min(limit, start - 1) for limit, (start, _) in zip(limits, score, strict=True)]
    reading = read(model, prompts, limits, room=sampling.max_new_tokens, memory=memory)
    scores = _prompt_logprobs(model, reading, prompts, score)
    last = reading.lengths - reading.suffix_starts - 1
    hidden = reading.hidden[torch.arange(len(prompts), device=device), last]
    uniforms = _uniforms(seeds, sampling.max_new_tokens).to(device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)

    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    active = torch.arange(len(prompts), device=device)  # rows of the batch still in the cache
    mask, positions, cache = reading.mask, reading.lengths, reading.cache
    for step in range(sampling.max_new_tokens):
        chosen, chosen_logprobs = choose_tokens(
            logits_of(model, hidden), uniforms[active, step], sampling
        )
        ended = torch.isin(chosen, stops)
        for row, token, logprob, end in zip(
            active.tolist(), chosen.tolist(), chosen_logprobs.tolist(), ended.tolist(), strict=True
        ):
            if not stopped[row]:
                tokens[row].append(token)
                logprobs[row].append(logprob)
                stopped[row] = end
        running = torch.tensor([not stopped[row] for row in active.tolist()], device=device)
        left = int(running.sum())
        if left == 0 or step + 1 == sampling.max_new_tokens:
            break
        # Copying the cache costs about one step, so finished rows leave in bulk.
        if left <= 0.75 * len(active):
            keep = running.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            active, chosen, mask, positions = (
                tensor[keep] for tensor in (active, chosen, mask, positions)
            )
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        hidden = hidden_states(model, chosen[:, None], mask, positions[:, None], cache)[:, 0]
        positions = positions + 1
    return [
        Sample(tuple(ids), tuple(values), "stop" if end else "length", score)
        for ids, values, end, score in zip(tokens, logprobs, stopped, scores, strict=True)
    ]


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).float()  # some devices have no float64


def choose_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Pick one token per row by inverting its cumulative distribution.

    Args:
        logits: (B, V), float32.
        uniforms: (B,), in [0, 1), float32.
        sampling: Temperature and truncation.

    Returns:
        Tokens (B,) int64 and their log-probabilities (B,) under the distribution sampled from.

    Raises:
        ModelError: A row has no finite largest logit.
    """
    top = logits.amax(dim=-1, keepdim=True)
    if not torch.isfinite(top).all():
        raise ModelError(
            "the model's logits are not finite. Check its weights for NaN, and its dtype: "
            "float16 overflows where bfloat16 and float32 do not."
        )
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.zeros_like(uniforms, dtype=torch.float32)
    scores = logits - top
    if sampling.temperature != 1:
        scores /= sampling.temperature
    weights = _truncate(scores, sampling).exp_()
    tokens, total = _draw(weights, uniforms)
    return tokens, (weights.gather(1, tokens[:, None]).squeeze(1) / total).log()


BLOCK = 256
"""Weights are summed by blocks of so many, so that only one block is ever accumulated."""


def _draw(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative sum of each row of weights (B, V): first the block, then the token.

    Returns the tokens (B,) and the rows' total weights (B,).
    """
    vocabulary = weights.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    sums = weights[:, :whole].reshape(len(weights), whole // BLOCK, BLOCK).sum(dim=2)
    cumulative = torch.cat([sums, weights[:, whole:].sum(dim=1, keepdim=True)], 1).cumsum(dim=1)
    total = cumulative[:, -1]
    blocks, before = _invert(cumulative, uniforms * total)
    columns = blocks[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=vocabulary - 1))
    inside = inside.masked_fill(columns >= vocabulary, 0).cumsum(dim=1)
    offsets, _ = _invert(inside, uniforms * total - before)
    return blocks * BLOCK + offsets, total


def _invert(cumulative: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose cumulative weight exceeds the draw, and the weight before it."""
    # Whatever the sum was rounded to, a draw stays below it: from there on nothing has a chance.
    total = cumulative[:, -1:]
    draws = torch.minimum(draws[:, None], torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, draws.clamp(min=0), right=True)
    before = cumulative.gather(1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0)
    return index.squeeze(1), before.squeeze(1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A token stays if those before it do not reach top_p yet; so the first always stays.
        drop = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return logits


def _prompt_logprobs(
    model: PreTrainedModel,
    reading: Reading,
    prompts: Sequence[Sequence[int]],
    score: Sequence[tuple[int, int]] | None,
) -> list[tuple[float, ...]]:
    if score is None:
        return [()] * len(prompts)
    heads = [prompt[:stop] for prompt, (_, stop) in zip(prompts, score, strict=True)]
    logprobs = suffix_logprobs(model, reading, heads, [start for start, _ in score])
    return [
        tuple(row[: stop - start].tolist())
        for row, (start, stop) in zip(logprobs, score, strict=True)
    ]
