"""Batched sampling: token ids in, token ids and log-probabilities out.

Differences from ``generate`` of transformers: each row has its own random generator, so its text
does not depend on the rest of the batch; shared prefixes are computed once; finished rows leave the
batch; and only the log-probability of each sampled token is returned, not the logits of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from transformers import PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.text import FinishReason
from astra_rl.infra.documentation import document_options
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.decoding import Decoding, decode
from astra_rl.models.forward import forward_shared_prefix, suffix_logprobs
from astra_rl.models.memory import batch_limits
from astra_rl.models.positions import attention_window
from astra_rl.models.segments import ForwardOutput
from astra_rl.models.settings import Sampling as Sampling
from astra_rl.models.static_decoding import MIN_STEPS, StaticDecoding, can_replay

MAX_BATCH_ROWS = 128
"""Maximum number of rows of a batch without gradients; on CUDA more, see `memory.batch_limits`."""

MAX_BATCH_TOKENS = 32_768
"""Maximum number of tokens of a sampling batch, padding and new tokens included; likewise."""


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


@document_options(
    SAMPLER,
    {
        "cuda_graphs": "Replay decoding steps on CUDA as graphs, see "
        "`astra_rl.models.static_decoding`. Not measured yet, therefore off by default.",
    },
)
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
    cuda_graphs: bool = False,
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
                cuda_graphs=cuda_graphs,
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
            cuda_graphs,
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
    max_rows, max_tokens = batch_limits(model, MAX_BATCH_ROWS, MAX_BATCH_TOKENS)
    for rows in token_budget_batches(lengths, max_tokens=max_tokens, max_rows=max_rows):
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
    cuda_graphs: bool,
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
    replays = cuda_graphs and sampling.max_new_tokens >= MIN_STEPS and can_replay(model)
    kind = StaticDecoding if replays else Decoding
    decoded = decode(model, prefill, sampling, seeds, stop_ids, kind)
    return [
        Sample(tokens, logprobs, _finish_reason(tokens, stop_ids), score)
        for (tokens, logprobs), score in zip(decoded, scores, strict=True)
    ]


def _finish_reason(tokens: Sequence[int], stop_ids: frozenset[int]) -> FinishReason:
    return "stop" if tokens[-1] in stop_ids else "length"


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
