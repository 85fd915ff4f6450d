"""Run all benchmarks sequentially and print one table; called by `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import RESULTS, Row, table

BENCHMARKS = (
    "start_time",
    "collection_and_update",
    "grpo_against_trl",
    "memory",
    "decoding",
    "phases",
    "report",
    "demo_seeds",
    "coverage",
    "rare_failures",
    "claims",
    "endpoint_throughput",
)


def main() -> None:
    folder = Path(__file__).parent
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(folder / f"{name}.py")], check=True, cwd=folder.parent)
    print(table([row for name in BENCHMARKS for row in rows_of(name)]))


def rows_of(name: str) -> list[Row]:
    """Return the rows that a benchmark wrote; empty if its file has another format."""
    record = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return [
        Row(**{key: value for key, value in row.items() if key != "reached"})
        for row in record.get("rows", [])
    ]


if __name__ == "__main__":
    main()
