"""Processes of one training, which run one function after the other.

They are forked once from a server that has imported everything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from tests.ports import reserved_port

PRELOADED = [
    "tests.distributed.cases",
    "tests.distributed.sharded",
    "astra_rl.cli.main",
    "astra_rl.cli.display",
    "astra_rl.runs.runner",
    "astra_rl.runs.processes",
]
LONG = 1200.0


class Group:
    """Processes that are connected like those that torchrun starts.

    Args:
        size: Number of processes.

    Attributes:
        is_closed: Whether they have ended; a run that takes too long ends them.
    """

    def __init__(self, size: int) -> None:
        self.is_closed = False
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._reserved = contextlib.ExitStack()
        port = self._reserved.enter_context(reserved_port())
        self._pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """Run a function in every process; return the results.

        That of a process that was killed is None.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments, options))
        received = [self._received(pipe) for pipe in self._pipes]  # none is left for the next run
        for _, failure in received:
            assert failure is None, failure
        return [found for found, _ in received]

    def close(self) -> None:
        """End the processes."""
        self.is_closed = True
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._reserved.close()

    def _received(self, pipe: Any) -> tuple[Any, str | None]:
        if not pipe.poll(LONG):
            self.close()  # what comes late would be taken for the result of the next run
            raise AssertionError(f"no result within {LONG} seconds")
        try:
            found, failure = pipe.recv()
        except (EOFError, ConnectionResetError):
            return None, None
        return found, failure


def _serve(pipe: Any, rank: int, size: int, port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, size, "127.0.0.1", port)), strict=True))
    while True:
        try:
            function, arguments, options = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(*arguments, **options), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def agreed(results: Sequence[Any]) -> Any:
    """Return the result of all processes, which is the same."""
    for each in results[1:]:
        assert each == results[0]
    return results[0]
