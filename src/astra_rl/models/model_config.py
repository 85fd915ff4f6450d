"""Check of the configuration of a model, ``config.json``, which is data and may be hostile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.import_utils import is_kernels_available

from astra_rl.errors import ModelError

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_OTHER_SIZES = (
    *("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"),
    *("hidden_size", "n_embd", "d_model", "vocab_size", "max_position_embeddings", "n_positions"),
)
MOST_LAYERS = 10_000
"""Largest accepted number of layers; transformers makes all layers before it reads a weight."""
MOST_SIZE = 2**31
"""Largest accepted value of the other sizes."""
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")


def check_model_config(source: str, *, allow_code: bool, **where: Any) -> None:
    """Refuse a configuration with sizes that no model has, or that names code of the hub.

    transformers downloads and runs attention code that is named as ``owner/name``, and that of
    ``flash_attention_2`` and its successors if the package kernels is installed.

    Args:
        source: Hub id or folder.
        allow_code: Whether code that the configuration names may run.
        where: Arguments of ``PreTrainedConfig.get_config_dict``, such as ``revision``.

    Raises:
        ModelError: A size is not positive, there are more than `MOST_LAYERS` layers, or code is
            named.
    """
    settings, _ = PreTrainedConfig.get_config_dict(source, **where)
    for name, value in _settings(settings):
        most = MOST_LAYERS if name in _LAYERS else MOST_SIZE
        is_size = name in (*_LAYERS, *_OTHER_SIZES) and isinstance(value, int | float)
        if is_size and not 1 <= value <= most:
            raise ModelError(
                f"config.json of {source} has {name}={value}; it must be from 1 to {most}. Restore "
                "the file that came with the weights."
            )
        if not allow_code and name.strip("_").startswith(_IMPLEMENTATIONS):
            _check_implementation(source, name, value)


def _settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a configuration and of its parts."""
    if isinstance(settings, list):
        for each in settings:
            yield from _settings(each)
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            yield str(name), value
            yield from _settings(value)


def _check_implementation(source: str, setting: str, value: Any) -> None:
    for name in value.values() if isinstance(value, Mapping) else [value]:
        if "/" in str(name) or ("flash" in str(name) and is_kernels_available()):
            raise ModelError(
                f"config.json of {source} sets {setting} to {name!a}, which is code of the hub; a "
                "model brings no code. Remove it: the implementation is chosen here."
            )
