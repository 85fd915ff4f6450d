"""vLLM in this process: an engine, and a sampler that runs models in engines."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from astra_rl.core.text import FinishReason
from astra_rl.distributed.launch import world_size
from astra_rl.errors import ConfigurationError, ModelError, first_line, require
from astra_rl.ext.vllm.weights import weights_folder
from astra_rl.models.adapter_versions import Adapter
from astra_rl.models.engines import EngineSampler
from astra_rl.models.generation import Sample, Sampling
from astra_rl.models.rendering import context_window
from astra_rl.models.versions import FullWeights, Version

RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Largest ranks of adapters that a vLLM engine can be started with."""


STARTED_WITH = "default"
"""What vLLM calls the weights that an engine was started with."""
LOADING = "loading"
"""What they are called while others are loaded, and after a load that failed."""


class VLLMEngine:
    """A model in a vLLM engine of this process.

    An engine that runs adapters gives no log-probabilities of prompts: vLLM's LoRA layers compute
    those of sampled tokens only. It has one version of weights at a time, and vLLM names it for
    every sample; once others were loaded, those that it was started with are refused.

    Args:
        model: Hub id or folder of a complete model.
        rank: Largest rank of the adapters that it runs; 0 runs the model alone.
        kept_adapters: Number of adapters in memory.
        sleep: Whether `sleep` frees the engine's memory; vLLM supports it on GPUs only.
        options: Further arguments of ``vllm.LLM``, for example ``gpu_memory_utilization=0.4``.

    Raises:
        ConfigurationError: The rank is larger than vLLM supports, or there are several processes.
        MissingDependencyError: The extra ``vllm`` is not installed.
        ModelError: The engine does not start; the message contains the cause.
    """

    def __init__(
        self,
        model: str,
        *,
        rank: int = 0,
        kept_adapters: int = 2,
        sleep: bool = False,
        **options: Any,
    ) -> None:
        # Read when vLLM is imported: it would send statistics of its use to its authors.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._vllm = require("vllm", extra="vllm")
        if (count := world_size()) > 1:
            raise ConfigurationError(
                f"vLLM in this process, in a run of {count} processes; each would start an engine. "
                "Start servers, which several processes can share, or one process."
            )
        self.model, self.rank, self._sleeps = model, rank, sleep
        self._asleep = False
        self._weights = STARTED_WITH
        self._lock = threading.Lock()  # an engine samples for one thread at a time
        settings: dict[str, Any] = {
            "skip_tokenizer_init": True,  # ids in and out
            # Those of the distribution that was sampled from.
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
        }
        if rank:
            settings |= {
                "enable_lora": True,
                "max_lora_rank": lora_rank(rank),
                "max_loras": 1,
                "max_cpu_loras": kept_adapters,
            }
        if sleep:
            settings["enable_sleep_mode"] = True
        try:
            self._engine = self._vllm.LLM(model=model, **{**settings, **options})
        except Exception as error:  # the types of vLLM, torch, transformers and pydantic
            raise ModelError(f"vLLM cannot start with {model!r}: {first_line(error)}") from error

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
        """See `astra_rl.models.engines.Engine`."""
        spans = [(0, 0)] * len(prompts) if score_spans is None else score_spans
        if self.rank and any(stop > start for start, stop in spans):
            raise ModelError(
                f"the vLLM engine of {self.model!r} runs adapters, and vLLM then gives no "
                "log-probabilities of prompts. Use an engine without adapters for this model."
            )
        adapter = version if isinstance(version, Adapter) else None
        if adapter is not None and adapter.rank > self.rank:
            raise ModelError(
                f"adapter {adapter.name} has rank {adapter.rank}; the engine of {self.model!r} was "
                f"started for at most {self.rank}."
            )
        with self._lock:
            self.wake()
            if isinstance(version, FullWeights):
                self._load(version)
            asked = version.name if isinstance(version, FullWeights) else STARTED_WITH
            self._check_weights({self._weights}, asked)
            try:
                outputs = self._engine.generate(
                    [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                    [
                        self._parameters(sampling, seed, stop_ids, scores_prompt=stop > start)
                        for seed, (start, stop) in zip(seeds, spans, strict=True)
                    ],
                    lora_request=self._request(adapter),
                    use_tqdm=False,
                )
            except Exception as error:  # the types of vLLM and torch
                raise ModelError(f"vLLM failed to sample: {first_line(error)}") from error
        for output in outputs:
            named = output.outputs[0].weight_versions or ()
            self._check_weights({each.version for each in named} or {"unknown"}, asked)
        return [
            _sample(output, sampling, stop_ids, span)
            for output, span in zip(outputs, spans, strict=True)
        ]

    def unload(self, version: Version) -> None:
        """See `astra_rl.models.engines.Engine`; vLLM itself drops the least recently used one."""

    def sleep(self) -> None:
        """Free the engine's memory, if it was started for that; the next call wakes it up."""
        if self._sleeps and not self._asleep:
            self._engine.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Take the memory back."""
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def _load(self, version: FullWeights) -> None:
        """Replace the weights by those of a version, unless they are."""
        if version.name == self._weights:
            return
        self._name_weights(LOADING)
        try:
            self._engine.collective_rpc(
                "reload_weights", kwargs={"weights_path": str(version.folder)}
            )
            was_reset = self._engine.reset_prefix_cache()  # it is of the weights before
        except Exception as error:  # the types of vLLM and torch
            raise ModelError(f"vLLM cannot load {version.name}: {first_line(error)}") from error
        if not was_reset:
            raise ModelError(
                f"vLLM cannot reset its prefix cache for {version.name}. Use the engine for "
                "nothing else at the same time."
            )
        self._name_weights(version.name)

    def _name_weights(self, name: str) -> None:
        self._engine.update_weight_version(name)
        self._weights = name

    def _check_weights(self, found: set[str], asked: str) -> None:
        """Raise unless weights are those that were asked for."""
        if other := found - {asked}:
            raise ModelError(
                f"the vLLM engine of {self.model!r} has the weights {', '.join(sorted(other))}, "
                f"and {asked} were asked for. Give each model an engine of its own."
            )

    def _parameters(
        self, sampling: Sampling, seed: int, stop_ids: frozenset[int], *, scores_prompt: bool
    ) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            seed=seed % 2**63,
            stop_token_ids=sorted(stop_ids),
            ignore_eos=True,  # stop_ids contains the end tokens
            logprobs=0,
            prompt_logprobs=0 if scores_prompt else None,
            detokenize=False,
        )

    def _request(self, adapter: Adapter | None) -> Any:
        if adapter is None:
            return None
        request = require("vllm.lora.request", extra="vllm").LoRARequest
        return request(adapter.name, adapter.number, str(adapter.folder))


def lora_rank(rank: int) -> int:
    """Return the smallest ``max_lora_rank`` of vLLM that is at least a rank.

    Raises:
        ConfigurationError: There is none.
    """
    allowed = next((each for each in RANKS if each >= rank), None)
    if allowed is None:
        raise ConfigurationError(
            f"an adapter of rank {rank}; vLLM runs ranks up to {RANKS[-1]}. Use a smaller rank, or "
            "rollout.attacker: own."
        )
    return allowed


def _sample(
    output: Any, sampling: Sampling, stop_ids: frozenset[int], span: tuple[int, int]
) -> Sample:
    """Read an output of vLLM."""
    answer = output.outputs[0]
    ids = tuple(answer.token_ids)
    logprobs = tuple(
        0.0 if sampling.temperature == 0 else min(choices[token].logprob, 0.0)
        for token, choices in zip(ids, answer.logprobs, strict=True)
    )
    start, stop = span
    scored = tuple(
        output.prompt_logprobs[place][output.prompt_token_ids[place]].logprob
        for place in range(start, stop)
    )
    finish: FinishReason = "stop" if ids and ids[-1] in stop_ids else "length"
    return Sample(ids, logprobs, finish, scored)


class VLLMSampler(EngineSampler):
    """Samples with vLLM: each model runs in an engine of this process, started when first called.

    An engine has exactly the weights of the model that it is called with, see `weights_folder`, and
    its dtype and context window.

    Args:
        staleness: See `EngineSampler`.
        sleep: Whether engines free their memory between rollouts, see `VLLMEngine`.
        options: Further arguments of ``vllm.LLM``, for example ``gpu_memory_utilization=0.4``.

    Raises:
        ConfigurationError: It is to sleep although it samples while the weights are trained.
        MissingDependencyError: The extra ``vllm`` is not installed.
    """

    def __init__(self, *, staleness: int = 0, sleep: bool = False, **options: Any) -> None:
        require("vllm", extra="vllm")
        if sleep and staleness:
            raise ConfigurationError(
                f"sleep with staleness={staleness}: the engine samples while the weights are "
                "trained, so it cannot free its memory meanwhile. Leave sleep out, or use "
                "max_staleness: 0."
            )

        def start(model: PreTrainedModel, rank: int) -> VLLMEngine:
            known: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}
            window = context_window(model.config)
            known |= {} if window is None else {"max_model_len": window}
            return VLLMEngine(
                weights_folder(model),
                rank=rank,
                kept_adapters=staleness + 2,
                sleep=sleep,
                **{**known, **options},
            )

        super().__init__(start, staleness=staleness)
