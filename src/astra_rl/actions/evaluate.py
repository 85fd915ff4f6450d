"""Evaluate an attacker, given attacks or a baseline against targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astra_rl.actions.attacks import (
    DIRECT,
    GivenAttack,
    GivenAttacks,
    given_attacks,
    untrained_attacks,
)
from astra_rl.actions.target_test import prompted_problem, warnings_of_attacks
from astra_rl.config.estimate import Estimate, EstimateRow, estimate, estimate_given, needed
from astra_rl.config.experiment import build_environment, build_problem
from astra_rl.config.loading import load_config, load_prompted_attacker
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import PromptedAttackerConfig, RunConfig
from astra_rl.core.environment import Environment
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, repetitions
from astra_rl.errors import BudgetSpentError, ConfigurationError
from astra_rl.evaluation.records.attacks import ScoredAttack
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.methods.environments import BestOfNEnvironment
from astra_rl.methods.few_shot import FewShotEnvironment
from astra_rl.methods.replay import TargetOnlyProblem
from astra_rl.models.chat_template import template_time
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.phases import PhaseResult, PhaseRun
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.recorded import plan_attempts, recording
from astra_rl.runs.spending import spending
from astra_rl.runs.until import Until, batch_size, earlier_attempts
from astra_rl.targets.ledger import current_ledger

UNTRAINED = "untrained"
"""Name of the baseline that is the attacker before training."""
BEST_OF = re.compile(r"best-of-([1-9][0-9]{0,3})")
"""Name of the baseline that is the best of n attacks of the untrained attacker, by reward."""
FEW_SHOT = "few-shot"
"""Name of the baseline that is the untrained attacker prompted with its own best attacks."""
SHOTS = 4
"""Number of examples in the few-shot prompt."""


@dataclass(frozen=True)
class Evaluated(EvaluationResult):
    """Result of evaluating an attacker against one target.

    Attributes:
        target: Name of the target.
        path: File with the metrics.
    """

    target: str
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
    until: str | None = None,
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
    jobs = {
        destination
        if len(configs) == 1
        else destination / "targets" / file_stem(str(target)): EvaluationJob(
            folder, attacker, attacks, trials, config, condition
        )
        for target, config in configs.items()
    }
    phase = next(iter(jobs.values())).phase
    with spending([job.plan for job in jobs.values()], destination, occasion=phase):
        found = _run_until_spent(jobs)
    if len(configs) > 1:
        RunFolder(destination).write_json(
            destination / "evaluations.json",
            [{"target": each.target, **each.summary.as_dict()} for each in found],
        )
    check_any_known({each.target: each.attempts for each in found})
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


class EvaluationJob:
    """Evaluation of one attacker against one target.

    Options are checked when it is constructed; models are loaded by `run`.

    Attributes:
        phase: Name of the phase in the records.
        planned: Number of planned conversations.
    """

    def __init__(
        self,
        folder: RunFolder,
        attacker: str | None,
        attacks: str | Path | None,
        trials: int,
        config: RunConfig,
        until: Until | None = None,
    ) -> None:
        plays = attacks is None or BEST_OF.fullmatch(str(attacks)) or str(attacks) == FEW_SHOT
        if attacker is not None and not plays:
            raise ConfigurationError(
                f"--attacker {attacker} and --attacks {attacks} given: these attacks are sent as "
                "they are, without an attacker. Give one of the two, or --attacks best-of-N or "
                "few-shot."
            )
        self.folder, self.attacker = folder, attacker
        prompted = None if attacker is None else load_prompted_attacker(attacker)
        self.plan = _planned(config, prompted)
        self.openings = list(self.plan.openings.test)
        baseline = None if attacks is None else str(attacks)
        best = BEST_OF.fullmatch(baseline or "")
        self.best_of = int(best[1]) if best else None
        untrained = best is not None or baseline in (UNTRAINED, FEW_SHOT)
        self.name = attacker if baseline is None else baseline
        if prompted is not None:
            own = labels_of(self.plan.record, "again").attacker
            self.name = own if baseline is None else f"{baseline} of {own}"
        named = baseline is not None and (untrained or baseline == DIRECT)
        self.phase = file_stem(str(baseline)) if named else "again"
        self.examples: list[ScoredAttack] = []
        self.given: list[GivenAttack] | None = None
        if baseline == FEW_SHOT:
            self.examples = list(untrained_attacks(folder, least=SHOTS))
        elif baseline is not None and not untrained:
            self.given = given_attacks(baseline, self.openings) * trials
        if baseline is None and attacker is None and self.plan.attacker is None:
            self.attacker = str(folder.checkpoints / "last")
            if not Path(self.attacker).is_dir():
                raise ConfigurationError(
                    f"{folder.path} has no attacker to evaluate: {self.attacker} is missing, so "
                    "its training did not end, or it is a test of prompts. Name an attacker with "
                    "--attacker, or send the prompts as they are with --attacks direct."
                )
        self.planned = len(self.openings) * trials if self.given is None else len(self.given)
        self.trials, self.until = trials, until
        if until is not None and max(Counter(key for _, key in self._seeds()).values()) > trials:
            raise ConfigurationError(
                "--until observes prompts one after the other, and the file has several attacks "
                "for one prompt. Give one attack per prompt, or leave out --until."
            )

    def estimate(self) -> list[EstimateRow]:
        """Return the largest number of calls and tokens that it can need."""
        if self.given is not None:
            attacks = [[each.attack] for each in self.given]
            return estimate_given(self.plan, [each.context for each in self.given], attacks)
        return estimate(self.plan, training=False, queries_per_turn=self.best_of or 1)

    def run(self, destination: RunFolder) -> Evaluated:
        """Play, record the attempts in a folder and write the result.

        Raises:
            BudgetSpentError: No conversation could be completed.
        """
        plan, ledger = self.plan, current_ledger()
        ledger.check()
        if not destination.manifest.is_file():  # results elsewhere are a run for other commands
            destination.write_text(destination.config, plan.record.yaml)
        before = ledger.copied()
        with template_time(self.folder.started):
            problem = self._problem()
            judge = plan.evaluation_judge.load()
        seeds = self._seeds()
        kept = self._earlier(destination, seeds)
        with recording(destination, self.phase, self.planned) as log:
            for attempt in kept:
                log.append(attempt)
            phase = PhaseRun(
                labels_of(plan.record, self.phase, categories=plan.openings.categories),
                problem,
                judge,
                log,
                settings=plan.evaluation,
                seed=plan.seed,
            )
            result = self._play(phase, problem, [seed for seed, _ in seeds[len(kept) :]], kept)
            log.flush()
            failed = log.attempts(outcome="success")
            write_failures(failed, destination.path / f"failures_{self.phase}.jsonl")
        if self.given is None:
            warnings_of_attacks(plan, result)
        metrics = {**result.metrics, "spent": ledger.as_dict(since=before)}
        if self.until is not None:  # what was not played was not needed
            plan_attempts(destination, self.phase, result.summary.planned)
        plan.unload()
        path = destination.evaluation(self.phase)
        destination.write_json(path, metrics)
        return Evaluated(result.attempts, result.summary, metrics, plan.record.target, path)

    def _problem(self) -> Problem[str, str]:
        plan = self.plan
        if plan.attacker is not None:
            return prompted_problem(plan)
        if plan.target is not None and self.given is not None and plan.record.attacker is None:
            return TargetOnlyProblem(plan.target, plan.evaluation_judge.load())
        return build_problem(plan, attacker=self.attacker)

    def _seeds(self) -> list[tuple[int | str, str]]:
        """Return what each conversation opens with, and its prompt id, in the order of play.

        With a condition to decide, prompts are in random order, with all their trials in a row.
        """
        found: list[tuple[int | str, str]]
        if self.given is not None:
            found = [(number, each.prompt_id) for number, each in enumerate(self.given)]
        else:
            found = [(each, Opening.of(each).id) for each in self.openings * self.trials]
        if self.until is None:
            return found
        seed = self.plan.seed
        return sorted(found, key=lambda each: (derive_seed(seed, "until", each[1]), each[1]))

    def _earlier(
        self, destination: RunFolder, seeds: Sequence[tuple[int | str, str]]
    ) -> list[Attempt]:
        """Return the attempts of an earlier session; none without a condition to decide."""
        if self.until is None:
            return []
        labels = labels_of(self.plan.record, self.phase, attacker=self.name)
        prompts = [prompt for _, prompt in seeds]
        return earlier_attempts(
            destination.attempts_of(self.phase),
            list(zip(prompts, repetitions(prompts), strict=True)),
            run=labels.run,
            attacker=labels.attacker,
            target=labels.target,
            size=batch_size(self.trials),
        )

    def _play(
        self,
        phase: PhaseRun,
        problem: Problem[str, str],
        seeds: Sequence[int | str],
        kept: Sequence[Attempt],
    ) -> PhaseResult:
        environment: Environment[str, str]
        prompt_ids: dict[int | str, str] = {}
        if self.given is None:
            environment = self._environment(problem)
        else:
            environment = GivenAttacks(problem, self.given, seed=self.plan.seed)
            prompt_ids = {number: each.prompt_id for number, each in enumerate(self.given)}
        return phase.play(
            environment,
            seeds,
            self.planned,
            attacker=self.name,
            prompt_ids=prompt_ids,
            until=self.until,
            already=kept,
            batch=None if self.until is None else batch_size(self.trials),
            needs=needed(self.estimate()),
        )

    def _environment(self, problem: Problem[str, str]) -> Environment[str, str]:
        usual = build_environment(self.plan, problem, self.openings)
        depth = usual.tree_depth
        if self.best_of is not None:
            return BestOfNEnvironment(problem, self.openings, self.best_of, depth)
        if self.examples:
            return FewShotEnvironment(
                problem, self.openings, tree_depth=depth, examples=self.examples, shots=SHOTS
            )
        return usual


def _planned(config: RunConfig, attacker: PromptedAttackerConfig | None) -> Plan:
    """Return the plan of a run, with another attacker that is prompted in place of its own.

    A reward that needs probabilities is then replaced by the harm of the response.
    """
    plan = resolve(config)
    if attacker is None:
        return plan
    update: dict[str, Any] = {
        "attacker": attacker,
        "baseline": None,
        "training": replace(config.training, steps=0),
    }
    if any(part.reads_model for part in plan.reward_parts()):
        logger.warning(
            "reward: harm is used, because that of the run needs probabilities, and %s gives none",
            attacker.name,
        )
        update["reward"] = "harm"
    # The prompts that the run held out, because its own attacker was trained on the others.
    return replace(resolve(config.model_copy(update=update)), openings=plan.openings)
