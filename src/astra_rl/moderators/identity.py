"""Which moderator gave a score: its name, its weights and its settings."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn

from astra_rl.core.moderator import Moderator

HOW_NOT_WHAT = frozenset(
    {"api_key", "batch_size", "complete", "device", "max_entries", "max_retries"}
    | {"model", "timeout", "tokenizer"}
)
"""Arguments that say how a moderator is run, not what it finds: no part of its identity."""

MAX_DEPTH = 8


@dataclass(frozen=True)
class Identity:
    """What tells one moderator from another; equal in every process.

    Attributes:
        name: Its class.
        weights: What its model is, for instance ``"meta-llama/Llama-Guard-3-8B@4f2c 9d41..."``;
            None if it has none, or does not say.
        settings: Hash of all settings that may change a score.
    """

    name: str
    weights: str | None
    settings: str

    def as_dict(self) -> dict[str, str | None]:
        """Return the three as JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Hash of the three: two moderators with the same one give the same scores."""
        return _hash(json.dumps(self.as_dict(), sort_keys=True).encode())


def identity_of(moderator: Moderator[Any, Any]) -> Identity:
    """Return the identity of a moderator.

    Settings are the arguments of its constructor that it keeps under the same name, but for those
    in `HOW_NOT_WHAT`; weights are fingerprinted if it has a torch model as ``model``. A class for
    which that is not the truth defines ``identity_settings()``, a mapping, or
    ``identity_weights()``, a string or None. What wraps another moderator without changing its
    scores says which as ``identity_stands_for``.
    """
    inner = getattr(moderator, "identity_stands_for", None)
    if isinstance(inner, Moderator):
        return identity_of(inner)
    own = getattr(moderator, "identity_settings", None)
    settings = own() if callable(own) else _kept_arguments(moderator)
    text = json.dumps(_described(settings), sort_keys=True, ensure_ascii=True)
    own = getattr(moderator, "identity_weights", None)
    weights = own() if callable(own) else weights_of(moderator)
    return Identity(_name(moderator), weights, _hash(text.encode()))


def weights_of(holder: object) -> str | None:
    """Return what an object's ``model`` is: where it came from, and its fingerprint.

    Something else that answers, for instance the client of an endpoint, may have an ``identity``, a
    name as its ``model``, or be called by a ``name`` itself.
    """
    identity = getattr(holder, "identity", None)
    if isinstance(identity, str):
        return identity
    model = getattr(holder, "model", None)
    if isinstance(model, nn.Module):
        commit = getattr(getattr(model, "config", None), "_commit_hash", None)
        source = str(getattr(holder, "model_id", "") or type(model).__name__)
        return f"{source}{f'@{commit}' if commit else ''} {fingerprint(model)}"
    named = model if isinstance(model, str) else getattr(holder, "name", None)
    return named if isinstance(named, str) else None


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of a model's weights: names, shapes, and up to 64 values of each.

    It takes milliseconds for any size. Weights that were trained further differ in it; those loaded
    in another dtype do too, for they score differently.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        chosen = torch.linspace(0, max(0, len(flat) - 1), min(64, len(flat))).long()
        values = flat[chosen.to(flat.device)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {values.tolist()}".encode())
    return digest.hexdigest()[:12]


def _name(moderator: object) -> str:
    kind = type(moderator)
    if kind.__module__.startswith("astra_rl."):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _kept_arguments(moderator: object) -> dict[str, Any]:
    names = set(inspect.signature(type(moderator).__init__).parameters) - {"self"} - HOW_NOT_WHAT
    return {name: getattr(moderator, name) for name in names if hasattr(moderator, name)}


def _described(value: Any, depth: int = 0) -> Any:
    """Return a value in JSON's types, the same in every process: no addresses, no set order."""
    if depth > MAX_DEPTH:  # a function may hold itself
        return "..."
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Moderator):
        return identity_of(value).as_dict()
    if isinstance(value, Mapping):
        return {str(key): _described(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_described(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_described(item, depth + 1) for item in value), key=str)
    if isinstance(value, functools.partial):
        return _described([value.func, value.args, value.keywords], depth + 1)
    kind = value if inspect.isroutine(value) else type(value)
    makings = _makings(value) if inspect.isfunction(value) else []
    return [kind.__module__, kind.__qualname__, *_described(makings, depth + 1)]


def _makings(value: FunctionType) -> list[Any]:
    """What makes a function do what it does: its source, its defaults, what it closes over."""
    try:
        code = inspect.getsource(value)
    except (OSError, TypeError):  # typed in, or made by exec
        code = value.__code__.co_code.hex()
    held = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    return [code, value.__defaults__, held]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
