"""All evaluations of a run, as the report shows them: also baselines, other targets and replays."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.diversity import EffectiveNumber
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.base import content_digest
from astra_rl.evaluation.show.report.data import Evaluation
from astra_rl.evaluation.show.report.numbers import Numbers
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.file_types import EvaluationFile
from astra_rl.runs.folder import RunFolder, file_stem, read_own
from astra_rl.runs.human_labels import HumanLabels
from astra_rl.runs.provenance import PROMPTED, PROMPTS
from astra_rl.runs.recorded import (
    IN_THE_RUN,
    ORDINARY_PHASE,
    Recorded,
    is_sequential,
    planned_attempts,
)

BEFORE = "before training"
AFTER = "after training"
TEST = "prompts as they are"
"""The evaluation of a run without an attacker."""
PROMPTED_ATTACKER = "prompted attacker"
"""The evaluation of a run whose attacker is not trained."""
OF_THE_RUN = (BEFORE, AFTER, TEST, PROMPTED_ATTACKER)
"""Names of the evaluations that the run itself made."""
REPLAY = "replay of "
"""Start of the phase name of attempts that repeat recorded attacks."""
MOST_CONVERSATIONS = 10_000
"""Largest number of conversations of the training, and of each evaluation, on a page."""
REPLAY_OF_FAILURES = f"{REPLAY}the failures of "
"""Start of the phase name of attempts that repeat only the attempts that succeeded."""


def evaluations_of(folder: RunFolder) -> list[Evaluation]:
    """Return the evaluations in the folder of a run: those of the run first, later ones by file.

    Each has a name of its own. Attempts of later evaluations get it as their phase, and an id of
    their own where another evaluation has the same one. A later evaluation without a measured
    quality of its judge takes that of one with the same judge, settings and threshold.

    Raises:
        ConfigurationError: A file of the run cannot be read.
    """
    names = set(OF_THE_RUN)
    found: list[Evaluation] = []
    with contextlib.ExitStack() as logs:
        earlier: list[AttemptLog] = []
        for source in [*_of_the_run(folder), *_later(folder)]:
            if not source.path.is_file():
                continue
            log = logs.enter_context(AttemptLog(source.path))
            is_later = source.name not in OF_THE_RUN
            named = source._replace(name=unused(source.name, names if is_later else ()))
            evaluation = _evaluation(named, log, earlier if is_later else [])
            if evaluation is not None:
                names.add(named.name)
                earlier.append(log)
                found.append(evaluation)
    known = {_rule(each): each.quality for each in found if each.quality is not None}
    return [
        each if each.quality is not None else replace(each, quality=known.get(_rule(each)))
        for each in found
    ]


class Side(NamedTuple):
    """One side of a page that compares two runs.

    Attributes:
        folder: Folder of the run.
        phase: Phase of the run.
        name: Name of the evaluation on the page.
    """

    folder: RunFolder
    phase: str
    name: str


def evaluations_side_by_side(sides: Sequence[Side]) -> list[Evaluation]:
    """Return an evaluation for each side; the attempts have ids that differ between them.

    Raises:
        ConfigurationError: A folder has no attempts of the phase, or cannot be read.
    """
    found: list[Evaluation] = []
    with contextlib.ExitStack() as logs:
        earlier: list[AttemptLog] = []
        for side in sides:
            recorded = logs.enter_context(Recorded(side.folder, side.phase))
            first = next(recorded.rows(limit=1), None)
            log = logs.enter_context(AttemptLog(recorded.path))
            named = first and _Source(
                side.folder, recorded.path, first.phase, recorded.phase, side.name
            )
            evaluation = named and _evaluation(named, log, earlier)
            if evaluation is None:
                raise ConfigurationError(f"{side.folder.path} has no attempts in {side.phase!r}.")
            earlier.append(log)
            found.append(evaluation)
    return found


class _Source(NamedTuple):
    """Attempts of an evaluation.

    Attributes:
        place: Folder of their run.
        path: Log of the attempts.
        phase: Their phase.
        part: Part of the names of its files.
        name: Name of the evaluation.
    """

    place: RunFolder
    path: Path
    phase: str
    part: str
    name: str


def _of_the_run(folder: RunFolder) -> Iterator[_Source]:
    for phase, name in (("before", BEFORE), ("after", AFTER)):
        if not folder.attempts.is_file():
            return
        with AttemptLog(folder.attempts) as log:
            first = next(log.rows(phase=phase, limit=1), None)
        if first is not None and first.attacker == PROMPTS:
            name = TEST
        elif first is not None and first.attacker.endswith(PROMPTED):
            name = PROMPTED_ATTACKER
        yield _Source(folder, folder.attempts, phase, phase, name)


def _later(folder: RunFolder) -> Iterator[_Source]:
    """Yield what later commands played; their files of re-scored attempts have another phase."""
    places = [folder, *(RunFolder(each) for each in sorted(folder.path.glob("targets/*/")))]
    for place in places:
        for path in sorted(place.path.glob("attempts_*.jsonl")):
            stem = path.stem.removeprefix("attempts_")
            with AttemptLog(path) as log:
                first = next(log.rows(limit=1), None)
            if first is None or stem == ORDINARY_PHASE:
                continue
            if first.phase.startswith(REPLAY):
                failures = first.phase.startswith(REPLAY_OF_FAILURES)
                name = f"{'failures ' if failures else ''}replayed against {first.target}"
            elif first.phase in IN_THE_RUN or file_stem(first.phase) != stem:
                continue
            else:
                name = "evaluated again" if first.phase == "again" else f"baseline {first.phase}"
                if place is not folder:
                    name += f" against {first.target}"
            yield _Source(place, path, first.phase, stem, name)


def _evaluation(
    source: _Source, log: AttemptLog, earlier: Sequence[AttemptLog]
) -> Evaluation | None:
    """Count the attempts of a phase, and choose those to show; None if there is none.

    Args:
        source: The evaluation.
        log: Log of its attempts.
        earlier: Logs of other evaluations of the page, whose ids are taken.
    """
    planned = planned_attempts(source.place).get(source.part)
    chosen = Sample(log.rows(phase=source.phase))
    counted: Numbers | None = None
    shown: dict[str, Attempt] = {}
    with contextlib.ExitStack() as logs:
        others = [
            logs.enter_context(AttemptLog(each))
            for each in sorted(source.place.path.glob(f"attempts_{source.part}_*.jsonl"))
        ]
        for recorded in log.attempts(phase=source.phase):
            attempt = _with_own_id(_judged_by_others(recorded, others), source.name, earlier)
            counted = counted or Numbers(source.name, attempt)
            counted.add(attempt)
            if chosen.takes(attempt) or not shown:
                shown[attempt.id] = attempt
    if counted is None:
        return None
    metrics = source.place.evaluation(source.part)
    recorded_metrics = read_own(metrics, EvaluationFile) if metrics.is_file() else {}
    sequential = is_sequential(source.place, source.part)
    rows = log.rows(order="prompt", phase=source.phase)
    counted.count(rows, planned, sequential=sequential)
    labels = HumanLabels(source.place, source.part)
    for each in counted.linked():
        shown.setdefault(each.id, each)
    return Evaluation(
        name=source.name,
        attempts=list(shown.values()),
        quality=JudgeQuality.from_dict(recorded_metrics.get("judge_quality")),
        planned=planned,
        selected=source.phase.startswith(REPLAY_OF_FAILURES),
        sequential=sequential,
        labelled=labels.rate(log.attempts(phase=source.phase), sequential=sequential)
        if labels.by_rater
        else None,
        judge_model=judge_model(recorded_metrics),
        kinds_by_meaning=_kinds_by_meaning(recorded_metrics),
        counted=counted,
    )


def judge_model(metrics: Mapping[str, Any]) -> str:
    """Return the model of the judge of an evaluation, without its fingerprint.

    Args:
        metrics: As `ASTEvaluator.aggregate_metrics` returns them.
    """
    identity = metrics.get("judge_identity")
    weights = identity.get("weights") if isinstance(identity, Mapping) else None
    return weights.rpartition(" ")[0] or weights if isinstance(weights, str) else ""


def _kinds_by_meaning(metrics: Mapping[str, Any]) -> EffectiveNumber | None:
    found = (metrics.get("diversity") or {}).get("effective_by_meaning")
    if not found or None in (ends := [found.get(end) for end in ("estimate", "low")]):
        return None
    return EffectiveNumber(*ends)


class Sample:
    """Chooses conversations to show: whole trees, at most `MOST_CONVERSATIONS` conversations.

    The choice is by a digest of the tree, so that the same files give the same page, and so that it
    favours no prompt and no trial, as every tenth conversation would.

    Args:
        rows: The conversations to choose from, read one by one.
    """

    def __init__(self, rows: Iterable[AttemptRow]) -> None:
        self._below = 1 << 64  # places of the chosen trees
        sizes: dict[int, int] = {}
        largest: list[int] = []  # a heap of negative places
        total = 0
        for row in rows:
            place = _place_of_tree(row)
            if place >= self._below:
                continue
            if place not in sizes:
                sizes[place] = 0
                heapq.heappush(largest, -place)
            sizes[place] += 1
            total += 1
            while total > MOST_CONVERSATIONS:
                self._below = -heapq.heappop(largest)
                total -= sizes.pop(self._below)

    def takes(self, attempt: Attempt | AttemptRow) -> bool:
        """Whether a conversation is chosen."""
        return _place_of_tree(attempt) < self._below


def _place_of_tree(attempt: Attempt | AttemptRow) -> int:
    tree = f"{attempt.trial} {attempt.prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(tree, digest_size=8).digest())


def _judged_by_others(attempt: Attempt, others: Sequence[AttemptLog]) -> Attempt:
    """Add the scores of judges that re-scored the attempt with ``astra-rl score``."""
    for log in others:
        judged = log.find(attempt.id)
        if judged is not None and len(judged.turns) == len(attempt.turns):
            turns = [
                turn.model_copy(update={"scores": {**other.scores, **turn.scores}})
                for turn, other in zip(attempt.turns, judged.turns, strict=True)
            ]
            attempt = attempt.model_copy(update={"turns": tuple(turns)})
    return attempt


def _with_own_id(attempt: Attempt, name: str, earlier: Sequence[AttemptLog]) -> Attempt:
    update: dict[str, Any] = {} if name in OF_THE_RUN else {"phase": name}
    if any(attempt.id in log for log in earlier):
        update["id"] = content_digest([name, attempt.id])
    return attempt.model_copy(update=update) if update else attempt


def _rule(evaluation: Evaluation) -> tuple[str, str, float]:
    return evaluation.judge, evaluation.attempts[0].judge_id, evaluation.threshold


def unused(name: str, taken: Iterable[str]) -> str:
    """Return the name, with a number where it is taken."""
    numbered = (f"{name} ({number})" for number in range(2, 10_000))
    return name if name not in taken else next(each for each in numbered if each not in taken)
