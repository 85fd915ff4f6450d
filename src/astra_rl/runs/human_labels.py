"""Human labels of the conversations of a run: files, agreement of the raters, corrected rate.

Each rater has a file ``labels_PHASE_RATER.jsonl`` in the run folder, one label per line. A label is
of a conversation: whether the target failed in it. It holds for the text that the rater read, and
is ignored when the attempt of that id has another text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.base import content_digest
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.stats.labelled_rate import (
    Group,
    LabelledRate,
    cohen_kappa,
    labelled_rate,
)
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.infra.jsonio import json_line, parse_own_json
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.folder import RunFolder, file_stem

CALLS = (1, 0, None)
"""Calls of the judge: success, no success, no verdict."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters on the conversations that both labelled.

    Attributes:
        raters: Their names.
        rate: Share of equal labels.
        kappa: See `cohen_kappa`.
    """

    raters: tuple[str, str]
    rate: Rate
    kappa: float

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {"raters": list(self.raters), "kappa": self.kappa, **self.rate.as_dict()}


class HumanLabels:
    """Labels of one phase of a run.

    Args:
        folder: Folder of the run.
        phase: Name of the phase.

    Attributes:
        by_rater: Labels of each rater, by `text_key` of the attempt.
    """

    def __init__(self, folder: RunFolder, phase: str) -> None:
        self._folder, self._phase = folder, phase
        self.by_rater: dict[str, dict[str, bool]] = {}
        for path in sorted(folder.path.glob(f"labels_{file_stem(phase)}_*.jsonl")):
            for row in _rows(path):
                if row["phase"] == phase:
                    self.by_rater.setdefault(row["rater"], {})[row["key"]] = row["failed"]

    def add(self, rater: str, attempt: Attempt, failed: bool) -> None:
        """Record a label at once; of several labels of one rater the last one counts."""
        key = text_key(attempt)
        self.by_rater.setdefault(rater, {})[key] = failed
        row = {"phase": self._phase, "rater": rater, "attempt": attempt.id, "key": key}
        path = self._folder.path / f"labels_{file_stem(self._phase)}_{file_stem(rater)}.jsonl"
        with storing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json_line({**row, "failed": failed}) + "\n")

    def of(self, attempt: Attempt) -> float | None:
        """Mean label of the raters, in [0, 1]; None if nobody labelled this text."""
        key = text_key(attempt)
        given = [labels[key] for labels in self.by_rater.values() if key in labels]
        return sum(given) / len(given) if given else None

    def agreement(self) -> list[Agreement]:
        """Return the agreement of every two raters with common conversations."""
        found = []
        for a, b in combinations(self.by_rater, 2):
            mine, others = self.by_rater[a], self.by_rater[b]
            pairs = [(mine[key], others[key]) for key in mine if key in others]
            if pairs:
                equal = Rate(sum(x == y for x, y in pairs), len(pairs))
                found.append(Agreement((a, b), equal, cohen_kappa(pairs)))
        return found

    def groups(self, attempts: Iterable[Attempt]) -> list[Group]:
        """Group attempts by the call of the judge, in the order of `CALLS`."""
        sizes: dict[int | None, dict[str, int]] = {call: {} for call in CALLS}
        labels: dict[int | None, dict[str, tuple[float, int]]] = {call: {} for call in CALLS}
        for attempt in attempts:
            call, prompt = call_of(attempt), attempt.prompt_id
            sizes[call][prompt] = sizes[call].get(prompt, 0) + 1
            label = self.of(attempt)
            if label is not None:
                total, count = labels[call].get(prompt, (0.0, 0))
                labels[call][prompt] = (total + label, count + 1)
        return [
            Group(
                call,
                tuple(sizes[call].values()),
                tuple(labels[call].get(prompt, (0.0, 0)) for prompt in sizes[call]),
                tuple(sizes[call]),
            )
            for call in CALLS
        ]

    def rate(self, attempts: Iterable[Attempt], *, sequential: bool = False) -> LabelledRate | None:
        """Return the success rate by labels and calls; None without a label of these attempts.

        Args:
            attempts: All attempts of the phase.
            sequential: Whether their number depends on the calls of the judge, see `Rate`.
        """
        calls: dict[str, tuple[int, int]] = {}

        def counted() -> Iterator[Attempt]:
            for attempt in attempts:
                won, count = calls.get(attempt.prompt_id, (0, 0))
                calls[attempt.prompt_id] = won + (call_of(attempt) == 1), count + 1
                yield attempt

        groups = self.groups(counted())
        if not any(group.labelled for group in groups):
            return None
        return labelled_rate(
            groups, Rate.of_prompts(calls.values(), sequential=sequential).interval
        )


def call_of(attempt: Attempt) -> int | None:
    """Return the call of the judge on an attempt, see `CALLS`."""
    if attempt.outcome not in KNOWN_OUTCOMES:
        return None
    return int(attempt.outcome is Outcome.SUCCESS)


def text_key(attempt: Attempt) -> str:
    """Return a digest of what a rater reads of an attempt."""
    said = [text for turn in attempt.turns for text in (turn.attack, turn.response)]
    return content_digest([attempt.prompt_id, attempt.trial, *said])


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Read labels; lines that are none are reported and left out."""
    checks: dict[str, Callable[[Any], bool]] = {
        "phase": lambda value: isinstance(value, str),
        "rater": lambda value: isinstance(value, str),
        "key": lambda value: isinstance(value, str),
        "failed": lambda value: isinstance(value, bool),
    }
    found, wrong = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_own_json(line)
            if all(fits(row[name]) for name, fits in checks.items()):
                found.append(row)
                continue
        except (ValueError, KeyError, TypeError):
            pass
        wrong += 1
    if wrong:
        logger.warning("%s: %d lines are no labels and are left out", path, wrong)
    return found


def kappa_text(agreement: Agreement) -> str:
    """Return an agreement as a sentence."""
    kappa = "not defined" if math.isnan(agreement.kappa) else f"{agreement.kappa:.2f}"
    a, b = agreement.raters
    return (
        f"{a} and {b} agree on {agreement.rate.successes} of {agreement.rate.trials} "
        f"conversations; Cohen's kappa {kappa}"
    )
