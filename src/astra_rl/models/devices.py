"""Devices and dtypes: from names to torch objects, with automatic choices."""

from __future__ import annotations

import torch

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.models.fastest_dtype import fastest_cpu_dtype

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes by the names that a configuration may use, besides ``"auto"``."""


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a torch device; ``"auto"`` is the first available of cuda, mps and cpu.

    Raises:
        ConfigurationError: The device is unknown or not available.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device={device!r}; choose from 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'."
        ) from error
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (resolved.index or 0) >= counts.get(resolved.type, 0):
        raise ConfigurationError(
            f"device={str(device)!r} is not available on this machine; choose 'cpu' or 'auto'."
        )
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return a torch dtype.

    ``"auto"`` is bfloat16 on GPUs with native support, on processors the faster of float32 and
    bfloat16 (`fastest_dtype`), and float32 elsewhere.

    Raises:
        ConfigurationError: The dtype is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return _fastest_dtype(device)
    if dtype not in DTYPES:
        raise ConfigurationError(
            f"dtype={dtype!r}; choose from {['auto', *DTYPES]}.{did_you_mean(dtype, DTYPES)}"
        )
    return DTYPES[dtype]


def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return fastest_cpu_dtype()
    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float32
