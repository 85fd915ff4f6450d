"""Batched sampling: token ids in, token ids and log-probabilities out.

Differences from ``generate`` of transformers: each row has its own random generator, so its text
does not depend on the rest of the batch; shared prefixes are computed once; finished rows leave the
batch; and only the log-probability of each sampled token is returned, not the logits of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.text import FinishReason
from astra_rl.errors import ModelError
from astra_rl.infra.documentation import document_options
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.forward import forward_shared_prefix, suffix_logprobs
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.positions import attention_window
from astra_rl.models.segments import ForwardOutput, hidden_states
from astra_rl.models.settings import Sampling as Sampling

MAX_BATCH_ROWS = 128
"""Maximum number of rows of a batch without gradients."""

MAX_BATCH_TOKENS = 32_768
"""Maximum number of tokens of a sampling batch, padding and new tokens included."""

STEPS_PER_CHECK = {"cpu": 1}
"""Tokens between two checks for stop tokens, by type of device; each waits for the device."""

STEPS_ON_ACCELERATOR = 8
"""The same for all other devices."""


@dataclass(frozen=True)
class Sample:
    """One sampled continuation.

    Attributes:
        token_ids: The sampled tokens, the end token included.
        logprobs: Natural log-probability of each sampled token under the sampling distribution.
        finish_reason: ``"stop"`` after a stop token, ``"length"`` otherwise.
        prompt_logprobs: Natural log-probability, at temperature 1, of each prompt token in the
            requested span.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_logprobs: tuple[float, ...] = ()


class Sampler(Protocol):
    """Interface of a sampling backend; `generate` is the default one."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score_spans: Sequence[tuple[int, int]] | None = None,
        prefix_cache: ConversationCache | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt; see `generate`."""


SAMPLER = {
    "model": "A causal language model.",
    "prompts": "Token ids; none may be empty.",
    "sampling": "Sampling parameters.",
    "seeds": "Random seed of each prompt's continuation.",
    "stop_ids": "Tokens that end a continuation.",
    "score_spans": "For each prompt, start (at least 1) and end of a span of its tokens whose "
    "log-probabilities are returned; None returns none.",
    "prefix_cache": "Key-value cache of earlier calls; it is read and updated.",
}
"""Descriptions of the arguments of a `Sampler`, see `document_options`."""


@document_options(SAMPLER)
@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    stop_ids: frozenset[int],
    score_spans: Sequence[tuple[int, int]] | None = None,
    prefix_cache: ConversationCache | None = None,
) -> list[Sample]:
    """Sample one continuation per prompt.

    Each row has its own random generator, so its text depends on its prompt, its seed and the
    weights, not on the rest of the batch. This is exact in float32 up to ties within rounding
    error; in bfloat16 the rounding of a matrix product depends on the batch shape.

    Returns:
        One sample per prompt, in order.

    Raises:
        ModelError: The model's logits are not finite, or its family is not supported.
        OutOfMemoryError: A single row does not fit in memory. Larger batches are halved first.
    """
    if sampling.temperature == 0:
        same = _first_identical_row(prompts, score_spans)
        if len(set(same)) < len(prompts):  # greedy decoding of equal prompts gives equal text
            distinct = sorted(set(same))
            samples = generate(
                model,
                [prompts[row] for row in distinct],
                sampling,
                [seeds[row] for row in distinct],
                stop_ids=stop_ids,
                score_spans=None if score_spans is None else [score_spans[row] for row in distinct],
                prefix_cache=prefix_cache,
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
            None if score_spans is None else [score_spans[row] for row in rows],
            prefix_cache,
        )

    release = prefix_cache.clear if prefix_cache is not None else lambda: None
    batches = _batches(model, lengths)
    for rows, batch in in_batches(batches, run, doing="sampling", release=release):
        for row, sample in zip(rows, batch, strict=True):
            results[row] = sample
    return [result for result in results if result is not None]


def _first_identical_row(
    prompts: Sequence[Sequence[int]], score_spans: Sequence[tuple[int, int]] | None
) -> list[int]:
    """Return for each row the index of the first row with the same prompt and span."""
    first: dict[tuple[object, ...], int] = {}
    keys = [
        (tuple(prompt), score_spans[row] if score_spans else None)
        for row, prompt in enumerate(prompts)
    ]
    return [first.setdefault(key, row) for row, key in enumerate(keys)]


def _batches(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[list[int]]:
    window = attention_window(model)
    for rows in token_budget_batches(lengths, max_tokens=MAX_BATCH_TOKENS, max_rows=MAX_BATCH_ROWS):
        if window is None or lengths[rows[0]] <= window:
            yield rows
        else:
            # Beyond the sliding window, padding between prompt and continuation would be counted,
            # so such batches contain rows of equal length only.
            for _, equal in groupby(rows, key=lambda row: lengths[row]):
                yield list(equal)


def _generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: frozenset[int],
    score_spans: Sequence[tuple[int, int]] | None,
    prefix_cache: ConversationCache | None,
) -> list[Sample]:
    max_shared = [len(prompt) - 1 for prompt in prompts]
    if score_spans is not None:
        # The token before the first scored one predicts it, so it must be in the suffix.
        max_shared = [
            min(limit, start - 1) for limit, (start, _) in zip(max_shared, score_spans, strict=True)
        ]
    prefill = forward_shared_prefix(
        model, prompts, max_shared, reserve=sampling.max_new_tokens, prefix_cache=prefix_cache
    )
    scores = _prompt_logprobs(model, prefill, prompts, score_spans)
    decoded = _decode(model, prefill, sampling, seeds, stop_ids)
    return [
        replace(sample, prompt_logprobs=score)
        for sample, score in zip(decoded.samples(), scores, strict=True)
    ]


@dataclass(frozen=True)
class _Decoded:
    """Sampled continuations of B rows, up to and including the first stop token.

    Attributes:
        tokens: (B, max_new_tokens), int64; what follows a stop token has no meaning.
        logprobs: Their natural log-probabilities, (B, max_new_tokens), float32.
        stops: Tokens that end a continuation.
    """

    tokens: Tensor
    logprobs: Tensor
    stops: frozenset[int]

    def samples(self) -> Iterator[Sample]:
        """Yield a sample per row; the tensors are copied to the host once."""
        for tokens, logprobs in zip(self.tokens.tolist(), self.logprobs.tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens, 1) if token in self.stops), None)
            reason: FinishReason = "length" if end is None else "stop"
            yield Sample(tuple(tokens[:end]), tuple(logprobs[:end]), reason)


def _decode(
    model: PreTrainedModel,
    prefill: ForwardOutput,
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: frozenset[int],
) -> _Decoded:
    """Sample tokens autoregressively after the prompts were computed.

    The host waits for the device only every `STEPS_PER_CHECK` tokens, so a row may be continued
    beyond its stop token for a few tokens, which are dropped.
    """
    device, count = model.device, sampling.max_new_tokens
    active = torch.arange(len(seeds), device=device)  # rows of the batch still in the cache
    hidden = prefill.hidden[active, prefill.lengths - prefill.suffix_starts - 1]
    uniforms = _uniforms(seeds, count).to(device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    decoded = _Decoded(
        torch.zeros(len(seeds), count, dtype=torch.long, device=device),
        torch.zeros(len(seeds), count, device=device),
        stop_ids,
    )
    running = torch.ones(len(seeds), dtype=torch.bool, device=device)
    mask, positions, kv_cache = prefill.mask, prefill.lengths, prefill.kv_cache
    for step in range(count):
        tokens, logprobs = sample_unchecked(
            lm_head_logits(model, hidden), uniforms[active, step], sampling
        )
        decoded.tokens[active, step] = tokens
        decoded.logprobs[active, step] = logprobs
        running &= (tokens[:, None] != stops).all(dim=1)
        if step + 1 == count:
            break
        if (step + 1) % STEPS_PER_CHECK.get(device.type, STEPS_ON_ACCELERATOR) == 0:
            check_finite(logprobs)
            keep = [row for row, runs in enumerate(running.tolist()) if runs]
            if not keep:
                break
            # Copying the cache costs about one decoding step, so finished rows are removed in bulk.
            if len(keep) <= 0.75 * len(active):
                kept = torch.tensor(keep, device=device)
                kv_cache.batch_select_indices(kept)
                active, tokens, mask, positions, running = (
                    tensor[kept] for tensor in (active, tokens, mask, positions, running)
                )
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        seen = mask if prefill.is_padded else None
        hidden = hidden_states(model, tokens[:, None], seen, positions[:, None], kv_cache)[:, 0]
        positions = positions + 1
    check_finite(decoded.logprobs)
    return decoded


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).float()  # some devices have no float64


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting its cumulative distribution.

    Args:
        logits: (B, V), float32.
        uniforms: Uniform random numbers in [0, 1), (B,), float32.
        sampling: Temperature and truncation.

    Returns:
        Tokens, (B,) int64, and their natural log-probabilities, (B,) float32, under the sampling
        distribution; zeros for greedy decoding.

    Raises:
        ModelError: The largest logit of a row is not finite.
    """
    tokens, logprobs = sample_unchecked(logits, uniforms, sampling)
    check_finite(logprobs)
    return tokens, logprobs


def sample_unchecked(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`sample_tokens` without waiting for the device.

    The log-probability is NaN, and the token any of the vocabulary, if the largest logit of a row
    is not finite.
    """
    top = logits.amax(dim=-1, keepdim=True)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, (top - top).squeeze(1)
    scores = logits - top
    if sampling.temperature != 1:
        scores /= sampling.temperature
    weights = _truncate(scores, sampling).exp_()
    tokens, total = _sample_from_weights(weights, uniforms)
    return tokens, (weights.gather(1, tokens[:, None]).squeeze(1) / total).log()


def check_finite(logprobs: Tensor) -> None:
    """Raise unless all logits were finite that these log-probabilities are of.

    Raises:
        ModelError: A log-probability is NaN.
    """
    if logprobs.isnan().any():
        raise ModelError(
            "the model's logits are not finite. Check its weights for NaN, and its dtype: "
            "float16 overflows where bfloat16 and float32 do not."
        )


BLOCK = 256
"""Block size of the two-stage cumulative sum: blocks first, then the tokens of one block."""


def _sample_from_weights(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a token from each row of unnormalised weights, (B, V).

    Returns the tokens, (B,), and the total weight of each row, (B,).
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
    # Weights that are not numbers have no place in an order.
    return (blocks * BLOCK + offsets).clamp(max=vocabulary - 1), total


def _invert(cumulative: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose cumulative weight exceeds the draw, and the weight before it."""
    # Rounding must not push a draw to the total weight, where no token has probability left.
    total = cumulative[:, -1:]
    draws = torch.minimum(draws[:, None], torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, draws.clamp(min=0), right=True)
    index = index.clamp(max=cumulative.shape[1] - 1)
    before = cumulative.gather(1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0)
    return index.squeeze(1), before.squeeze(1)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A token is kept if the tokens before it do not reach top_p; the first is always kept.
        drop = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return logits


def _prompt_logprobs(
    model: PreTrainedModel,
    prefill: ForwardOutput,
    prompts: Sequence[Sequence[int]],
    score_spans: Sequence[tuple[int, int]] | None,
) -> list[tuple[float, ...]]:
    if score_spans is None:
        return [()] * len(prompts)
    heads = [prompt[:stop] for prompt, (_, stop) in zip(prompts, score_spans, strict=True)]
    logprobs = suffix_logprobs(model, prefill, heads, [start for start, _ in score_spans])
    return [
        tuple(row[: stop - start])
        for row, (start, stop) in zip(logprobs.tolist(), score_spans, strict=True)
    ]
