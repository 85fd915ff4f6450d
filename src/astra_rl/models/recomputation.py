"""Gradient checkpointing that goes with shared prefixes.

The backward pass recomputes each transformer layer from its input, so that the activations of one
layer are in memory at a time instead of those of all. The gradient checkpointing of transformers
turns the key-value cache off, which shared prefixes need. Here a recomputed layer finds the cache
as it was before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, PreTrainedModel

from astra_rl.errors import ConfigurationError
from astra_rl.models.segments import unwrap_peft
from astra_rl.models.trainable import transformer_layers


def check_recomputable(model: PreTrainedModel) -> None:
    """Check that each layer of a model has a key-value cache of its own.

    Raises:
        ConfigurationError: It has not.
        ModelError: The layers of the model cannot be identified.
    """
    inner = unwrap_peft(model)
    layers, caches = len(transformer_layers(inner)), len(DynamicCache(config=model.config).layers)
    if layers != caches:
        raise ConfigurationError(
            f"gradient_checkpointing: {type(inner).__name__} has {layers} layers but {caches} "
            "key-value caches, so a layer cannot be recomputed alone. Set it to false, and use a "
            "smaller batch_size with more gradient_accumulation_steps."
        )


@contextlib.contextmanager
def recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Context in which layers run so that the backward pass recomputes them.

    Gradients are those without it. Calls without gradients, or without a key-value cache, are not
    changed. It takes another forward pass of time.

    Args:
        model: A causal language model that `check_recomputable` accepts.
    """
    with contextlib.ExitStack() as changed:
        for index, block in enumerate(transformer_layers(unwrap_peft(model))):
            changed.enter_context(_patched(block, "forward", _recomputed(block, index)))
        yield


@contextlib.contextmanager
def _patched(owner: object, name: str, value: Any) -> Iterator[None]:
    """Context in which an object has another attribute."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # that of its class is visible again


def _recomputed(block: nn.Module, index: int) -> Callable[..., Any]:
    """Return the forward function of a layer with the cache layer of this index."""
    forward = block.forward

    def run(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        caches = [each for each in (*args, *kwargs.values()) if isinstance(each, Cache)]
        if not caches or not torch.is_grad_enabled():
            return forward(hidden, *args, **kwargs)
        layer = caches[0].layers[index]
        before = dict(vars(layer))
        is_first = True

        def compute(hidden: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return forward(hidden, *args, **kwargs)
            now = dict(vars(layer))
            _restore(layer, before)
            try:
                return forward(hidden, *args, **kwargs)
            finally:
                _restore(layer, now)

        return checkpoint(compute, hidden, use_reentrant=False, preserve_rng_state=block.training)

    return run


def _restore(layer: Any, state: dict[str, Any]) -> None:
    vars(layer).clear()
    vars(layer).update(state)
