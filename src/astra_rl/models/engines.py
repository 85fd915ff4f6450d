"""Inference engines beside transformers: the interface, and a sampler that runs a model in one.

An engine holds its own copy of the weights of one model. `EngineSampler` makes sure that it is the
model it is called with: what is trained, an adapter or all weights, is handed over whenever it has
changed, and samples of each new version are compared with the model's own log-probabilities.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra_rl.core.turns import waiting
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.infra.documentation import document_options
from astra_rl.logging import logger
from astra_rl.models.adapter_versions import (
    Adapter,
    AdapterVersions,
    active_adapter,
    base_of,
    largest_rank,
)
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import SAMPLER, Sample, Sampling
from astra_rl.models.loading import ModelSettings
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.versions import FullWeights, Version, Versions, WeightVersions

WARNED_MISMATCH, REFUSED_MISMATCH = 0.1, 0.3
"""Mean absolute difference from the model's log-probabilities, in nats per sampled token, from
which a warning is logged, and an error raised. Rounding in bfloat16 makes some hundredths."""
COMPARED_ROWS = 4
"""Samples of a new version that are compared with the model."""


class Engine(Protocol):
    """Samples and scores with one model outside of transformers."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score_spans: Sequence[tuple[int, int]] | None = None,
        version: Adapter | FullWeights | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt; see `astra_rl.models.generation.generate`.

        Log-probabilities that the engine cannot give are NaN.

        Args:
            prompts: Token ids; none may be empty.
            sampling: Sampling parameters.
            seeds: Random seed of each prompt's continuation.
            stop_ids: Tokens that end a continuation.
            score_spans: See `astra_rl.models.generation.Sampler`.
            version: What to sample with: an adapter on the weights that the engine was started
                with, other weights, or None, the weights that it was started with.

        Raises:
            ModelError: The engine failed, or has other weights.
            EndpointError: No server of the engine answers.
        """

    def unload(self, version: Version) -> None:
        """Forget a version, whose folder is about to be deleted."""

    def sleep(self) -> None:
        """Free memory until the next call, if the engine can and was started for that."""


def engine_logprobs(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    version: Adapter | FullWeights | None = None,
) -> Tensor:
    """Return the log-probability of each token of continuations under an engine.

    One token is sampled after each continuation, so one must fit the context window.

    Args:
        engine: The engine.
        prompts: Token ids; none may be empty.
        continuations: Token ids.
        version: What to score with, see `Engine.sample`.

    Returns:
        Natural logarithms at temperature 1, (B, longest continuation), float32, right-padded with
        zeros.
    """
    pairs = list(zip(prompts, continuations, strict=True))
    width = max((len(ids) for _, ids in pairs), default=0)
    out = torch.zeros(len(pairs), width)
    rows = [row for row, (_, ids) in enumerate(pairs) if ids]
    spans = [(len(pairs[row][0]), len(pairs[row][0]) + len(pairs[row][1])) for row in rows]
    with waiting():
        samples = engine.sample(
            [[*pairs[row][0], *pairs[row][1]] for row in rows],
            Sampling(max_new_tokens=1, temperature=0),
            [0] * len(rows),
            stop_ids=frozenset(),
            score_spans=spans,
            version=version,
        )
    for row, sample in zip(rows, samples, strict=True):
        out[row, : len(sample.prompt_logprobs)] = torch.tensor(sample.prompt_logprobs)
    return out


def served_model(model_id: str, settings: ModelSettings) -> str:
    """Return the name of a model whose weights are in an engine, with its hub commit if known."""
    commit = getattr(settings.config, "_commit_hash", None)
    return f"{model_id}@{commit}" if commit else model_id


class EngineAlone:
    """A `Sampler` of one engine, for a model whose weights are nowhere else.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(
        self,
        model: PreTrainedModel | None,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score_spans: Sequence[tuple[int, int]] | None = None,
        prefix_cache: ConversationCache | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt; model and cache are ignored."""
        with waiting():
            return self.engine.sample(
                prompts, sampling, seeds, stop_ids=stop_ids, score_spans=score_spans
            )


_Kind = Literal["alone", "adapter", "weights"]
"""What is handed over to an engine: nothing, adapters, or all weights."""


@dataclass
class _Served:
    """A model, the engine that runs it, and the version that was compared with it last."""

    engine: Engine
    versions: Versions[Adapter] | Versions[FullWeights]
    compared: str | None = ""


class EngineSampler:
    """A `Sampler` that runs each model in an engine of its own.

    For frozen models, and for attackers that train a LoRA adapter or their own weights. What is
    trained is saved as a version whenever it has changed, and handed over: an adapter, or a model
    of all weights.

    Args:
        start: Returns the engine of a base model. Its second argument is the rank of the adapters
            that the engine runs, 0 for the base model alone. It is called once for each model, and
            once more if the base model is also sampled from without an adapter.
        staleness: ``max_staleness`` of the training; ``staleness + 2`` versions are kept.
        adapters: Folder for versions, see `Versions`.
        lacks: Whether an engine lacks the weights of a frozen model when it is started for it, so
            that they are handed over as well.

    Attributes:
        mismatch: Mean absolute difference between the engine's and the model's log-probabilities
            when last compared, in nats per token; NaN before. It is compared for the first samples
            of each version, unless sampling is truncated or at another temperature than 1.
    """

    def __init__(
        self,
        start: Callable[[PreTrainedModel, int], Engine],
        *,
        staleness: int = 0,
        adapters: Path | None = None,
        lacks: Callable[[PreTrainedModel], bool] = lambda model: False,
    ) -> None:
        self._start, self._kept, self._adapters = start, staleness + 2, adapters
        self._lacks = lacks
        self._served: weakref.WeakKeyDictionary[Any, dict[_Kind, _Served]] = (
            weakref.WeakKeyDictionary()
        )
        self.mismatch = math.nan

    @document_options(SAMPLER, {"prefix_cache": "Ignored; the engine has its own."})
    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score_spans: Sequence[tuple[int, int]] | None = None,
        prefix_cache: ConversationCache | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt; see `astra_rl.models.generation.generate`.

        Raises:
            ConfigurationError: The adapter is no plain LoRA, or its base weights are trained, too.
            ModelError: The engine failed, or does not run these weights.
            EndpointError: No server of the engine answers.
        """
        if not prompts:
            return []
        frozen = _frozen.get()
        if frozen is not None and (frozen.sampler is not self or frozen.model is not model):
            frozen = None
        served = self._serving(model) if frozen is None else frozen.served
        version = served.versions.current(model) if frozen is None else frozen.version
        with waiting():
            samples = served.engine.sample(
                prompts,
                sampling,
                seeds,
                stop_ids=stop_ids,
                score_spans=score_spans,
                version=version,
            )
        name = None if version is None else version.name
        # The model may have moved on from a frozen version; it is compared while it has not.
        is_comparable = sampling.is_exact and (
            frozen is None or served.versions.is_current(model, version)
        )
        if is_comparable and name != served.compared:
            self._compare(model, prompts[:COMPARED_ROWS], samples[:COMPARED_ROWS])
            served.compared = name
        return samples

    def frozen(self, model: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Save what a model has learned so far as a version.

        Returns:
            Opens a block, in whatever thread, in which this sampler samples the model with that
            version, whatever it has learned since; of the versions saved since, there may be
            ``staleness + 1``.

        Raises:
            ConfigurationError: The adapter is no plain LoRA, or its base weights are trained, too.
        """
        served = self._serving(model)
        return partial(_sampling, _Frozen(self, model, served, served.versions.current(model)))

    def sleep(self) -> None:
        """Let the engines free memory until the next call, see `Engine.sleep`."""
        for engines in self._served.values():
            for served in engines.values():
                served.engine.sleep()

    def _serving(self, model: Any) -> _Served:
        base, name = base_of(model), active_adapter(model)
        engines = self._served.setdefault(base, {})
        kind = self._kind(model, name, engines)
        if kind not in engines:
            rank = 0 if name is None else largest_rank(model.peft_config[name])
            engine = self._start(base, rank)
            kept = WeightVersions if kind == "weights" else AdapterVersions
            engines[kind] = _Served(engine, kept(self._kept, engine.unload, self._adapters))
        return engines[kind]

    def _kind(self, model: Any, adapter: str | None, engines: Mapping[_Kind, _Served]) -> _Kind:
        """Return what is handed over to the engine of a model.

        Raises:
            ConfigurationError: It would be an adapter and all weights.
        """
        trained = any(
            each.requires_grad for name, each in model.named_parameters() if "lora_" not in name
        )
        if adapter is not None and trained:
            raise ConfigurationError(
                f"the adapter {adapter!r} and weights below it are trained together, and an engine "
                "gets one of the two. Train one of them, or use rollout.attacker: own."
            )
        if adapter is not None:
            return "adapter"
        if trained or "weights" in engines:  # it may be frozen after its training
            return "weights"
        is_new = "alone" not in engines
        return "weights" if is_new and self._lacks(model) else "alone"

    def _compare(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: Sequence[Sample]
    ) -> None:
        """Compare samples of a new version with the model's own log-probabilities."""
        ours = continuation_logprobs(model, prompts, [each.token_ids for each in samples]).tolist()
        differences = [
            abs(a - b)
            for sample, row in zip(samples, ours, strict=True)
            for a, b in zip(sample.logprobs, row, strict=False)
        ]
        self.mismatch = math.fsum(differences) / len(differences) if differences else math.nan
        what = (
            f"log-probabilities of the engine and of the model differ by {self.mismatch:.3g} nats "
            "per sampled token"
        )
        if self.mismatch > REFUSED_MISMATCH:
            raise ModelError(
                f"{what}; at most {REFUSED_MISMATCH} is rounding. The engine runs other weights or "
                "another adapter: start it with the model of the configuration, at its dtype."
            )
        log = logger.warning if self.mismatch > WARNED_MISMATCH else logger.debug
        log("%s", what)


@dataclass(frozen=True)
class _Frozen:
    """A version that samples a model, see `EngineSampler.frozen`."""

    sampler: EngineSampler
    model: Any
    served: _Served
    version: Adapter | FullWeights | None


_frozen: ContextVar[_Frozen | None] = ContextVar("frozen version", default=None)


@contextlib.contextmanager
def _sampling(frozen: _Frozen) -> Iterator[None]:
    token = _frozen.set(frozen)
    try:
        yield
    finally:
        _frozen.reset(token)
