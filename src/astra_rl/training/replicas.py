"""Equal states in all processes of a training: at its start, and checked after every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.environment import Environment
from astra_rl.distributed.ranks import Ranks, raised_by_all
from astra_rl.errors import ReplicaError
from astra_rl.training.sharding import ShardedWeightOptimizer
from astra_rl.training.states import pack, unpack

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtypes by their bytes, to read the bits of weights."""

_AT_ONCE = 1 << 24
"""Weights whose bits are read at a time: each takes 8 bytes more."""


class Replica(Protocol):
    """The part of a `Trainer` that is equal in all processes."""

    completed_steps: int

    @property
    def algorithm(self) -> Algorithm[Any, Any, Any, Any]:
        """The algorithm and its problem."""

    @property
    def environment(self) -> Environment[Any, Any]:
        """The environment."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the trained weights."""

    def controller_state(self) -> dict[str, Any]:
        """Return what `state_dict` does, without weights and the state of the optimizer."""

    def load_controller_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `controller_state` returned."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the remaining training depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def share_state(ranks: Ranks, replica: Replica) -> None:
    """Give all processes the state of the first: weights, optimizer, controllers, generators.

    So a resumed training reads its state in the first process only, and random initial weights
    (adapters, value heads) are equal everywhere.

    Args:
        ranks: The processes.
        replica: The trainer of this process.

    Raises:
        ReplicaError: The processes train different models.
    """
    if ranks.size == 1:
        return
    shapes = ranks.gather_json([list(each.shape) for each in _weights(replica)])
    for rank, found in enumerate(shapes):
        if found != shapes[0]:
            raise raised_by_all(
                ReplicaError(
                    f"process {rank} trains {len(found)} tensors of other shapes than the "
                    f"{len(shapes[0])} of process 0. Build the same models in every process."
                )
            )
    give, take = replica.state_dict, replica.load_state_dict
    if isinstance(replica.optimizer, ShardedWeightOptimizer):
        replica.optimizer.share()
        give, take = replica.controller_state, replica.load_controller_state
    tensors: dict[str, Tensor] = {}
    packed = None
    with ranks.together():
        if ranks.is_first:
            packed = pack(give(), tensors, seal=str)
    kinds = {name: [list(t.shape), _name_of(t.dtype)] for name, t in tensors.items()}
    packed, kinds = ranks.share([packed, kinds])
    for name, (shape, dtype) in kinds.items():
        if not ranks.is_first:
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        ranks.broadcast(tensors[name])
    with ranks.together():
        if not ranks.is_first:
            take(unpack(packed, tensors))


def check_replicas(ranks: Ranks, replica: Replica) -> None:
    """Compare weights and controllers of all processes after a training step.

    Raises:
        ReplicaError: They differ; the message says which, and in which process.
    """
    if ranks.size == 1:
        return
    problem = replica.algorithm.problem
    mine = {
        "weights": digest(_weights(replica)),
        "state of the algorithm": digest(replica.algorithm.state_dict()),
        "state of the reward": digest(problem.reward_state()),
        "state of the environment": digest(replica.environment.state_dict()),
    }
    for rank, found in enumerate(every := ranks.gather_json(mine)):
        for name, value in found.items():
            if value != every[0][name]:
                raise raised_by_all(
                    ReplicaError(
                        f"after training step {replica.completed_steps} process {rank} differs "
                        f"from process 0 in the {name}. Either something that every process must "
                        "do alike was done in some only (a callback that changes weights or "
                        "learning rates needs every_process = True), or their machines compute "
                        "differently."
                    )
                )


def digest(value: Any) -> str:
    """Return a checksum of a state, see `pack`; of tensors that of all bits, order included."""
    hashed = hashlib.blake2b(digest_size=16)
    tensors: dict[str, Tensor] = {}
    rest = value
    if isinstance(value, Sequence) and all(isinstance(each, Tensor) for each in value):
        tensors = {str(place): each for place, each in enumerate(value)}  # no copy of the weights
        rest = None
    packed = pack(rest, tensors, seal=str)
    hashed.update(json.dumps(packed, sort_keys=True).encode())
    for name, tensor in tensors.items():
        hashed.update(f"{name} {tuple(tensor.shape)} {_bits(tensor)}".encode())
    return hashed.hexdigest()


def _bits(tensor: Tensor) -> list[int]:
    """Return two sums over the bits of a tensor, computed where it is; the second knows the order.

    Sums of integers do not depend on the order of the additions, whatever device makes them.
    """
    flat = tensor.detach().contiguous().flatten()
    sums = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for start, part in enumerate(torch.split(flat.view(_INTEGERS[flat.element_size()]), _AT_ONCE)):
        bits = part.long()
        places = torch.arange(len(bits), device=bits.device) + (1 + start * _AT_ONCE)
        sums += torch.stack([bits.sum(), (bits * places).sum()])
    return [int(each) for each in sums.tolist()]


def _weights(replica: Replica) -> list[Tensor]:
    return [each for each in replica.algorithm.problem.parameters() if each.requires_grad]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
