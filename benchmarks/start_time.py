"""Processor time of importing the package and of the command line's help.

    python benchmarks/start_time.py [--repeats 15]

Each run is a process of its own, all in turn; a time is its processor time, from start to exit. The
files are in the system's cache and bytecode is compiled, because each is run once before.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Mapping

from common import Row, median, save, spread

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import astra_rl": ("-c", "import astra_rl"),
    "from astra_rl import GRPO, Trainer": ("-c", "from astra_rl import GRPO, Trainer"),
    "astra-rl --help": ("-m", "astra_rl", "--help"),
}


def processor_seconds(*arguments: str) -> float:
    """Return the processor time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(commands: Mapping[str, tuple[str, ...]], repeats: int) -> dict[str, list[float]]:
    """Return the processor times of each command, run in turn; the first round is left out."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, arguments in commands.items():
            took = processor_seconds(*arguments)
            if number:
                times[name].append(took)
    return times


def rows(times: Mapping[str, list[float]]) -> list[Row]:
    """Return the rows: two times in all, and one beyond that of importing torch."""
    detail = {name: spread(values) for name, values in times.items()}
    beyond = [
        ours - torch
        for ours, torch in zip(
            times["from astra_rl import GRPO, Trainer"], times["import torch"], strict=True
        )
    ]
    return [
        Row("import astra_rl", median(times["import astra_rl"]), 0.5, False, " s", detail),
        Row("a trainer's imports, beyond torch's own", median(beyond), 0.5, False, " s"),
        Row("astra-rl --help", median(times["astra-rl --help"]), 0.5, False, " s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    save("start_time", rows(measure(COMMANDS, parser.parse_args().repeats)))


if __name__ == "__main__":
    main()
