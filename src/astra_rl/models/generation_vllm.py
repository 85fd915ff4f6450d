"""Sampling by vLLM, for GPUs that have room for it beside the models that are trained.

vLLM samples, and the model in memory scores what it sampled: the two round differently, so the log-
probabilities of a sample are never taken from the sampler. How far they are apart is kept in view.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.logging import logger
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import Sample, Sampling
from astra_rl.models.scoring import continuation_logprobs, prompt_logprobs

MAX_MISMATCH = 0.1
"""Mean difference in nats per token above which a warning is given: rounding explains less."""


class VLLMSampler:
    """Samples with an engine of vLLM that holds the same weights as a model in memory.

    Give one to a frozen model, or to an attacker that trains an adapter: the adapter is handed over
    whenever it has changed. An attacker whose own weights are trained is refused, for the engine
    would go on with the old ones.

    Args:
        model: Hub id or folder of the base model.
        options: Further arguments of ``vllm.LLM``, for instance ``gpu_memory_utilization=0.4``.

    Attributes:
        mismatch: Mean absolute difference, in nats per token, between the sampler's log-
            probabilities and the model's in the last call; NaN before.

    Raises:
        MissingDependencyError: The extra ``vllm`` is not installed.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._vllm = require("vllm", extra="vllm")
        self._engine = self._vllm.LLM(model=model, enable_lora=True, **options)
        self._adapters = Path(tempfile.mkdtemp(prefix="astra_rl_adapter_"))
        weakref.finalize(self, shutil.rmtree, self._adapters, ignore_errors=True)
        self._versions: tuple[int, ...] | None = None
        self._adapter_number = 0
        self.mismatch = math.nan

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop_ids: frozenset[int],
        score: Sequence[tuple[int, int]] | None = None,
        memory: ConversationCache | None = None,
    ) -> list[Sample]:
        """Sample one continuation per prompt; see `astra_rl.models.generation.generate`.

        Raises:
            ConfigurationError: Weights of the model itself are trained.
        """
        if not prompts:
            return []
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self._parameters(sampling, seed, stop_ids) for seed in seeds],
            lora_request=self._adapter_of(model),
            use_tqdm=False,
        )
        said = [tuple(output.outputs[0].token_ids) for output in outputs]
        logprobs = continuation_logprobs(model, prompts, said).detach()
        rows = [tuple(row[: len(ids)].tolist()) for row, ids in zip(logprobs, said, strict=True)]
        if sampling.is_exact:  # otherwise the model's are of another distribution
            self._compare(outputs, rows)
        scored = prompt_logprobs(model, prompts, score)
        return [
            Sample(ids, row, "stop" if ids and ids[-1] in stop_ids else "length", heard)
            for ids, row, heard in zip(said, rows, scored, strict=True)
        ]

    def _parameters(self, sampling: Sampling, seed: int, stop_ids: frozenset[int]) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            seed=seed % 2**63,
            stop_token_ids=sorted(stop_ids),
            ignore_eos=True,  # what ends a text is in stop_ids
            logprobs=0,
            detokenize=False,
        )

    def _adapter_of(self, model: Any) -> Any:
        """Hand over the adapter that is switched on, if there is one and it has changed."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        adapter = [(name, p) for name, p in trained if "lora_" in name]
        if len(adapter) < len(trained):
            raise ConfigurationError(
                "vLLM samples with weights of its own, and this attacker trains the model's. "
                "Train an adapter (lora), or sample with the engine of this library."
            )
        if not adapter or not hasattr(model, "peft_config"):
            return None
        versions = tuple(p._version for _, p in adapter)
        if versions != self._versions:
            self._versions = versions
            self._adapter_number += 1
            with replace_folder(self._adapters / str(self._adapter_number)) as folder:
                model.save_pretrained(folder)
        path = self._adapters / str(self._adapter_number)
        request = require("vllm.lora.request", extra="vllm").LoRARequest
        return request(f"attacker-{self._adapter_number}", self._adapter_number, str(path))

    def _compare(self, outputs: Sequence[Any], rows: Sequence[tuple[float, ...]]) -> None:
        differences = [
            abs(choices[token].logprob - ours)
            for output, row in zip(outputs, rows, strict=True)
            for token, choices, ours in zip(
                output.outputs[0].token_ids, output.outputs[0].logprobs, row, strict=True
            )
        ]
        self.mismatch = math.fsum(differences) / len(differences) if differences else math.nan
        log = logger.warning if self.mismatch > MAX_MISMATCH else logger.debug
        log(
            "vLLM and the model in memory differ by %.3g nats per token on what was sampled",
            self.mismatch,
        )
