"""Memory and time of opening, reading, comparing and exporting a log of a million attempts or more.

    python benchmarks/million_attempts.py --attempts 1000000
    python benchmarks/million_attempts.py --attempts 10000000 --part opening

Each stage runs in a process of its own, so that its peak memory is separate. Logs and indexes are
made in bulk: the lines come from a template in the format of the library, the rows of the index
are sealed and inserted without parsing them, and the log is remembered as one of a writer is. The
first thousand rows are compared with what the library makes of the lines. The writer and the
indexer of the library are measured on smaller logs.

Stages of opening: "verify" is the first opening of a copy, "open" any later one or that of a log
that its writer closed, and "killed" the one after a writer was killed. All of them count the
attempts and find the highest score. "compare" compares a run with itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Row, save_parts
from long_runs import CONFIG, measure
from peak import peak_mib

from astra_rl.config.schema import RunConfig
from astra_rl.evaluation.measures.comparisons import CategoryTally, PairTally, joined, side_of
from astra_rl.evaluation.measures.summary import by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn
from astra_rl.evaluation.show.exports.table import write_parquet
from astra_rl.runs import attempt_index
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.index_seal import seal, values_of
from astra_rl.runs.verified_logs import remember_indexed, settled_stamp

PROMPTS = 1000
THRESHOLD = 0.5
WRITTEN = 20_000
"""Attempts that the writer of the library writes."""
INDEXED = 100_000
"""Attempts that the indexer of the library indexes."""
EXPORTED = 5
"""One in so many attempts is exported to Parquet."""
OPENED_WITHIN = 3.0
"""Seconds."""
MOST_GROWTH = 50.0
"""MiB that ten times the attempts may add."""


def attempt(number: int) -> Attempt:
    turn = Turn(
        attack=f"what would you say to number {number}, and why would you say it?",
        response=f"I would rather not talk about number {number}, but thank you for asking.",
        scores={"judge": JudgeScore(value=score_of(number))},
        logprobs={"baseline": LogProb(total=total_of(number), tokens=12)},
    )
    return Attempt.make(
        run="r",
        opening=f"opening {number % PROMPTS}",
        phase="after",
        trial=number // PROMPTS,
        turns=[turn],
        judge="judge",
        threshold=THRESHOLD,
        target="t",
        attacker="a",
    )


def score_of(number: int) -> float:
    return (number * 7919 % 1000) / 1000


def total_of(number: int) -> float:
    return -1.0 - number % 97


def template(prompt: int) -> tuple[str, tuple[Any, ...]]:
    """Return the line of an attempt with places for what differs between trials, and its row."""
    made = attempt(prompt)
    line = made.to_json() + "\n"
    for old, new in (
        (f'"{made.id}"', '"%s"'),
        ('"trial": 0', '"trial": %d'),
        (f"number {prompt},", "number %d,"),  # twice: attack and response
        (f'"value": {score_of(prompt)!r}', '"value": %r'),
        (f'"total": {total_of(prompt)!r}', '"total": %r'),
        (f'"outcome": "{made.outcome}"', '"outcome": "%s"'),
    ):
        assert old in line, old
        line = line.replace(old, new)
    return line, values_of(made.row)


def bulk(count: int) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """Yield lines of a log, and the values of their rows in the index."""
    templates = [template(prompt) for prompt in range(PROMPTS)]
    for number in range(count):
        text, values = templates[number % PROMPTS]
        score, total, trial = score_of(number), total_of(number), number // PROMPTS
        key = hashlib.blake2b(b"%d" % number, digest_size=8).hexdigest()
        failed = score >= THRESHOLD
        outcome = "success" if failed else "failure"
        line = (text % (key, trial, number, number, score, total, outcome)).encode()
        row = (
            *(key, *values[1:3], trial, *values[4:6], outcome, 1),
            *(1 if failed else None, int(failed), score, total, *values[12:]),
        )
        assert number >= PROMPTS or row == values_of(Attempt.from_json(line).row)
        yield line, row


def make(path: Path, count: int) -> dict[str, Any]:
    folder = RunFolder(path.parent)
    folder.write_text(folder.config, RunConfig.model_validate(CONFIG).to_yaml())

    def rows() -> Iterator[tuple[Any, ...]]:
        start = 0
        for line, values in bulk(count):
            file.write(line)
            yield (start, len(line), seal(start, values, line), *values)
            start += len(line)

    index = attempt_index.index_path(path)
    with (
        open(path, "wb", buffering=1 << 20) as file,
        contextlib.closing(sqlite3.connect(index)) as connection,
    ):
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
            connection.execute(f"PRAGMA {setting}")
        connection.executescript(attempt_index._TABLES)
        with connection:
            connection.executemany(attempt_index._INSERT, rows())
            connection.execute("UPDATE state SET indexed = ?", (file.tell(),))
        connection.executescript(attempt_index._ORDERS)
        connection.execute("PRAGMA journal_mode = WAL")
    remember_indexed(path, index, settled_stamp(path))
    return {"log_bytes": path.stat().st_size, "index_bytes": index.stat().st_size}


def open_only(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path) as log:
        first = next(iter(log.attempts(order="score", limit=1)))
        return {"attempts": len(log), "highest": first.score}


def verify(path: Path, count: int) -> dict[str, Any]:
    attempt_index.is_verified = lambda log, status: False  # type: ignore[assignment]
    return open_only(path, count)


def kill(path: Path, count: int) -> dict[str, Any]:
    """Append attempts, more than are flushed together, in a process that is killed."""
    child = os.fork()
    if child == 0:
        log = AttemptLog(path, write=True)
        for number in range(count, count + 100):
            log.append(attempt(number))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return {}


def read(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path) as log:
        return {"asr": summarise_prompts(by_prompt(log.rows(order="prompt"))).asr.estimate}


def compare(path: Path, count: int) -> dict[str, Any]:
    tally, categories = PairTally(), CategoryTally()
    with AttemptLog(path) as a, AttemptLog(path) as b:
        for sides in joined(a.rows(order="prompt"), b.rows(order="prompt")):
            tally.add(side_of(sides[0]), side_of(sides[1]))
            categories.add(*sides)
    return {"p": tally.result().p_value, "categories": len(categories.result())}


class Part:
    """The first attempts of a log, as a source that is read one by one."""

    def __init__(self, log: AttemptLog, most: int) -> None:
        self._log, self._most = log, most

    def attempts(self, *, order: Any = "sequence") -> Iterator[Attempt]:
        return self._log.attempts(order=order, limit=self._most)

    def rows(self, *, order: Any = "sequence") -> Iterator[AttemptRow]:
        return self._log.rows(order=order, limit=self._most)


def export(path: Path, count: int) -> dict[str, Any]:
    with AttemptLog(path) as log:
        rows = write_parquet(Part(log, count // EXPORTED), path.with_name("part.parquet"))
    return {"rows": rows, "bytes": path.with_name("part.parquet").stat().st_size}


def write(path: Path, count: int) -> dict[str, Any]:
    made = [attempt(number) for number in range(count)]
    started, used = time.perf_counter(), time.process_time()
    with AttemptLog(path, write=True) as log:
        for each in made:
            log.append(each)
    return {
        "milliseconds_each": (time.perf_counter() - started) / count * 1e3,
        "cpu_milliseconds_each": (time.process_time() - used) / count * 1e3,
    }


def index(path: Path, count: int) -> dict[str, Any]:
    attempt_index.remove_index(path)
    started, used = time.perf_counter(), time.process_time()
    with AttemptLog(path) as log:
        assert len(log) == count
    return {
        "lines_per_second": count / (time.perf_counter() - started),
        "lines_per_cpu_second": count / (time.process_time() - used),
    }


STAGES = {
    "make": make,
    "verify": verify,
    "open": open_only,
    "read": read,
    "compare": compare,
    "export": export,
    "kill": kill,
    "killed": open_only,
    "write": write,
    "index": index,
}


def in_its_own_process(stage: str, path: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage, "--path", str(path)]
    done = subprocess.run(
        [*command, "--attempts", str(count)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(stage, count, found, flush=True)
    return found


def run_stage(stage: str, path: Path, count: int) -> dict[str, Any]:
    started, used = time.perf_counter(), time.process_time()
    found = STAGES[stage](path, count)
    return {
        **found,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mib": peak_mib(),
    }


def measure_whole(count: int, place: Path) -> list[Row]:
    """Measure everything with this number of attempts, and with a tenth of it."""
    sizes = (count // 10, count)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for size in sizes:
        path = place / str(size) / "attempts.jsonl"
        run = str(path.parent)
        for stage in ("make", "verify", "open", "read", "compare", "export", "kill", "killed"):
            found.setdefault(stage, {})[size] = in_its_own_process(stage, path, size)
        for name, arguments in (
            ("report", ["report", run, "-o", f"{run}.html"]),
            ("compare", ["compare", run, run]),
        ):
            found.setdefault(f"command {name}", {})[size] = measure(arguments)
            print(name, size, found[f"command {name}"][size], flush=True)
        shutil.rmtree(path.parent)
    library = {
        "write": in_its_own_process("write", place / "written" / "attempts.jsonl", WRITTEN),
        "make": in_its_own_process("make", place / "indexed" / "attempts.jsonl", INDEXED),
        "index": in_its_own_process("index", place / "indexed" / "attempts.jsonl", INDEXED),
    }
    return [
        *opening_rows(count, {stage: each[count] for stage, each in found.items()}),
        *(
            Row(
                f"memory of {name}, {count} attempts",
                each[sizes[1]]["peak_mib"] - each[sizes[0]]["peak_mib"],
                MOST_GROWTH,
                False,
                " MiB more",
                {str(size): each[size] for size in sizes} | (library if name == "verify" else {}),
            )
            for name, each in found.items()
            if name not in ("make", "kill")
        ),
    ]


def measure_opening(count: int, place: Path) -> list[Row]:
    """Measure only how a run is opened, and not after a copy."""
    path = place / str(count) / "attempts.jsonl"
    stages = ("make", "open", "kill", "killed")
    found = {stage: in_its_own_process(stage, path, count) for stage in stages}
    shutil.rmtree(path.parent)
    return opening_rows(count, found)


def opening_rows(count: int, found: dict[str, dict[str, Any]]) -> list[Row]:
    details = {
        stage: {each: found[each] for each in of if each in found}
        for stage, of in (("open", ("make", "verify", "open")), ("killed", ("kill", "killed")))
    }
    names = {"open": "opening", "killed": "opening after the writer was killed"}
    return [
        Row(
            f"{names[stage]}, {count} attempts",
            found[stage]["seconds"],
            OPENED_WITHIN,
            False,
            " s",
            detail,
        )
        for stage, detail in details.items()
    ]


PARTS = {"whole": measure_whole, "opening": measure_opening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--part", choices=list(PARTS), default="whole")
    parser.add_argument("--folder", type=Path, help="where the logs are made, and removed")
    parser.add_argument("--stage", choices=list(STAGES))
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.stage is not None:
        print(json.dumps(run_stage(options.stage, options.path, options.attempts)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        rows = PARTS[options.part](options.attempts, Path(temporary))
    save_parts("million_attempts", {options.part: rows}, list(PARTS))


if __name__ == "__main__":
    main()
