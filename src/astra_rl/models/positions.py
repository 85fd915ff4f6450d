"""Lengths of a text at which a model computes attention or positions in another way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

_WINDOW_NAMES = ("sliding_window", "sliding_window_size", "attention_chunk_size")
_SCALE_NAMES = ("floor_scale",)


@dataclass(frozen=True)
class Boundary:
    """A length that the attention of a model depends on, by the tokens in its cache.

    Attributes:
        size: The length, in tokens.
        what: What changes at this length, for messages.
        names: Attributes of configurations and modules that hold the length; empty if a model has
            it in another form too, as GPT-Neo in the masks that it makes when it is constructed.
    """

    size: int
    what: str
    names: tuple[str, ...]


def position_limit(model_config: Any) -> int | None:
    """Return the number of tokens up to which all positions are rotated by the same frequencies.

    With LongRoPE (Phi-3.5, Phi-4-mini, MiniCPM) and dynamic NTK scaling, transformers rotates the
    whole sequence by other frequencies once it is longer than this. Keys that were cached before
    keep the old ones, so tokens sampled across the limit have other probabilities than the same
    tokens read at once.

    Args:
        model_config: The configuration of a model of transformers.

    Returns:
        None if the frequencies are the same at every length.
    """
    config = model_config.get_text_config()
    limits = []
    for parameters in _rope_parameters(config):
        kind = str(parameters.get("rope_type"))
        if kind == "longrope":
            limits.append(_original_length(config, parameters) or config.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def rescaled_positions(model_config: Any) -> set[int]:
    """Return the positions from which a model rescales positions or attention, one by one.

    They are the lengths before its context was extended (YaRN, Llama 3, Ministral 3), if they are
    below its context window. Unlike beyond `position_limit`, a token depends on its own position
    only.
    """
    config = model_config.get_text_config()
    found = {_original_length(config, parameters) for parameters in _rope_parameters(config)}
    most = getattr(config, "max_position_embeddings", None) or 0
    limit = position_limit(model_config) or most
    return {int(each) for each in found if each and each < min(most, limit)}


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of rotary positions; some families have some per type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in (rope, *rope.values()) if isinstance(each, Mapping)]


def _original_length(config: Any, parameters: Mapping[str, Any]) -> int | None:
    name = "original_max_position_embeddings"
    return parameters.get(name) or getattr(config, name, None)


def boundaries(model: PreTrainedModel) -> list[Boundary]:
    """Return the lengths that the attention of a model depends on, the smallest first."""
    config = model.config.get_text_config()
    layers = DynamicCache(config=model.config).layers
    windows = {
        layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)
    }
    found = [
        Boundary(size, f"attention window of {size} tokens", _WINDOW_NAMES) for size in windows
    ]
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo: not a type of cache layer
        size = config.window_size
        found.append(Boundary(size, f"attention window of {size} tokens", ()))
    if getattr(config, "attn_temperature_tuning", False):  # Llama 4
        # The first scaled token is the last one of a text of this length.
        size = int(config.floor_scale) - 1
        found.append(Boundary(size, f"scale of attention from {size} tokens on", _SCALE_NAMES))
    return sorted(found, key=lambda each: each.size)


def attention_window(model: PreTrainedModel) -> int | None:
    """Return the smallest of a model's `boundaries`, in tokens; None if it has none.

    Up to this length, the attention of a token does not depend on how many tokens, padding
    included, are in the cache.
    """
    return next((each.size for each in boundaries(model)), None)


@contextlib.contextmanager
def shortened(model: Any, size: int) -> Iterator[bool]:
    """Context in which all `boundaries` of a model lie at a few tokens.

    Args:
        model: A model of transformers, without an adapter around it; its attributes are restored at
            the end.
        size: The new length, in tokens.

    Yields:
        Whether all boundaries that can be moved have been.
    """
    movable = [each for each in boundaries(model) if each.names]
    held = {(name, each.size + (name in _SCALE_NAMES)) for each in movable for name in each.names}
    holders = [model.config, model.config.get_text_config(), *model.modules()]
    before = [
        (holder, name, vars(holder)[name])
        for holder in holders
        for name in {name for name, _ in held}
        if (name, vars(holder).get(name)) in held
    ]
    try:
        for holder, name, _ in before:
            setattr(holder, name, size + (name in _SCALE_NAMES))
        now = {each.size for each in boundaries(model) if each.names}
        yield bool(movable) and now == {size}
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
