"""Estimate the probability of failure in ordinary use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from astra_rl.config.experiment import build_problem, ordinary_use
from astra_rl.config.loading import load_config
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.text_clusters import GreedyClusters
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.importance import NoProbability, Probability, failure_probability_of
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.chat_template import template_time
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.phases import PhaseRun
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.recorded import ORDINARY_ATTACKER, ORDINARY_PHASE, recording
from astra_rl.runs.spending import spending

_TURN_BY_TURN = ("tree", "single_turn", "pruned_tree", "best_of_n", "few_shot")


@dataclass(frozen=True)
class OrdinaryFailure:
    """Estimate of the probability of failure in ordinary use.

    Attributes:
        found: The estimate, or the reason why there is none.
        path: File of the result.
        attempts: Log of the conversations.
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
    """Estimate the probability that the target fails if the baseline writes the user's turns.

    Conversations open with the held-out prompts. The baseline leads a share of them and the trained
    attacker the rest; importance weights combine them, see
    `astra_rl.evaluation.stats.importance`.

    Args:
        run: Folder of the run.
        conversations: Number of conversations, at least 2.
        share: Share of them that the baseline leads, in (0, 1).
        target: Folder or hub id; None uses the target of the run.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None uses the folder of the run.

    Raises:
        ConfigurationError: An argument is out of range, the run has no trained attacker, or its
            attacks are not sampled from a distribution that can be scored.
        EndpointError: All conversations failed; they are recorded.
        BudgetSpentError: A budget is spent. Replies are cached; the same call continues from them.
        AstraError: A model cannot be loaded.
    """
    if not 0 < share < 1:
        raise ConfigurationError(f"share={share}; it must be between 0 and 1.")
    if conversations < 2:
        raise ConfigurationError(f"conversations={conversations}; at least 2.")
    folder = open_run_folder(run)
    plan = resolve(load_config(folder.config, overrides, target=target))
    if plan.environment.name not in _TURN_BY_TURN:
        raise ConfigurationError(
            f"conversations of the environment {plan.environment.name!r} are not held turn by "
            f"turn with the target; this needs one of {', '.join(_TURN_BY_TURN)}."
        )
    attacker = folder.checkpoints / "last"
    if not attacker.is_dir():
        raise ConfigurationError(f"{folder.path} has no trained attacker: {attacker} is missing.")
    destination = folder if output is None else RunFolder(output)
    with template_time(folder.started):
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
        played = _play_both(plan, problem, log, conversations, share)
        log.flush()
        found = failure_probability_of(
            log.attempts(), baseline=ORDINARY_ATTACKER, kind_of=GreedyClusters().add
        )
    result = destination.path / "probability.json"
    destination.write_json(
        result,
        {
            "target": plan.record.target,
            "baseline": plan.baseline,
            "brief": plan.evaluation.ordinary_brief,
            "threshold": plan.evaluation.threshold,
            "share": share,
            "spent": ledger.as_dict(),
            **found.as_dict(),
        },
    )
    check_any_known({plan.record.target: played})
    return OrdinaryFailure(found, result, path)


def _play_both(
    plan: Plan, problem: HFASTProblem, log: AttemptLog, conversations: int, share: float
) -> list[Attempt]:
    """Play, record and return the conversations of the baseline and of the attacker."""
    openings = plan.openings.test
    ordinary = ordinary_use(problem, plan.evaluation.ordinary_brief)
    phase = PhaseRun(
        labels_of(plan.record, ORDINARY_PHASE, categories=plan.openings.categories),
        problem,
        plan.evaluation_judge.load(),
        log,
        settings=plan.evaluation,
        seed=plan.seed,
        likelihoods={"attacker": problem.get_attacker_logprobs},
        allow_partial=False,
    )
    depth = plan.environment.options.get("tree_depth", 1)
    of_baseline = min(conversations - 1, max(1, round(share * conversations)))
    played: list[Attempt] = []
    for player, name, count in (
        (ordinary, ORDINARY_ATTACKER, of_baseline),
        (problem, None, conversations - of_baseline),
    ):
        environment = ASTEnvironment(player, openings, 1, depth)
        played += phase.play(environment, openings, count, attacker=name).attempts
    return played
