"""Run every benchmark, one after the other: what `make bench` calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "collection_and_update.py",
    "grpo_against_trl.py",
    "memory.py",
    "decoding.py",
    "phases.py",
    "demo_seeds.py",
)


def main() -> None:
    folder = Path(__file__).parent
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(folder / name)], check=True, cwd=folder.parent)


if __name__ == "__main__":
    main()
