"""Turn generation and scoring for conversations with a causal language model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.messages import Dialogue
from astra_rl.core.reasoning import NO_ANSWER, OUT_OF_TOKENS
from astra_rl.core.seeding import current_row_seeds, derive_seed
from astra_rl.core.text import Conversation, NoAttack, NoReply, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import Sample, Sampler, Sampling
from astra_rl.models.pieces import RenderedPrompt
from astra_rl.models.rendering import ConversationRenderer, context_window
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.self_check import check_supported


def check_model(role: str, model: PreTrainedModel, sampling: Sampling) -> None:
    """Check that a model can be run, and that its context window has space for a prompt.

    Args:
        role: What the model is, for the message.
        model: The model.
        sampling: Sampling parameters of its turns.

    Raises:
        ConfigurationError: New tokens alone fill the context window.
        ModelError: The architecture is not supported, see `check_supported`.
    """
    check_window(role, context_window(model.config), sampling)
    check_supported(model)


def check_window(role: str, window: int | None, sampling: Sampling) -> None:
    """Check that a context window has space for a prompt.

    Args:
        role: What the model is, for the message.
        window: Context window, in tokens; None if there is no limit.
        sampling: Sampling parameters of the model's turns.

    Raises:
        ConfigurationError: New tokens alone fill the context window.
    """
    if window is not None and sampling.max_new_tokens >= window:
        raise ConfigurationError(
            f"max_new_tokens={sampling.max_new_tokens} leaves no space for a prompt in the "
            f"{role}'s context window of {window} tokens; choose less than {window}."
        )


def generate_turns(
    model: PreTrainedModel | None,
    renderer: ConversationRenderer,
    contexts: Sequence[str],
    sampling: Sampling,
    sampler: Sampler,
    prefix_cache: ConversationCache | None,
) -> list[Utterance]:
    """Sample the next turn of one side in each conversation.

    Args:
        model: The side's model; None for a sampler that has the model itself.
        renderer: Renders conversations for this side.
        contexts: One conversation (or plain opening text) per row.
        sampling: Sampling parameters.
        sampler: Sampling backend.
        prefix_cache: Key-value cache of earlier turns; None computes prompts from scratch.

    Returns:
        One utterance per context. A target's utterance has the log-probabilities of the attack it
        answers. A context that exceeds the context window gives an empty utterance with the finish
        reason ``"context_overflow"``.
    """
    prompts = [
        renderer.render(Conversation.of(context), reserve=sampling.max_new_tokens)
        for context in contexts
    ]
    seeds = current_row_seeds(len(contexts))
    rows = [row for row, prompt in enumerate(prompts) if prompt.ids]
    is_target = renderer.side == "target"
    samples = sampler(
        model,  # type: ignore[arg-type]
        [prompts[row].ids for row in rows],
        sampling,
        [seeds[row] for row in rows],
        stop_ids=frozenset(renderer.stop_ids),
        score_spans=[_attack_span(prompts[row]) for row in rows] if is_target else None,
        prefix_cache=prefix_cache,
    )
    out = [Utterance(token_ids=(), logprobs=(), finish_reason="context_overflow")] * len(prompts)
    for row, sample in zip(rows, samples, strict=True):
        context = contexts[row]
        if isinstance(context, Dialogue):
            out[row] = _message_of_agent(sample, renderer, context)
            continue
        opens = renderer.begins_text(Conversation.of(contexts[row]))
        out[row] = _utterance(
            sample, renderer, prompts[row] if is_target else None, sampling, opens=opens
        )
    return out


def mutate_turns(
    model: PreTrainedModel,
    renderer: ConversationRenderer,
    contexts: Sequence[str],
    token_ids: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    sampling: Sampling,
    sampler: Sampler,
) -> list[Utterance]:
    """Return each turn with one of its tokens replaced by a sample of the model.

    The place is uniformly random, by the seed of the row, and never that of the end token. A sample
    that ends the turn ends it there. Utterances have token ids and no log-probabilities.

    Args:
        model: Samples the tokens.
        renderer: Renders conversations for the side of the turns.
        contexts: Contexts of the turns.
        token_ids: Token ids of the prompts, and of the turns.
        sampling: Sampling parameters; `max_new_tokens` is 1.
        sampler: Sampling backend.
    """
    seeds = current_row_seeds(len(contexts))
    stop_ids = frozenset(renderer.stop_ids)
    heads, turns = ensure_nonempty_prompts(*token_ids)
    bodies = [ids[:-1] if ids and ids[-1] in stop_ids else ids for ids in turns]
    places = [
        Random(derive_seed(seed, "place")).randrange(len(body) or 1)
        for seed, body in zip(seeds, bodies, strict=True)
    ]
    samples = sampler(
        model,
        [[*head, *body[:place]] for head, body, place in zip(heads, bodies, places, strict=True)],
        sampling,
        [derive_seed(seed, "token") for seed in seeds],
        stop_ids=stop_ids,
    )
    found = []
    for context, turn, place, sample in zip(contexts, turns, places, samples, strict=True):
        (token,) = sample.token_ids
        ids = (*turn[:place], token, *(() if token in stop_ids else turn[place + 1 :]))
        mutated = Sample(ids, (math.nan,) * len(ids), "stop" if ids[-1] in stop_ids else "length")
        opens = renderer.begins_text(Conversation.of(context))
        found.append(_utterance(mutated, renderer, None, sampling, opens=opens))
    return found


def strip_end_token(renderer: ConversationRenderer, ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids of a turn without its final end token, if it has one."""
    return tuple(ids[:-1] if ids and ids[-1] in renderer.end_ids else ids)


def ensure_nonempty_prompts(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Move the first token of a continuation to its prompt where the prompt is empty.

    A prompt is empty if its context leaves no space in the context window. The remaining tokens can
    then still be scored.
    """
    rows = [
        (prompt, ids) if prompt else (ids[:1] or (0,), ids[1:])
        for prompt, ids in zip(prompts, continuations, strict=True)
    ]
    return [prompt for prompt, _ in rows], [ids for _, ids in rows]


def score_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    """Return natural log-probabilities of continuations, (B, longest continuation), float32.

    Zero marks padding and occurs nowhere else.
    """
    prompts, continuations = ensure_nonempty_prompts(prompts, continuations)
    logprobs = continuation_logprobs(model, prompts, continuations)
    return with_padding_marked(logprobs, continuations)


def with_padding_marked(logprobs: Tensor, continuations: Sequence[Sequence[int]]) -> Tensor:
    """Return log-probabilities of continuations, (B, T), in which zero marks padding only."""
    lengths = torch.tensor([len(ids) for ids in continuations], device=logprobs.device)
    real = torch.arange(logprobs.shape[1], device=logprobs.device) < lengths[:, None]
    # A token of probability one gets the largest negative number, because zero marks padding.
    tiny = torch.finfo(logprobs.dtype).tiny
    return torch.where(real, logprobs.clamp(max=-tiny), logprobs)


def _attack_span(prompt: RenderedPrompt) -> tuple[int, int]:
    """Return the span of the attack's tokens without index 0, which no token predicts."""
    start, stop = prompt.last_turn
    return (max(1, start), stop) if stop > max(1, start) else (len(prompt.ids),) * 2


def _utterance(
    sample: Sample,
    renderer: ConversationRenderer,
    prompt: RenderedPrompt | None,
    sampling: Sampling,
    *,
    opens: bool,
) -> Utterance:
    """Make an utterance of a sample; `prompt` is given for the target only.

    A target that does not get beyond its reasoning gives no reply, and an attacker no attack.
    """
    reply = renderer.read(sample.token_ids, opens=opens)
    if prompt is not None and not reply.is_whole and not (reply.answer or "").strip():
        if sample.finish_reason == "stop":
            return NoReply(NO_ANSWER, reasoning=reply.reasoning)
        detail = f"the reply reached max_new_tokens={sampling.max_new_tokens} while reasoning; "
        return NoReply(OUT_OF_TOKENS, f"{detail}raise that limit", reasoning=reply.reasoning)
    heard_logprobs = None
    if prompt is not None and prompt.last_turn[1] > prompt.last_turn[0]:
        heard_logprobs = sample.prompt_logprobs
    kind = NoAttack if reply.answer is None else Utterance
    return kind(
        reply.answer or "",
        token_ids=sample.token_ids,
        # An engine may not know them, see `Engine.sample`.
        logprobs=None if any(map(math.isnan, sample.logprobs)) else sample.logprobs,
        finish_reason=sample.finish_reason,
        heard_logprobs=heard_logprobs,
        reasoning=reply.reasoning,
        asked=None if prompt is None else _context_digest(renderer, prompt),
    )


def _message_of_agent(
    sample: Sample, renderer: ConversationRenderer, dialogue: Dialogue
) -> Utterance:
    """Make an utterance of a sample with the calls of tools in it."""
    reply = renderer.read(sample.token_ids)
    text, calls = renderer.read_calls(sample.token_ids, dialogue.tools)
    return Utterance(
        text,
        token_ids=sample.token_ids,
        finish_reason=sample.finish_reason,
        reasoning=reply.reasoning,
        calls=calls,
    )


def _context_digest(renderer: ConversationRenderer, prompt: RenderedPrompt) -> str:
    """Return a digest of the prompt around the attack, control tokens included.

    The attack is excluded: it is recorded separately, and a replayed attack may be tokenised
    differently or have lost bytes that are not valid UTF-8.
    """
    start, stop = prompt.last_turn
    around = (list(prompt.ids[:start]), list(prompt.ids[stop:]))
    decode = renderer.tokenizer.decode
    text = "\0".join(str(decode(ids, skip_special_tokens=False)) for ids in around)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
