"""Loading of the models of a problem, with shared weights where sources coincide."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.models.adapters import merge_adapter
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.models.vocabulary import check_vocabulary


class ModelPair(NamedTuple):
    """A model in memory and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


ModelSource = str | Path | ModelPair
"""A hub id, a folder, ``bundled:NAME``, or a model that is already in memory."""


class ModelPool:
    """Loads each source once, frozen and in evaluation mode.

    Args:
        device: See `astra_rl.models.loading.load_model`.
        dtype: See `astra_rl.models.loading.load_model`.
        trust_remote_code: Run Python code that is part of a model repository.
    """

    def __init__(self, device: str, dtype: str | torch.dtype, trust_remote_code: bool) -> None:
        self.device, self.dtype = device, dtype
        self.trust_remote_code = trust_remote_code
        self.loaded: dict[str, ModelPair] = {}

    def load(self, source: ModelSource, *, merge: bool = False) -> ModelPair:
        """Return the model of a source; the same object for the same source.

        Args:
            source: Hub id, folder, or a model in memory.
            merge: Merge an adapter into the weights, because the model will be trained. Must be
                given on the first call for a source.
        """
        if isinstance(source, ModelPair):
            name = source.model.name_or_path or "the model in memory"
            check_vocabulary(source.model, source.tokenizer, name)
            source.model.requires_grad_(False)
            source.model.train(False)
            return source
        if str(source) not in self.loaded:
            model = load_model(
                source,
                device=self.device,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
            )
            if merge:
                model = merge_adapter(model)
            tokenizer = load_tokenizer(source, trust_remote_code=self.trust_remote_code)
            check_vocabulary(model, tokenizer, str(source))
            self.loaded[str(source)] = ModelPair(model, tokenizer)
        return self.loaded[str(source)]


def trainable_attacker(
    model: PreTrainedModel, lora: LoraOptions | None, layers: int | None, *, shared: bool
) -> Any:
    """Return the attacker with its trainable parameters enabled.

    Args:
        model: The frozen source model.
        lora: See `astra_rl.models.trainable.make_trainable`.
        layers: See `astra_rl.models.trainable.make_trainable`.
        shared: Whether target or baseline use the same model. Its trainable weights are then
            copied, and the frozen ones are shared.
    """
    if lora is not None or not shared:
        return make_trainable(model, lora=lora, layers=layers)
    make_trainable(model, layers=layers)
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    attacker = copy.deepcopy(model, frozen)
    model.requires_grad_(False)
    return attacker
