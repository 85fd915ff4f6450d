"""Limits within which the position embeddings of a model do not depend on the sequence length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    # Some families have one set of parameters per type of layer.
    for parameters in (rope, *rope.values()):
        if not isinstance(parameters, Mapping):
            continue
        kind = str(parameters.get("rope_type"))
        if kind == "longrope":
            limits.append(
                parameters.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)
