"""A warning before the first update if it is estimated to need more memory than is free."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD, Adagrad, Adam, Optimizer, RMSprop

from astra_rl.core.device_memory import free_bytes
from astra_rl.core.problem import Problem
from astra_rl.logging import logger

VALUES_PER_WEIGHT = {Adam: 2, RMSprop: 1, Adagrad: 1, SGD: 0}
"""Numbers that an optimizer keeps for each weight; 2 for any other."""


def warn_if_short_of_memory(
    problem: Problem[Any, Any], optimizer: Optimizer, micro_batch_tokens: int | None
) -> None:
    """Warn if gradients, optimizer states and activations are estimated not to fit.

    What is allocated already, models above all, is not counted again. Nothing is known, and no
    warning given, of a problem without `Problem.activation_bytes` and of some devices.

    Args:
        problem: The problem whose attacker is trained.
        optimizer: The optimizer of its parameters.
        micro_batch_tokens: See `UpdateSettings.micro_batch_tokens`.
    """
    activations = problem.activation_bytes(micro_batch_tokens)
    weights = [each for group in optimizer.param_groups for each in group["params"]]
    free = free_bytes(weights[0].device)
    if activations is None or free is None:
        return
    states = state_bytes(optimizer, weights)
    if states + activations > free:
        logger.warning(
            "the first update needs about %s more than what is loaded, and %s are free: %s of "
            "gradients and optimizer states, and %s of activations. Train a LoRA adapter "
            "(attacker.lora), or set training.gradient_checkpointing: true or a smaller "
            "training.micro_batch_tokens, or use a smaller model.",
            *(f"{each / 1e9:.1f} GB" for each in (states + activations, free, states, activations)),
        )


def state_bytes(optimizer: Optimizer, weights: list[torch.Tensor]) -> int:
    """Return the memory that gradients and optimizer states will take, in bytes.

    Args:
        optimizer: Without states yet, or with those that were loaded, which are not counted.
        weights: The tensors that it updates.
    """
    inner = getattr(optimizer, "inner", optimizer)  # of half-precision weights
    kept = next((n for kind, n in VALUES_PER_WEIGHT.items() if isinstance(inner, kind)), 2)
    gradients = sum(_bytes(each) for each in weights if each.grad is None)
    return gradients + kept * sum(_bytes(each) for each in weights if each not in optimizer.state)


def _bytes(tensor: Any) -> int:
    """Return the memory of a tensor in this process, in bytes: of a shard, if it is divided."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.nbytes
