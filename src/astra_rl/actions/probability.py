"""Estimate the probability of failure in ordinary use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from astra_rl.config.experiment import build_problem, ordinary_use
from astra_rl.config.loading import load_config
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import repetitions
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.text_clusters import GreedyClusters
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.allocation import divided, prompts_in_turn
from astra_rl.evaluation.stats.importance import NoProbability, Probability, failure_probability_of
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.infra.checkpointing import sha256
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
    checkpoints: bool = False,
    target: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> OrdinaryFailure:
    """Estimate the probability that the target fails if the baseline writes the user's turns.

    Conversations open with the held-out prompts, in random order. The baseline leads a share of
    them and the trained attacker the rest; importance weights combine them, see
    `astra_rl.evaluation.stats.importance`. If there are more prompts than conversations of the
    baseline, or of the attackers, a random part of them is played, by both.

    Args:
        run: Folder of the run.
        conversations: Number of conversations, at least one of the baseline and of each attacker.
        share: Share of them that the baseline leads, in (0, 1).
        checkpoints: Divide the rest among the trained attacker and the other attackers that the run
            saved, for instance ``best``. An earlier one may reach failures that the last one has
            unlearned. Each is loaded beside the last one.
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
    with template_time(folder.started):
        others = _saved_attackers(plan, folder) if checkpoints else {}
    if conversations < 2 + len(others):
        raise ConfigurationError(
            f"conversations={conversations}; at least one of the baseline and of each of the "
            f"{1 + len(others)} attackers."
        )
    path = destination.attempts_of(ORDINARY_PHASE)
    with (
        recording(destination, ORDINARY_PHASE, conversations) as log,
        spending([plan], destination.path, occasion=ORDINARY_PHASE) as ledger,
    ):
        played = _play_all(plan, problem, others, log, conversations, share)
        log.flush()
        found = failure_probability_of(
            log.attempts(),
            baseline=ORDINARY_ATTACKER,
            checkpoints=tuple(others),
            kind_of=GreedyClusters().add,
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
            "checkpoints": list(others),
            "spent": ledger.as_dict(),
            **found.as_dict(),
        },
    )
    check_any_known({plan.record.target: played})
    return OrdinaryFailure(found, result, path)


def _saved_attackers(plan: Plan, folder: RunFolder) -> dict[str, HFASTProblem]:
    """Load the attackers that the run saved beside the last one, by name; equal ones once."""
    seen = {_weights(folder.checkpoints / "last")}
    found: dict[str, HFASTProblem] = {}
    for path in sorted(folder.checkpoints.glob("*/")):
        if (weights := _weights(path)) and weights not in seen:
            seen.add(weights)
            found[f"checkpoint {path.name}"] = build_problem(plan, attacker=str(path))
    return found


def _weights(checkpoint: Path) -> frozenset[str]:
    """Return the checksums of the weights of a checkpoint."""
    return frozenset(sha256(path) for path in checkpoint.glob("*.safetensors"))


class _OwnConversations(ASTEnvironment):
    """Environment whose conversations share no random numbers with those of other players.

    The seed of a conversation is derived from its prompt and its trial. With the same seeds, an
    attacker that has hardly changed would repeat the conversations of the baseline.
    """

    first_trial = 0

    def eval_rollouts(
        self, seeds: Sequence[int | str | None], trials: Sequence[int] | None = None
    ) -> list[Graph[str, str]]:
        """See `ASTEnvironment.eval_rollouts`."""
        played = repetitions(seeds) if trials is None else trials
        return super().eval_rollouts(seeds, [self.first_trial + trial for trial in played])


def _play_all(
    plan: Plan,
    problem: HFASTProblem,
    checkpoints: Mapping[str, HFASTProblem],
    log: AttemptLog,
    conversations: int,
    share: float,
) -> list[Attempt]:
    """Play, record and return the conversations of the baseline and of the attackers."""
    openings = plan.openings.test
    attackers = {"attacker": problem, **checkpoints}
    phase = PhaseRun(
        labels_of(plan.record, ORDINARY_PHASE, categories=plan.openings.categories),
        problem,
        plan.evaluation_judge.load(),
        log,
        settings=plan.evaluation,
        seed=plan.seed,
        likelihoods={name: each.get_attacker_logprobs for name, each in attackers.items()},
        allow_partial=False,
    )
    depth = plan.environment.options.get("tree_depth", 1)
    of_baseline = min(conversations - len(attackers), max(1, round(share * conversations)))
    rest = divided(conversations - of_baseline, len(attackers))
    ordinary = ordinary_use(problem, plan.evaluation.ordinary_brief)
    players: list[tuple[Problem[str, str], str | None, int]] = [
        (ordinary, ORDINARY_ATTACKER, of_baseline)
    ]
    for (name, each), count in zip(attackers.items(), rest, strict=True):
        own_name = name if name in checkpoints else None  # the name of the run's attacker
        players.append((each, own_name, count))
    played: list[Attempt] = []
    order = prompts_in_turn(len(openings), [count for _, _, count in players], plan.seed)
    for number, (player, player_name, count) in enumerate(players):
        environment = _OwnConversations(player, openings, 1, depth)
        environment.first_trial = number * conversations
        own = [openings[row] for row in order[number]]
        played += phase.play(environment, own, count, attacker=player_name).attempts
    return played
