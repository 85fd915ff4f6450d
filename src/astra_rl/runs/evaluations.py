"""All evaluations of a run, as the report shows them: also baselines, other targets and replays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import content_digest
from astra_rl.evaluation.show.report.data import Evaluation
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder, file_stem, read_own
from astra_rl.runs.human_labels import HumanLabels
from astra_rl.runs.phases import IN_THE_RUN, ORDINARY_PHASE, planned_attempts

BEFORE = "before training"
AFTER = "after training"
REPLAY = "replay of "
"""Start of the phase name of attempts that repeat recorded attacks."""
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
    names, ids = {BEFORE, AFTER}, set[str]()
    found = []
    for evaluation in [*_of_the_run(folder), *_later(folder)]:
        name = _unused(evaluation.name, () if evaluation.name in (BEFORE, AFTER) else names)
        names.add(name)
        attempts = [_with_own_id(each, name, ids) for each in evaluation.attempts]
        ids.update(each.id for each in attempts)
        found.append(replace(evaluation, name=name, attempts=attempts))
    known = {_rule(each): each.quality for each in found if each.quality is not None}
    return [
        each if each.quality is not None else replace(each, quality=known.get(_rule(each)))
        for each in found
    ]


def _of_the_run(folder: RunFolder) -> Iterator[Evaluation]:
    for phase, name in (("before", BEFORE), ("after", AFTER)):
        yield from _evaluation(folder, folder.attempts, phase, phase, name)


def _later(folder: RunFolder) -> Iterator[Evaluation]:
    """Yield what later commands played; their files of re-scored attempts have another phase."""
    places = [folder, *(RunFolder(each) for each in sorted(folder.path.glob("targets/*/")))]
    for place in places:
        for path in sorted(place.path.glob("attempts_*.jsonl")):
            stem = path.stem.removeprefix("attempts_")
            first = next(_attempts(path), None)
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
            yield from _evaluation(place, path, first.phase, stem, name)


def _evaluation(
    place: RunFolder, path: Path, phase: str, part: str, name: str
) -> Iterator[Evaluation]:
    attempts = list(_attempts(path, phase))
    if not attempts:
        return
    metrics = place.evaluation(part)
    recorded: dict[str, Any] = read_own(metrics, dict) if metrics.is_file() else {}
    yield Evaluation(
        name=name,
        attempts=_judged_by_others(place, part, attempts),
        quality=JudgeQuality.from_dict(recorded.get("judge_quality")),
        planned=planned_attempts(place).get(part),
        selected=phase.startswith(REPLAY_OF_FAILURES),
        sequential=recorded.get("until") is not None,
        labelled=HumanLabels(place, part).rate(attempts),
    )


def _attempts(path: Path, phase: str | None = None) -> Iterator[Attempt]:
    if path.is_file():
        with AttemptLog(path) as log:
            yield from log.attempts() if phase is None else log.attempts(phase=phase)


def _judged_by_others(
    folder: RunFolder, part: str, attempts: Sequence[Attempt]
) -> Sequence[Attempt]:
    """Add the scores of judges that re-scored the attempts with ``astra-rl score``."""
    known = {attempt.id: attempt for attempt in attempts}
    for path in sorted(folder.path.glob(f"attempts_{part}_*.jsonl")):
        for judged in _attempts(path, attempts[0].phase):
            mine = known.get(judged.id)
            if mine is None or len(mine.turns) != len(judged.turns):
                continue
            turns = [
                turn.model_copy(update={"scores": {**other.scores, **turn.scores}})
                for turn, other in zip(mine.turns, judged.turns, strict=True)
            ]
            known[judged.id] = mine.model_copy(update={"turns": tuple(turns)})
    return list(known.values())


def _with_own_id(attempt: Attempt, name: str, taken: set[str]) -> Attempt:
    update: dict[str, Any] = {} if name in (BEFORE, AFTER) else {"phase": name}
    if attempt.id in taken:
        update["id"] = content_digest([name, attempt.id])
    return attempt.model_copy(update=update) if update else attempt


def _rule(evaluation: Evaluation) -> tuple[str, str, float]:
    return evaluation.judge, evaluation.attempts[0].judge_id, evaluation.threshold


def _unused(name: str, taken: Iterable[str]) -> str:
    """Return the name, with a number where it is taken."""
    numbered = (f"{name} ({number})" for number in range(2, 10_000))
    return name if name not in taken else next(each for each in numbered if each not in taken)
