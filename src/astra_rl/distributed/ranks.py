"""The processes of a training and what they exchange.

Everything that is exchanged is JSON or raw numbers; nothing is pickled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from astra_rl import errors
from astra_rl.distributed.launch import world_size
from astra_rl.errors import AstraError, ConfigurationError, ProcessFailedError, ProcessLostError

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used, as in all that the command line imports.

PATIENCE = timedelta(days=7)
"""Most time that a process waits for another. A process that has ended is noticed at once, by its
closed connection; one that waits for an endpoint may need hours."""


ErrorT = TypeVar("ErrorT", bound=Exception)
_AGREED = "_agreed_by_all_processes"


def raised_by_all(error: ErrorT) -> ErrorT:
    """Return an exception with the mark that all processes raise it."""
    setattr(error, _AGREED, True)
    return error


def is_raised_by_all(error: BaseException) -> bool:
    """Whether all processes raise an exception, or its cause, so that the first tells the user."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, _AGREED, False):
            return True
        cause = cause.__cause__
    return False


class Ranks:
    """The processes of a training: this class is a training in one process.

    All processes call the methods in the same order. Here they return what they are given.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        shared_devices: Whether several processes share a GPU, so that NCCL cannot be used.
    """

    rank: int = 0
    size: int = 1
    shared_devices: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and calls endpoints."""
        return self.rank == 0

    def gather(self, data: bytes) -> list[bytes]:
        """Return the data of every process, in the order of their numbers."""
        return [data]

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite a tensor with that of the process `source`; shapes and dtypes agree."""

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to a process that calls `receive`."""

    def receive(self, tensor: Tensor, source: int) -> None:
        """Overwrite a tensor with one that a process sends."""

    def add(self, tensor: Tensor) -> None:
        """Overwrite a tensor with its sum over the processes, in any order."""

    def leave(self) -> None:
        """Close the connections; the last call."""

    def gather_json(self, value: Any) -> list[Any]:
        """Return a JSON value of every process; floats, NaN included, stay exact."""
        if self.size == 1:
            return [value]
        return [json.loads(each) for each in self.gather(json.dumps(value).encode())]

    def share(self, value: Any = None) -> Any:
        """Return the JSON value that process 0 gives; that of the others is ignored."""
        return self.gather_json(value if self.is_first else None)[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return any(self.gather_json(bool(flag)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise, in every process, an exception that any raises inside the block.

        The processes meet at the end of the block and nowhere inside it. The exception is that of
        the first process that has one.
        """
        failure: Exception | None = None
        try:
            yield
        except ProcessLostError:
            raise
        except Exception as error:
            failure = error
        self.agree(failure)

    def agree(self, failure: Exception | None) -> None:
        """Raise, in every process, the exception of the first process that gives one."""
        if self.size == 1:
            if failure is not None:
                raise failure
            return
        self.raise_first(
            self.gather_json(None if failure is None else pack_error(failure)), failure
        )

    def raise_first(
        self, found: Sequence[dict[str, Any] | None], failure: Exception | None
    ) -> None:
        """Raise the first of the packed exceptions of all processes; the same in each.

        Args:
            found: See `pack_error`; None of a process without an exception.
            failure: The exception of this process.
        """
        for rank, packed in enumerate(found):
            if packed is None:
                continue
            mine = failure if rank == self.rank else None
            raised = unpack_error(packed, rank) if mine is None else mine
            raise raised_by_all(raised) from (None if raised is failure else failure)

    def leave_unless_agreed(self, error: BaseException) -> None:
        """Close the connections if the other processes do not know of this exception.

        They then end, too, instead of waiting for this process.
        """
        if self.size > 1 and not is_raised_by_all(error):
            self.leave()


class ProcessGroup(Ranks):
    """The processes that a launcher such as torchrun or accelerate started together.

    Control data goes over gloo. Tensors go over the process group of torch, which is NCCL for
    tensors of a GPU, unless several processes share one.

    Args:
        rank: Number of this process.
        size: Number of processes.
        shared_devices: Whether several processes share a GPU, so that NCCL cannot be used.
    """

    def __init__(self, rank: int, size: int, *, shared_devices: bool = False) -> None:
        from torch import distributed

        self.rank, self.size = rank, size
        self._control: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.shared_devices = shared_devices

    def gather(self, data: bytes) -> list[bytes]:
        """See `Ranks.gather`."""
        import torch
        from torch import distributed

        length = torch.tensor([len(data)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        with noticing_loss():
            distributed.all_gather(lengths, length, group=self._control)
            found = [torch.empty(int(each), dtype=torch.uint8) for each in lengths]
            if data:
                found[self.rank].copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            for source, each in enumerate(found):
                if len(each):
                    distributed.broadcast(each, source, group=self._control)
        return [each.numpy().tobytes() for each in found]

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """See `Ranks.broadcast`."""
        from torch import distributed

        with self._carried(tensor) as carried, noticing_loss():
            distributed.broadcast(carried, source, group=self._group(carried))

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Ranks.send`."""
        from torch import distributed

        with self._carried(tensor) as carried, noticing_loss():
            distributed.send(carried, to, group=self._group(carried))

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Ranks.receive`."""
        from torch import distributed

        with self._carried(tensor) as carried, noticing_loss():
            distributed.recv(carried, source, group=self._group(carried))

    def add(self, tensor: Tensor) -> None:
        """See `Ranks.add`."""
        from torch import distributed

        with self._carried(tensor) as carried, noticing_loss():
            distributed.all_reduce(carried, group=self._group(carried))

    def leave(self) -> None:
        """See `Ranks.leave`."""
        from torch import distributed

        self._control = None  # connections are closed with their last reference
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _group(self, tensor: Tensor) -> Any:
        return self._control if tensor.device.type == "cpu" else None

    @contextlib.contextmanager
    def _carried(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield a contiguous tensor that the process group can send, and copy it back."""
        carried = tensor.detach()
        if self.shared_devices:
            carried = carried.cpu()
        carried = carried.contiguous()
        yield carried
        if carried.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(carried)


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Turn the errors of a broken connection into `ProcessLostError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # ValueError: this process has left the group
        raise ProcessLostError(
            "another process of this training has ended, so this one ends, too."
        ) from error


_joined: Ranks | None = None


def join() -> Ranks:
    """Return the processes that were started together, and connect to them at the first call.

    A process group of torch that exists already is used.

    Raises:
        ConfigurationError: A launcher set ``WORLD_SIZE``, but not how to reach the others.
    """
    global _joined
    size = world_size()
    if size == 1:
        return Ranks()
    if _joined is None:
        _joined = _connect(size)
        atexit.register(_joined.leave)
    return _joined


def _connect(size: int) -> Ranks:
    import os

    import torch
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    shared = 0 < gpus < int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if gpus:
        torch.cuda.set_device(local % gpus)
    if not distributed.is_initialized():
        try:
            distributed.init_process_group(
                "gloo" if shared or not gpus else "cpu:gloo,cuda:nccl", timeout=PATIENCE
            )
        except ValueError as error:
            raise ConfigurationError(
                f"WORLD_SIZE={size}, and the processes cannot find each other ({error}). Start "
                "them with torchrun or accelerate launch, or unset WORLD_SIZE."
            ) from error
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), shared_devices=shared)


def pack_error(error: Exception) -> dict[str, Any]:
    """Return an exception as JSON values; see `unpack_error`."""
    reduced = error.__reduce__()
    arguments: Sequence[Any] = reduced[1] if isinstance(reduced, tuple) else ()
    kind = type(error).__name__
    packed = {
        "kind": kind,
        "text": errors.first_line(error),
        "notes": list(getattr(error, "__notes__", ())),
    }
    if getattr(errors, kind, None) is type(error) and _is_json(arguments):
        packed["arguments"] = list(arguments)
    return packed


def unpack_error(packed: dict[str, Any], rank: int) -> Exception:
    """Return an exception of another process.

    One of `astra_rl.errors` is of the same class; of any other only the text is known.
    """
    error: Exception
    kind = getattr(errors, packed["kind"], None)
    if "arguments" in packed and isinstance(kind, type) and issubclass(kind, AstraError):
        error = kind(*packed["arguments"])
    else:
        error = ProcessFailedError(f"process {rank} failed: {packed['kind']}: {packed['text']}")
    for note in packed["notes"]:
        error.add_note(note)
    return error


def _is_json(arguments: Sequence[Any]) -> bool:
    return all(each is None or isinstance(each, str | int | float) for each in arguments)
