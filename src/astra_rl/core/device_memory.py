"""Memory of devices, and what of it is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def total_bytes(device: torch.device) -> int | None:
    """Return the memory of a CUDA device, in bytes; None for any other."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def machine_bytes() -> int:
    """Return the memory of this machine, or that of its container if it is less, in bytes."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_container("max")])


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, in bytes; None if it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:  # not Linux
        return None
    known = dict(line.split(":", 1) for line in lines)
    available = 1024 * int(known["MemAvailable"].split()[0])
    limit, used = _of_container("max"), _of_container("current")
    return min([available, *(most - now for most, now in zip(limit, used, strict=False))])


def _of_container(name: str) -> list[int]:
    """Return a number of the memory controller of control groups (version 2), if there is one."""
    try:
        text = Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []
