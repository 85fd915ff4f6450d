"""Activations that the backward pass recomputes from others instead of keeping them.

Autograd keeps what each operation needs for its gradient, also what follows from other kept tensors
at almost no cost: normalised states from the states and their norms, the product of a gated
feed-forward layer from its factors, a copy in another precision. Such tensors, half of the
activations of a LoRA run, are dropped and recomputed by the same operations, so that gradients are
the same to the last bit. No matrix product is recomputed; for that see
`astra_rl.models.recomputation`.

It works on the graph of autograd, not on the modules of a model, so that it is the same for all
families.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

LEAST_BYTES = 2**14
"""Smaller tensors are kept."""
REMEMBERED = 4
"""Number of recomputed tensors that are kept for the operations that follow."""


@dataclass(frozen=True)
class _Recipe:
    """How a tensor is computed from kept ones."""

    compute: Callable[..., Tensor]
    inputs: tuple[_Kept, ...]


_Kept = Tensor | _Recipe


@contextlib.contextmanager
def lean_activations() -> Iterator[None]:
    """Context of a forward pass whose cheap intermediate results the backward pass recomputes.

    Without gradients nothing is changed.
    """
    saved, recomputed = _Saved(), _Recomputed()
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, recomputed.unpack):
            yield
    finally:
        saved.forget()


class _Recomputed:
    """The tensors that were computed last: several operations near each other need the same."""

    def __init__(self) -> None:
        self._latest: list[tuple[_Recipe, Tensor]] = []

    def unpack(self, kept: _Kept) -> Tensor:
        """Return a tensor that was kept, or compute it."""
        if isinstance(kept, Tensor):
            return kept
        for recipe, tensor in self._latest:
            if recipe is kept:
                return tensor
        with torch.no_grad():
            tensor = kept.compute(*map(self.unpack, kept.inputs))
        self._latest = [(kept, tensor), *self._latest[: REMEMBERED - 1]]
        return tensor


class _Saved:
    """The tensors that autograd saved so far, by the operation and the output that they are."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, int], _Kept] = {}

    def pack(self, tensor: Tensor) -> _Kept:
        """Return what is kept of a tensor."""
        if tensor.grad_fn is None:
            return tensor
        place = (tensor.grad_fn, tensor.output_nr)
        kept = self._value(*place) if tensor.nbytes >= LEAST_BYTES else None
        # Without its history: an operation that keeps its own output would keep itself.
        self._kept[place] = kept = tensor.detach() if kept is None else kept
        return kept

    def forget(self) -> None:
        """Drop all references: autograd keeps `pack` as long as the tensors."""
        self._kept.clear()

    def _value(self, node: Any, output: int) -> _Kept | None:
        """Return an output of an operation, or how it is computed; None: neither is kept."""
        if (kept := self._kept.get((node, output))) is not None:
            return kept
        if (parameter := getattr(node, "variable", None)) is not None:
            return parameter.detach()  # type: ignore[no-any-return]
        rule = _RULES.get(type(node).__name__)
        if rule is None:
            return None
        names, compute = rule
        inputs = []
        for (source, number), name in zip(node.next_functions, names, strict=False):
            # What needs no gradient is not in the graph, but kept for the gradient of the others.
            value = getattr(node, name, None) if source is None else self._value(source, number)
            if value is None:
                return None
            inputs.append(value)
        self._kept[node, output] = recipe = _Recipe(compute(node), tuple(inputs))
        return recipe


def _reshape(node: Any) -> Callable[..., Tensor]:
    shape = node._input_metadata[0].shape
    return lambda tensor: tensor.reshape(shape)


def _cast(node: Any) -> Callable[..., Tensor]:
    """Return a copy in another precision, on another device."""
    result = node._input_metadata[0]
    return partial(torch.Tensor.to, dtype=result.dtype, device=result.device)


_RULES: dict[str, tuple[tuple[str, ...], Callable[[Any], Callable[..., Tensor]]]] = {
    "MulBackward0": (("_saved_self", "_saved_other"), lambda node: torch.mul),
    "SiluBackward0": (("_saved_self",), lambda node: torch.nn.functional.silu),
    "GeluBackward0": (
        ("_saved_self",),
        lambda node: partial(torch.nn.functional.gelu, approximate=node._saved_approximate),
    ),
    "PowBackward0": (
        ("_saved_self",),
        lambda node: partial(torch.pow, exponent=node._saved_exponent),
    ),
    "ToCopyBackward0": (("",), _cast),
    "ViewBackward0": (("",), _reshape),
    "UnsafeViewBackward0": (("",), _reshape),
}
"""For each operation that is recomputed the attributes of its inputs in the graph, and what returns
the function that computes it."""
