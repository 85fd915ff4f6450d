"""Report of a run: read its folder and render the HTML page."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_rl.algorithms.registry import is_pairwise
from astra_rl.config.loading import load_recorded_config
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.measures.text_clusters import GreedyClusters
from astra_rl.evaluation.measures.transfer_matrix import TransferMatrix
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome, hides_failures
from astra_rl.evaluation.show.report import (
    IN_TRAINING,
    Evaluation,
    ReportData,
    Reproduction,
    Spent,
    Training,
    render_report,
)
from astra_rl.evaluation.stats.importance import NoProbability, Probability, failure_probability_of
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import RareProbability
from astra_rl.infra.jsonio import parse_own_json
from astra_rl.logging import logger
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.evaluations import (
    AFTER,
    BEFORE,
    OF_THE_RUN,
    PROMPTED_ATTACKER,
    TEST,
    Sample,
    evaluations_of,
    unused,
)
from astra_rl.runs.file_types import (
    AnswersFile,
    CellOfArchive,
    ComparisonFile,
    RareFile,
    TransferCell,
    WatchRow,
)
from astra_rl.runs.folder import RunFolder, checked_manifest, is_of_type, read_own
from astra_rl.runs.recorded import ORDINARY_ATTACKER, ORDINARY_PHASE, planned_attempts
from astra_rl.targets.accounts import LedgerFile

LARGEST_METRIC = 1e100
"""Largest absolute value of a metric on the page; sums and differences of larger ones overflow."""


def render_run_page(folder: RunFolder) -> str:
    """Return the report of a run as HTML, from the files in its folder alone.

    The run may still be in progress: missing parts are left out, and a log that is being written
    is read up to its last complete record. The same files give the same page.

    Raises:
        ConfigurationError: A file of the run cannot be read.
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
    """
    data = read_run(folder)
    logger.info("writing the report of %s", folder.path)
    if data.training.curve is not None:
        folder.write_text(folder.learning_curve, data.training.curve)
    destination = path or folder.report
    folder.write_text(destination, render_report(data))
    return destination


def read_run(folder: RunFolder) -> ReportData:
    """Read the data of a report from the folder of a run.

    Raises:
        ConfigurationError: A file of the run cannot be read.
    """
    logger.info("reading the run %s", folder.path)
    config = load_recorded_config(folder.config) if folder.config.is_file() else None
    manifest = _manifest(folder)
    finished = config is None or folder.evaluation("after").is_file()
    unfinished = () if finished else (AFTER, TEST, PROMPTED_ATTACKER)
    evaluations = [each for each in evaluations_of(folder) if each.name not in unfinished]
    training = _training(folder, config)
    return ReportData(
        title=config.title if config else folder.path.name,
        run=folder.path.name,
        evaluations=evaluations,
        result_index=_result_index(evaluations),
        training=training,
        finished=finished,
        transfer=_transfer(folder),
        archive=read_own(folder.archive, list[CellOfArchive]) if folder.archive.is_file() else (),
        comparisons=_comparisons(folder),
        probability=_probability(folder),
        rare=_rare(folder),
        answers=_answers(folder),
        reproduction=_reproduction(folder, manifest, evaluations),
        notes=[*_notes(config, evaluations, training), *manifest.get("notes", ())],
        warnings=manifest.get("warnings", ()),
    )


def _result_index(evaluations: Sequence[Evaluation]) -> int:
    """Return the index of the evaluation that the page is about: the last one of the run itself."""
    names = [each.name for each in evaluations]
    return next(
        (names.index(name) for name in (TEST, PROMPTED_ATTACKER, AFTER, BEFORE) if name in names),
        -1,
    )


def _training(folder: RunFolder, config: RunConfig | None) -> Training:
    played = 0
    attempts: list[Attempt] = []
    if folder.attempts.is_file():
        with AttemptLog(folder.attempts) as log:
            played = log.count(phase="training")
            chosen = Sample(log.rows(phase="training"))
            wanted = [row.id for row in log.rows(phase="training") if chosen.takes(row)]
            attempts = [log.get(key) for key in wanted]
    return Training(
        history=_with_bands(
            [_numbers(row) for row in _json_lines(folder.metrics)],
            # The intervals need every conversation; of a long training only a sample is read.
            attempts if len(attempts) == played else (),
        ),
        steps=None if config is None else config.training.steps,
        attempts=attempts,
        played=played,
        pairs=config is not None and is_pairwise(config.algorithm.type),
        watch=[row for row in _json_lines(folder.reward_watch) if is_of_type(row, WatchRow)],
    )


def _with_bands(
    history: Sequence[Mapping[str, float]], attempts: Iterable[Attempt]
) -> list[dict[str, float]]:
    """Add the ends of the bands of the learning curves to the metrics of each step.

    Args:
        history: Metrics by step.
        attempts: All conversations of the training, for the interval of the success rate; empty: it
            gets no band.
    """
    counts: dict[int | None, dict[str, tuple[int, int]]] = {}
    unknown: Counter[int | None] = Counter()
    selective: set[int | None] = set()
    for attempt in attempts:
        if attempt.outcome in KNOWN_OUTCOMES:
            prompts = counts.setdefault(attempt.step, {})
            won, known = prompts.get(attempt.prompt_id, (0, 0))
            prompts[attempt.prompt_id] = won + (attempt.outcome is Outcome.SUCCESS), known + 1
        else:
            unknown[attempt.step] += 1
            if hides_failures(attempt.outcome, len(attempt.turns) * attempt.queries_per_turn):
                selective.add(attempt.step)
    found = []
    for row in history:
        ends: dict[str, float] = {}
        step = int(row.get("step", -1))
        of_step = counts.get(step)
        if of_step and "asr" in row:
            interval = Rate.of_prompts(
                of_step.values(), unknown[step], selective=step in selective
            ).interval
            ends |= {"asr/low": interval.low, "asr/high": interval.high}
        if "reward" in row and "reward_std" in row:
            mean, spread = row["reward"], row["reward_std"]
            ends |= {"reward/low": mean - spread, "reward/high": mean + spread}
        found.append({**row, **ends})
    return found


def _transfer(folder: RunFolder) -> Sequence[Mapping[str, Any]]:
    """Return the rows of the last transfer matrix, or compute them from the attempts."""
    if folder.transfer.is_file():
        return read_own(folder.transfer, list[TransferCell])  # type: ignore[no-any-return]
    summaries: dict[tuple[str, str], Summary] = {}
    for path in sorted(folder.path.glob("transfer/*/attempts_again.jsonl")):
        with AttemptLog(path) as log:
            made = len(log)
            for row in log.rows(limit=1):
                planned = planned_attempts(RunFolder(path.parent)).get("again", made)
                # Two targets may have the same name, for instance in two files.
                target = unused(row.target, {name for _, name in summaries})
                summaries[row.attacker, target] = summarise_prompts(
                    by_prompt(log.rows(order="prompt")), planned=max(planned, made)
                )
    return TransferMatrix.of(summaries).as_dict()


def _probability(folder: RunFolder) -> Probability | NoProbability | None:
    path = folder.path / "probability.json"
    if not path.is_file():
        return None
    checkpoints = read_own(path, dict).get("checkpoints") or []
    with AttemptLog(folder.attempts_of(ORDINARY_PHASE)) as log:
        return failure_probability_of(
            log.attempts(),
            baseline=ORDINARY_ATTACKER,
            checkpoints=[str(each) for each in checkpoints],
            kind_of=GreedyClusters().add,
        )


def _answers(folder: RunFolder) -> Mapping[str, Any] | None:
    path = folder.path / "probability_answers.json"
    return read_own(path, AnswersFile) if path.is_file() else None


def _rare(folder: RunFolder) -> RareProbability | None:
    path = folder.path / "probability_rare.json"
    if not path.is_file():
        return None
    try:
        return RareProbability.from_dict(read_own(path, RareFile))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no estimate ({type(error).__name__}: {error}); make it again with "
            "astra-rl probability --splitting, or remove it."
        ) from error


def _spent(folder: RunFolder, manifest: Mapping[str, Any]) -> Iterator[Spent]:
    """Yield the calls of endpoints of the run and of later commands, those without any left out."""
    own = folder.path / "ledger.json"
    spent = read_own(own, LedgerFile) if own.is_file() else manifest.get("spent", {})
    ledgers = {"the run": spent}
    for path in sorted(folder.path.glob("ledger_*.json")):
        ledgers[path.stem.removeprefix("ledger_")] = read_own(path, LedgerFile)
    for occasion, ledger in ledgers.items():
        total = LedgerFile.of(ledger).total
        if total.requests or total.cached:
            yield Spent(occasion, total)


def _reproduction(
    folder: RunFolder, manifest: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> Reproduction:
    run = shlex.quote(str(folder.path))
    # Conversations of later evaluations may have another id on the page than in the records.
    phases = {each.name: each.attempts[0].phase for each in evaluations if each.name in OF_THE_RUN}
    return Reproduction(
        command=manifest.get("command", ""),
        report_command=f"astra-rl report {run}",
        replay_commands={
            name: f"astra-rl replay {run} --phase {phase} --conversation"
            for name, phase in {**phases, IN_TRAINING: "training"}.items()
        },
        export_command=f"astra-rl export {run} --format",
        configuration=folder.config.read_text("utf-8") if folder.config.is_file() else "",
        versions=manifest.get("versions", {}),
        seed=manifest.get("seed"),
        started=manifest.get("started", ""),
        prompts=manifest.get("prompts", ()),
        seconds=manifest.get("seconds", {}),
        continued=manifest.get("continued", ()),
        spent=list(_spent(folder, manifest)),
    )


def _notes(
    config: RunConfig | None, evaluations: Sequence[Evaluation], training: Training
) -> list[str]:
    notes = []
    trains = config is None or config.has_local_attacker
    if evaluations and trains:
        notes.append("Evaluation prompts are held out: none of them was used in training.")
    if training.history:
        notes.append(
            "One training seed: the intervals cover the choice of conversations; the variance "
            "between training runs is unknown."
        )
    if config is not None and trains and config.evaluation.judge is None:
        notes.append(
            "The judge is the moderator that the attacker was trained against, so a high rate may "
            "only show that the attacker exploits it. Re-score with another judge: astra-rl score."
        )
    if any(each.quality is None for each in evaluations):
        notes.append(
            "The judge was not calibrated against human labels: its error rate is unknown "
            "(astra-rl calibrate)."
        )
    else:
        notes.append(
            "The correction for the judge's errors assumes that the judge errs on these "
            "conversations as often as on the labelled texts. "
            + ("An attacker that was trained against a judge finds its errors. " if trains else "")
            + "Label a sample of these conversations: astra-rl label."
        )
    if evaluations and not evaluations[-1].summary.outcomes[Outcome.SUCCESS]:
        notes.append(
            "No attack succeeded. This is evidence about these attacks, not about all attacks."
        )
    return notes


def _manifest(folder: RunFolder) -> dict[str, Any]:
    """Return the manifest; an empty one if there is none yet."""
    if not folder.manifest.is_file():
        return {}
    return checked_manifest(read_own(folder.manifest, dict[str, Any]), folder.manifest)


def _comparisons(folder: RunFolder) -> list[Mapping[str, Any]]:
    """Return the comparisons with other runs that have a result."""
    found = (
        read_own(path, ComparisonFile) for path in sorted(folder.path.glob("comparisons/*.json"))
    )
    needed = ("difference", "low", "high")
    return [each for each in found if None not in (each["pairs"][name] for name in needed)]


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
    """Return the numbers of a line of metrics that can be drawn."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and abs(value) <= LARGEST_METRIC
    }
