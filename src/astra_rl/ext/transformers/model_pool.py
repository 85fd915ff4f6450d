"""Loading of the models of a problem, with shared weights where sources coincide."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.models.adapters import merge_adapter, shares_base, using_adapter
from astra_rl.models.loading import load_beside, load_model, load_tokenizer
from astra_rl.models.pieces import Side
from astra_rl.models.references import loading_model, resolve_reference
from astra_rl.models.rendering import ConversationRenderer, context_window, same_vocabulary
from astra_rl.models.settings import AttentionImplementation
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.models.vocabulary import check_vocabulary, model_end_ids


class ModelPair(NamedTuple):
    """A model in memory and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def renderer(self, side: Side, **options: Any) -> ConversationRenderer:
        """Return a renderer of conversations for the model.

        Args:
            side: The side that the model is.
            options: See `ConversationRenderer`; context window and end tokens are the model's.
        """
        return ConversationRenderer(
            self.tokenizer,
            side,
            window=context_window(self.model.config),
            model_end_ids=model_end_ids(self.model),
            **options,
        )

    def shares_ids_with(self, other: ModelPair | None) -> bool:
        """Whether token ids of the other model are of the vocabulary of this one."""
        return other is not None and same_vocabulary(self.tokenizer, other.tokenizer)


class Place(NamedTuple):
    """A model in memory, and the adapter that is to be added to it.

    Attributes:
        pair: The model; the base model of the adapter, if there is one.
        adapter: Folder of the adapter; None for a complete model.
    """

    pair: ModelPair
    adapter: str | None = None


ModelSource = str | Path | ModelPair
"""A hub id, a folder, ``bundled:NAME``, or a model that is already in memory."""


class ModelPool:
    """Loads each source once, frozen and in evaluation mode.

    Args:
        device: See `astra_rl.models.loading.load_model`.
        dtype: See `astra_rl.models.loading.load_model`.
        trust_remote_code: Run Python code that is part of a model repository.
        attn_implementation: See `astra_rl.models.loading.load_model`.
    """

    def __init__(
        self,
        device: str,
        dtype: str | torch.dtype,
        trust_remote_code: bool,
        attn_implementation: AttentionImplementation = "auto",
    ) -> None:
        self.device, self.dtype = device, dtype
        self.attn_implementation = attn_implementation
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
        key = _key(source)
        if key not in self.loaded:
            model = load_model(
                source,
                device=self.device,
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
            )
            if merge:
                model = merge_adapter(model)
            tokenizer = load_tokenizer(source, trust_remote_code=self.trust_remote_code)
            check_vocabulary(model, tokenizer, str(source))
            self.loaded[key] = ModelPair(model, tokenizer)
        return self.loaded[key]

    def place(self, source: ModelSource) -> Place:
        """Return the model of a source, without the adapter if others can share its base model.

        See `SharedAdapters` for how the adapter is added.
        """
        if isinstance(source, ModelPair) or _key(source) in self.loaded:
            return Place(self.load(source))
        folder = resolve_reference(source)
        with loading_model(f"the language model {str(source)!r}"):
            base = shares_base(folder)
        if base is None:
            return Place(self.load(source))
        model = self.load(base).model
        tokenizer = load_tokenizer(source, trust_remote_code=self.trust_remote_code)
        check_vocabulary(model, tokenizer, str(source))
        return Place(ModelPair(model, tokenizer), folder)


def _key(source: str | Path) -> str:
    """Return the same text for all references to the same model."""
    resolved = resolve_reference(source)
    return str(Path(resolved).resolve()) if Path(resolved).is_dir() else resolved


class Carried(NamedTuple):
    """A model with its adapter loaded.

    Attributes:
        model: The peft model that carries the adapter; a complete model without one.
        adapter: Name of the adapter in it; None without one.
    """

    model: Any
    adapter: str | None


class SharedAdapters:
    """Adapters of several models on the same weights, and which of them a call runs with."""

    def __init__(self) -> None:
        self._carriers: list[tuple[PreTrainedModel, Any]] = []

    def own(self, model: Any) -> None:
        """Take in a peft model that others may share the base model of."""
        self._carriers.append((model.get_base_model(), model))

    def add(self, place: Place, name: str | None = None) -> Carried:
        """Load the adapter of a place onto its model; the first one is active outside of `using`.

        Args:
            place: The place; without an adapter nothing is loaded.
            name: Name of the adapter; None is a new name.
        """
        model = place.pair.model
        if place.adapter is None:
            return Carried(model, None)
        carrier = self._carrier(model)
        name = name or f"target_{0 if carrier is None else len(carrier.peft_config)}"
        loaded = load_beside(model if carrier is None else carrier, place.adapter, name)
        if carrier is None:
            self._carriers.append((model, loaded))
        return Carried(loaded, name)

    def using(self, model: Any, adapter: str | None = None) -> AbstractContextManager[None]:
        """Return a context in which a model runs with this adapter; None is none.

        A model that is no base model of adapters is left as it is.
        """
        carrier = self._carrier(model)
        return nullcontext() if carrier is None else using_adapter(carrier, adapter)

    def _carrier(self, model: Any) -> Any:
        return next((carrier for base, carrier in self._carriers if base is model), None)


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
