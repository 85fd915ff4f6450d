"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("astra-rl", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
