"""PEFT adapters: loading on their base model, merging into its weights, and saving.

An adapter is kept separate, in float32, while its model is only read, so an evaluation runs exactly
what was trained. Before training it is merged into the weights: the merged model is the starting
point, so it is also what a new LoRA adapter is added to and what disabling that adapter restores.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from astra_rl.errors import ModelError
from astra_rl.infra.jsonio import parse_json
from astra_rl.models.references import bundled_base, reads_locally, resolve_reference

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OWN_ADAPTER = "default"
"""Name of the adapter that is trained, saved, or the only one."""
MOST_ADAPTERS = 8
"""Largest number of adapters below an adapter."""
NAMES_ELSEWHERE = {"megatron_config": "Python modules", "adapters": "other adapters"}
"""Settings of peft by which an adapter has something else imported or loaded, and what that is."""


def base_of_adapter(source: str) -> tuple[str, str | None] | None:
    """Return the base model that an adapter was trained on, and its revision on the hub.

    Args:
        source: Hub id or folder, see `references.resolve_reference`.

    Returns:
        None if `source` is a complete model.

    Raises:
        ModelError: The adapter does not name its base model, or stands on more than
            `MOST_ADAPTERS` others, for instance on itself; or it has a complete model beside it.
    """
    found = _named_base(source)
    below = found
    for _ in range(MOST_ADAPTERS):
        if below is None or not Path(below[0]).is_dir():
            return found
        below = _named_base(below[0])
    if below is None:
        return found
    raise ModelError(
        f"{source} is an adapter on more than {MOST_ADAPTERS} other adapters, or on itself. Set "
        f"base_model_name_or_path in its {CONFIG_NAME} to its base model."
    )


def _named_base(source: str) -> tuple[str, str | None] | None:
    if not _is_or_may_be_adapter(Path(source)):
        return None
    path = find_adapter_config_file(source, local_files_only=reads_locally(source))
    if path is None:
        return None
    try:
        config = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise ModelError(
            f"{source} is an adapter whose {CONFIG_NAME} names no base model. Set "
            "base_model_name_or_path in it, or merge the adapter and save the whole model."
        )
    return bundled_base(str(base)), config.get("revision")


def _is_or_may_be_adapter(folder: Path) -> bool:
    """Whether a folder, or a hub id, is not a complete model.

    Some trainers write the configuration of the base model beside their adapter.

    Raises:
        ModelError: It is a complete model and an adapter. transformers would load both, and none of
            the checks of an adapter would apply.
    """
    if not (folder / "config.json").is_file():
        return True
    is_adapter = (folder / CONFIG_NAME).is_file()
    if is_adapter and any(folder.glob("model*.safetensors")):
        raise ModelError(
            f"{folder} holds a complete model (config.json and its weights) and an adapter "
            f"({CONFIG_NAME}). Give the adapter a folder of its own, or remove it."
        )
    return is_adapter


def load_adapter(base: Any, source: str, name: str = OWN_ADAPTER) -> Any:
    """Return the peft model of a base model and a saved adapter, in float32 and frozen.

    Args:
        base: The base model; adapter layers are inserted into it. A peft model keeps its adapters,
            and the one that is active; see `using_adapter`.
        source: Hub id or folder of the adapter.
        name: Name of the adapter in the peft model.

    Raises:
        ModelError: The adapter does not fit the base model, or changes more than its weights.
        OSError: There are no safetensors weights.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner
    from safetensors import safe_open

    # peft would read pickled weights if there are no others.
    weights = cached_file(source, WEIGHTS_NAME, local_files_only=reads_locally(source))
    assert weights is not None
    folder, device = str(Path(weights).parent), str(base.device)
    _check_names_nothing_else(source, folder)
    with quiet_peft():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        if isinstance(base, PeftModel):
            model = base
            model.load_adapter(folder, name, torch_device=device)
        else:
            model = PeftModel.from_pretrained(base, folder, name, torch_device=device)
    if not isinstance(model.base_model, BaseTuner):
        raise ModelError(
            f"{source} is an adapter of type {model.active_peft_config.peft_type}, which changes "
            "the prompt instead of weights. Use a LoRA adapter or a complete model."
        )
    with safe_open(weights, framework="pt") as file:
        # peft also saves copies of adapted embedding layers, which the base model has.
        saved = {name for name in file.keys() if not name.endswith(".base_layer.weight")}  # noqa: SIM118
    if extra := sorted(saved - _loaded_names(model, name)):
        raise ModelError(
            f"{source} does not fit its base model {base.name_or_path!r}, which has no place for "
            f"{', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''}."
        )
    return model


def _check_names_nothing_else(source: str, folder: str) -> None:
    """Refuse an adapter that would bring more than its own weights; an adapter is data.

    peft before 0.20 imports any module that ``megatron_core`` names. X-LoRA loads the adapters that
    it names from any folder or from the hub.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    for setting, named in NAMES_ELSEWHERE.items():
        if getattr(config, setting, None):
            raise ModelError(
                f"{source} is an adapter whose {CONFIG_NAME} sets {setting}, which names {named}; "
                "they are not loaded. Use a plain LoRA adapter or a complete model."
            )


def _loaded_names(model: Any, adapter: str) -> set[str]:
    from peft import get_peft_model_state_dict

    names = set(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False))
    # peft saves whole embedding layers under their plain names.
    return names | {
        f"base_model.model.{name}" for name, _ in model.base_model.model.named_parameters()
    }


@contextlib.contextmanager
def using_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Context in which a peft model runs with one of its adapters.

    Args:
        model: The peft model. Afterwards its active adapter and its trainable parameters are those
            of before.
        name: Name of the adapter; None is none, so that the model is its base model.
    """
    before, trained = model.active_adapter, [p for p in model.parameters() if p.requires_grad]
    try:
        if name is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(name, inference_mode=True)
            yield
    finally:
        model.set_adapter(before, inference_mode=True)
        for parameter in trained:
            parameter.requires_grad_(True)


def shares_base(source: str) -> str | None:
    """Return the base model of an adapter that can be one of several on the same weights.

    That is a LoRA adapter which changes nothing but the layers it is added to, on a complete model.

    Args:
        source: Folder, see `references.resolve_reference`.

    Returns:
        None for any other model.
    """
    from peft import PeftConfig
    from safetensors import safe_open

    named = base_of_adapter(source)
    if named is None or named[1] is not None or not Path(source).is_dir():
        return None
    if base_of_adapter(resolve_reference(named[0])) is not None:
        return None
    path = Path(source) / WEIGHTS_NAME
    if not path.is_file() or PeftConfig.from_pretrained(source).peft_type != "LORA":
        return None
    with safe_open(path, framework="pt") as file:
        is_plain = all(".lora_" in name for name in file.keys())  # noqa: SIM118
    return named[0] if is_plain else None


def is_adapted(model: torch.nn.Module) -> bool:
    """Return whether a model is a peft model or contains adapter layers."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


@torch.no_grad()
def merge_adapter(model: Any) -> PreTrainedModel:
    """Merge the adapter of a model into the weights of its base model, in place.

    The result has no adapter layers and no source (``name_or_path`` is empty), because its weights
    are those of no hub id or folder. A model without an adapter is returned unchanged.

    Args:
        model: A language model; if it is a peft model, it must not be used afterwards.

    Raises:
        ModelError: Merging would change the logits by more than rounding.
    """
    if not is_adapted(model):
        return model  # type: ignore[no-any-return]
    base: PreTrainedModel = model.get_base_model()
    ids = torch.arange(min(8, base.config.get_text_config().vocab_size), device=base.device)[None]
    before = model(input_ids=ids).logits.float()
    _untie_adapted_embeddings(base)
    with quiet_peft():
        merged: PreTrainedModel = model.merge_and_unload()
    after = merged(input_ids=ids).logits.float()
    tolerance = (1e-3 if merged.dtype == torch.float32 else 0.1) * float(
        before.max() - before.min()
    )
    if not (gap := float((after - before).abs().max())) <= tolerance:
        raise ModelError(
            f"the adapter on {base.name_or_path!r} cannot be merged into its weights: logits "
            f"change by up to {gap:.3g}. Merge and save the model with peft, and use the result."
        )
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    merged.name_or_path = merged.config.name_or_path = ""
    return merged.requires_grad_(False)


def _untie_adapted_embeddings(base: Any) -> None:
    """Give the head weights of its own if an adapter changes it or the embedding it is tied to."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = (BaseTunerLayer, ModulesToSaveWrapper)
    if head is None or not (isinstance(embedding, adapted) or isinstance(head, adapted)):
        return
    if head.weight is embedding.weight:
        layer: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        layer.weight = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False


def save_model(model: Any, folder: Path) -> None:
    """Save a model so that the folder alone, or with the base model it names, is the whole model.

    A LoRA adapter is saved as an adapter if its base model was loaded from a hub id or folder. The
    adapter of any other base (a merged one, or one that was built in memory) is merged into a copy,
    which is saved with all weights.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
    elif model.get_base_model().name_or_path:
        # The default looks for the base model's configuration on the hub, at every save.
        model.save_pretrained(
            str(folder), save_embedding_layers=False, selected_adapters=[OWN_ADAPTER]
        )
    else:
        merge_adapter(copy.deepcopy(model)).save_pretrained(folder)


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Context without peft's warnings about things that are handled here."""
    with warnings.catch_warnings():
        # peft corrects its default for GPT-2's Conv1D layers, and calls a deprecated transformers
        # attribute; tied embeddings are untied before merging.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        yield
