"""The faster of float32 and bfloat16 on this processor: measured once, kept in the cache folder.

Instructions for bfloat16 do not say how fast it is: without them PyTorch emulates it, up to a
hundred times slower than float32, and with some of them it is not faster. The choice is kept, so
that a resumed run has the dtype of the run that it continues, however busy the machine is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from astra_rl.errors import AstraError
from astra_rl.infra.first_use import stored_once
from astra_rl.infra.jsonio import json_line, parse_json
from astra_rl.infra.storage import cache_dir
from astra_rl.logging import logger

NEEDED_GAIN = 1.25
"""bfloat16 must be this many times faster: of two about equal ones float32 is more exact."""
REPEATS = 5
ROWS, INPUTS, OUTPUTS = 64, 576, 1536
"""Shape of the product: a decoding step of a small model with 64 rows."""


@functools.cache
def fastest_cpu_dtype() -> torch.dtype:
    """Return the dtype that multiplies matrices faster on this processor: float32 or bfloat16.

    With several threads or versions of PyTorch each has a choice of its own. Where the cache folder
    cannot be written, each process measures.
    """
    try:
        path = cache_dir() / "fastest_dtype" / f"{_machine()}.json"
    except AstraError:  # no home folder
        return measured()
    if (known := _kept(path)) is not None:
        return known
    dtype = measured()
    record = json_line({"dtype": str(dtype).removeprefix("torch.")}).encode()
    with contextlib.suppress(OSError):
        if _kept(path) is None:  # damaged
            path.unlink(missing_ok=True)
        if stored_once(path, record) != record:  # another process measured at the same time
            return _kept(path) or dtype
    return dtype


def measured(seconds_of: Callable[[torch.dtype], float] | None = None) -> torch.dtype:
    """Measure, and return the faster one.

    The fastest of several repetitions counts, which other load disturbs least, and both take turns.

    Args:
        seconds_of: Returns the duration of one product; None measures it.
    """
    seconds_of = seconds_of or _product_seconds
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(REPEATS):
        for dtype in best:
            best[dtype] = min(best[dtype], seconds_of(dtype))
        if best[torch.bfloat16] > 4 * best[torch.float32]:  # emulated: every repetition takes long
            break
    ratio = best[torch.float32] / best[torch.bfloat16]
    logger.debug("a matrix product in bfloat16 is %.2f times as fast as in float32", ratio)
    return torch.bfloat16 if ratio >= NEEDED_GAIN else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the duration of a second product of these shapes: the first one prepares kernels."""
    rows, weights = torch.ones(ROWS, INPUTS, dtype=dtype), torch.ones(OUTPUTS, INPUTS, dtype=dtype)
    with torch.no_grad():
        torch.nn.functional.linear(rows, weights)
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
    return time.perf_counter() - started


def _machine() -> str:
    """Return a name for the processor, the version of PyTorch, and the number of threads."""
    known = (
        *(_processor(), torch.__version__, str(torch.get_num_threads())),
        torch.backends.cpu.get_cpu_capability(),
    )
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "flags", "Features")):
                return line + platform.machine()
    return platform.processor() + platform.machine()


def _kept(path: Path) -> torch.dtype | None:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return names.get(parse_json(path.read_text("utf-8")).get("dtype"))
    return None
