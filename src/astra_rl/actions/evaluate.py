"""Evaluating attackers, given attacks and baselines against targets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from astra_rl.config.estimate import EstimateRow, estimate, estimate_given
from astra_rl.config.experiment import build_evaluator, build_problem, ordinary_use
from astra_rl.config.loading import load_config
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.core.text import Conversation
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.evaluation.judges.calibration import judge_quality
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attacks import ScoredAttack, read_attacks
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.methods.environments import BestOfNEnvironment
from astra_rl.methods.few_shot import FewShotEnvironment
from astra_rl.methods.replay import resend
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.phases import Recorded, recording
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.spending import WithinBudget, evaluated_within_budget, spending
from astra_rl.targets.ledger import current_ledger

DIRECT = "direct"
"""Stands for the attacks that ask for the goal of a prompt outright."""
UNTRAINED = "untrained"
"""Stands for the attacker before it was trained."""
BEST_OF = re.compile(r"best-of-([1-9][0-9]{0,3})")
"""Stands for the untrained attacker, the best of so many attacks chosen by the reward."""
FEW_SHOT = "few-shot"
"""Stands for the untrained attacker that is shown what it said in the first training step."""
SHOTS = 4


@dataclass(frozen=True)
class Evaluated:
    """An attacker against one target.

    Attributes:
        target: Name of the target.
        metrics: All that was measured, as in the file.
        summary: The same attempts summed up.
        path: The file.
    """

    target: str
    metrics: dict[str, Any]
    summary: Summary
    path: Path


def evaluate_run(
    run: str | Path,
    *,
    attacker: str | None = None,
    attacks: str | Path | None = None,
    targets: Sequence[str] = (),
    trials: int = 1,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> list[Evaluated]:
    """Play the held-out conversations of a run with its trained attacker, or with other attacks.

    Args:
        run: Folder of the run.
        attacker: Another attacker: a folder or hub id. None is the run's last checkpoint.
        attacks: Say these instead of what the trained attacker says: a file that `read_attacks`
            reads, or a baseline. ``"direct"`` is the plainest attack there is, the goal of each
            held-out prompt itself; ``"untrained"`` the attacker before training, ``"best-of-8"``
            the best of eight attacks of it by the training reward, and ``"few-shot"`` what it says
            when it is shown good ones of its own from the first training step.
        targets: Folders, hub ids or YAML files of targets; none is the run's.
        trials: How often each prompt is tried.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the results; None is the run's. With several targets each has a folder
            in it, and ``evaluations.json`` all numbers.

    Returns:
        One evaluation per target, without those for which a budget left nothing: it is one for all
        targets.

    Raises:
        BudgetSpentError: It left nothing for the first target.
        AstraError: The folder is no run, a model cannot be loaded, or there are no attacks.
    """
    if trials < 1:
        raise ConfigurationError(f"trials={trials}; each prompt must be tried at least once.")
    folder = open_run_folder(run)
    destination = folder.path if output is None else Path(output)
    configs = {
        target: load_config(folder.config, overrides, target=target)
        for target in targets or (None,)
    }
    plays = {
        destination
        if len(configs) == 1
        else destination / "targets" / file_stem(str(target)): Play(
            folder, attacker, attacks, trials, config
        )
        for target, config in configs.items()
    }
    phase = next(iter(plays.values())).phase
    with spending([play.plan for play in plays.values()], destination, occasion=phase):
        found = _played_until_spent(plays)
    if len(configs) > 1:
        RunFolder(destination).write_json(
            destination / "evaluations.json",
            [{"target": each.target, **each.summary.as_dict()} for each in found],
        )
    return found


def _played_until_spent(plays: Mapping[Path, Play]) -> list[Evaluated]:
    """Play into each folder; those for which nothing at all is left of a budget are left out.

    Raises:
        BudgetSpentError: It did not suffice for the first.
    """
    found: list[Evaluated] = []
    for path, play in plays.items():
        try:
            found.append(play.into(RunFolder(path)))
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
) -> dict[str, list[EstimateRow]]:
    """Return what `evaluate_run` would ask for at most, by target; nothing is sent or loaded.

    Raises:
        AstraError: As in `evaluate_run`.
    """
    folder = open_run_folder(run)
    chosen = [*overrides, f"evaluation.trials={trials}"]
    found = {}
    for target in targets or (None,):
        config = load_config(folder.config, chosen, target=target)
        found[config.target.name] = Play(folder, attacker, attacks, trials, config).estimate()
    return found


class Play:
    """One attacker against one target; options are checked at once, models loaded when it plays.

    Attributes:
        planned: Conversations that are to be played.
    """

    def __init__(
        self,
        folder: RunFolder,
        attacker: str | None,
        attacks: str | Path | None,
        trials: int,
        config: RunConfig,
    ) -> None:
        if attacks is not None and attacker is not None:
            raise ConfigurationError(
                "give --attacker or --attacks; the attacks are said by nobody."
            )
        self.folder, self.config, self.trials = folder, config, trials
        self.plan = resolve(config)
        prompts = self.plan.openings
        self.openings, self.categories = list(prompts.test), prompts.categories
        self.attacks = None if attacks is None else str(attacks)
        best = BEST_OF.fullmatch(self.attacks or "")
        self.best_of = int(best[1]) if best else None
        self.plays_untrained = best is not None or self.attacks in (UNTRAINED, FEW_SHOT)
        self.phase = "again"
        self.name: str | None = attacker
        if self.attacks is not None:
            self.name = self.attacks
            if self.plays_untrained or self.attacks == DIRECT:
                self.phase = file_stem(self.attacks)
        self.given: list[_Given] | None = None
        self.examples: list[ScoredAttack] = []
        if self.attacks == FEW_SHOT:
            self.examples = list(untrained_attacks(folder))
        elif self.attacks is not None and not self.plays_untrained:
            self.given = given_attacks(self.attacks, self.openings) * trials
        self.attacker = attacker
        if self.attacks is None and attacker is None:
            self.attacker = str(folder.checkpoints / "last")
            if not Path(self.attacker).is_dir():
                raise ConfigurationError(
                    f"{folder.path} has no attacker to evaluate: {self.attacker} is missing, so "
                    "its training did not end. Name an attacker with --attacker."
                )
        self.planned = len(self.openings) * trials if self.given is None else len(self.given)

    def estimate(self) -> list[EstimateRow]:
        """Return what it would ask for at most."""
        if self.given is not None:
            contexts = [each.context for each in self.given]
            return estimate_given(self.plan, contexts, [1] * len(contexts))
        return estimate(self.plan, training=False, queries_per_turn=self.best_of or 1)

    def into(self, destination: RunFolder) -> Evaluated:
        """Play, record, and write the result.

        Raises:
            BudgetSpentError: Nothing could be played.
        """
        config, ledger = self.config, current_ledger()
        ledger.check()
        before = ledger.copied()
        problem = build_problem(self.plan, attacker=self.attacker)
        evaluator = build_evaluator(self.plan, problem)
        self._set_environment(evaluator)
        evaluator.labels = labels_of(
            config, self.phase, attacker=self.name, categories=self.categories
        )
        ordinary = ordinary_use(config, problem)
        evaluator.likelihoods = {"baseline": ordinary.get_baseline_logprobs}
        with recording(destination, self.phase, self.planned) as log:
            evaluator.record = log.append
            if self.given is None:
                metrics, _ = evaluated_within_budget(evaluator, self.planned)
            else:
                metrics = _say(self.given, problem, evaluator, seed=config.seed)
            metrics["spent"] = ledger.as_dict(since=before)
            metrics["judge_quality"] = judge_quality(
                evaluator.judge, config.evaluation.calibrations
            )
            log.flush()
            failed = log.attempts(outcome="success")
            write_failures(failed, destination.path / f"failures_{self.phase}.jsonl")
        result = destination.evaluation(self.phase)
        destination.write_json(result, metrics)
        self.plan.unload()
        with Recorded(destination, self.phase) as recorded:
            return Evaluated(config.target.name, metrics, recorded.summary(), result)

    def _set_environment(self, evaluator: ASTEvaluator) -> None:
        usual = evaluator.environment
        if self.best_of is not None:
            depth = usual.tree_depth
            evaluator.environment = BestOfNEnvironment(
                usual.problem, self.openings, self.best_of, depth
            )
        elif self.examples:
            evaluator.environment = FewShotEnvironment(
                usual.problem,
                self.openings,
                tree_depth=usual.tree_depth,
                examples=self.examples,
                shots=SHOTS,
            )
        evaluator.queries_per_turn = evaluator.environment.queries_per_turn


@dataclass(frozen=True)
class _Given:
    """An attack that is to be said."""

    context: Conversation
    attack: str
    prompt_id: str


def _say(
    given: Sequence[_Given], problem: HFASTProblem, evaluator: ASTEvaluator, *, seed: int
) -> dict[str, Any]:
    """Say given attacks, as many as a budget allows, and sum up what came of them.

    Raises:
        BudgetSpentError: Not one could be said.
    """
    evaluator.queries_per_turn = 1
    within = WithinBudget()
    measured: list[dict[str, Any]] = []

    def say(start: int) -> Sequence[dict[str, Any]]:
        part = given[start : start + evaluator.batch_size]
        contexts, attacks = [each.context for each in part], [[each.attack] for each in part]
        graphs = resend(problem, contexts, attacks, seed=seed, first=start)
        return evaluator.measure(graphs, [each.prompt_id for each in part])

    for start in range(0, len(given), evaluator.batch_size):
        measured += within(partial(say, start))
    if within.spent is not None and not measured:
        raise within.spent
    return {**evaluator.aggregate_metrics(measured), "planned": len(given)}


def given_attacks(attacks: str | Path, openings: Sequence[Conversation]) -> list[_Given]:
    """Return contexts and what is said in them.

    Args:
        attacks: ``"direct"``, or a file of attacks. One without a context is said in one of the
            openings, each in its turn.
        openings: Held-out opening contexts.

    Raises:
        ConfigurationError: The file cannot be read, or holds no attack.
    """
    if attacks == DIRECT:
        return [
            _Given(
                replace_prompt(each, ""), each.facts.get("goal") or each.prompt, Opening.of(each).id
            )
            for each in openings
        ]
    steps = read_attacks(attacks)
    if not steps:
        raise ConfigurationError(f"{str(attacks)!a} holds no attack.")
    contexts = [
        Conversation.of(step.context or openings[index % len(openings)])
        for index, step in enumerate(steps)
    ]
    return [
        _Given(context, step.attack, Opening.of(context).id)
        for context, step in zip(contexts, steps, strict=True)
    ]


def replace_prompt(opening: Conversation, prompt: str) -> Conversation:
    """Return an opening with another prompt, and nothing that an attacker was told."""
    return Conversation(
        prompt, system=opening.system, facts=opening.facts, separator=opening.separator
    )


def untrained_attacks(folder: RunFolder) -> Iterator[ScoredAttack]:
    """Yield what the attacker said in the first training step, before it had learned anything.

    Raises:
        ConfigurationError: Too little of it has a score.
    """
    found = 0
    with Recorded(folder, "training") as recorded:
        for attempt in recorded.attempts():
            if attempt.step != 1:
                continue
            for turn, exchange in zip(attempt.turns, attempt.exchanges(), strict=True):
                score = turn.score(attempt.judge)
                if score is not None and turn.attack.strip():
                    found += 1
                    yield ScoredAttack(exchange.context, turn.attack, score)
    if found < SHOTS:
        raise ConfigurationError(
            f"{folder.path}: {found} attacks of the first training step have a score, and "
            f"{SHOTS} are shown. Use a file of examples with the environment 'few_shot'."
        )
