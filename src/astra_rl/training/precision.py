"""Float32 master weights for the training of half-precision parameters."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from astra_rl.errors import TrainingError

HALF_TYPES = (torch.bfloat16, torch.float16)
FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Optimizers of which torch has a kernel that updates a tensor, or a shard, in one pass."""


_RECEIVERS: MutableMapping[Parameter, weakref.ref[MasterWeightOptimizer]] = WeakIdKeyDictionary()
"""The optimizer that gets the gradient of a parameter, see `MasterWeightOptimizer`."""


class MasterWeightOptimizer(Optimizer):
    """Updates float32 copies of half-precision parameters and writes them back.

    bfloat16 has 8 significant bits: a typical update is smaller than the last one and would be
    lost. Gradients are moved to the copies as soon as they are computed, so they accumulate in
    float32. Of several optimizers of a parameter the one that was built, or whose gradients were
    reset, last receives its gradient.

    Args:
        parameters: Trainable parameters of any floating dtype.
        factory: Builds the optimizer of the float32 copies.
    """

    def __init__(
        self, parameters: Iterable[Parameter], factory: Callable[[list[Tensor]], Optimizer]
    ) -> None:
        self.trained = list(parameters)
        self.masters = self._copies()
        self.inner = factory(self.masters)
        for place, parameter in enumerate(self.trained):
            # Parameters outlive an optimizer, so they must not keep it, and its copies, alive.
            hook = functools.partial(_hand_over, weakref.ref(self), place)
            handle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                hook
            )
            weakref.finalize(self, handle.remove)
        self._receive()
        # Learning-rate schedulers and gradient clipping work on the copies through these.
        super().__init__(self.masters, self.inner.defaults)
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the copies and write them back."""
        self.inner.step(closure)
        for parameter, master in zip(self.trained, self.masters, strict=True):
            parameter.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and receive those that are computed from now on."""
        self.inner.zero_grad(set_to_none)
        self._receive()

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and the copies."""
        return {"inner": self.inner.state_dict(), "masters": [m.detach() for m in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        for parameter, master, saved in zip(
            self.trained, self.masters, state_dict["masters"], strict=True
        ):
            master.copy_(saved)
            parameter.copy_(master)

    def _copies(self) -> list[Tensor]:
        """Return the float32 copies of the parameters."""
        return [each.detach().float().clone().requires_grad_(True) for each in self.trained]

    def _receive(self) -> None:
        """Receive the gradients that are computed from now on."""
        for parameter in self.trained:
            _RECEIVERS[parameter] = weakref.ref(self)

    def _take(self, place: int, parameter: Tensor) -> None:
        """Move the gradient of the parameter at a place to its copy."""
        if parameter.grad is None:
            return
        grad, master = parameter.grad.float(), self.masters[place]
        master.grad = grad if master.grad is None else master.grad + grad
        parameter.grad = None


def _hand_over(
    optimizer: weakref.ref[MasterWeightOptimizer], place: int, parameter: Parameter
) -> None:
    """Give an optimizer the gradient of a parameter, unless another one receives it."""
    receiver, receives = optimizer(), _RECEIVERS.get(parameter)
    if receiver is not None and receives is not None and receives() is receiver:
        receiver._take(place, parameter)


def build_optimizer(
    kind: type[Optimizer], parameters: Iterable[Parameter], lr: float, **options: Any
) -> Optimizer:
    """Build an optimizer; half-precision parameters are updated in float32.

    Args:
        kind: Class of the optimizer.
        parameters: Parameters; those without ``requires_grad`` are left out.
        lr: Learning rate.
        options: Further arguments of `kind`. Without ``weight_decay`` there is none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    factory = optimizer_factory(kind, lr, **options)
    if any(parameter.dtype in HALF_TYPES for parameter in trained):
        return MasterWeightOptimizer(trained, factory)
    for parameter in trained:  # an earlier one, of shards, would take the gradients of this one
        _RECEIVERS.pop(parameter, None)
    return factory(trained)


def optimizer_factory(
    kind: type[Optimizer], lr: float, **options: Any
) -> Callable[[list[Any]], Optimizer]:
    """Return what builds the optimizer of some tensors; for the arguments see `build_optimizer`.

    Where torch has a kernel that updates a tensor in one pass it is used, unless `options` say
    otherwise: a pass over all weights and moments for each operation takes several times as long.
    """

    def factory(tensors: list[Any]) -> Optimizer:
        chosen = {"weight_decay": 0.0} | options
        if kind in FUSED and all(map(_suits_kernel, tensors)):
            chosen = {"fused": True} | chosen
        return kind(tensors, lr=lr, **chosen)  # type: ignore[call-arg]

    return factory


def _suits_kernel(tensor: Tensor) -> bool:
    """Whether a fused kernel updates a tensor correctly: that of the CPU ignores strides."""
    return tensor.device.type in ("cpu", "cuda") and tensor.is_contiguous()


_OF_IMPLEMENTATION = frozenset(
    {"params", "lr", "initial_lr", "weight_decay", "foreach", "maximize", "capturable"}
    | {"differentiable", "fused", "decoupled_weight_decay"}
)
"""Options of parameter groups that do not tell optimizers apart, or depend on torch's version."""


@torch.no_grad()
def load_optimizer_state(
    optimizer: Optimizer,
    state: dict[str, Any],
    trained: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> None:
    """Load the state of an optimizer, also if it was saved with another dtype.

    Args:
        optimizer: From `build_optimizer`.
        state: Its saved ``state_dict()``.
        trained: The trained parameters, with the saved weights.
        weights: The saved weights, in the dtype they were saved with.

    Raises:
        TrainingError: The state is of another optimizer.
    """
    has_masters, saved_masters = isinstance(optimizer, MasterWeightOptimizer), "masters" in state
    inner = state["inner"] if saved_masters else state
    groups = inner.get("param_groups", [])
    then, now = (_options_of(each) for each in (groups, optimizer.param_groups))
    if not now <= then:  # learning-rate schedulers add options
        raise TrainingError(
            f"the saved state is of another optimizer, with the options {_listed(then)}; this one, "
            f"{type(getattr(optimizer, 'inner', optimizer)).__name__}, has {_listed(now)}. Use the "
            "optimizer that the run was started with, or start a new run."
        )
    if has_masters:
        masters = state["masters"] if saved_masters else list(weights)
        optimizer.load_state_dict({"inner": inner, "masters": masters})
        return
    for parameter, master in zip(trained, state.get("masters", ()), strict=False):
        parameter.copy_(master)  # more exact than the saved half-precision weights
    optimizer.load_state_dict(inner)


def _options_of(groups: Sequence[dict[str, Any]]) -> set[str]:
    return {str(name) for group in groups for name in group} - _OF_IMPLEMENTATION


def _listed(options: set[str]) -> str:
    return ", ".join(sorted(options)) or "none"
