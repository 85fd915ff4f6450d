"""Full fine-tuning with float32 weights, gradients and optimizer states in shards (FSDP2).

Each process keeps the model whole in its own dtype, because processes sample and score texts of
different lengths and so cannot gather weights together in a forward pass. All else that training
needs of a weight, 16 bytes with Adam, is divided: the float32 copies are modules of
``torch.distributed.fsdp.fully_shard``, gradients are added into shards while they are computed, and
each process updates its shard. A training on W processes needs ``bytes of the model + 16 P / W``
for P weights in each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from astra_rl.distributed.ranks import Ranks, noticing_loss
from astra_rl.errors import ConfigurationError, ProcessLostError, TrainingError, first_line
from astra_rl.training.precision import HALF_TYPES, MasterWeightOptimizer
from astra_rl.training.states import pack, unpack

# torch's modules of sharding are imported where they are used: few trainings need them.

GATHERED = 1 << 25
"""Weights that are gathered at a time, unless one tensor has more."""


class ShardedWeightOptimizer(MasterWeightOptimizer):
    """Updates float32 copies of parameters, of which each process has a shard.

    A copy is a ``DTensor``, divided by its first dimension. All processes call the methods in the
    same order.

    During a backward pass, gradients are added up over the processes and into the shards as soon
    as they are computed, from the last parameter to the first, so that a process never has those of
    all parameters. Call `finish` after each; a process without a backward pass of its own calls
    `finish` alone.

    Args:
        parameters: Trainable parameters, equal in shape in all processes.
        factory: Builds the optimizer of the copies.
        ranks: The processes.

    Raises:
        ConfigurationError: A parameter has no dimension.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        factory: Callable[[list[Tensor]], Optimizer],
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self._waiting: dict[int, Tensor] = {}
        self._present: set[int] = set()
        self._given: dict[str, Any] | None = None
        self._is_shared = False
        self._answers: bool | None = None
        super().__init__(parameters, factory)
        self._next = len(self.trained) - 1

    def share(self) -> None:
        """Give all processes the weights and the loaded state of the first, if not yet done."""
        if not self.ranks.share(not self._is_shared):
            return
        given: dict[str, Any] = self._given or {}
        self._given = None
        masters = given.get("masters", self.trained)
        inner = given.get("inner") if self.ranks.is_first else None
        for parameter, master, known in zip(self.trained, self.masters, masters, strict=True):
            whole = self._shared(known if self.ranks.is_first else None, master)
            with torch.no_grad():
                parameter.copy_(whole)
                master.copy_(_shard_of(whole, master))
        self._share_inner(inner)
        self._is_shared = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the shards, and gather the parameters from them."""
        with self.ranks.together():  # none waits for one that runs out of memory here
            self.inner.step(closure)
        trained = iter(self.trained)
        for group in self._groups:
            with noticing_loss():
                group.unshard()
            for whole in list(group.parameters()):
                next(trained).copy_(whole)
            group.reshard()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients."""
        super().zero_grad(set_to_none)
        self._waiting.clear()
        self._present.clear()

    def finish(self) -> None:
        """Add up the gradients that a backward pass has left; that of a parameter without is 0.

        Raises:
            ProcessLostError: It cannot be done, so that the others wait until this process ends.
        """
        try:
            while self._next >= 0:
                self._add_next(self._waiting.pop(self._next, None))
        except Exception as error:
            raise ProcessLostError(
                f"adding up gradients with the other processes failed: {first_line(error)}"
            ) from error
        self._next = len(self.trained) - 1

    def settle(self) -> None:
        """Remove the gradients of parameters that had none in any process."""
        present = {
            place for each in self.ranks.gather_json(sorted(self._present)) for place in each
        }
        for place, master in enumerate(self.masters):
            if place not in present:
                master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `MasterWeightOptimizer`, whole and on the CPU, for process 0.

        All processes call it together; or the first does, while the others are in `answering`.
        Without half-precision parameters it is the state of an optimizer without copies.

        Raises:
            TrainingError: Another process than the first called it inside `answering`.
            ProcessLostError: The other processes take no part.
        """
        if self._given is not None:
            return self._given
        if not self._is_shared:
            masters = [each.detach().float() for each in self.trained]
            return {"inner": self.inner.state_dict(), "masters": masters}
        if self._answers is False:
            raise ProcessLostError("the other processes take no part in gathering a state.")
        if self._answers and not self.ranks.is_first:
            raise TrainingError(
                "the training state is gathered in process 0; call state_dict there, or in all "
                "processes outside of callbacks and hooks."
            )
        if self._answers:
            self.ranks.share(True)
        return self._gathered()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned, until `share` gives all processes that of the first."""
        self._given, self._is_shared = state_dict, False

    @contextlib.contextmanager
    def answering(self, together: bool = True) -> Iterator[None]:
        """Take part, in the other processes, in each call of `state_dict` by the first.

        All processes open and close the block together.

        Args:
            together: Whether they do; if not, the first cannot call it.
        """
        self._answers = together
        try:
            yield
        finally:
            self._answers = None
            if together and self.ranks.is_first:
                self.ranks.share(False)
            while together and not self.ranks.is_first and self.ranks.share():
                self._gathered()

    def _copies(self) -> list[Tensor]:
        if any(each.dim() == 0 for each in self.trained):
            raise ConfigurationError(
                "sharding: fsdp divides tensors, and a trained parameter is a single number. "
                "Make it a tensor of shape (1,), or use sharding: replicated."
            )
        mesh = _mesh(self.trained[0].device.type)
        self._groups = [_fully_sharded(each, mesh) for each in _at_once(self.trained)]
        return [each for group in self._groups for each in group.parameters()]

    def _take(self, place: int, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        grad, parameter.grad = parameter.grad, None
        if place in self._waiting or place > self._next:
            raise TrainingError(
                "sharding: fsdp adds up the gradient of a weight as soon as it is computed, and "
                f"that of one of shape {tuple(parameter.shape)} was computed more than once in a "
                "backward pass, as reentrant checkpointing of shared layers does. Use "
                "use_reentrant=False there, or sharding: replicated."
            )
        self._waiting[place] = grad
        self._present.add(place)
        # In one order, whatever the order in which autograd computes them in this process.
        while self._next in self._waiting:
            self._add_next(self._waiting.pop(self._next))

    @torch.no_grad()
    def _add_next(self, grad: Tensor | None) -> None:
        from torch.distributed.tensor import DTensor, Partial, Shard

        master: Any = self.masters[self._next]
        if grad is None:
            grad = torch.zeros(master.shape, dtype=master.dtype, device=master.device)
        mesh = master.device_mesh
        with noticing_loss():
            part: Any = DTensor.from_local(
                grad.to(master.dtype).contiguous(), mesh, [Partial()], run_check=False
            ).redistribute(placements=[Shard(0)])
        master.grad = part if master.grad is None else master.grad.add_(part)
        self._next -= 1

    def _gathered(self) -> dict[str, Any]:
        """Return the whole state in the first process; tensors are None in the others."""
        inner = _replaced(self.inner.state_dict(), self._gathered_tensor)
        if not any(each.dtype in HALF_TYPES for each in self.trained):
            return inner  # type: ignore[no-any-return]
        return {"inner": inner, "masters": [self._gathered_tensor(each) for each in self.masters]}

    def _gathered_tensor(self, tensor: Any) -> Tensor | None:
        """Return a whole tensor in the first process, by way of main memory, not of the GPU's."""
        if not hasattr(tensor, "to_local"):
            return tensor.detach().cpu() if self.ranks.is_first else None
        shard = tensor.detach().to_local().cpu().contiguous()
        if not self.ranks.is_first:
            if len(shard):
                self.ranks.send(shard, 0)
            return None
        parts, rows = [shard], -(-len(tensor) // self.ranks.size)
        for source in range(1, self.ranks.size):
            if (count := min(rows, len(tensor) - source * rows)) > 0:
                part = torch.empty((count, *shard.shape[1:]), dtype=shard.dtype)
                self.ranks.receive(part, source)
                parts.append(part)
        return torch.cat(parts)

    def _share_inner(self, inner: dict[str, Any] | None) -> None:
        """Load the state of the inner optimizer from that of the first process."""
        tensors: list[Tensor] = []

        def describe(tensor: Tensor) -> list[Any]:
            tensors.append(tensor)
            return ["tensor", list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]

        described = pack(_replaced(inner, describe), {}, seal=str)
        state = unpack(self.ranks.share(described), {})
        if state is None:
            return
        known = iter(tensors)
        for place, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, list) and value and value[0] == "tensor":
                    like = torch.empty(
                        value[1], dtype=getattr(torch, value[2]), device=self.masters[place].device
                    )
                    whole = self._shared(next(known, None), like)
                    is_shard = like.shape == self.masters[place].shape
                    values[name] = (
                        _shard_of(whole, self.masters[place]) if is_shard else whole.cpu()
                    )
        self.inner.load_state_dict(state)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _shared(self, tensor: Tensor | None, like: Tensor) -> Tensor:
        """Return the tensor of the first process, in the shape, dtype and device of another."""
        if tensor is None:
            whole = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        else:
            whole = tensor.detach().to(like.device, like.dtype).contiguous()
        self.ranks.broadcast(whole)
        return whole


class _Copies(nn.Module):
    """Float32 copies of parameters; float64 ones of float64."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__()
        for place, each in enumerate(parameters):
            dtype = torch.promote_types(each.dtype, torch.float32)
            self.register_parameter(str(place), Parameter(each.detach().to(dtype, copy=True)))


def _mesh(device: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import get_world_size

    return init_device_mesh(device, (get_world_size(),))


def _fully_sharded(parameters: Sequence[Parameter], mesh: Any) -> Any:
    """Return copies of parameters of one dtype, which are gathered in that dtype."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=parameters[0].dtype)
    return fully_shard(_Copies(parameters), mesh=mesh, mp_policy=policy)


def _at_once(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """Divide parameters, in order, into those that are gathered at once; each of one dtype."""
    for _, same in groupby(parameters, key=lambda each: (each.dtype, each.device)):
        part: list[Parameter] = []
        for each in same:
            if part and sum(p.numel() for p in part) + each.numel() > GATHERED:
                yield part
                part = []
            part.append(each)
        yield part


def _shard_of(whole: Tensor, master: Any) -> Tensor:
    """Return the shard of this process of a tensor that every process has."""
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(whole, master.device_mesh, [Shard(0)], src_data_rank=None)


def _replaced(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a state in which each tensor is replaced by what a function returns of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _replaced(each, function) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, function) for each in value)
    return value
