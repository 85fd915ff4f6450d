"""Put the shards of an evaluation together: the result of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astra_rl.actions.evaluation_job import Evaluated, EvaluationJob, write_failures_of
from astra_rl.config.loading import load_config
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.conversations import conversation_metrics
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.infra.jsonio import jsonable
from astra_rl.methods.ast_evaluator import aggregated
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.phases import kind_embedder, list_as_without_a_budget, rate_corrected
from astra_rl.runs.recorded import recording
from astra_rl.runs.shards import Merged, merged, shard_folders
from astra_rl.targets.accounts import Account, LedgerFile, sum_of


def merge_shards(
    run: str | Path,
    places: Sequence[str | Path] = (),
    *,
    attacker: str | None = None,
    attacks: str | Path | None = None,
    target: str | None = None,
    trials: int = 1,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> Evaluated:
    """Merge the shards of an evaluation, which equals that of one process but for the times.

    The other arguments are those of `evaluate_run` with which the shards were played. No model is
    loaded.

    Args:
        run: Folder of the run.
        places: Folders that shards were written to, as `output`; empty is that of the results.
        attacker: See `evaluate_run`.
        attacks: See `evaluate_run`.
        target: See `targets` of `evaluate_run`.
        trials: See `evaluate_run`.
        overrides: See `evaluate_run`.
        output: Folder for the results; None uses the folder of the run.

    Raises:
        ConfigurationError: A shard is missing, doubled, unfinished, damaged, or of another
            evaluation: of another configuration, seed, model, judge or version.
        EndpointError: All conversations failed; the results are written.
    """
    folder = open_run_folder(run)
    destination = RunFolder(folder.path if output is None else output)
    config = load_config(folder.config, overrides, target=target)
    job = EvaluationJob(folder, attacker, attacks, trials, config)
    looked_in = [Path(each) for each in places] or [destination.path]
    job.follow(shard_folders(looked_in))
    found = merged(
        looked_in,
        job.phase,
        job.order(),
        job.known_identity(),
        job.labels(),
    )
    result = _written(job, found, destination)
    if not result.summary.never_made:
        check_any_known({result.target: result.attempts})
    return result


def _written(job: EvaluationJob, found: Merged, destination: RunFolder) -> Evaluated:
    """Write the files of an evaluation of one process."""
    if not destination.manifest.is_file():
        destination.write_text(destination.config, job.plan.record.yaml)
    with recording(destination, job.phase, job.planned) as log:
        for attempt in found.attempts:
            log.append(attempt)
        log.flush()
        write_failures_of(log, destination, job.phase)
    spent = _sum(found.ledgers, asdict(job.plan.budget))
    if found.ledgers:
        destination.write_json(destination.path / f"ledger_{job.phase}.json", spent)
    summary = summarise((each.row for each in found.attempts), planned=job.planned)
    metrics = {
        **_metrics(job, found),
        **rate_corrected(JudgeQuality.from_dict(found.quality), summary),
        "until": None,
        "decided": None,
        "spent": spent,
    }
    path = destination.evaluation(job.phase)
    destination.write_json(path, metrics)
    return Evaluated(found.attempts, summary, metrics, job.plan.record.target, path)


def _metrics(job: EvaluationJob, found: Merged) -> dict[str, Any]:
    settings = job.plan.evaluation
    conversations = [jsonable(conversation_metrics(each)) for each in found.attempts]
    metrics = aggregated(
        found.attempts,
        conversations,
        judge=found.judge,
        threshold=settings.threshold,
        planned=job.planned,
        embed=kind_embedder(settings),
    )
    if job.is_shuffled:
        seeds = [seed for seed, _ in job.seeds()]
        list_as_without_a_budget(metrics["conversations"], seeds, job.prompt_ids)
    return metrics


def _sum(ledgers: Sequence[LedgerFile], budget: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the sum of ledgers, as `Ledger.as_dict` returns one."""
    names = dict.fromkeys(name for each in ledgers for name in each.accounts or ())
    accounts = {
        name: sum_of((each.accounts or {}).get(name, Account()) for each in ledgers)
        for name in names
    }
    return {
        "schema_version": 1,
        "accounts": {name: asdict(each) for name, each in accounts.items()},
        "total": asdict(sum_of(accounts.values())),
        "seconds": round(sum(each.seconds or 0.0 for each in ledgers), 3),
        "budget": dict(budget),
        "ended_by": list(dict.fromkeys(by for each in ledgers for by in each.ended_by or ())),
    }
