"""Adaptive stress testing with a value function beside the attacker, for actor-critic methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import ValueFunctionProblem
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import readable
from astra_rl.ext.transformers.problem import HFASTProblem, ModelSource
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.models.value_head import FILE_NAME, ValueHead, predictor_states
from astra_rl.targets.base import Target


class HFValueProblem(HFASTProblem, ValueFunctionProblem[str, str]):
    """A problem whose attacker also estimates returns, with a small head on its hidden states.

    An attacker folder that holds the weights of a value head, as `save` leaves them, brings it.

    Args:
        attacker_model_id: See `HFASTProblem`.
        target_model_id: See `HFASTProblem`.
        baseline_model_id: See `HFASTProblem`.
        moderator: See `HFASTProblem`.
        device: See `HFASTProblem`.
        value_count: How many returns are estimated: one, and one more per constraint of
            PPO-Lagrangian.
        value_detach: Whether the errors of the estimates leave the attacker alone and train the
            head only. The hidden states then need no gradient, which is cheaper.
        options: See `HFASTProblem`.

    Attributes:
        value_head: The head.

    Raises:
        ConfigurationError: `value_count` is less than one.
        ModelError: The weights in the folder do not fit.
    """

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource | Target,
        baseline_model_id: ModelSource,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        value_count: int = 1,
        value_detach: bool = True,
        **options: Any,
    ) -> None:
        if value_count < 1:
            raise ConfigurationError(f"value_count={value_count}; it must be at least 1.")
        super().__init__(
            attacker_model_id, target_model_id, baseline_model_id, moderator, device, **options
        )
        hidden_size = self.attacker.config.get_text_config().hidden_size
        self.value_head = ValueHead(hidden_size, value_count).to(self.attacker.device)
        self.value_detach = value_detach
        if isinstance(attacker_model_id, str | Path):
            folder = Path(attacker_model_id)
            if (folder / FILE_NAME).is_file():
                self.value_head.load(folder)

    def value(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate the return at each token, (B, T) float32, with gradients if autograd is on."""
        return self.values(contexts, continuations)[:, :, 0]

    def values(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate all returns at each token, (B, T, K) float32; zero where a row has ended."""
        prompts, said = readable(*self.said_after(self.attacker_view, contexts, continuations))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.value_detach):
            hidden = predictor_states(self.attacker, prompts, said)
        lengths = torch.tensor([len(ids) for ids in said], device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        estimates: Tensor = self.value_head(hidden)
        return torch.where(real[:, :, None], estimates, torch.zeros_like(estimates))

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's trainable parameters, then the head's."""
        yield from super().parameters()
        yield from self.value_head.parameters()

    def save(self, folder: str | Path) -> None:
        """Save attacker, tokenizer and value head, as safetensors, atomically."""
        with replace_folder(folder) as temporary:
            super().save(temporary)
            self.value_head.save(temporary)


__all__ = ["HFValueProblem"]
