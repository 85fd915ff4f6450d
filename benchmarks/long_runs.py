"""Memory and time of the commands that read a run with many attempts.

    python benchmarks/long_runs.py --attempts 200000

Each command runs in a process of its own, on a run with so many attempts and on one with a tenth of
them. A run has conversations of an evaluation, of ordinary use, and of a transfer to a target.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import Row, save

from astra_rl.config.schema import RunConfig
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import Turn
from astra_rl.evaluation.show.exports import EXPORTS, export_format
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import ORDINARY_ATTACKER, ORDINARY_PHASE

PROMPTS = 1000
WORDS = [first + second for first in "bdfgklmnprst" for second in ("a", "el", "im", "orn", "uth")]
CONFIG = {
    "title": "Many conversations",
    "attacker": {"model": "a"},
    "target": {"model": "b"},
    "moderator": {"type": "secret_leak"},
    "prompts": {"scenario": "planted_secrets"},
}
MOST_GROWTH = 100.0
"""MiB that ten times the attempts may add."""


def said(number: int, phase: str) -> tuple[dict[str, Any], str]:
    """Return a turn as JSON values, and the name of the attacker."""
    chosen = random.Random(f"{number} {phase}")
    words = " ".join(chosen.choices(WORDS, k=30))
    attacker = chosen.uniform(-80, -20)
    turn = {
        "attack": f"what would you say to {words}?",
        "response": f"I would rather not talk about number {number}, but thank you for asking.",
        "scores": {"judge": {"value": chosen.random() ** 2}},
        "logprobs": {
            "baseline": {"total": attacker + chosen.gauss(0, 2), "tokens": 12},
            "attacker": {"total": attacker, "tokens": 12},
        },
    }
    return turn, ORDINARY_ATTACKER if phase == ORDINARY_PHASE and number % 2 else "a"


def attempt(number: int, phase: str) -> Attempt:
    turn, attacker = said(number, phase)
    return Attempt.make(
        run="r",
        opening=f"opening {number % PROMPTS}",
        trial=number // PROMPTS,
        turns=[Turn.model_validate(turn)],
        judge="judge",
        target="t",
        attacker=attacker,
        phase=phase,
    )


def make_run(folder: RunFolder, count: int) -> None:
    folder.write_text(folder.config, RunConfig.model_validate(CONFIG).to_yaml())
    folder.write_json(folder.path / "probability.json", {})
    transferred = RunFolder(folder.path / "transfer" / "t")
    logs = {
        "after": folder.attempts,
        ORDINARY_PHASE: folder.attempts_of(ORDINARY_PHASE),
        "again": transferred.attempts_of("again"),
    }
    for phase, path in logs.items():
        openings = [json.loads(attempt(number, phase).to_json()) for number in range(PROMPTS)]
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(line(openings, number, phase) + "\n" for number in range(count))


def line(openings: Sequence[dict[str, Any]], number: int, phase: str) -> str:
    """Return the record of `attempt` for this number; without its checks it takes microseconds."""
    turn, attacker = said(number, phase)
    failed = turn["scores"]["judge"]["value"] >= 0.5
    return json.dumps(
        {
            **openings[number % PROMPTS],
            "id": hashlib.sha256(f"{phase} {number}".encode()).hexdigest()[:16],
            "trial": number // PROMPTS,
            "attacker": attacker,
            "category": f"category {number % 7}",
            "turns": [turn],
            "outcome": "success" if failed else "failure",
        }
    )


def commands(run: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the measured commands, and their arguments."""
    yield "report", ["report", str(run), "-o", f"{run}.html"]
    yield "failures", ["failures", str(run)]
    yield "compare", ["compare", str(run), str(run), "--phase-b", ORDINARY_PHASE]
    yield "score", ["score", str(run), "-m", "refusal"]
    for kind in (name for name in EXPORTS if not export_format(name).extra):
        yield f"export {kind}", ["export", str(run), "--format", kind, "-o", f"{run}.{kind}"]


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run a command; return its peak memory and its times."""
    code = (
        "import resource, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from peak import peak_mib\n"
        "from astra_rl.cli.main import run\n"
        "started = time.perf_counter()\n"
        "try:\n    run()\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('USED', peak_mib(), used.ru_utime + used.ru_stime,"
        " time.perf_counter() - started)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    used = [line for line in done.stdout.splitlines() if line.startswith("USED")]
    if done.returncode or not used:
        raise SystemExit(f"{arguments} failed:\n{done.stdout}\n{done.stderr}")
    peak, cpu, wall = map(float, used[-1].split()[1:])
    return {"peak_mib": peak, "cpu_seconds": cpu, "seconds": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="keep the runs here, and use those there")
    parser.add_argument("--only", nargs="*", help="names of commands; all without it")
    options = parser.parse_args()
    detail: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary)
        sizes = (options.attempts // 10, options.attempts)
        for size in sizes:
            run = place / f"run-{size}"
            if not run.is_dir():
                started = time.perf_counter()
                make_run(RunFolder(run), size)
                print(f"made {run} in {time.perf_counter() - started:.0f} s", flush=True)
            for name, arguments in commands(run):
                if not options.only or name in options.only:
                    detail[f"{name} {size}"] = measure(arguments)
                    print(name, size, detail[f"{name} {size}"], flush=True)
        for name, _ in commands(place):
            found = [detail.get(f"{name} {size}") for size in sizes]
            if found[0] and found[1]:
                growth = found[1]["peak_mib"] - found[0]["peak_mib"]
                rows.append(Row(f"memory of {name}", growth, MOST_GROWTH, False, " MiB more"))
    if not options.only:
        save("long_runs", rows, detail=detail)


if __name__ == "__main__":
    main()
