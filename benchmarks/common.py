"""Shared functions of the benchmarks: interleaved timing, result rows, result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A measured value and its goal.

    Attributes:
        name: What was measured.
        value: The ratio.
        bar: The goal.
        at_least: Whether the goal is a lower bound; if not, it is an upper bound.
        unit: Unit of the value, for instance ``"x"`` for a ratio.
        detail: The absolute numbers.
    """

    name: str
    value: float
    bar: float
    at_least: bool = True
    unit: str = "x"
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reached(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int = 5, warm_up: bool = True
) -> dict[str, list[float]]:
    """Time candidates alternately, so that changes of load affect all; returns seconds by name."""
    if warm_up:
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return times


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def table(rows: Sequence[Row]) -> str:
    lines = ["| benchmark | measured | bar | reached |", "| --- | --- | --- | --- |"]
    for row in rows:
        limit = f"{'at least' if row.at_least else 'at most'} {row.bar:g}{row.unit}"
        reached = "yes" if row.is_reached else "**no**"
        lines.append(f"| {row.name} | {row.value:.3g}{row.unit} | {limit} | {reached} |")
    return "\n".join(lines)


def stored(name: str) -> list[Row]:
    """Return the rows of ``results/NAME.json``; none if there is no such file."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [Row(**{key: row[key] for key in row if key != "reached"}) for row in rows]


def save_parts(name: str, parts: Mapping[str, Sequence[Row]], order: Sequence[str]) -> None:
    """Save rows by part; the rows of other parts are kept, and all are in this order of parts."""
    rows: dict[str, list[Row]] = {}
    for row in stored(name):
        rows.setdefault(row.detail.get("part", ""), []).append(row)
    for part, found in parts.items():
        rows[part] = [replace(row, detail={**row.detail, "part": part}) for row in found]
    save(name, [row for part in order for row in rows.get(part, [])])


def save(name: str, rows: Sequence[Row], **more: Any) -> None:
    """Print the table and write the numbers to ``results/NAME.json``, with more entries."""
    from astra_rl.runs.provenance import versions  # needs pydantic, which measuring does not

    print(table(rows), flush=True)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "rows": [{**asdict(row), "reached": row.is_reached} for row in rows],
        **more,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
