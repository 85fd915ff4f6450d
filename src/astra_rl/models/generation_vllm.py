"""Sampling backend that uses vLLM, for GPUs with memory for it beside the trained models.

vLLM and transformers round differently, so the log-probabilities of a sample are recomputed with
the transformers model. The mean difference is logged (sampler-trainer mismatch).
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
from astra_rl.infra.documentation import document_options
from astra_rl.logging import logger
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import SAMPLER, Sample, Sampling
from astra_rl.models.scoring import continuation_logprobs, prompt_logprobs

MAX_MISMATCH = 0.1
"""Mean absolute difference, in nats per token, above which a warning is logged."""


class VLLMSampler:
    """Samples with a vLLM engine that holds the same base weights as the transformers model.

    For frozen models and for attackers that train a LoRA adapter, which is sent to the engine when
    it has changed. Full fine-tuning is not supported, because the engine's base weights are not
    updated.

    Args:
        model: Hub id or folder of the base model.
        options: Further arguments of ``vllm.LLM``, for example ``gpu_memory_utilization=0.4``.

    Attributes:
        mismatch: Mean absolute difference between vLLM's and the model's log-probabilities in the
            last call, in nats per token; NaN before the first call.

    Raises:
        MissingDependencyError: The extra ``vllm`` is not installed.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._vllm = require("vllm", extra="vllm")
        self._engine = self._vllm.LLM(model=model, enable_lora=True, **options)
        self._adapters = Path(tempfile.mkdtemp(prefix="astra_rl_adapter_"))
        weakref.finalize(self, shutil.rmtree, self._adapters, ignore_errors=True)
        self._versions: tuple[tuple[int, int], ...] | None = None
        self._adapter_number = 0
        self.mismatch = math.nan

    @document_options(SAMPLER, {"prefix_cache": "Ignored; the engine has its own."})
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
            ConfigurationError: The base weights of the model are trained.
        """
        if not prompts:
            return []
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self._parameters(sampling, seed, stop_ids) for seed in seeds],
            lora_request=self._adapter_request(model),
            use_tqdm=False,
        )
        sampled = [tuple(output.outputs[0].token_ids) for output in outputs]
        logprobs = continuation_logprobs(model, prompts, sampled).detach()
        rows = [tuple(row[: len(ids)].tolist()) for row, ids in zip(logprobs, sampled, strict=True)]
        if sampling.is_exact:  # otherwise the distributions differ
            self._log_mismatch(outputs, rows)
        span_logprobs = prompt_logprobs(model, prompts, score_spans)
        return [
            Sample(ids, row, "stop" if ids and ids[-1] in stop_ids else "length", span)
            for ids, row, span in zip(sampled, rows, span_logprobs, strict=True)
        ]

    def _parameters(self, sampling: Sampling, seed: int, stop_ids: frozenset[int]) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            seed=seed % 2**63,
            stop_token_ids=sorted(stop_ids),
            ignore_eos=True,  # stop_ids contains the end tokens
            logprobs=0,
            detokenize=False,
        )

    def _adapter_request(self, model: Any) -> Any:
        """Return the request for the active adapter, saved anew if it has changed; None if none."""
        adapter = [p for name, p in model.named_parameters() if "lora_" in name]
        if any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name):
            raise ConfigurationError(
                "the vLLM sampler does not support training the attacker's base weights. Train a "
                "LoRA adapter (lora), or use the sampler of this library."
            )
        # A frozen adapter counts as well; the base model inside a peft model is used without it.
        if not adapter or not hasattr(model, "get_base_model"):
            return None
        versions = tuple((id(p), p._version) for p in adapter)
        if versions != self._versions:
            self._versions = versions
            self._adapter_number += 1
            with replace_folder(self._adapters / str(self._adapter_number)) as folder:
                model.save_pretrained(str(folder), save_embedding_layers=False)
        path = self._adapters / str(self._adapter_number)
        request = require("vllm.lora.request", extra="vllm").LoRARequest
        return request(f"attacker-{self._adapter_number}", self._adapter_number, str(path))

    def _log_mismatch(self, outputs: Sequence[Any], rows: Sequence[tuple[float, ...]]) -> None:
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
            "log-probabilities of vLLM and of transformers differ by %.3g nats per sampled token",
            self.mismatch,
        )
