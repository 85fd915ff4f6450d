"""Type variables and aliases shared by the interfaces."""

from __future__ import annotations

from typing import TypeVar

StateT = TypeVar("StateT")
"""What a context or a response is; `str` for every problem that ships with the library."""
ActionT = TypeVar("ActionT")
"""What an attack is; `str` for every problem that ships with the library."""
StepT = TypeVar("StepT")
"""One unit of training data of an algorithm, for instance a preference pair."""
BatchT = TypeVar("BatchT")
"""What `Algorithm.collate_fn` makes of several steps."""

Metrics = dict[str, float]
"""Names to numbers, as logged."""
