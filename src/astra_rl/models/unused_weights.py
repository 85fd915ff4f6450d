"""Weights of a file that a model does not use: which are harmless, and which make it another model.

transformers leaves out weights that the architecture has no place for, and only logs it. With a
``config.json`` of fewer layers, or without biases, that silently gives another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_OLD_BUFFERS = r"(?:^|\.)(?:(?:original_)?inv_freq|masked_bias|position_ids|version)$"
"""Constants that earlier versions of transformers saved; models compute them now."""
_BESIDE = r"(?:^|\.)(?:v_head|mtp(?:_\w+)?|pooler|seq_relationship)\."
"""Parts that read the model and change nothing in it: the value head of TRL, the heads that predict
several tokens for speculative decoding, the pooler and the sentence order head of BERT."""
_HEADS_OF_LANGUAGE_MODELS = r"^(?:lm_head|cls\.predictions|vocab_\w+)\."
"""Parts beside a classifier that was made from a language model."""


_VALUES = (".weight", ".bias")
"""Ends of the names of what a layer computes with; a quantised layer has further numbers."""


def unused_weights(model: PreTrainedModel, unexpected: Iterable[str]) -> set[str]:
    """Return those of the unused weights that the trained model had used.

    Not among them are what transformers declares to be unused in a family, the names of buffers
    (constants that a model computes when it is made), parts beside the model, such as a pooler, and
    numbers of quantised layers, such as scales.

    Args:
        model: The loaded model.
        unexpected: What transformers reports as ``unexpected_keys``.
    """
    embeddings: Any = model
    speaks = embeddings.get_output_embeddings() is not None
    harmless = [_OLD_BUFFERS, _BESIDE, *([] if speaks else [_HEADS_OF_LANGUAGE_MODELS])]
    pattern = re.compile("|".join(harmless))
    known = set(_names_of_constants(model))
    layers = set(_names_of_layers(model)) if getattr(model, "is_quantized", False) else set()
    return {
        name
        for name in unexpected
        if name not in known
        and not pattern.search(name)
        and not (name.rpartition(".")[0] in layers and not name.endswith(_VALUES))
    }


def _names_of_constants(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of buffers, which have no prefix in the files of a base model."""
    for name, _ in model.named_buffers():
        yield from (name, name.removeprefix(f"{model.base_model_prefix}."))


def _names_of_layers(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of modules and of their weights, below the lists of modules."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            yield name
    yield from (name for name, _ in model.named_parameters())
