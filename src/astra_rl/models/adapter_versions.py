"""Versions of a LoRA adapter, saved for an inference engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astra_rl.errors import ConfigurationError
from astra_rl.models.versions import Versions


class Adapter(NamedTuple):
    """A version of a LoRA adapter, see `Version`; its folder is a saved adapter.

    Attributes:
        rank: Its largest rank.
    """

    number: int
    name: str
    folder: Path
    rank: int


class AdapterVersions(Versions[Adapter]):
    """Versions of the active LoRA adapter of a model, see `Versions`."""

    def _digest(self, model: Any) -> str | None:
        name = active_adapter(model)
        return None if name is None else _digest(lora_weights(model, name), model.peft_config[name])

    def _save(self, model: Any, folder: Path, number: int, name: str, place: Path) -> Adapter:
        active = active_adapter(model)
        assert active is not None
        config = model.peft_config[active]
        _save(lora_weights(model, active), config, folder)
        return Adapter(number, name, place, largest_rank(config))


def active_adapter(model: Any) -> str | None:
    """Return the name of the adapter that a model runs with, frozen or not; None without one.

    Args:
        model: A peft model, or a base model that adapter layers were inserted into.

    Raises:
        ConfigurationError: Several are active.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    active = {
        name
        for layer in layers
        if not layer.disable_adapters
        for name in layer.active_adapters
        if name in model.peft_config
    }
    if len(active) > 1:
        raise ConfigurationError(
            f"the adapters {sorted(active)} are active together; an engine runs one."
        )
    return next(iter(active), None)


def lora_weights(model: Any, name: str) -> dict[str, Tensor]:
    """Return the weights of a LoRA adapter under the names of its file, in the dtype of the base.

    Raises:
        ConfigurationError: It has weights other than those of linear layers, as DoRA has.
    """
    from peft import get_peft_model_state_dict

    base = base_of(model)
    found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    prefix = "base_model.model."
    weights = {
        key if key.startswith(prefix) else f"{prefix}{key}": value.detach().to(base.dtype)
        for key, value in found.items()
    }
    if other := sorted(
        key for key in weights if not key.endswith(("lora_A.weight", "lora_B.weight"))
    ):
        raise ConfigurationError(
            f"the adapter {name!r} has {other[0]}, which engines do not run; they run plain LoRA "
            "adapters. Use rollout: own, or merge the adapter."
        )
    return weights


def largest_rank(config: Any) -> int:
    """Return the largest rank of a ``LoraConfig``."""
    return int(max([config.r, *config.rank_pattern.values()]))


def _digest(weights: dict[str, Tensor], config: Any) -> str:
    """Return a checksum of the weights and of what they are multiplied by."""
    digest = hashlib.blake2b(digest_size=16)
    scale = (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern)
    digest.update(repr((*scale, config.use_rslora)).encode())
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(weights: dict[str, Tensor], config: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    config.save_pretrained(str(folder))
    cpu = {key: value.cpu().contiguous() for key, value in weights.items()}
    save_file(cpu, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def base_of(model: Any) -> Any:
    """Return the base model of a peft model; another model is its own."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
