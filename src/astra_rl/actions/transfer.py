"""Transfer matrix: evaluate every attacker against every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.actions.evaluate import target_labels
from astra_rl.actions.evaluation_job import Evaluated, EvaluationJob
from astra_rl.config.loading import load_config
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.evaluation.judges.quality import JudgedSummary, JudgeQuality
from astra_rl.evaluation.measures.summary import by_prompt, summarise, summarise_prompts
from astra_rl.evaluation.measures.transfer_matrix import TransferMatrix
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.recorded import Recorded, quality_of_phase
from astra_rl.runs.spending import spending


@dataclass(frozen=True)
class Transferred:
    """Result of a transfer evaluation.

    Attributes:
        matrix: Success rate of each attacker against each target. Planned conversations that a
            spent budget left out count as errors.
        spent: Spending on calls, as `Ledger.as_dict`.
        judged: The summary of each pair with the measured errors of its judge.
    """

    matrix: TransferMatrix
    spent: Mapping[str, Any]
    judged: Sequence[JudgedSummary]


def transfer(
    runs: Sequence[str | Path],
    targets: Sequence[str],
    *,
    trials: int = 1,
    overrides: Sequence[str] = (),
) -> Transferred:
    """Play the held-out conversations of each run's attacker against each target.

    The matrix is also written to ``transfer.json`` in the folder of each run. All pairs share one
    budget. Its ledger, and cached replies until everything is played, are in the folder
    ``transfer`` of the first run.

    Args:
        runs: Folders; each is one attacker.
        targets: Folders, hub ids or YAML files of targets.
        trials: Attempts per prompt.
        overrides: Changes to each run's configuration, as ``"a.b=value"``.

    Raises:
        BudgetSpentError: No conversation could be completed.
        EndpointError: All conversations of a cell failed; the matrix is written.
        AstraError: A folder is no run, or a model cannot be loaded.
    """
    folders = [open_run_folder(run) for run in runs]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"two runs have the same name: {', '.join(names)}. Rename one.")
    jobs = {
        (name, target): EvaluationJob(
            folder, None, None, trials, load_config(folder.config, overrides, target=target)
        )
        for folder, name in zip(folders, names, strict=True)
        for target in targets
    }
    labels = target_labels(
        {target: jobs[names[0], target].plan.record.target for target in targets}
    )
    summaries = {
        (name, labels[target]): summarise((), planned=job.planned)
        for (name, target), job in jobs.items()
    }
    qualities: dict[tuple[str, str], JudgeQuality | None] = {}
    found: dict[str, Evaluated] = {}
    spent: BudgetSpentError | None = None
    plans = [job.plan for job in jobs.values()]
    with spending(plans, folders[0].path / "transfer") as ledger:
        for (name, target), job in jobs.items():
            place = RunFolder(job.folder.path / "transfer" / file_stem(target))
            try:
                found[f"{name} against {target}"] = job.run(place)
            except BudgetSpentError as error:
                spent = error
                break
            with Recorded(place, job.phase) as recorded:
                rows = recorded.rows(order="prompt")
                summary = summarise_prompts(by_prompt(rows), planned=job.planned)
            summaries[name, labels[target]] = summary
            qualities[name, labels[target]] = quality_of_phase(place, job.phase)
        if spent is not None and not found:
            raise spent
    matrix = TransferMatrix.of(summaries)
    for folder in folders:
        folder.write_json(folder.transfer, matrix.as_dict())
    complete = {name: each for name, each in found.items() if not each.summary.never_made}
    check_any_known({name: each.attempts for name, each in complete.items()})
    judged = [JudgedSummary(each, qualities.get(pair)) for pair, each in summaries.items()]
    return Transferred(matrix, ledger.as_dict(), judged)


def cell_of_matrix(place: RunFolder, phase: str, attacker: str, target: str) -> list[AttemptRow]:
    """Return the attempts of a phase under the names of a cell of a transfer matrix."""
    with Recorded(place, phase) as recorded:
        return [
            row._replace(id=f"{attacker}-{target}-{row.id}", attacker=attacker, target=target)
            for row in recorded.rows()
        ]
