"""AST problem with a value head on the attacker, for actor-critic algorithms."""

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
from astra_rl.ext.transformers.generation import ensure_nonempty_prompts
from astra_rl.ext.transformers.problem import HFASTProblem, ModelSource
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.models.value_head import FILE_NAME, ValueHead, preceding_hidden_states
from astra_rl.targets.base import Target


class HFValueProblem(HFASTProblem, ValueFunctionProblem[str, str]):
    """AST problem whose attacker has a value head on its hidden states.

    If the attacker's folder contains a value head, as written by `save`, its weights are loaded.

    Args:
        attacker_model_id: See `HFASTProblem`.
        target_model_id: See `HFASTProblem`.
        baseline_model_id: See `HFASTProblem`.
        moderator: See `HFASTProblem`.
        device: See `HFASTProblem`.
        value_count: Number of estimated returns, K: one, plus one per constraint of PPO-Lagrangian.
        value_detach: Whether the value loss trains the head only. The hidden states then need no
            gradient, which is cheaper.
        options: See `HFASTProblem`.

    Attributes:
        value_head: The value head.

    Raises:
        ConfigurationError: `value_count` is less than 1.
        ModelError: The value head in the folder has another size.
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
        """Return the estimated return at each token, (B, T) float32, with gradients."""
        return self.values(contexts, continuations)[:, :, 0]

    def values(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return all estimated returns at each token, (B, T, K) float32, padded with zeros."""
        prompts, attacks = ensure_nonempty_prompts(
            *self.attack_token_ids(self.attacker_renderer, contexts, continuations)
        )
        needs_grad = torch.is_grad_enabled() and not self.value_detach
        with torch.set_grad_enabled(needs_grad), self.recomputing():
            hidden = preceding_hidden_states(self.attacker, prompts, attacks)
        lengths = torch.tensor([len(ids) for ids in attacks], device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        estimates: Tensor = self.value_head(hidden)
        return torch.where(real[:, :, None], estimates, torch.zeros_like(estimates))

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's trainable parameters, then those of the value head."""
        yield from super().parameters()
        yield from self.value_head.parameters()

    def save(self, folder: str | Path) -> None:
        """Save attacker, tokenizer and value head atomically, in safetensors format."""
        with replace_folder(folder) as temporary:
            super().save(temporary)
            self.value_head.save(temporary)


__all__ = ["HFValueProblem"]
