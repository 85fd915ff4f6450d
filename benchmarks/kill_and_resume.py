"""Fault injection: kill runs at random moments, resume them, and compare with uninterrupted runs.

For every family of algorithms a small run is executed once without interruption. Then it is started
repeatedly and killed each time at another moment: by ``kill -9`` from outside after a random time,
so at any instruction; or from inside at the n-th call that changes the disk, so before or after any
write, rename and sync. The resumed run must end with bit-identical weights, losses, conversations
and metrics.

    python benchmarks/kill_and_resume.py --moments 50

Each run is a fork of this process, which has imported everything, so a kill takes about a second.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import astra_rl.runs.runner as experiment
import astra_rl.training.states as resuming
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.errors import AstraError
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.testing import tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "policy gradient": {"type": "grpo"},
    "running baseline": {"type": "reinforce"},
    "PPO with a value head": {"type": "ppo", "options": {"kl_in_reward": 0.01}},
    "constraints": {
        "type": "ppo_lagrangian",
        "options": {"constraints": {"harm_response": {"at_least": 0.5}}},
    },
    "preference": {"type": "dpo"},
    "KTO": {"type": "kto"},
    "balance with a learned log Z": {"type": "trajectory_balance"},
    "balance with replay": {"type": "contrastive_balance", "options": {"tempered_share": 0.5}},
    "imitation": {"type": "expert_iteration"},
}
STEPS = 5
NAMED_ERROR = 2
DISK_CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "truncate")
TIMELESS = {"step_time", "tokens_per_second"}


def config_of(folder: Path, algorithm: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "title": "kill and resume",
            "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 4},
            "target": {"model": str(folder / "target"), "max_new_tokens": 4},
            "moderator": {
                "type": "secret_leak",
                "options": {"secret": "a", "partial_per_word": 0.0},
            },
            "reward": {"sum": ["harm", "self_bleu", {"attack_nll": {}, "weight": -0.01}]},
            "prompts": {
                "file": str(folder / "train.txt"),
                "test_file": str(folder / "test.txt"),
            },
            "environment": {"tree_width": 2, "tree_depth": 2},
            "algorithm": algorithm,
            "training": {
                "steps": STEPS,
                "episodes_per_step": 2,
                "batch_size": 4,
                "lr": 1e-3,
                "save_every": 2,
            },
            "device": "cpu",
            "dtype": "float32",
        }
    )


def prepare(folder: Path) -> None:
    for name, seed in (("attacker", 0), ("target", 1)):
        model, tokenizer = tiny_model("llama", seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\nhow are you\n")


def start(config: RunConfig, run: Path, before: Callable[[], None] = lambda: None) -> int:
    """Execute the run in a fork of this process; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        before()
        experiment.run_experiment(resolve(config), RunFolder(run), command="benchmark")
        os._exit(0)
    except AstraError as error:
        print(type(error).__name__, error, file=sys.stderr)
        os._exit(NAMED_ERROR)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def exit_code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_disk_call(count: int) -> None:
    """Kill this process at its `count`-th call that changes the disk, before or after it."""
    numbers = itertools.count(1)  # also for calls inside of calls, and of several threads

    def dying(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            is_last = next(numbers) == count
            if is_last and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return inner(*arguments, **named)
            finally:  # a call that fails is one too: unlink of a file that is gone
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    wrap_disk_calls(dying)


def wrap_disk_calls(changed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    for name in DISK_CALLS:
        setattr(os, name, changed(getattr(os, name)))
    resuming.save_file = changed(resuming.save_file)  # type: ignore[attr-defined]
    builtins.open = changed(builtins.open)


def results_of(run: Path) -> dict[str, Any]:
    """Return all results of a run, without times."""
    metrics = [
        {key: value for key, value in json.loads(line).items() if key not in TIMELESS}
        for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    with AttemptLog(run / "attempts.jsonl") as log:
        played = sorted(attempt.to_json() for attempt in log)
    return {
        "weights": {
            name: digest(load_file(run / "checkpoints" / name / "model.safetensors"))
            for name in ("last", "best")
        },
        "metrics": metrics,
        "attempts": hashlib.sha256("\n".join(played).encode()).hexdigest(),
        "before": (run / "evaluation_before.json").read_text("utf-8"),
        "after": (run / "evaluation_after.json").read_text("utf-8"),
        "failures": sorted((run / "failures.jsonl").read_text("utf-8").splitlines()),
    }


def digest(weights: dict[str, torch.Tensor]) -> str:
    out = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        out.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return out.hexdigest()


def check_family(name: str, folder: Path, moments: int, seed: int) -> dict[str, Any]:
    config = config_of(folder, FAMILIES[name])
    stem = name.replace(" ", "-")
    started = time.perf_counter()
    whole = folder / f"{stem}-whole"
    calls = count_calls(config, whole)
    seconds = time.perf_counter() - started
    expected = results_of(whole)
    draw = random.Random(f"{seed} {name}")
    killed_in: list[str] = []
    different: list[str] = []
    for moment in range(moments):
        run = folder / f"{stem}-{moment}"
        share = draw.random()
        while not (how := killed_at(share, bool(moment % 2), config, run, seconds, calls)):
            shutil.rmtree(run)  # it had ended before the moment of its kill
            share *= 0.8
        killed_in.append(stage_of(run))
        manifest = run / "manifest.json"
        is_done = manifest.is_file() and "seconds" in json.loads(manifest.read_text("utf-8"))
        if not is_done and exit_code_of(start(config, run)) != 0:
            different.append(f"{how}: could not be resumed")
            continue
        differs = [key for key, value in results_of(run).items() if value != expected[key]]
        if differs:
            different.append(f"{how}: other {', '.join(differs)}")
    return {
        "moments": moments,
        "killed_while": {stage: killed_in.count(stage) for stage in sorted(set(killed_in))},
        "different": different,
    }


def killed_at(
    share: float, by_calls: bool, config: RunConfig, run: Path, seconds: float, calls: int
) -> str:
    """Start a run, and kill it at this share of its time or calls.

    Returns:
        When it was killed; empty if it had ended.
    """
    if by_calls:
        at = 1 + int(share * calls)
        how = f"call {at} of {calls}"
        status = exit_code_of(start(config, run, lambda: kill_at_disk_call(at)))
    else:
        how = f"after {share * seconds:.3f} s of {seconds:.3f}"
        child = start(config, run)
        time.sleep(share * seconds)
        os.kill(child, signal.SIGKILL)
        status = exit_code_of(child)
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"{run.name}, to be killed {how}: it failed before, with status {status}")
    return how if status else ""


def count_calls(config: RunConfig, run: Path) -> int:
    """Execute a run without interruption; return the number of calls that change the disk."""
    count = run.with_suffix(".count")

    def before() -> None:
        calls = 0

        def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                return inner(*arguments, **named)

            return call

        opened = open
        wrap_disk_calls(counted)
        leave = os._exit

        def note(status: int) -> None:
            with opened(count, "w") as file:
                file.write(str(calls))
            leave(status)

        os._exit = note  # type: ignore[assignment]

    if exit_code_of(start(config, run, before)) != 0:
        raise SystemExit(f"{run.name}: the run without interruption failed")
    return int(count.read_text())


def stage_of(run: Path) -> str:
    """Return the stage in which a run was killed, by the files that exist."""
    for file, stage in (
        ("report.html", "finishing"),
        ("evaluation_after.json", "writing the report"),
        ("states", "training after the first state"),
        ("metrics.jsonl", "training before the first state"),
        ("config.yaml", "loading, or evaluating the untrained attacker"),
    ):
        if (run / file).exists():
            return stage
    return "starting"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="per family")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the result goes, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        for name in options.family or FAMILIES:
            results[name] = check_family(name, Path(temporary), options.moments, options.seed)
            print(name, json.dumps(results[name]), flush=True)
            if options.output is not None:
                options.output.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    sys.exit(any(result["different"] for result in results.values()))


if __name__ == "__main__":
    main()
