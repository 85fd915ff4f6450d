"""Embeddings of texts for similarity terms."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
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
TRANSFORMERS = "transformers:"
NAMED = ("hashing", f"{TRANSFORMERS}MODEL", f"{SENTENCE_TRANSFORMERS}MODEL")
"""Embedders that `named_embedder` knows."""
EMBEDDED_TOGETHER = 64
"""Texts of one call of `TransformersEmbedder`'s model."""
MAX_TOKENS = 512
"""Most tokens of a text that `TransformersEmbedder` reads."""
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


class TransformersEmbedder:
    """Mean of the last hidden states of a transformers model, for instance a BERT encoder.

    The model is loaded at the first call; a folder is read without network access.

    Args:
        model_id: Hub id, folder, or ``bundled:NAME``.
        device: A torch device.
    """

    def __init__(self, model_id: str, *, device: str = "cpu") -> None:
        self.model_id, self.device = model_id, device

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        # Here, because rewards are read from a configuration without the libraries of models.
        from astra_rl.models.loading import load_encoder, load_tokenizer

        model = load_encoder(self.model_id, device=self.device, dtype="float32")
        tokenizer = load_tokenizer(self.model_id)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
        return model, tokenizer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of the texts, (N, H), float32; zero for a text without tokens.

        A text that is longer than the model reads is cut.

        Raises:
            ModelError: The model cannot be loaded.
        """
        model, tokenizer = self._loaded
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # The last two positions of RoBERTa are the offset of its padding.
        limit = min(int(tokenizer.model_max_length), MAX_TOKENS, (longest or 1 << 30) - 2)
        width = model.config.get_text_config().hidden_size
        found = torch.zeros(len(texts), width)
        ids = [
            tokenizer(well_formed(text), truncation=True, max_length=limit)["input_ids"]
            for text in texts
        ]
        rows = [row for row, each in enumerate(ids) if each]
        for start in range(0, len(rows), EMBEDDED_TOGETHER):
            some = rows[start : start + EMBEDDED_TOGETHER]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in some]}, return_tensors="pt")
            batch = batch.to(model.device)
            hidden = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][:, :, None].float()
            found[some] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).cpu()
        return found


def named_embedder(name: str, *, known: Sequence[str] = NAMED) -> Embedder:
    """Return the embedder of a name; its weights are loaded at the first call.

    Args:
        name: ``"hashing"``, ``"transformers:MODEL"`` or ``"sentence_transformers:MODEL"``, with the
            folder or hub id of a model.
        known: Names in the error.

    Raises:
        ConfigurationError: There is no such embedder.
        MissingDependencyError: Its package is not installed.
    """
    if name == "hashing":
        return HashingEmbedder()
    if name.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformerEmbedder(name.removeprefix(SENTENCE_TRANSFORMERS))
    if name.startswith(TRANSFORMERS):
        return TransformersEmbedder(name.removeprefix(TRANSFORMERS))
    raise ConfigurationError(
        f"embedder={name!r}; choose from {', '.join(known)}.{did_you_mean(name, known)}"
    )


class Vectors:
    """Unit-length embeddings of texts, with a cache.

    Args:
        embedder: ``"hashing"`` (`HashingEmbedder`); ``"baseline"`` or ``"target"``, the mean hidden
            states of that model, which needs no further weights; ``"transformers:MODEL"``, those of
            another model; ``"sentence_transformers:MODEL"``; or a function from texts to vectors,
            whose vectors must not depend on the batch.

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
        else:
            self._embed = named_embedder(str(embedder), known=(*NAMED, "baseline", "target"))
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
