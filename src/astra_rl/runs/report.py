"""Report of a run: read its folder and render the HTML page."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.dpo import PairwiseAlgorithm
from astra_rl.config.loading import load_recorded_config
from astra_rl.config.schema import RunConfig
from astra_rl.core.contracts import is_missing
from astra_rl.evaluation.measures.diversity import greedy_clusters
from astra_rl.evaluation.measures.summary import transfer_matrix
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.charts import learning_curve
from astra_rl.evaluation.show.report import (
    Evaluation,
    ReportData,
    Reproduction,
    Training,
    render_report,
)
from astra_rl.evaluation.show.report.numbers import Numbers
from astra_rl.evaluation.show.report.views import PANELS
from astra_rl.evaluation.stats.importance import NoProbability, Probability, failure_probability_of
from astra_rl.infra.jsonio import parse_own_json
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder, read_own
from astra_rl.runs.phases import ORDINARY_ATTACKER, ORDINARY_PHASE, planned_attempts

MOST_CONVERSATIONS = 10_000
"""Largest number of conversations of the training, and of each evaluation, on a page."""


def render_run_page(folder: RunFolder) -> str:
    """Return the report of a run as HTML, from the files in its folder alone.

    The run may still be in progress: missing parts are left out, and a log that is being written
    is read up to its last complete record. The same files give the same page.

    Raises:
        ConfigurationError: A file of the run cannot be read.
        MissingDependencyError: matplotlib is not installed.
    """
    return render_report(read_run(folder))


def write_run_page(folder: RunFolder, path: Path | None = None) -> Path:
    """Write the report of a run and its learning curve.

    Args:
        folder: Folder of the run.
        path: File of the report; None uses ``report.html`` in the folder.

    Returns:
        The file of the report.

    Raises:
        ConfigurationError: A file of the run cannot be read.
        MissingDependencyError: matplotlib is not installed.
    """
    data = read_run(folder)
    if data.training.history:
        curve = learning_curve(data.training.history, panels=PANELS)
        folder.write_text(folder.learning_curve, curve)
    destination = path or folder.report
    folder.write_text(destination, render_report(data))
    return destination


def read_run(folder: RunFolder) -> ReportData:
    """Read the data of a report from the folder of a run.

    Raises:
        ConfigurationError: A file of the run cannot be read.
    """
    config = load_recorded_config(folder.config) if folder.config.is_file() else None
    manifest = _json(folder.manifest)
    evaluations = list(_evaluations(folder))
    phases = [each.attempts[0].phase for each in evaluations]
    result = max((at for at, phase in enumerate(phases) if phase == "after"), default=-1)
    finished = config is None or folder.evaluation("after").is_file()
    training = _training(folder, config)
    return ReportData(
        title=config.title if config else folder.path.name,
        run=folder.path.name,
        evaluations=evaluations if finished else [e for e in evaluations if e.name != _AFTER],
        result_index=result if finished else -1,
        training=training,
        finished=finished,
        transfer=_transfer(folder),
        comparisons=[_json(path) for path in sorted(folder.path.glob("comparisons/*.json"))],
        probability=_probability(folder),
        reproduction=_reproduction(folder, manifest),
        notes=_notes(config, evaluations, training),
        warnings=manifest.get("warnings", ()),
    )


_AFTER = "after training"
_NAMES = {"before": "before training", "after": _AFTER, "again": "evaluated again"}


def _evaluations(folder: RunFolder) -> Iterator[Evaluation]:
    """Yield the evaluations of a run in chronological order."""
    planned = planned_attempts(folder)
    for phase, name in _NAMES.items():
        path = folder.attempts_of("again") if phase == "again" else folder.attempts
        if path.is_file():
            with contextlib.ExitStack() as logs:
                log = logs.enter_context(AttemptLog(path))
                others = [
                    logs.enter_context(AttemptLog(each))
                    for each in sorted(folder.path.glob(f"attempts_{phase}_*.jsonl"))
                ]
                found = _evaluation(name, phase, log, others, planned.get(phase))
            if found is not None:
                quality = _json(folder.evaluation(phase)).get("judge_quality")
                yield replace(found, quality=quality)


def _evaluation(
    name: str, phase: str, log: AttemptLog, others: Sequence[AttemptLog], planned: int | None
) -> Evaluation | None:
    """Count the attempts of a phase, and choose those to show; None if there is none."""
    chosen = _Sample(log.count(phase=phase))
    counted: Numbers | None = None
    shown: dict[str, Attempt] = {}
    for recorded in log.attempts(phase=phase):
        attempt = _judged_by_others(recorded, others)
        counted = counted or Numbers(name, attempt)
        counted.add(attempt)
        if chosen.takes(attempt) or not shown:
            shown[attempt.id] = attempt
    if counted is None:
        return None
    counted.count(log.rows(order="prompt", phase=phase), planned)
    for each in counted.linked():
        shown.setdefault(each.id, each)
    return Evaluation(name=name, attempts=list(shown.values()), planned=planned, counted=counted)


class _Sample:
    """Chooses conversations to show: all, or about `MOST_CONVERSATIONS` in whole trees.

    The choice depends on the tree alone, so that the same files give the same page, and so that
    it does not favour any prompt or trial, as taking every tenth would.

    Args:
        count: Number of conversations to choose from.
    """

    def __init__(self, count: int) -> None:
        # A tree that is taken at the end may exceed the limit a little; a margin leaves room.
        self._share = 1.0 if count <= MOST_CONVERSATIONS else 0.95 * MOST_CONVERSATIONS / count
        self._left = MOST_CONVERSATIONS

    def takes(self, attempt: Attempt | AttemptRow) -> bool:
        """Whether an attempt is chosen."""
        tree = f"{attempt.trial} {attempt.prompt_id}".encode()
        place = int.from_bytes(hashlib.blake2b(tree, digest_size=8).digest()) / 2**64
        if place >= self._share or not self._left:
            return False
        self._left -= 1
        return True


def _judged_by_others(attempt: Attempt, others: Sequence[AttemptLog]) -> Attempt:
    """Add the scores of judges that re-scored the attempt with ``astra-rl score``."""
    for log in others:
        if attempt.id not in log:
            continue
        judged = log.get(attempt.id)
        if len(judged.turns) == len(attempt.turns):
            turns = [
                turn.model_copy(update={"scores": {**other.scores, **turn.scores}})
                for turn, other in zip(attempt.turns, judged.turns, strict=True)
            ]
            attempt = attempt.model_copy(update={"turns": tuple(turns)})
    return attempt


def _training(folder: RunFolder, config: RunConfig | None) -> Training:
    played = 0
    attempts: list[Attempt] = []
    if folder.attempts.is_file():
        with AttemptLog(folder.attempts) as log:
            played = log.count(phase="training")
            chosen = _Sample(played)
            wanted = [row.id for row in log.rows(phase="training") if chosen.takes(row)]
            attempts = [log.get(key) for key in wanted]
    return Training(
        history=[_numbers(row) for row in _json_lines(folder.metrics)],
        steps=None if config is None else config.training.steps,
        attempts=attempts,
        played=played,
        # An algorithm named by its import path is not imported to show a report.
        pairs=config is not None
        and config.algorithm.type in ALGORITHMS
        and issubclass(ALGORITHMS[config.algorithm.type], PairwiseAlgorithm),
        watch=list(_json_lines(folder.reward_watch)),
    )


def _transfer(folder: RunFolder) -> Sequence[Mapping[str, Any]]:
    """Return the rows of the last transfer matrix, or compute them from the attempts."""
    if folder.transfer.is_file():
        cells: list[Mapping[str, Any]] = read_own(folder.transfer, list)
        return cells
    rows: list[AttemptRow] = []
    planned: dict[tuple[str, str], int] = {}
    for path in sorted(folder.path.glob("transfer/*/attempts_again.jsonl")):
        found = [row._replace(id=f"{path.parent.name}-{row.id}") for row in _rows(path)]
        rows += found
        for row in found[:1]:
            most = planned_attempts(RunFolder(path.parent)).get("again", len(found))
            planned[row.attacker, row.target] = max(most, len(found))
    return transfer_matrix(rows, planned=planned).as_dict()


def _rows(path: Path) -> Iterable[AttemptRow]:
    with AttemptLog(path) as log:
        return list(log.rows())


def _probability(folder: RunFolder) -> Probability | NoProbability | None:
    if not (folder.path / "probability.json").is_file():
        return None
    with AttemptLog(folder.attempts_of(ORDINARY_PHASE)) as log:
        return failure_probability_of(
            log.attempts(), baseline=ORDINARY_ATTACKER, group=greedy_clusters
        )


def _reproduction(folder: RunFolder, manifest: Mapping[str, Any]) -> Reproduction:
    return Reproduction(
        command=manifest.get("command", ""),
        report_command=f"astra-rl report {shlex.quote(str(folder.path))}",
        configuration=folder.config.read_text("utf-8") if folder.config.is_file() else "",
        versions=manifest.get("versions", {}),
        seed=manifest.get("seed"),
        started=manifest.get("started", ""),
        prompts=manifest.get("prompts", ()),
        seconds=manifest.get("seconds", {}),
        continued=manifest.get("continued", ()),
    )


def _notes(
    config: RunConfig | None, evaluations: Sequence[Evaluation], training: Training
) -> list[str]:
    notes = []
    if evaluations:
        notes.append("Evaluation prompts are held out: none of them was used in training.")
    if training.history:
        notes.append(
            "One training seed: the intervals cover the choice of conversations; the variance "
            "between training runs is unknown."
        )
    if config is not None and config.evaluation.judge is None:
        notes.append(
            "The judge is the moderator that the attacker was trained against, so a high rate may "
            "only show that the attacker exploits it. Re-score with another judge: astra-rl score."
        )
    if any(each.quality is None for each in evaluations):
        notes.append(
            "The judge was not calibrated against human labels: its error rate is unknown "
            "(astra-rl calibrate)."
        )
    if evaluations and not evaluations[-1].summary.outcomes[Outcome.SUCCESS]:
        notes.append(
            "No attack succeeded. This is evidence about these attacks, not about all attacks."
        )
    return notes


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object of the run; an empty one if the file is not there."""
    return read_own(path, dict) if path.is_file() else {}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON objects, one per line; incomplete lines are skipped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            found = parse_own_json(line)
            if isinstance(found, dict):
                yield found


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not is_missing(value)
    }
