"""Loading of models and tokenizers, frozen and in evaluation mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from astra_rl.errors import ConfigurationError, ModelError, did_you_mean
from astra_rl.infra.checkpointing import CHECKSUMS, damage_of
from astra_rl.logging import logger
from astra_rl.models.adapters import base_of_adapter, load_adapter, merge_adapter
from astra_rl.models.attention import use_cpu_attention
from astra_rl.models.devices import resolve_device, resolve_dtype
from astra_rl.models.model_config import (
    check_index_of_weights,
    check_model_config,
    check_tokenizer_config,
)
from astra_rl.models.positions import position_limit
from astra_rl.models.references import loading_model, reads_locally, resolve_reference
from astra_rl.models.settings import AttentionImplementation
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.models.unused_weights import unused_weights

LOADING = {
    "model_id": "Hub id, folder or ``bundled:NAME``; see `astra_rl.models.loading.load_model`.",
    "device": "``'auto'``, ``'cpu'``, ``'cuda'``, ``'cuda:N'`` or ``'mps'``.",
    "dtype": "Dtype of the weights: ``'auto'`` or one of `astra_rl.models.devices.DTYPES`.",
}
"""Descriptions of the options of classes that load a model, see `document_options`."""


def load_model(
    reference: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attn_implementation: AttentionImplementation = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, frozen and in evaluation mode.

    Only safetensors weights are read. If the folder contains checksums, they are verified. A PEFT
    adapter is loaded on the base model that it names and stays separate: the result is then a
    ``peft.PeftModel``, see `astra_rl.models.adapters`.

    Args:
        reference: Hub id, folder, or ``bundled:NAME``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``, or a torch device.
        dtype: ``"auto"``, one of `devices.DTYPES`, or a torch dtype.
        attn_implementation: Attention function.
        trust_remote_code: Run Python code that is part of the model repository.

    Raises:
        ModelError: The model cannot be loaded; the message contains the cause.
        ConfigurationError: The device, dtype, attention function or bundled model is unknown.
    """
    known = get_args(AttentionImplementation)
    if attn_implementation not in known:  # transformers loads code for other names from the hub
        raise ConfigurationError(
            f"attn_implementation={attn_implementation!r}; choose from {list(known)}."
            f"{did_you_mean(str(attn_implementation), known)}"
        )
    return _load_frozen(
        AutoModelForCausalLM,
        "language model",
        reference,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )


def load_beside(model: Any, source: str, name: str) -> Any:
    """Return the peft model of a loaded model and one more adapter; see `load_adapter`.

    Args:
        model: The base model of the adapter, or a peft model of it.
        source: Folder of the adapter.
        name: Name of the adapter in the peft model.

    Raises:
        ModelError: The adapter cannot be loaded; the message contains the cause.
    """
    logger.info("loading the adapter %s", source)
    with loading_model(f"the adapter {source!r}"):
        _check_undamaged(source)
        adapted = load_adapter(model, source, name)
        check_weights(adapted)
        return adapted.eval()


def load_classifier(
    reference: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """Load a sequence classifier, frozen and in evaluation mode.

    Only safetensors weights are read, and no code of the model repository is run. For the arguments
    see `load_model`.

    Raises:
        ModelError: The model cannot be loaded, or has no trained classification head.
        ConfigurationError: The device, dtype or bundled model is unknown.
    """
    return _load_frozen(
        AutoModelForSequenceClassification,
        "classifier",
        reference,
        device=device,
        dtype=dtype,
        trust_remote_code=False,
    )


def load_encoder(
    reference: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """Load a model without a head, whose hidden states are used, frozen and in evaluation mode.

    Only safetensors weights are read, and no code of the model repository is run. For the arguments
    see `load_model`.

    Raises:
        ModelError: The model cannot be loaded.
        ConfigurationError: The device, dtype or bundled model is unknown.
    """
    return _load_frozen(
        AutoModel, "encoder", reference, device=device, dtype=dtype, trust_remote_code=False
    )


def _load_frozen(
    auto_class: Any,
    kind: str,
    reference: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    attn_implementation: str = "auto",
    revision: str | None = None,
) -> PreTrainedModel:
    resolved_device = resolve_device(device)
    resolved_dtype = resolve_dtype(dtype, resolved_device)
    source = resolve_reference(reference)
    if trust_remote_code:
        _warn_remote_code(reference)
    logger.info("loading the %s %s", kind, reference)
    with loading_model(f"the {kind} {str(reference)!r}"):
        _check_undamaged(source)
        if (named := base_of_adapter(source)) is not None:
            base = _load_frozen(
                auto_class,
                kind,
                named[0],
                device=resolved_device,
                dtype=resolved_dtype,
                trust_remote_code=trust_remote_code,
                attn_implementation=attn_implementation,
                revision=named[1],
            )
            model = load_adapter(merge_adapter(base), source)  # the base may be an adapter too
            check_weights(model)
            return model.requires_grad_(False).eval()  # type: ignore[no-any-return]
        where = {"revision": revision, "local_files_only": reads_locally(source)}
        check_model_config(source, allow_code=trust_remote_code, **where)
        check_index_of_weights(Path(source))
        is_chosen = attn_implementation != "auto"
        attention = {"attn_implementation": attn_implementation} if is_chosen else {}
        model, report = auto_class.from_pretrained(
            source,
            dtype=resolved_dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **where,
            **attention,
        )
        # The pooler of an encoder is used for no hidden state, and often not saved.
        missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
        if missing:
            # transformers initialises missing weights at random and only logs a warning.
            raise ModelError(
                f"{str(reference)!r} is not a trained {kind}: it has no weights for "
                f"{sorted(missing)}."
            )
        unexpected = report["unexpected_keys"]
        if auto_class is AutoModel:  # heads are left out on purpose
            unexpected = {key for key in unexpected if _is_in_a_part(key, model)}
        _check_all_used(reference, model, unexpected)
        check_weights(model)
        limit = position_limit(model.config)
        if limit is not None and limit < model.config.get_text_config().max_position_embeddings:
            logger.warning(
                "%s is used up to %d tokens only: beyond it, its position embeddings depend on the "
                "length of the text, and sampled and scored log-probabilities would differ",
                reference,
                limit,
            )
        model.requires_grad_(False)
        model = model.to(resolved_device).eval()
        if not is_chosen:
            use_cpu_attention(model)
        return model  # type: ignore[no-any-return]


def _is_in_a_part(weight: str, model: PreTrainedModel) -> bool:
    """Whether a weight belongs to a part of a model, and not to a head beside them."""
    part = weight.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part in dict(model.named_children())


def _check_all_used(reference: str | Path, model: PreTrainedModel, found: set[str]) -> None:
    """Raise if the files have weights that are left out, and that the trained model had used."""
    if unused := sorted(unused_weights(model, found)):
        raise ModelError(
            f"{str(reference)!r} has {len(unused)} weights that its config.json has no place for: "
            f"{', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}. Without them it is "
            "another model. Correct config.json (numbers of layers and experts, biases), or, if "
            f"they are not needed, load it as {type(model).__name__} and save it again."
        )


def _check_undamaged(source: str) -> None:
    if damage := damage_of(Path(source)):
        raise ModelError(
            f"{source} is damaged: {damage}. Use another checkpoint, or delete its "
            f"{CHECKSUMS} to load it without verification."
        )


@torch.no_grad()
def check_weights(model: torch.nn.Module) -> None:
    """Check that all weights are finite.

    Reads each weight once and allocates almost no memory.

    Raises:
        ModelError: Some weights are not finite; the message names them.
    """
    # The sum of a tensor with a non-finite element is not finite. A sum can also overflow, so such
    # tensors are then checked element by element.
    broken = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point()
        and weight.device.type != "meta"
        and not torch.isfinite(weight.sum(dtype=torch.float32))
        and not torch.isfinite(weight).all()
    ]
    if broken:
        are = "is" if len(broken) == 1 else "are"
        raise ModelError(
            f"{len(broken)} of its weights {are} not finite: {', '.join(broken[:3])}"
            f"{', ...' if len(broken) > 3 else ''}. The file is damaged, or training "
            "diverged; use an earlier checkpoint."
        )


def load_tokenizer(
    reference: str | Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; see `load_model` for the arguments.

    Raises:
        ModelError: The tokenizer cannot be loaded; the message contains the cause.
        ConfigurationError: The bundled model is unknown.
    """
    source = resolve_reference(reference)
    if trust_remote_code:
        _warn_remote_code(reference)
    with loading_model(f"the tokenizer of {str(reference)!r}"):
        if not _has_tokenizer(source) and (named := base_of_adapter(source)) is not None:
            return load_tokenizer(named[0], trust_remote_code=trust_remote_code)
        check_tokenizer_config(Path(source))
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, local_files_only=reads_locally(source)
        )
        if not isinstance(limit := tokenizer.model_max_length, int | float):
            raise ModelError(
                f"model_max_length in the tokenizer_config.json of {reference} is {limit!a}; it "
                "must be a number. Correct or remove it."
            )
        return tokenizer


class ModelSettings(NamedTuple):
    """What is known of a model without its weights.

    Attributes:
        source: Hub id or folder.
        config: Its ``PretrainedConfig``.
        generation: Its ``GenerationConfig``; None if it has none.
    """

    source: str
    config: Any
    generation: Any


def load_settings(reference: str | Path, *, trust_remote_code: bool = False) -> ModelSettings:
    """Load the configuration of a complete model, and no weights; see `load_model`.

    Raises:
        ModelError: It cannot be loaded, or the model is an adapter.
        ConfigurationError: The bundled model is unknown.
    """
    source = resolve_reference(reference)
    with loading_model(f"the configuration of {str(reference)!r}"):
        if base_of_adapter(source) is not None:
            raise ModelError(
                f"{reference} is an adapter; an engine needs a complete model here. Merge "
                "it (peft: merge_and_unload()), save the result, and give that folder."
            )
        local = reads_locally(source)
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, local_files_only=local
        )
        try:
            generation = GenerationConfig.from_pretrained(source, local_files_only=local)
        except OSError:  # many base models have none
            generation = None
        return ModelSettings(source, config, generation)


def _has_tokenizer(source: str) -> bool:
    return not Path(source).is_dir() or any(Path(source).glob("*token*"))


def _warn_remote_code(reference: str | Path) -> None:
    logger.warning(
        "trust_remote_code: Python code in the repository of %s is run on this machine with your "
        "user's permissions",
        reference,
    )


__all__ = [
    "LoraOptions",
    "ModelSettings",
    "check_weights",
    "load_classifier",
    "load_model",
    "load_settings",
    "load_tokenizer",
    "make_trainable",
]
