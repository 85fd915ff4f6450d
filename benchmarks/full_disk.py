"""Fault injection: a full or read-only disk at many points of a run, followed by a resume.

The run folder is on a small tmpfs in its own mount namespace, which needs no privileges where the
kernel allows user namespaces. The disk is full after a number of bytes or files, or becomes
read-only. Each time the command must exit with one error that names the file, the cause and how to
resume; earlier data must remain readable on the full disk; and after space is freed, the resumed
run must be bit-identical to an uninterrupted one.

Target and judge are functions that are called like endpoints, so their cached replies are on the
disk as well. A resumed run must repeat only those calls whose replies could not be stored.

    python benchmarks/full_disk.py --moments 60
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from kill_and_resume import FAMILIES, config_of, exit_code_of, prepare, results_of

from astra_rl.cli import main as command_line
from astra_rl.errors import AstraError
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.training.states import load_state

ROOM = "64m"
PAGE = 4096
USAGE_ERROR = 2


def target(text: str) -> str:
    """Return a deterministic reply of the target."""
    return f"{len(text)} letters {text[::-1][:4]}"


def judge(text: str) -> str:
    """Return a deterministic reply of the judge."""
    found = re.search(r"VERDICT ([0-9a-f]+): N", text)
    return f"VERDICT {found[1] if found else 0}: {1 + len(text) % 10}"


def configuration(folder: Path, family: str) -> Path:
    """Write a configuration that exercises all files of a run folder."""
    config = config_of(folder, FAMILIES[family]).model_dump(mode="json", exclude_unset=True)
    config["target"] = {"type": "full_disk:target"}
    config["evaluation"] = {
        "judge": {"type": "llm_judge", "options": {"complete": {"type": "full_disk:judge"}}},
        "watch": 2,
    }
    config["training"] |= {"save_every": 1, "steps": 2}
    path = folder / f"{family.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start_command(config: Path, run: Path, errors: Path) -> int:
    """Start the command in a fork of this process; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["astra-rl", "train", str(config), "--output", str(run)]
        os.environ["COLUMNS"] = "10000"
        command_line.run()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        code = 70
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextlib.contextmanager
def disk(folder: Path, limit: str) -> Iterator[Path]:
    """Mount a tmpfs with these options; yield its folder."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", limit, "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def used(folder: Path) -> tuple[int, int]:
    """Return the numbers of pages and files in use on a disk."""
    found = os.statvfs(folder)
    return found.f_blocks - found.f_bfree, found.f_files - found.f_ffree


def error_problem(status: int, errors: Path, run: Path, reason: str) -> str | None:
    """Describe what is wrong with the exit code or error of a command; None if all is right."""
    text = errors.read_text("utf-8", "replace")
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    if status != USAGE_ERROR or len(said) != 1 or "Traceback" in text:
        return f"exit {status}: {text[-1500:]}"
    message = said[0]
    has_config = (run / "config.yaml").is_file()
    resume = (
        f"Continue with: astra-rl resume {run}" if has_config else "Start the same command again"
    )
    for part in (reason, "Free disk space", resume):
        if part not in message:
            return f"the error does not contain {part!r}: {message}"
    named = re.search(re.escape(str(run)) + r"/[\w./-]+", message.split("Continue with")[0])
    if has_config and not named:
        return f"the error names no file: {message}"
    return None


def unreadable_data(run: Path, expected: set[str]) -> str | None:
    """Describe which data on the full disk is unreadable or lost; None if all is right."""
    try:
        if (run / "states").is_dir():
            load_state(run / "states")
        if (run / "attempts.jsonl").is_file():
            with AttemptLog(run / "attempts.jsonl") as log:
                strange = {each.to_json() for each in log} - expected
                if log.health.unreadable or strange:
                    return f"{log.health.unreadable} unreadable lines, {len(strange)} strange ones"
    except (AstraError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def lines(run: Path) -> set[str]:
    with AttemptLog(run / "attempts.jsonl") as log:
        return {each.to_json() for each in log}


class Case:
    """One family of algorithms: an uninterrupted reference run, and runs to compare with it."""

    def __init__(self, folder: Path, family: str) -> None:
        self.place = folder / "disk"
        self.run = self.place / "run"
        self.errors = folder / "errors.txt"
        self.config = configuration(folder, family)
        started = time.perf_counter()
        with disk(self.place, f"size={ROOM}"):
            if self.execute() != 0:
                raise SystemExit(f"without interruption: {self.errors.read_text('utf-8')}")
            self.expected, self.lines = results_of(self.run), lines(self.run)
            self.pages, self.files = used(self.place)
        self.seconds = time.perf_counter() - started

    def execute(self) -> int:
        return exit_code_of(start_command(self.config, self.run, self.errors))

    def run_on_full_disk(self, limit: str) -> tuple[bool, str | None]:
        """Run on a disk that gets full, free space and resume.

        Returns:
            Whether the disk was full, and a description of what went wrong.
        """
        with disk(self.place, limit):
            status = self.execute()
            if status == 0:
                return False, self.differences()
            wrong = error_problem(status, self.errors, self.run, "No space left on device")
            wrong = wrong or unreadable_data(self.run, self.lines)
            mount("-o", f"remount,size={ROOM},nr_inodes=100000", str(self.place))
            return True, wrong or self.resumed()

    def run_on_read_only_disk(self, when: Callable[[], bool]) -> tuple[bool, str | None]:
        """Run on a disk that becomes read-only, make it writable and resume; returns the same."""
        with disk(self.place, f"size={ROOM}"):
            self.run.mkdir()
            child = start_command(self.config, self.run, self.errors)
            while not when() and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            with contextlib.suppress(subprocess.CalledProcessError):
                mount("--bind", str(self.run), str(self.run))
                mount("-o", "remount,ro,bind", str(self.run))
            try:
                status = exit_code_of(child)
            except ChildProcessError:  # it had already ended
                return False, None
            wrong = None
            if status != 0:
                wrong = error_problem(status, self.errors, self.run, "Read-only file system")
                wrong = wrong or unreadable_data(self.run, self.lines)
            subprocess.run(["umount", str(self.run)], check=True)
            return status != 0, wrong or (self.resumed() if status else self.differences())

    def resumed(self) -> str | None:
        if self.execute() != 0:
            return f"could not be resumed: {self.errors.read_text('utf-8')[-1500:]}"
        return self.differences()

    def differences(self) -> str | None:
        found = results_of(self.run)
        differs = [key for key, value in found.items() if value != self.expected[key]]
        return f"other {', '.join(differs)}" if differs else None


def inject_faults(
    case: Case, count: int, seed: str
) -> Iterator[tuple[str, tuple[bool, str | None]]]:
    """Yield the results of a full disk and of a read-only disk, at `count` moments each."""
    draw = random.Random(seed)
    for pages in spread(draw, 2, case.pages, count):
        yield (
            f"full after {pages} of {case.pages} pages",
            case.run_on_full_disk(f"size={pages * PAGE}"),
        )
    for files in spread(draw, 3, case.files, count):
        limit = f"size={ROOM},nr_inodes={files}"
        yield f"full after {files} of {case.files} files", case.run_on_full_disk(limit)
    for _ in range(count):
        at = draw.random() * case.seconds
        end = time.monotonic() + at
        yield (
            f"read-only after {at:.3f} s",
            case.run_on_read_only_disk(lambda end=end: time.monotonic() > end),  # type: ignore[misc]
        )


def spread(draw: random.Random, least: int, most: int, count: int) -> list[int]:
    """Draw one number from each of `count` equal parts of a range (stratified sampling)."""
    step = (most - least) / count
    return [int(least + step * (part + draw.random())) for part in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="moments of each kind, per family")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--mounting", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.mounting:  # run again in a namespace in which it may mount
        again = [sys.executable, *sys.argv, "--mounting"]
        os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--mount", *again])
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        for family in options.family or FAMILIES:
            case = Case(folder, family)
            full = 0
            wrong: list[str] = []
            for how, (was_full, problem) in inject_faults(
                case, options.moments, f"{options.seed} {family}"
            ):
                full += was_full
                if problem:
                    wrong.append(f"{how}: {problem}")
            results[family] = {"moments": 3 * options.moments, "ended": full, "wrong": wrong}
            print(family, json.dumps(results[family], indent=1), flush=True)
            if options.output is not None:
                options.output.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    sys.exit(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    main()
