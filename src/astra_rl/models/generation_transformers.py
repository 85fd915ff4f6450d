"""Sampling backend that uses ``generate`` of transformers.

For model families that `astra_rl.models.generation` does not support, and as a reference for it. It
is slower: prompts are padded and computed whole. Rows share one random generator, so a row's text
depends on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.seeding import derive_seed, seeded
from astra_rl.infra.documentation import document_options
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import (
    MAX_BATCH_ROWS,
    MAX_BATCH_TOKENS,
    SAMPLER,
    Sample,
    Sampling,
)
from astra_rl.models.scoring import prompt_logprobs
from astra_rl.models.segments import unwrap_peft


@document_options(
    SAMPLER,
    {
        "seeds": "One per prompt; those of a batch are combined to its seed.",
        "prefix_cache": "Ignored; prompts are computed whole.",
    },
)
@torch.no_grad()
def generate_with_transformers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    stop_ids: frozenset[int],
    score_spans: Sequence[tuple[int, int]] | None = None,
    prefix_cache: ConversationCache | None = None,
) -> list[Sample]:
    """Sample one continuation per prompt; see `astra_rl.models.generation.generate`."""
    results: list[Sample | None] = [None] * len(prompts)

    def run(rows: Sequence[int]) -> list[Sample]:
        spans = None if score_spans is None else [score_spans[row] for row in rows]
        with seeded(derive_seed(*(seeds[row] for row in rows))):
            return _generate_batch(model, [prompts[row] for row in rows], sampling, stop_ids, spans)

    batches = token_budget_batches(
        [len(prompt) + sampling.max_new_tokens for prompt in prompts],
        max_tokens=MAX_BATCH_TOKENS,
        max_rows=MAX_BATCH_ROWS,
    )
    for rows, batch in in_batches(batches, run, doing="sampling"):
        for row, sample in zip(rows, batch, strict=True):
            results[row] = sample
    return [result for result in results if result is not None]


def _generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    spans: Sequence[tuple[int, int]] | None,
) -> list[Sample]:
    width = max(map(len, prompts))
    padding = 0
    ids = torch.full((len(prompts), width), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    is_greedy = sampling.temperature == 0
    with _without_own_settings(model) as generator:
        output = generator.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not is_greedy,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=padding,
            return_dict_in_generate=True,
            output_scores=True,
            **({} if is_greedy else {"temperature": sampling.temperature}),
            top_k=None if is_greedy else sampling.top_k,  # None: not the default 50
            top_p=None if is_greedy else sampling.top_p,
        )
    new = output.sequences[:, width:]
    scores = torch.stack(output.scores, dim=1).float().log_softmax(-1)
    chosen = scores.gather(2, new[:, :, None]).squeeze(2)
    span_logprobs = prompt_logprobs(model, prompts, spans)
    samples = []
    for row in range(len(prompts)):
        tokens = new[row].tolist()
        end = next((index for index, token in enumerate(tokens) if token in stop_ids), None)
        count = len(tokens) if end is None else end + 1
        logprobs = [0.0] * count if is_greedy else chosen[row, :count].tolist()
        samples.append(
            Sample(
                tuple(tokens[:count]),
                tuple(logprobs),
                "length" if end is None else "stop",
                span_logprobs[row],
            )
        )
    return samples


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[Any]:
    """Yield the transformers model with an empty `GenerationConfig`.

    Arguments of ``generate``, also a configuration, are completed from the model's own
    ``generation_config.json``, whose ``min_p``, ``num_beams`` or ``suppress_tokens`` would change
    the distribution that is sampled from.
    """
    inner = unwrap_peft(model)
    own = inner.generation_config
    inner.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield inner
    finally:
        inner.generation_config = own
