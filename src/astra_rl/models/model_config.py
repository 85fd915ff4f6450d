"""Checks of the files that describe a model: configuration, tokenizer, index of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.import_utils import is_kernels_available

from astra_rl.errors import ModelError
from astra_rl.infra.jsonio import parse_json

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


def check_index_of_weights(folder: Path) -> None:
    """Refuse a folder whose weights are elsewhere: the index of several files names any path.

    An index beside the one file of all weights is not used.

    Raises:
        ModelError: An index cannot be read, or names something else than a file of the folder.
    """
    for path in folder.glob("*.safetensors.index.json"):
        if path.with_name(path.name.removesuffix(".index.json")).is_file():
            continue
        try:
            index = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from error
        names = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(names, Mapping) or not names:
            raise ModelError(f"{path} has no weight_map, which names the file of each weight.")
        for name in dict.fromkeys(map(str, names.values())):
            if Path(name).name != name or "\\" in name or not (folder / name).is_file():
                raise ModelError(
                    f"{path} names {name!a}, which is no file of its folder. Copy the file into "
                    "the folder, and name it there."
                )


_FILES_OF_TOKENIZERS = ("vocab", "merges", "gguf_file")
"""Settings of a tokenizer that transformers opens as files, anywhere, if they are text."""


def check_tokenizer_config(folder: Path) -> None:
    """Refuse a tokenizer whose settings name files; its own have fixed names.

    Raises:
        ModelError: They name one, or cannot be read.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    try:
        settings = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    for name in _FILES_OF_TOKENIZERS:
        if isinstance(settings, Mapping) and isinstance(named := settings.get(name), str):
            raise ModelError(
                f"{path} sets {name} to {named!a}, a file that may be anywhere. Remove it: the "
                "files of a tokenizer are found by their names."
            )


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
