"""Versions of what a model has learned, saved for an inference engine."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from astra_rl.distributed.launch import world_size
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.models.adapters import save_model


class Version(Protocol):
    """A version of what a model has learned."""

    @property
    def number(self) -> int:
        """Number of the version, from 1 on."""

    @property
    def name(self) -> str:
        """Name at the engine, ``attacker-v{number}-{random characters of the run}``.

        No two versions share one, not even of runs that start with the same weights on the same
        servers: what one of them unloads and deletes is never what the other one samples with. If
        several processes were started together, which have the same weights, the characters are
        those of a checksum of the weights, so that they share versions.
        """

    @property
    def folder(self) -> Path:
        """Where it is saved."""


class FullWeights(NamedTuple):
    """A version of all weights of a model, see `Version`; its folder is a complete model."""

    number: int
    name: str
    folder: Path


VersionT = TypeVar("VersionT", bound=Version)


class Versions(ABC, Generic[VersionT]):
    """Saves what a model has learned for an engine, and keeps its newest versions.

    Args:
        kept: Number of versions that are kept; older ones are unloaded and deleted.
        unload: Called with each version before it is deleted.
        folder: Where versions are saved; None is a temporary folder, which is deleted with this
            object. Servers must be able to read it.
    """

    def __init__(
        self, kept: int, unload: Callable[[Version], None], folder: Path | None = None
    ) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="astra_rl_attacker_", dir=folder))
        if folder is not None:
            self._folder.chmod(0o755)  # servers may run as another user
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._run = secrets.token_hex(4) if world_size() == 1 else ""
        self._kept, self._unload = kept, unload
        self._versions: list[tuple[str, VersionT]] = []
        self._count = 0

    def current(self, model: Any) -> VersionT | None:
        """Return the version that a model has, saved anew if it has changed.

        Returns:
            The version; None if the model has learned nothing that could be handed over.

        Raises:
            ConfigurationError: An engine could not run it.
        """
        digest = self._digest(model)
        if digest is None:
            return None
        known = next((each for known, each in self._versions if known == digest), None)
        if known is not None:
            return known
        self._count += 1
        name = f"attacker-v{self._count}-{self._run or digest[:8]}"
        place = self._folder / str(self._count)
        with replace_folder(place) as folder:
            version = self._save(model, folder, self._count, name, place)
        self._versions.append((digest, version))
        while len(self._versions) > self._kept:
            _, old = self._versions.pop(0)
            self._unload(old)
            shutil.rmtree(old.folder, ignore_errors=True)
        return version

    def is_current(self, model: Any, version: Version | None) -> bool:
        """Whether a version is what a model has; nothing is saved."""
        digest = self._digest(model)
        if digest is None or version is None:
            return digest is None and version is None
        return any(known == digest and each is version for known, each in self._versions)

    @abstractmethod
    def _digest(self, model: Any) -> str | None:
        """Return a checksum; None if there is nothing to hand over."""

    @abstractmethod
    def _save(self, model: Any, folder: Path, number: int, name: str, place: Path) -> VersionT:
        """Save the version of a model in a folder, and return it; the folder will be `place`."""


class WeightVersions(Versions[FullWeights]):
    """Versions of all weights of a model, see `Versions`; the model must have no adapter."""

    def _digest(self, model: Any) -> str:
        return digest_of_weights(model)

    def _save(self, model: Any, folder: Path, number: int, name: str, place: Path) -> FullWeights:
        save_model(model, folder)
        return FullWeights(number, name, place)


_WORDS_ON_CPU, _WORDS = 1 << 17, 1 << 24
"""Words that are multiplied at a time: on a CPU they fit its cache."""


@torch.no_grad()
def digest_of_weights(model: Any) -> str:
    """Return a checksum of all parameters, which is asked for at every sampling.

    Each row of a matrix is reduced, on its device, to the sum of its 4 byte words times random keys
    of 64 bits, one for each place. So values that change places or signs are seen as well; for two
    rows that differ, the chance of the same sum is at most 2**-32. On a CPU that is 4 times faster
    than a checksum of all bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.named_parameters():
        bits = value.detach().contiguous()
        if bits.dim() > 1 and bits.numel():
            bits = _row_sums(bits.flatten(0, -2))
        digest.update(name.encode())
        digest.update(bits.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _row_sums(rows: Tensor) -> Tensor:
    """Return the sum of each row's words times their keys, modulo 2**64."""
    words = rows.view(torch.int32 if rows[0].nbytes % 4 == 0 else torch.uint8)
    width = words.shape[1]
    keys = _keys(words.device, 1 << (width - 1).bit_length())[:width]
    most = _WORDS_ON_CPU if words.device.type == "cpu" else _WORDS
    return torch.cat([(part * keys).sum(1) for part in torch.split(words, max(1, most // width))])


@cache
def _keys(device: torch.device, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    low, high = -(2**63), 2**63 - 1
    return torch.randint(low, high, (count,), generator=generator, device="cpu").to(device)
