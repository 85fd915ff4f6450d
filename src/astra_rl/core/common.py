"""Type variables and aliases shared by the interfaces."""

from __future__ import annotations

from typing import TypeVar

StateT = TypeVar("StateT")
"""Type of contexts and responses; `str` for all problems of the library."""
ActionT = TypeVar("ActionT")
"""Type of attacks; `str` for all problems of the library."""
StepT = TypeVar("StepT")
"""Type of the training steps of an algorithm, for instance preference pairs."""
BatchT = TypeVar("BatchT")
"""Type of the batches that `Algorithm.collate_fn` returns."""

Metrics = dict[str, float]
"""Logged numbers by name."""
