"""Versions of what a model has learned, saved for an inference engine."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from astra_rl.infra.checkpointing import replace_folder
from astra_rl.models.adapters import save_model


class Version(Protocol):
    """A version of what a model has learned."""

    @property
    def number(self) -> int:
        """Number of the version, from 1 on."""

    @property
    def name(self) -> str:
        """Name at the engine, ``attacker-v{number}-{digest of the weights}``.

        No two versions share one, not even of different runs on the same servers, so that no cached
        prefix is of another.
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
        name, place = f"attacker-v{self._count}-{digest[:8]}", self._folder / str(self._count)
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
        return digest_of_rows(model)

    def _save(self, model: Any, folder: Path, number: int, name: str, place: Path) -> FullWeights:
        save_model(model, folder)
        return FullWeights(number, name, place)


@torch.no_grad()
def digest_of_rows(model: Any) -> str:
    """Return a checksum of all parameters: of the sum of the bits of each row of a matrix.

    It is asked for at every sampling. The sums are computed where the weights are, 18 times faster
    on a CPU than a checksum of all bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.named_parameters():
        bits = value.detach().contiguous()
        if bits.dim() > 1 and bits[0].nbytes % 8 == 0:
            bits = bits.flatten(1).view(torch.int64).sum(1)
        digest.update(name.encode())
        digest.update(bits.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
