"""A causal language model that speaks in conversations, and is asked how likely it finds words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.seeding import current_row_seeds
from astra_rl.core.text import Conversation, Utterance
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.dialogue import DialogueView, Rendered
from astra_rl.models.generation import Sample, Sampler, Sampling
from astra_rl.models.scoring import continuation_logprobs


def speak(
    model: PreTrainedModel,
    view: DialogueView,
    contexts: Sequence[str],
    sampling: Sampling,
    sampler: Sampler,
    memory: ConversationCache | None,
) -> list[Utterance]:
    """Sample what one side says next in each conversation."""
    rendered = [
        view.render(Conversation.of(context), room=sampling.max_new_tokens) for context in contexts
    ]
    seeds = current_row_seeds(len(contexts))
    rows = [row for row, each in enumerate(rendered) if each.ids]
    heard = view.side == "target"
    samples = sampler(
        model,
        [rendered[row].ids for row in rows],
        sampling,
        [seeds[row] for row in rows],
        stop_ids=frozenset(view.stop_ids),
        # Only what was heard is scored; index 0 has no token before it to predict it.
        score=[_scored_span(rendered[row]) for row in rows] if heard else None,
        memory=memory,
    )
    out = [Utterance(token_ids=(), logprobs=(), finish_reason="context_overflow")] * len(rendered)
    for row, sample in zip(rows, samples, strict=True):
        out[row] = _utterance(sample, view, rendered[row] if heard else None)
    return out


def without_end(view: DialogueView, ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids of what was said without a token that ends it."""
    return tuple(ids[:-1] if ids and ids[-1] in view.end_ids else ids)


def readable(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Give every row a prompt to read: one without takes the first token of its continuation.

    A context that leaves no room is so read as its last possible token: a score, never a crash.
    """
    rows = [
        (prompt, ids) if prompt else (ids[:1] or (0,), ids[1:])
        for prompt, ids in zip(prompts, continuations, strict=True)
    ]
    return [prompt for prompt, _ in rows], [ids for _, ids in rows]


def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    """Score continuations, (B, T) float32: zeros are padding and nothing else."""
    prompts, continuations = readable(prompts, continuations)
    logprobs = continuation_logprobs(model, prompts, continuations)
    lengths = torch.tensor([len(ids) for ids in continuations], device=logprobs.device)
    real = torch.arange(logprobs.shape[1], device=logprobs.device) < lengths[:, None]
    # Zero means padding, so a token of probability one is made a hair less likely than that.
    hair = torch.finfo(logprobs.dtype).tiny
    return torch.where(real, logprobs.clamp(max=-hair), logprobs)


def _scored_span(rendered: Rendered) -> tuple[int, int]:
    start, stop = rendered.heard
    return (max(1, start), stop) if stop > max(1, start) else (len(rendered.ids),) * 2


def _utterance(sample: Sample, view: DialogueView, heard: Rendered | None) -> Utterance:
    heard_logprobs = None
    if heard is not None and heard.heard[1] > heard.heard[0]:
        heard_logprobs = sample.prompt_logprobs
    return Utterance(
        view.decode(sample.token_ids),
        token_ids=sample.token_ids,
        logprobs=sample.logprobs,
        finish_reason=sample.finish_reason,
        heard_logprobs=heard_logprobs,
        asked=None if heard is None else _read_digest(view, heard),
    )


def _read_digest(view: DialogueView, rendered: Rendered) -> str:
    """Digest of what a side reads around the attack, control tokens included.

    The attack itself is on record. As text it may be split otherwise when it is sent again, or have
    lost bytes that are no letter, and neither is a change of what stands around it.
    """
    start, stop = rendered.heard
    around = (list(rendered.ids[:start]), list(rendered.ids[stop:]))
    text = "\0".join(str(view.tokenizer.decode(ids, skip_special_tokens=False)) for ids in around)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
