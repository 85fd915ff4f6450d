"""Reference of the KL penalty that follows the attacker, in the manner of TRL's sync_ref_model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from transformers import PreTrainedModel

from astra_rl.errors import ConfigurationError


class MovingReference:
    """Weights of the reference, once it is no longer the baseline; see `Problem.sync_reference`.

    Only weights that are trained are kept; the others are those of the attacker.

    Args:
        attacker: The trained model.
        baseline: The frozen model that the reference is at first.
        has_adapter: Whether the attacker trains an adapter.

    Attributes:
        weights: In the order of the attacker's trained parameters; empty while the reference is
            the baseline.
    """

    def __init__(self, attacker: Any, baseline: PreTrainedModel, *, has_adapter: bool) -> None:
        self.attacker, self.baseline, self.has_adapter = attacker, baseline, has_adapter
        self.weights: list[Tensor] = []

    @torch.no_grad()
    def sync(self, alpha: float) -> None:
        """Move the reference towards the attacker; see `Problem.sync_reference`.

        Raises:
            ConfigurationError: `alpha` is below 1, and the attacker has an adapter, or its first
                reference is of another architecture: a mean of weights is then not defined.
        """
        if alpha == 1:
            self.weights = [parameter.detach().clone() for parameter in self._trained()]
            return
        before = self.weights or self._baseline_weights()
        self.weights = [
            torch.lerp(old.to(parameter), parameter.detach(), alpha)
            for old, parameter in zip(before, self._trained(), strict=True)
        ]

    def load(self, state: Sequence[Tensor]) -> None:
        """Restore saved `weights`, on the device and in the dtype of the attacker's."""
        self.weights = [
            saved.to(parameter) for saved, parameter in zip(state, self._trained(), strict=False)
        ]

    @contextlib.contextmanager
    def in_attacker(self) -> Iterator[None]:
        """Context in which the attacker has the weights of the reference."""
        trained = list(self._trained())
        attacker = [parameter.data for parameter in trained]
        try:
            for parameter, weights in zip(trained, self.weights, strict=True):
                parameter.data = weights
            yield
        finally:
            for parameter, weights in zip(trained, attacker, strict=True):
                parameter.data = weights

    def _trained(self) -> Iterator[Parameter]:
        """Yield the trained weights of the attacker, without those of a value function."""
        return (p for p in self.attacker.parameters() if p.requires_grad)

    def _baseline_weights(self) -> list[Tensor]:
        """Return the weights of the baseline in the place of the attacker's trained ones."""
        # Layers that targets have adapters on have their weights in a `base_layer`.
        own = {
            name.replace(".base_layer", ""): weight
            for name, weight in self.baseline.named_parameters()
        }
        names = [name for name, p in self.attacker.named_parameters() if p.requires_grad]
        shapes = [p.shape for p in self._trained()]
        found: list[Tensor] = [own[name] for name in names if name in own]
        if self.has_adapter or [each.shape for each in found] != shapes:
            raise ConfigurationError(
                "ref_model_mixup_alpha below 1 is a mean of the weights of attacker and reference, "
                "which is not defined for an adapter or another architecture. Set it to 1, so that "
                "the reference becomes a copy of the attacker."
            )
        return found
