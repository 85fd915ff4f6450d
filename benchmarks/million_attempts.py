"""Memory and time of writing, opening, reading and comparing a log of a million attempts.

    python benchmarks/million_attempts.py --attempts 1000000

Each stage runs in a process of its own, so that its peak memory is separate. "verify" is the first
opening after the writer was killed, which "open" is not; "compare" compares the log with itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Row, save

from astra_rl.evaluation.measures.comparisons import CategoryTally, PairTally, joined, side_of
from astra_rl.evaluation.measures.summary import by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn
from astra_rl.runs import attempt_index
from astra_rl.runs.attempt_log import AttemptLog

PROMPTS = 1000


def attempt(number: int) -> Attempt:
    turn = Turn(
        attack=f"what would you say to number {number}, and why would you say it?",
        response=f"I would rather not talk about number {number}, but thank you for asking.",
        scores={"judge": JudgeScore(value=(number * 7919 % 1000) / 1000)},
        logprobs={"baseline": LogProb(total=-1.0 - number % 97, tokens=12)},
    )
    return Attempt.make(
        run="r",
        opening=f"opening {number % PROMPTS}",
        trial=number // PROMPTS,
        turns=[turn],
        judge="judge",
        target="t",
        attacker="a",
    )


def write(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path, write=True) as log:
        for number in range(count):
            log.append(attempt(number))
    return {"size": path.stat().st_size}


def open_only(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path) as log:
        first = next(iter(log.attempts(order="score", limit=1)))
        return {"attempts": len(log), "highest": first.score}


def read(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path) as log:
        return {"asr": summarise_prompts(by_prompt(log.rows(order="prompt"))).asr.estimate}


def verify(path: Path, count: int) -> dict[str, Any]:
    attempt_index.is_verified = lambda log, status: False  # type: ignore[assignment]
    return open_only(path, count)


def compare(path: Path, count: int) -> dict[str, Any]:
    tally, categories = PairTally(), CategoryTally()
    with AttemptLog(path) as a, AttemptLog(path) as b:
        for sides in joined(a.rows(order="prompt"), b.rows(order="prompt")):
            tally.add(side_of(sides[0]), side_of(sides[1]))
            categories.add(*sides)
    return {"p": tally.result().p_value, "categories": len(categories.result())}


STAGES = {"write": write, "open": open_only, "verify": verify, "read": read, "compare": compare}


def in_its_own_process(stage: str, path: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage, "--path", str(path)]
    done = subprocess.run(
        [*command, "--attempts", str(count)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--stage", choices=list(STAGES))
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.stage is not None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        found = STAGES[options.stage](options.path, options.attempts)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**found, "seconds": seconds, "grown_mib": (peak - before) / 1024}))
        return
    detail: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in (options.attempts // 10, options.attempts):
            path = Path(temporary) / str(size) / "attempts.jsonl"
            for stage in STAGES:
                detail[f"{stage} {size}"] = in_its_own_process(stage, path, size)
                print(stage, size, detail[f"{stage} {size}"], flush=True)
    opened = detail[f"open {options.attempts}"]
    rows = [
        Row(f"open {options.attempts} attempts", opened["seconds"], 3.0, False, " s"),
        *(
            Row(
                f"memory of {stage} against a tenth of the attempts",
                detail[f"{stage} {options.attempts}"]["grown_mib"]
                - detail[f"{stage} {options.attempts // 10}"]["grown_mib"],
                50.0,
                at_least=False,
                unit=" MiB more",
            )
            for stage in STAGES
        ),
    ]
    save("million_attempts", rows, detail=detail)


if __name__ == "__main__":
    main()
