"""Autoregressive sampling after the prompts were computed.

The host waits for the device every few tokens only: tokens, log-probabilities and which rows have
stopped stay on the device until then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.segments import ForwardOutput, hidden_states
from astra_rl.models.settings import Sampling
from astra_rl.models.token_sampling import check_finite, sample_unchecked

STEPS_PER_CHECK = {"cpu": 1}
"""Tokens between two checks for stop tokens, by type of device; each waits for the device."""

STEPS_ON_ACCELERATOR = 8
"""The same for all other devices."""


def decode(
    model: PreTrainedModel,
    prefill: ForwardOutput,
    sampling: Sampling,
    seeds: Sequence[int],
    stop_ids: frozenset[int],
    kind: type[Decoding] | None = None,
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Sample a continuation of each row, up to and including its first stop token.

    Args:
        model: A causal language model.
        prefill: The computed prompts; its key-value cache is extended.
        sampling: Sampling parameters.
        seeds: Random seed of each row.
        stop_ids: Tokens that end a continuation.
        kind: How steps are computed; None is `Decoding`.

    Returns:
        Tokens of each row, and their natural log-probabilities.

    Raises:
        ModelError: The model's logits are not finite.
    """
    device, count = model.device, sampling.max_new_tokens
    uniforms = _uniforms(seeds, count).to(device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    decoding = (kind or Decoding)(model, prefill, sampling, uniforms, stops)
    every = STEPS_PER_CHECK.get(device.type, STEPS_ON_ACCELERATOR)
    for step in range(1, count):
        if step % every == 0:
            check_finite(decoding.logprobs)
            keep = [row for row, runs in enumerate(decoding.running.tolist()) if runs]
            if not keep:
                break
            if decoding.should_drop(len(decoding.running) - len(keep), count - step):
                decoding.keep(torch.tensor(keep, device=device))
        decoding.advance()
    check_finite(decoding.logprobs)
    return [
        _until_stop(tokens, logprobs, stop_ids)
        for tokens, logprobs in zip(
            decoding.tokens.tolist(), decoding.logprobs.tolist(), strict=True
        )
    ]


class Decoding:
    """Continuations of the rows of a batch while they are sampled, one token at a time.

    The first token is sampled when it is made.

    Args:
        model: A causal language model.
        prefill: The computed prompts.
        sampling: Sampling parameters.
        uniforms: Uniform random number of each token, (B, max_new_tokens), float32.
        stops: Tokens that end a continuation, int64.

    Attributes:
        tokens: Sampled tokens of all rows, (B, max_new_tokens), int64. What follows a stop token
            has no meaning.
        logprobs: Their natural log-probabilities, (B, max_new_tokens), float32; NaN where logits
            were not finite.
        running: Which rows of the cache have no stop token yet, (rows of the cache,), bool.
        hidden: The hidden state that the last token of each row of the cache was sampled from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefill: ForwardOutput,
        sampling: Sampling,
        uniforms: Tensor,
        stops: Tensor,
    ) -> None:
        rows = len(uniforms)
        self.model, self.sampling, self.uniforms, self.stops = model, sampling, uniforms, stops
        self.kv_cache, self.is_padded = prefill.kv_cache, prefill.is_padded
        self.mask, self.positions = prefill.mask, prefill.lengths
        self.tokens = torch.zeros_like(uniforms, dtype=torch.long)
        self.logprobs = torch.zeros_like(uniforms)
        self.active = torch.arange(rows, device=uniforms.device)  # rows still in the cache
        self.running = torch.ones_like(self.active, dtype=torch.bool)
        self.last = torch.zeros_like(self.active)
        self.step = torch.zeros(1, dtype=torch.long, device=uniforms.device)
        self.hidden = prefill.hidden[self.active, prefill.lengths - prefill.suffix_starts - 1]
        self.sample()

    def advance(self) -> None:
        """Sample the next token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.active), 1)], dim=1)
        mask = self.mask if self.is_padded else None
        self.hidden = hidden_states(
            self.model, self.last[:, None], mask, self.positions[:, None], self.kv_cache
        )[:, 0]
        self.positions = self.positions + 1
        self.sample()

    def sample(self) -> None:
        """Sample a token of each row from its hidden state."""
        tokens, logprobs = sample_unchecked(
            lm_head_logits(self.model, self.hidden),
            self.uniforms[self.active, self.step],
            self.sampling,
        )
        self.tokens[self.active, self.step] = tokens
        self.logprobs[self.active, self.step] = logprobs
        self.running &= (tokens[:, None] != self.stops).all(dim=1)
        self.last.copy_(tokens)
        self.step += 1

    def should_drop(self, finished: int, left: int) -> bool:
        """Whether removing finished rows pays: copying the cache costs about one step.

        Args:
            finished: How many rows of the cache are finished.
            left: Largest number of tokens that are still sampled.
        """
        return finished >= 0.25 * len(self.running)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the cache only, (rows,), int64."""
        self.kv_cache.batch_select_indices(rows)
        self.active, self.running, self.last, self.positions, self.mask = (
            tensor[rows]
            for tensor in (self.active, self.running, self.last, self.positions, self.mask)
        )


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).float()  # some devices have no float64


def _until_stop(
    tokens: Sequence[int], logprobs: Sequence[float], stop_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    end = next((index for index, token in enumerate(tokens, 1) if token in stop_ids), None)
    return tuple(tokens[:end]), tuple(logprobs[:end])
