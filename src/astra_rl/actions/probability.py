"""How likely a run's failures are in ordinary use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from astra_rl.config.experiment import build_problem, ordinary_use
from astra_rl.config.loading import load_config
from astra_rl.config.resolve import Plan, resolve
from astra_rl.core.evaluator import GraphMetrics
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.importance import (
    NoProbability,
    Probability,
    failure_probability_of,
)
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.phases import ORDINARY_ATTACKER, ORDINARY_PHASE, recording
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.spending import spending
from astra_rl.targets.ledger import current_ledger

_TURN_BY_TURN = ("tree", "single_turn", "pruned_tree", "best_of_n", "few_shot")


@dataclass(frozen=True)
class OrdinaryFailure:
    """How probable failure is in ordinary use.

    Attributes:
        found: The probability, or why there is none.
        path: The file that says so.
        attempts: The record of the conversations.
    """

    found: Probability | NoProbability
    path: Path
    attempts: Path


def ordinary_failure(
    run: str | Path,
    *,
    conversations: int = 400,
    share: float = 0.5,
    target: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> OrdinaryFailure:
    """Estimate how probable it is that the target fails when the baseline does the talking.

    Conversations open with the held-out prompts. A part is led by the baseline itself and the rest
    by the trained attacker, and they are weighed, see `astra_rl.evaluation.stats.importance`.

    Args:
        run: Folder of the run.
        conversations: How many are held.
        share: Part of them that the baseline leads, in (0, 1).
        target: Folder or hub id; None is the run's.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None is the run's.

    Raises:
        ConfigurationError: An argument is out of its range, the run has no trained attacker, or its
            attacks do not come from a distribution that can be scored.
        BudgetSpentError: Nothing more may be spent. What was replied is kept, and the same call
            goes on.
        AstraError: A model cannot be loaded.
    """
    if not 0 < share < 1:
        raise ConfigurationError(f"share={share}; it must be between 0 and 1.")
    if conversations < 2:
        raise ConfigurationError(f"conversations={conversations}; at least 2.")
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides, target=target)
    plan = resolve(config)
    if config.environment.type not in _TURN_BY_TURN:
        raise ConfigurationError(
            f"conversations of the environment {config.environment.type!r} are not held turn by "
            f"turn with the target; this needs one of {', '.join(_TURN_BY_TURN)}."
        )
    attacker = folder.checkpoints / "last"
    if not attacker.is_dir():
        raise ConfigurationError(f"{folder.path} has no trained attacker: {attacker} is missing.")
    destination = folder if output is None else RunFolder(output)
    problem = build_problem(plan, attacker=str(attacker))
    if not problem.samples_exactly:
        raise ConfigurationError(
            "the attacker samples with a temperature, top_k or top_p, so its attacks do not come "
            "from the probabilities that weigh them. Set attacker.temperature=1.0, "
            "attacker.top_k=0 and attacker.top_p=1.0."
        )
    path = destination.attempts_of(ORDINARY_PHASE)
    with (
        recording(destination, ORDINARY_PHASE, conversations) as log,
        spending([plan], destination.path, occasion=ORDINARY_PHASE) as ledger,
    ):
        _hold(plan, problem, log, conversations, share)
        log.flush()
        found = failure_probability_of(log.attempts(), baseline=ORDINARY_ATTACKER)
    result = destination.path / "probability.json"
    destination.write_json(
        result,
        {
            "target": config.target.name,
            "baseline": config.baseline or config.attacker.model,
            "brief": config.evaluation.ordinary_brief,
            "threshold": config.evaluation.threshold,
            "share": share,
            "spent": ledger.as_dict(),
            **found.as_dict(),
        },
    )
    return OrdinaryFailure(found, result, path)


def _hold(
    plan: Plan, problem: HFASTProblem, log: AttemptLog, conversations: int, share: float
) -> None:
    """Hold and record the conversations of both."""
    config, prompts = plan.config, plan.openings
    openings = prompts.test
    ordinary = ordinary_use(config, problem)
    of_baseline = min(conversations - 1, max(1, round(share * conversations)))
    for player, name, count in (
        (ordinary, ORDINARY_ATTACKER, of_baseline),
        (problem, None, conversations - of_baseline),
    ):
        evaluator = ASTEvaluator(
            ASTEnvironment(player, openings, 1, config.environment.tree_depth or 1),
            openings,
            threshold=config.evaluation.threshold,
            judge=plan.evaluation_judge.load(),
            batch_size=128,
            record=log.append,
            labels=labels_of(config, ORDINARY_PHASE, attacker=name, categories=prompts.categories),
            likelihoods={
                "attacker": problem.get_attacker_logprobs,
                "baseline": ordinary.get_baseline_logprobs,
            },
        )
        evaluator.around_batch = _within_time
        evaluator.evaluate(count, progress=False)


def _within_time(play: Callable[[], Sequence[GraphMetrics]]) -> Sequence[GraphMetrics]:
    current_ledger().check()
    return play()
