"""Versions of a LoRA adapter, saved for an inference engine."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astra_rl.errors import ConfigurationError
from astra_rl.infra.checkpointing import replace_folder


class Adapter(NamedTuple):
    """A version of a LoRA adapter, saved for an engine.

    Attributes:
        number: Number of the version, from 1 on.
        name: Name at the engine, ``attacker-v{number}-{digest of the adapter}``; no two versions
            share one, not even of different runs on the same servers, so no cached prefix is stale.
        folder: The saved adapter.
        rank: Its largest rank.
    """

    number: int
    name: str
    folder: Path
    rank: int


class AdapterVersions:
    """Saves the LoRA adapter of a model for an engine, and keeps its newest versions.

    Args:
        kept: Number of versions that are kept; older ones are unloaded and deleted.
        unload: Called with each version before it is deleted.
        folder: Where versions are saved; None is a temporary folder, which is deleted with this
            object. Servers must be able to read it.
    """

    def __init__(
        self, kept: int, unload: Callable[[Adapter], None], folder: Path | None = None
    ) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="astra_rl_adapter_", dir=folder))
        if folder is not None:
            self._folder.chmod(0o755)  # servers may run as another user
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._kept, self._unload = kept, unload
        self._versions: list[tuple[str, Adapter]] = []
        self._count = 0

    def current(self, model: Any) -> Adapter | None:
        """Return the active adapter of a model, saved anew if it has changed; None without one.

        Raises:
            ConfigurationError: It is more than one adapter, or no plain LoRA adapter.
        """
        name = active_adapter(model)
        if name is None:
            return None
        weights = lora_weights(model, name)
        digest = _digest(weights, model.peft_config[name])
        known = next((each for known, each in self._versions if known == digest), None)
        if known is not None:
            return known
        self._count += 1
        config = model.peft_config[name]
        version = Adapter(
            self._count,
            f"attacker-v{self._count}-{digest[:8]}",
            self._folder / str(self._count),
            largest_rank(config),
        )
        with replace_folder(version.folder) as folder:
            _save(weights, config, folder)
        self._versions.append((digest, version))
        while len(self._versions) > self._kept:
            _, old = self._versions.pop(0)
            self._unload(old)
            shutil.rmtree(old.folder, ignore_errors=True)
        return version

    def is_current(self, model: Any, version: Adapter | None) -> bool:
        """Whether a version has the weights of the active adapter of a model; nothing is saved."""
        name = active_adapter(model)
        if name is None or version is None:
            return name is None and version is None
        digest = _digest(lora_weights(model, name), model.peft_config[name])
        return any(known == digest and each is version for known, each in self._versions)


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
