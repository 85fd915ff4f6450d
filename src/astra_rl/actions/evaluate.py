"""Evaluate an attacker, given attacks or a baseline against targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from astra_rl.actions.evaluation_job import Evaluated as Evaluated
from astra_rl.actions.evaluation_job import EvaluationJob as EvaluationJob
from astra_rl.config.estimate import Estimate
from astra_rl.config.loading import load_config
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.shards import Shard
from astra_rl.runs.spending import spending
from astra_rl.runs.until import Until


def evaluate_run(
    run: str | Path,
    *,
    attacker: str | None = None,
    attacks: str | Path | None = None,
    targets: Sequence[str] = (),
    trials: int = 1,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    until: str | None = None,
    shard: Shard | None = None,
) -> list[Evaluated]:
    """Play the held-out conversations of a run with its trained attacker, or with other attacks.

    Args:
        run: Folder of the run.
        attacker: A folder or hub id, or an attacker that is prompted: ``package.module:function``
            or a YAML file; None uses the last checkpoint of the run.
        attacks: Attacks to send instead of those of the trained attacker: a file that
            `read_attacks` reads, or a baseline. ``"direct"`` sends the goal of each held-out
            prompt; ``"untrained"`` plays the attacker before training; ``"best-of-8"`` sends the
            best of eight of its attacks by the training reward; ``"few-shot"`` prompts it with its
            own best attacks of the first training step. The last two play the `attacker`, if one is
            given.
        targets: Folders, hub ids or YAML files of targets; empty uses the target of the run.
        trials: Attempts per prompt.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the results; None uses the folder of the run. It can be given to other
            commands as a run, for instance to `compare_runs`. With several targets each
            has a subfolder, and ``evaluations.json`` has the summaries of all.
        until: Stop when this condition is decided, such as ``"upper(asr)<0.05"``, see `Until`. The
            same call continues an evaluation that was interrupted, or decided by another condition.
        shard: Play this part of the conversations of one target, with its part of the budget, in a
            folder of its own inside of `output`; see `merge_shards`. The same call continues a
            shard that was interrupted.

    Returns:
        One result per target. All targets share one budget; those it was not enough for are left
        out.

    Raises:
        BudgetSpentError: The budget was not enough for a single conversation.
        EndpointError: All conversations with a target failed; the results are written.
        AstraError: The folder is no run, a model cannot be loaded, or there are no attacks.
    """
    if trials < 1:
        raise ConfigurationError(f"trials={trials}; each prompt must be tried at least once.")
    folder = open_run_folder(run)
    destination = folder.path if output is None else Path(output)
    condition = None if until is None else Until(until)
    configs = {
        target: load_config(folder.config, overrides, target=target)
        for target in targets or (None,)
    }
    if shard is not None:
        if len(configs) > 1:
            raise ConfigurationError(
                "--shard divides the evaluation of one target; give one --target."
            )
        destination = shard.folder(destination)
    jobs = {
        destination
        if len(configs) == 1
        else destination / "targets" / file_stem(str(target)): EvaluationJob(
            folder, attacker, attacks, trials, config, condition, shard
        )
        for target, config in configs.items()
    }
    first = next(iter(jobs.values()))
    share = None if shard is None else shard.share(first.planned)
    plans = [job.plan for job in jobs.values()]
    with spending(
        plans, destination, occasion=first.phase, keep_ledger=shard is not None, share=share
    ):
        found = _run_until_spent(jobs)
    if len(configs) > 1:
        RunFolder(destination).write_json(
            destination / "evaluations.json",
            [{"target": each.target, **each.summary.as_dict()} for each in found],
        )
    complete = [each for each in found if not each.summary.never_made]
    check_any_known({each.target: each.attempts for each in complete})
    return found


def _run_until_spent(jobs: Mapping[Path, EvaluationJob]) -> list[Evaluated]:
    """Run each evaluation until the budget is spent.

    Raises:
        BudgetSpentError: Not one could complete a conversation.
    """
    found: list[Evaluated] = []
    for path, job in jobs.items():
        try:
            found.append(job.run(RunFolder(path)))
        except BudgetSpentError:
            if not found:
                raise
            break
    return found


def estimate_evaluation(
    run: str | Path,
    *,
    attacker: str | None = None,
    attacks: str | Path | None = None,
    targets: Sequence[str] = (),
    trials: int = 1,
    overrides: Sequence[str] = (),
) -> dict[str, Estimate]:
    """Return the largest number of calls and tokens of `evaluate_run`, by target.

    A target is named as it was given where several have the same name. Nothing is sent or loaded.

    Raises:
        AstraError: As in `evaluate_run`.
    """
    folder = open_run_folder(run)
    chosen = [*overrides, f"evaluation.trials={trials}"]
    configs = {
        target: load_config(folder.config, chosen, target=target) for target in targets or (None,)
    }
    labels = target_labels({target: config.target.name for target, config in configs.items()})
    jobs = {
        labels[target]: EvaluationJob(folder, attacker, attacks, trials, config)
        for target, config in configs.items()
    }
    return {
        target: Estimate(job.estimate(), job.planned, job.plan.budget)
        for target, job in jobs.items()
    }


def target_labels(names: Mapping[str | None, str]) -> dict[str | None, str]:
    """Return the name of each target; as it was given, where two targets have the same name.

    Args:
        names: Name of each target, by how it was given; None is the target of the run.
    """
    count = Counter(names.values())
    return {
        given: name if given is None or count[name] == 1 else given for given, name in names.items()
    }
