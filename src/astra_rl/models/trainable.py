"""Selection of the trainable parameters: all, the last layers, or a LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from astra_rl.errors import ConfigurationError, ModelError, first_line
from astra_rl.models.adapters import is_adapted, quiet_peft
from astra_rl.models.settings import LoraOptions as LoraOptions


def make_trainable(
    model: PreTrainedModel, *, lora: LoraOptions | None = None, layers: int | None = None
) -> Any:
    """Enable gradients of all parameters, of the last layers, or of a new LoRA adapter.

    Args:
        model: A frozen model.
        lora: Add a float32 adapter and train only the adapter.
        layers: Train only this number of last transformer layers.

    Returns:
        The model; a peft model if `lora` is given.

    Raises:
        ConfigurationError: Both options are given, the model has fewer layers, no module has the
            names of ``lora.target_modules``, or the model has an adapter already.
    """
    if is_adapted(model):
        # A second adapter would replace it, and saving would write only one of the two.
        raise ConfigurationError(
            "this model has an adapter already, so its weights cannot be trained. Merge it first "
            "(peft: model = model.merge_and_unload()), or give its folder or hub id instead of the "
            "model."
        )
    if lora is not None:
        if layers is not None:
            raise ConfigurationError(
                "lora and trainable_layers are mutually exclusive; give one of them."
            )
        return _with_adapter(model, lora)
    if layers is None:
        model.requires_grad_(True)
        return model
    blocks = transformer_layers(model)
    if not 1 <= layers <= len(blocks):
        raise ConfigurationError(
            f"trainable_layers={layers}; this model has {len(blocks)} layers, choose 1 to "
            f"{len(blocks)}."
        )
    for block in blocks[-layers:]:
        block.requires_grad_(True)
    return model


def _with_adapter(model: PreTrainedModel, lora: LoraOptions) -> Any:
    from peft import get_peft_model

    config = adapter_config(lora)
    with quiet_peft():
        try:
            adapted = get_peft_model(model, config).eval()
        except ValueError as error:
            raise ConfigurationError(
                f"target_modules={lora.target_modules!r}: {first_line(error)}"
            ) from error
    name_base(adapted)
    return adapted


def adapter_config(lora: LoraOptions) -> Any:
    """Return the options as a ``peft.LoraConfig``."""
    from peft import LoraConfig

    modules = lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def name_base(adapted: Any) -> None:
    """Store the path of the base model in an adapter, so that it loads from any working directory.

    Args:
        adapted: A peft model; nothing is changed if its base model is not from a folder.
    """
    name = adapted.get_base_model().name_or_path
    if name and Path(name).is_dir():
        adapted.active_peft_config.base_model_name_or_path = str(Path(name).resolve())


def transformer_layers(model: PreTrainedModel) -> Sequence[torch.nn.Module]:
    """Return the transformer blocks of a model in order.

    Raises:
        ModelError: The blocks cannot be identified.
    """
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == model.config.get_text_config().num_hidden_layers
    ]
    if not candidates:
        raise ModelError(
            f"the transformer layers of {type(model).__name__} cannot be identified; train all "
            "weights or a LoRA adapter instead."
        )
    return list(candidates[0])
