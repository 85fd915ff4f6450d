"""Additional in-process target, for rewards that compare several targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from astra_rl.core.text import Utterance
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.ext.transformers.target_adapters import LocalTarget
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.settings import AttentionImplementation
from astra_rl.models.vocabulary import check_vocabulary
from astra_rl.targets.base import Target


class SecondaryTarget(Target):
    """A causal language model beside the target under test, used for responses only.

    Its weights are loaded separately, even if another model of the run has the same source.

    Args:
        model_id: Hub id, folder, or ``bundled:NAME``.
        sampling: Sampling parameters of responses; None is `Sampling()`.
        chat: Whether to use the tokenizer's chat template; None uses it if there is one.
        chat_template_kwargs: Further variables of the chat template.
        device: See `astra_rl.models.loading.load_model`.
        dtype: See `astra_rl.models.loading.load_model`.
        trust_remote_code: Run Python code that is part of the model repository.
        attn_implementation: See `astra_rl.models.loading.load_model`.
        sampler: Sampling backend.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(
        self,
        model_id: str,
        *,
        sampling: Sampling | None = None,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        attn_implementation: AttentionImplementation = "auto",
        sampler: Sampler = generate,
    ) -> None:
        self.name = model_id
        self.sampler = sampler
        model = load_model(
            model_id,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
        )
        tokenizer = load_tokenizer(model_id, trust_remote_code=trust_remote_code)
        check_vocabulary(model, tokenizer, model_id)
        renderer = ModelPair(model, tokenizer).renderer(
            "target", chat=chat, chat_template_kwargs=chat_template_kwargs
        )
        self._adapter = LocalTarget(model, renderer, sampling or Sampling())

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Sample one response per conversation."""
        return self._adapter.respond(conversations, self.sampler, None)
