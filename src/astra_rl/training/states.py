"""Training states on disk, for bit-exact resume.

A state is a folder ``step-00000012`` with two files: ``tensors.safetensors``, and ``state.json``
with everything else, the checksum of the tensors and its own checksum. It is written to a temporary
folder, synced and renamed, so a state is either complete or absent. Later damage is detected by the
checksums, and the previous state is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from astra_rl.errors import TrainingError
from astra_rl.infra.checkpointing import replace_folder, sha256
from astra_rl.infra.redaction import learn_from_environment, open_text, redact, seal_text
from astra_rl.logging import logger

SCHEMA_VERSION = 4
"""Version 1 had the random generator of torch only, version 2 no states of callbacks; both are
still read. Version 4 seals credentials in texts, which versions before it redacted."""
KEPT = 2
"""Number of states kept by default: the newest, and one to fall back to."""
_STATE, _TENSORS = "state.json", "tensors.safetensors"


def save_state(
    folder: str | Path, step: int, state: Mapping[str, Any], *, keep: int = KEPT
) -> Path:
    """Write a state, and remove all but the `keep` newest ones up to this step.

    Args:
        folder: Folder of the states of a training.
        step: Number of completed training steps.
        state: Tensors, numbers, strings, None, and mappings, lists and tuples of them.
        keep: Number of states to keep, this one included.

    Returns:
        The folder of the state.

    Raises:
        StorageError: The disk is full, or read-only. Existing states are kept.
    """
    folder = Path(folder)
    place = folder / f"step-{step:08d}"
    tensors: dict[str, Tensor] = {}
    learn_from_environment()
    packed = pack(state, tensors)
    with replace_folder(place) as temporary:
        save_file(tensors, temporary / _TENSORS)
        body = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "tensors_sha256": sha256(temporary / _TENSORS),
            "state": packed,
        }
        text = redact(json.dumps(body, sort_keys=True))
        checksum = hashlib.sha256(text.encode()).hexdigest()
        (temporary / _STATE).write_text(f"{checksum}\n{text}\n", encoding="utf-8")
    found = states(folder)
    done = found.index(place) + 1
    # Later states are damaged, or their steps would not have been repeated.
    for old in found[: max(0, done - keep)] + found[done:]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def load_state(folder: str | Path) -> tuple[int, dict[str, Any]] | None:
    """Read the newest undamaged state.

    Returns:
        The number of completed training steps, and the state; None if there is none.

    Raises:
        TrainingError: All states are damaged, or one was written by a newer version.
    """
    found = states(folder)
    for place in reversed(found):
        try:
            return _read(place)
        except _DamagedError as error:
            logger.warning("%s is damaged (%s); trying the state before it", place, error)
    if found:
        raise TrainingError(
            f"none of the {len(found)} states in {folder} is whole. Remove the folder to begin "
            "again."
        )
    return None


def states(folder: str | Path) -> list[Path]:
    """Return the folders of states, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*") if path.is_dir())


class _DamagedError(Exception):
    """The files of a state are damaged."""


def _read(place: Path) -> tuple[int, dict[str, Any]]:
    try:
        learn_from_environment()
        checksum, _, text = (place / _STATE).read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.removesuffix("\n").encode()).hexdigest() != checksum:
            raise _DamagedError(f"{_STATE} does not have its checksum")
        body = json.loads(text)
        if int(body["schema_version"]) > SCHEMA_VERSION:
            raise TrainingError(
                f"{place} was written by a newer version of astra-rl (schema "
                f"{body['schema_version']}); update astra-rl to resume."
            )
        if sha256(place / _TENSORS) != body["tensors_sha256"]:
            raise _DamagedError(f"{_TENSORS} does not have its checksum")
        state, step = unpack(body["state"], load_file(place / _TENSORS)), body["step"]
        if not isinstance(state, dict) or not isinstance(step, int):
            raise _DamagedError("it holds no state of a training")
        return step, state if body["schema_version"] >= 3 else _with_callbacks(state)
    except (TrainingError, _DamagedError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _with_callbacks(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of version 1 or 2 with the states of callbacks where version 3 has them."""
    callbacks: dict[str, Any] = {}
    if (best := state.pop("best", None)) is not None:
        callbacks["Evaluation"] = {"best_score": best["score"], "best_step": best["step"]}
        callbacks["Checkpointing"] = {"saved_step": best["saved"]}
    if (run := state.pop("run", None)) is not None:
        identity = ("config_sha256", "versions")
        callbacks |= {
            "AttackMetrics": {"recent": run["recent"]},
            "AttemptRecorder": {"trials": run["trials"]},
            "TimeLimit": {"elapsed": run["elapsed"]},
            "BestBySuccess": {"best_success": run.get("best_success", -math.inf)},
            "RunIdentity": {name: run[name] for name in identity if name in run},
        }
        if run["watch"] is not None:
            callbacks["WatchReward"] = run["watch"]
    return {**state, "callbacks": callbacks} if callbacks else state


def pack(value: Any, tensors: dict[str, Tensor], seal: Callable[[str], Any] = seal_text) -> Any:
    """Return JSON values that preserve tuples, and mapping keys that are not strings.

    Args:
        value: Tensors, numbers, strings, None, and mappings, lists and tuples of them.
        tensors: Receives the tensors, as contiguous copies on the CPU, by name.
        seal: Returns a text without credentials as JSON values, see `seal_text`.

    Raises:
        TypeError: The value has something else.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = value.items()
        return {"map": [[pack(each, tensors, seal) for each in item] for item in items]}
    if isinstance(value, tuple):
        return {"tuple": [pack(each, tensors, seal) for each in value]}
    if isinstance(value, list):
        return [pack(each, tensors, seal) for each in value]
    if isinstance(value, str):
        sealed = seal(value)
        return sealed if isinstance(sealed, str) else {"sealed": sealed}
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"a state cannot hold {type(value).__name__}: {value!r}")


def _opened(sealed: Any) -> str:
    text = open_text(sealed)
    if text is None:
        raise TrainingError(
            "a training state has text with a credential that is not known now. Set the "
            "environment variables that held credentials when the state was written, and the same "
            "ASTRA_RL_CACHE, and resume."
        )
    return text


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value of `pack`."""
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "sealed":
        return _opened(inner)
    if kind == "tuple":
        return tuple(unpack(each, tensors) for each in inner)
    return {unpack(k, tensors): unpack(v, tensors) for k, v in inner}
