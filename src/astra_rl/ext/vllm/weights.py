"""Weights of a model in memory, as a folder that an engine opens."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from astra_rl.logging import logger
from astra_rl.models.references import reads_locally


def weights_folder(model: PreTrainedModel) -> str:
    """Return a folder or hub id with exactly the weights of a base model.

    That is where the model was loaded from, if its files agree with it in every weight. Otherwise,
    as for a model with a merged adapter or one that was fine-tuned in memory, it is a copy in a
    temporary folder, which is deleted with the model.

    Args:
        model: The model; adapter layers in it are left out.
    """
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    source = model.name_or_path
    if source and _agree(state, _weights_of(source)):
        return str(source)
    copy = tempfile.mkdtemp(prefix="astra_rl_engine_")
    weakref.finalize(model, shutil.rmtree, copy, ignore_errors=True)
    logger.info("saving a copy of the weights of %s for the engine", source or "a model in memory")
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    embedding = model.config.get_text_config().tie_word_embeddings
    kept = {name: value for name, value in state.items() if not (embedding and name in tied)}
    _save(model, kept, Path(copy))
    return copy


def _save(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    cpu = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(cpu, folder / "model.safetensors", metadata={"format": "pt"})


def _weights_of(source: str) -> list[Path]:
    """Return the files of weights of a folder or cached hub id; none if it has no safetensors."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        found = cached_file(
            source,
            name,
            local_files_only=reads_locally(source),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            return sorted(Path(found).parent.glob("*.safetensors"))
    return []


def _agree(state: dict[str, Tensor], files: list[Path]) -> bool:
    """Whether the weights in the files are those of the model; all must be there."""
    from safetensors import safe_open

    found = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                ours = state.get(name)
                if ours is None or not torch.equal(ours, file.get_tensor(name).to(ours)):
                    return False
                found.add(ours.data_ptr())
    # Tied weights are in the files once.
    return bool(found) and {value.data_ptr() for value in state.values()} <= found
