"""Embeddings of texts for similarity terms."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from astra_rl.core.contracts import check_length
from astra_rl.core.problem import FrozenModel
from astra_rl.errors import ConfigurationError, did_you_mean, require
from astra_rl.infra.unicode import well_formed
from astra_rl.rewards.base import RewardModels, RewardPart, TargetReading

Embedder = Callable[[Sequence[str]], Any]
"""Takes N texts and returns N vectors: a tensor, an array or lists of floats, shape (N, D)."""

SENTENCE_TRANSFORMERS = "sentence_transformers:"
MAX_CACHED_TEXTS = 8192
"""Most embeddings in the cache, enough for the texts of one experience."""


class HashingEmbedder:
    """Hashed counts of words, word pairs and letter trigrams (feature hashing).

    It needs no weights, compares spelling rather than meaning, and gives the same vectors in every
    process (Weinberger et al., arXiv 0902.2206). Case and punctuation are ignored; a word has the
    same weight as all its trigrams together. A text without letters or digits is the zero vector.

    Args:
        dimensions: Dimension of the vectors.

    Raises:
        ConfigurationError: `dimensions` is below 1.
    """

    def __init__(self, dimensions: int = 1024) -> None:
        if not dimensions >= 1:
            raise ConfigurationError(f"dimensions={dimensions}; it must be at least 1.")
        self.dimensions = dimensions

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of the texts, (N, dimensions), float32."""
        vectors = torch.zeros(len(texts), self.dimensions)
        for row, text in enumerate(texts):
            for feature, weight in _features(well_formed(text)):
                code = zlib.crc32(feature.encode())
                # One bit is the sign, so that collisions cancel on average.
                vectors[row, (code >> 1) % self.dimensions] += weight if code & 1 else -weight
        return vectors


def _features(text: str) -> list[tuple[str, float]]:
    words = re.findall(r"\w+", text.lower())
    features = [(f"word {word}", 1.0) for word in words]
    features += [(f"pair {a} {b}", 1.0) for a, b in pairwise(words)]
    for word in words:
        padded = f"<{word}>"
        triples = [padded[start : start + 3] for start in range(len(padded) - 2)]
        features += [(f"part {triple}", 1 / len(triples)) for triple in triples]
    return features


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers package, for instance ``"all-MiniLM-L6-v2"``.

    The model is loaded at the first call.

    Args:
        model_id: Hub id or folder.
        device: A torch device.

    Raises:
        MissingDependencyError: The package is not installed.
        ModelError: The folder names code of the hub; raised by the first call.
    """

    def __init__(self, model_id: str, *, device: str = "cpu") -> None:
        self._module = require("sentence_transformers", extra="embeddings")
        self.model_id = model_id
        self.device = device
        self._model: Any = None

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the vectors of the texts."""
        if self._model is None:
            self._check_names_no_code()
            self._model = self._module.SentenceTransformer(
                self.model_id,
                device=self.device,
                trust_remote_code=False,
                local_files_only=Path(self.model_id).is_dir(),
                model_kwargs={"use_safetensors": True},  # no pickles
            )
        return self._model.encode([well_formed(text) for text in texts], show_progress_bar=False)

    def _check_names_no_code(self) -> None:
        """Check the configuration of each module in a folder."""
        from astra_rl.models.model_config import check_model_config

        for config in sorted(Path(self.model_id).rglob("config.json")):
            check_model_config(str(config.parent), allow_code=False)


class Vectors:
    """Unit-length embeddings of texts, with a cache.

    Args:
        embedder: ``"hashing"`` (`HashingEmbedder`); ``"baseline"`` or ``"target"``, the mean hidden
            states of that model, which needs no further weights; ``"sentence_transformers:MODEL"``;
            or a function from texts to vectors, whose vectors must not depend on the batch.

    Raises:
        ConfigurationError: The embedder is unknown.
        MissingDependencyError: Its package is not installed.
    """

    def __init__(self, embedder: str | Embedder = "hashing") -> None:
        self._embed: Embedder = HashingEmbedder()
        self._under: FrozenModel | None = None
        if callable(embedder):
            self._embed = embedder
        elif embedder == "baseline":
            self._under = "baseline"
        elif embedder == "target":
            self._under = "target"
        elif isinstance(embedder, str) and embedder.startswith(SENTENCE_TRANSFORMERS):
            self._embed = SentenceTransformerEmbedder(embedder.removeprefix(SENTENCE_TRANSFORMERS))
        elif embedder != "hashing":
            known = ["hashing", "baseline", "target", f"{SENTENCE_TRANSFORMERS}MODEL"]
            raise ConfigurationError(
                f"embedder={embedder!r}; choose from {', '.join(known)}, or pass a function."
                f"{did_you_mean(str(embedder), known)}"
            )
        self._cache: dict[str, Tensor] = {}

    def __call__(self, models: RewardModels, texts: Sequence[str]) -> Tensor:
        """Return the vectors of the texts, (N, D), float32 on the CPU.

        Rows have unit length, or are zero if the embedder returns zeros.

        Raises:
            ConfigurationError: The problem's models cannot embed texts.
            ContractError: The embedder returned another number of vectors.
        """
        texts = [str(text) for text in texts]
        new = list(dict.fromkeys(text for text in texts if text not in self._cache))
        if len(self._cache) + len(new) > MAX_CACHED_TEXTS:
            self._cache.clear()
            new = list(dict.fromkeys(texts))
        if new:
            vectors = torch.as_tensor(self._run(models, new)).detach().float().cpu()
            check_length(list(vectors), len(new), source="the embedder")
            self._cache.update(zip(new, normalize(vectors, dim=1), strict=True))
        return torch.stack([self._cache[text] for text in texts]) if texts else torch.zeros(0, 0)

    @property
    def reads_target(self) -> TargetReading | None:
        """Hidden states, if the embedder is the target."""
        return "inside" if self._under == "target" else None

    @property
    def reads_model(self) -> bool:
        """Whether the embedder is the target or the baseline."""
        return self._under is not None

    def _run(self, models: RewardModels, texts: Sequence[str]) -> Any:
        if self._under is not None:
            return models.embed(texts, self._under)
        return self._embed(texts)


class UsesVectors(RewardPart):
    """A part of a reward that compares embeddings of texts.

    Attributes:
        vectors: The embeddings.
    """

    vectors: Vectors

    @property
    def reads_target(self) -> TargetReading | None:
        """What its embedder needs of the target."""
        return self.vectors.reads_target

    @property
    def reads_model(self) -> bool:
        """Whether its embedder is the target or the baseline."""
        return self.vectors.reads_model
