"""Decoding steps whose tensors keep their places, so that a CUDA graph can replay them.

A decoding step of a transformer is about a thousand short kernels. Launching them one by one takes
the host tens of milliseconds, longer than most GPUs need to run them; a graph is launched at once.
Keys and values are written at a position that the device counts, and attention reads the whole
allocation under a mask.
"""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from astra_rl.errors import first_line
from astra_rl.logging import logger
from astra_rl.models.attention import GROUPED_ATTENTION, SHORT_ATTENTION
from astra_rl.models.decoding import Decoding
from astra_rl.models.kv_cache import PreallocatedLayer
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.prefix_plan import Level
from astra_rl.models.segments import ForwardOutput, forward_levels, hidden_states, unwrap_peft
from astra_rl.models.settings import Sampling

MIN_STEPS = 16
"""Fewest tokens for which a graph is made; making one takes about as long as two steps."""

_usable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether steps of a model can be replayed, found out once per model."""


class StaticDecoding(Decoding):
    """`Decoding` in which each step runs the same kernels on the same tensors.

    The first step after the rows change runs as usual. On CUDA the others replay it as a graph.

    Args:
        prefill: The computed prompts, in a cache that is allocated for all tokens.
        options: See `Decoding`.
    """

    def __init__(self, model: PreTrainedModel, prefill: ForwardOutput, *options: Any) -> None:
        super().__init__(model, prefill, *options)
        rows, width = self.mask.shape
        layers = [layer for layer in self.kv_cache.layers if isinstance(layer, PreallocatedLayer)]
        self.slot = torch.full((1,), width, dtype=torch.long, device=self.mask.device)
        capacities = {layer.write_at(self.slot) for layer in layers}
        mask = self.mask.new_zeros(rows, 1, 1, *capacities, dtype=torch.bool)
        mask[:, 0, 0, :width] = self.mask.bool()
        self.mask, self.positions = mask, self.positions.clone()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._has_run = False

    def advance(self) -> None:
        """Sample the next token of each row."""
        if self._graph is None and self._has_run and self.mask.device.type == "cuda":
            self._graph = self._captured()
        if self._graph is None:
            self._advance()
            self._has_run = True
        else:
            self._graph.replay()

    def should_drop(self, finished: int, left: int) -> bool:
        """See `Decoding`; here a new graph is made too, which costs about two steps without one."""
        return finished >= 0.5 * len(self.running) and left >= 2 * MIN_STEPS

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the cache only, (rows,), int64."""
        self._graph, self._has_run = None, False
        super().keep(rows)

    def _advance(self) -> None:
        self.mask.index_fill_(3, self.slot, True)
        self.hidden = hidden_states(
            self.model, self.last[:, None], self.mask, self.positions[:, None], self.kv_cache
        )[:, 0]
        self.positions += 1
        self.slot += 1
        self.sample()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache.
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._advance()
            except Exception:
                with contextlib.suppress(RuntimeError):  # it says only that the capture failed
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


def can_replay(model: PreTrainedModel) -> bool:
    """Whether decoding steps of a model on CUDA can be replayed as a graph, checked once per model.

    Logits of a few replayed steps are compared with those of `Decoding`.
    """
    inner = unwrap_peft(model)
    if model.device.type != "cuda" or not _has_static_form(model):
        return False
    if inner not in _usable:
        _usable[inner] = _is_exact(model)
    return _usable[inner]


def _has_static_form(model: PreTrainedModel) -> bool:
    layers = DynamicCache(config=model.config).layers
    is_plain = all(type(layer).__name__ == "DynamicLayer" for layer in layers)
    return is_plain and model.config._attn_implementation in (
        "sdpa",
        SHORT_ATTENTION,
        GROUPED_ATTENTION,
    )


@torch.no_grad()
def _is_exact(model: PreTrainedModel) -> bool:
    """Whether replayed steps give the logits of `Decoding`; a warning says why not."""
    name = type(unwrap_peft(model)).__name__
    try:
        reference, found = _logits(model, Decoding), _logits(model, StaticDecoding)
    except Exception as error:
        logger.warning(
            "decoding steps of %s cannot be replayed as a CUDA graph, so sampling is slower: %s",
            name,
            first_line(error),
        )
        return False
    is_float32 = model.dtype == torch.float32
    tolerance = (1e-3 if is_float32 else 0.1) * float(reference.max() - reference.min())
    if not (gap := float((found - reference).abs().max())) <= tolerance:
        logger.warning(
            "decoding steps of %s are not replayed as a CUDA graph, so sampling is slower: logits "
            "would differ by up to %.3g",
            name,
            gap,
        )
        return False
    return True


def _logits(model: PreTrainedModel, kind: type[Decoding], steps: int = 5) -> Tensor:
    """Logits of a few given tokens after two short prompts."""
    vocabulary = model.config.get_text_config().vocab_size
    texts = [[token % vocabulary for token in text] for text in ([1, 2, 3], [4, 5])]
    prefill = forward_levels(model, [Level(texts, [0, 0], None)], reserve=steps)
    uniforms = torch.full((2, steps), 0.5, device=model.device)
    none = torch.zeros(0, dtype=torch.long, device=model.device)
    decoding = kind(model, prefill, Sampling(max_new_tokens=steps), uniforms, none)
    logits = []
    for step in range(1, steps):
        decoding.last.fill_((7 * step) % vocabulary)
        decoding.advance()
        logits.append(lm_head_logits(model, decoding.hidden))
    return torch.cat(logits)
