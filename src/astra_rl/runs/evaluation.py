"""Evaluating attackers, and given attacks, against targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_rl.algorithms.imitation import read_attacks
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.attempts import AttemptRow
from astra_rl.evaluation.calibration import judge_quality
from astra_rl.evaluation.exports.records import write_failures
from astra_rl.evaluation.summary import (
    TransferMatrix,
    transfer_matrix,
)
from astra_rl.methods.resending import resend
from astra_rl.runs.build import (
    build_evaluator,
    build_moderator,
    build_problem,
    check_options,
    load_openings,
)
from astra_rl.runs.config import load_config
from astra_rl.runs.experiment import labels_of
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.records import AttemptLog
from astra_rl.runs.spending import evaluated_within_budget, spending

DIRECT = "direct"
"""Stands for the attacks that ask for the goal of a prompt outright."""


def evaluate_run(
    run: str | Path,
    *,
    attacker: str | None = None,
    attacks: str | Path | None = None,
    target: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Play the held-out conversations of a run with its trained attacker.

    Args:
        run: Folder of the run.
        attacker: Another attacker: a folder or hub id. None is the run's last checkpoint.
        attacks: Say these instead of what an attacker says: a file that `read_attacks` reads, or
            ``"direct"`` for the plainest attack there is, the goal of each held-out prompt itself.
        target: Another target: a folder or hub id, or a YAML file of a target. None is the run's.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None is the run's.

    Returns:
        The evaluation, and the file it was written to.

    Raises:
        BudgetEndedError: A budget ended it before the first conversations were judged. Otherwise
            what was played is summed up, and ``planned`` in the result says how many there were to
            be.
        AstraError: The folder is no run, a model cannot be loaded, or there are no attacks.
    """
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides)
    if target is not None:
        config = config.with_target(target)
    check_options(config)
    _, openings = load_openings(config.prompts, seed=config.seed)
    given = None if attacks is None else given_attacks(attacks, openings)
    moderator = build_moderator(config.moderator)
    if given is not None:
        name, problem = str(attacks), build_problem(config, moderator)
    else:
        name = attacker or str(folder.checkpoints / "last")
        if attacker is None and not Path(name).is_dir():
            raise ConfigurationError(
                f"{folder.path} has no attacker to evaluate: {name} is missing, so its training "
                "did not end. Name an attacker with --attacker."
            )
        problem = build_problem(config, moderator, attacker=name)
    evaluator = build_evaluator(config, problem, openings)
    destination = folder if output is None else RunFolder(output)
    path = destination.attempts_of("again")
    path.unlink(missing_ok=True)
    with (
        AttemptLog(path, write=True) as log,
        spending(config, destination.path, occasion="again") as ledger,
    ):
        evaluator.record = log.append
        known = None if attacker is None and given is None else name
        evaluator.labels = labels_of(config, "again", attacker=known)
        evaluator.likelihoods = {"baseline": problem.get_baseline_logprobs}
        if given is None:
            metrics, _ = evaluated_within_budget(evaluator)
        else:
            contexts, said = [context for context, _ in given], [[attack] for _, attack in given]
            graphs = resend(problem, contexts, said, seed=config.seed)
            metrics = evaluator.aggregate_metrics(evaluator.measure(graphs))
        metrics["spent"] = ledger.as_dict()
        metrics["judge_quality"] = judge_quality(evaluator.judge, config.evaluation.calibrations)
        log.flush()
        write_failures(log.attempts(outcome="success"), destination.path / "failures_again.jsonl")
    result = destination.evaluation("again")
    destination.write_json(result, metrics)
    return metrics, result


def given_attacks(attacks: str | Path, openings: Sequence[str]) -> list[tuple[str, str]]:
    """Return contexts and what is said in them.

    Args:
        attacks: ``"direct"``, or a file of attacks. One without a context is said in one of the
            openings, each in its turn.
        openings: Held-out opening contexts.

    Raises:
        ConfigurationError: The file cannot be read, or holds no attack.
    """
    contexts = [Conversation.of(opening) for opening in openings]
    if attacks == DIRECT:
        return [(_without_prompt(each), each.facts.get("goal") or each.prompt) for each in contexts]
    steps = read_attacks(attacks)
    if not steps:
        raise ConfigurationError(f"{str(attacks)!a} holds no attack.")
    return [
        (step.context or contexts[index % len(contexts)], step.attack)
        for index, step in enumerate(steps)
    ]


def _without_prompt(opening: Conversation) -> Conversation:
    return Conversation(system=opening.system, facts=opening.facts, separator=opening.separator)


def transfer(runs: Sequence[str | Path], targets: Sequence[str]) -> TransferMatrix:
    """Play the held-out conversations of each run's attacker against each target.

    Args:
        runs: Folders; each is one attacker.
        targets: Folders or hub ids, or YAML files of targets.

    Raises:
        AstraError: A folder is no run, or a model cannot be loaded.
    """
    rows: list[AttemptRow] = []
    for run in runs:
        folder = open_run_folder(run)
        for target in targets:
            output = folder.path / "transfer" / file_stem(target)
            evaluate_run(run, target=target, output=output)
            with AttemptLog(RunFolder(output).attempts_of("again")) as log:
                rows += [
                    row._replace(id=f"{folder.path.name}-{row.id}", attacker=folder.path.name)
                    for row in log.rows()
                ]
    return transfer_matrix(rows)
