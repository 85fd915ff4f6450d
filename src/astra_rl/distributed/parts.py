"""Division of the work of a step into parts that do not depend on the number of processes."""

from __future__ import annotations


def spans(count: int, parts: int) -> list[range]:
    """Divide `count` items into at most `parts` spans of nearly equal size, none of them empty."""
    parts = min(parts, count)
    return [range(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def owner(part: int, parts: int, processes: int) -> int:
    """Return the process that computes a part: neighbouring parts have the same one.

    With fewer parts than processes, some processes own none. Part 0 belongs to process 0.
    """
    return part * processes // parts
