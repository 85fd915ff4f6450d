"""One more language model in this process as a target that is only asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from astra_rl.core.text import Utterance
from astra_rl.ext.transformers.target_adapters import LocalTarget
from astra_rl.models.dialogue import DialogueView, window_of
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.targets.base import Target


class SecondaryTarget(Target):
    """A model beside the one under test, for rewards that ask several.

    It is loaded for itself: weights that another part of the run has in memory are loaded again.

    Args:
        model_id: What `astra_rl.models.loading.load_model` takes.
        sampling: How it answers.
        chat: Whether its tokenizer puts turns in its chat template; None if it has one.
        device: As in `load_model`.
        dtype: As in `load_model`.
        trust_remote_code: Run code that comes with the model.
        sampler: What samples.

    Raises:
        ModelError: It cannot be loaded.
    """

    def __init__(
        self,
        model_id: str,
        *,
        sampling: Sampling | None = None,
        chat: bool | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        sampler: Sampler = generate,
    ) -> None:
        self.name = model_id
        self.sampler = sampler
        model = load_model(
            model_id, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        tokenizer = load_tokenizer(model_id, trust_remote_code=trust_remote_code)
        view = DialogueView(tokenizer, "target", window=window_of(model.config), chat=chat)
        self._model = LocalTarget(model, view, sampling or Sampling())

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Sample one response per conversation."""
        return self._model.respond(conversations, self.sampler, None)
