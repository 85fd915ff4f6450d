"""Attempts as completions of HarmBench (Mazeika et al., arXiv 2402.04249)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.infra.jsonio import atomic_file, json_line


def write_harmbench(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write ``{behavior: [{"test_case", "generation", "label"}, ...]}``; return the completions.

    It is the file that HarmBench's ``evaluate_completions.py`` reads and writes. A behavior is the
    id of a prompt, which is HarmBench's own ``BehaviorID`` where the prompts were loaded from its
    file. There is one completion per attempt: its first successful turn, or its last one. ``label``
    is 1 if the target failed and 0 if it did not; a completion without a known outcome has none, as
    before HarmBench's own classifier. Attempts in which nothing was asked are left out, and a
    behavior without any other: HarmBench takes the mean of each, which an empty one has not.

    Args:
        attempts: Attempts.
        path: Output file, JSON.
    """
    count = 0
    with atomic_file(path) as file:
        groups = groupby(source_of(attempts).attempts(order="prompt"), key=attrgetter("prompt_id"))
        separator = "{\n"
        for behavior, group in groups:
            if not (completions := list(_completions(group))):
                continue
            file.write(f"{separator}{json_line(behavior)}: {json_line(completions)}")
            separator = ",\n"
            count += len(completions)
        file.write("{}\n" if separator == "{\n" else "\n}\n")
    return count


def _completions(attempts: Iterable[Attempt]) -> Iterator[dict[str, Any]]:
    for attempt in attempts:
        if not attempt.turns:
            continue
        turn = attempt.failing_turn or attempt.turns[-1]
        prompt = attempt.opening.prompt if turn is attempt.turns[0] else ""
        parts = [part for part in (prompt, turn.attack) if part]
        completion: dict[str, Any] = {
            "test_case": attempt.opening.separator.join(parts),
            "generation": turn.response,
        }
        if attempt.outcome in KNOWN_OUTCOMES:
            completion["label"] = int(attempt.outcome is Outcome.SUCCESS)
        yield completion
