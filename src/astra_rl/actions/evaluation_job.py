"""One attacker, given attacks or a baseline, evaluated against one target."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from astra_rl.config.estimate import EstimateRow, estimate, estimate_given, needed
from astra_rl.config.experiment import build_environment, build_problem
from astra_rl.config.loading import load_prompted_attacker
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import EVALUATED_TOGETHER, resolve
from astra_rl.config.schema import PromptedAttackerConfig, RunConfig
from astra_rl.core.attack_files import ScoredAttack
from astra_rl.core.environment import Environment
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, repetitions
from astra_rl.core.text import opening_key
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.base import content_digest
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.logging import logger
from astra_rl.methods.ast_evaluator import EvaluationResult
from astra_rl.methods.environments import BestOfNEnvironment
from astra_rl.methods.few_shot import FewShotEnvironment
from astra_rl.methods.replay import TargetOnlyProblem
from astra_rl.models.chat_template import template_time
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.call_notes import all_calls_failed
from astra_rl.runs.folder import RunFolder, file_stem
from astra_rl.runs.phases import Part, PhaseResult, PhaseRun, played_order
from astra_rl.runs.provenance import labels_of, versions
from astra_rl.runs.recorded import plan_attempts, recording
from astra_rl.runs.shards import Key, Shard, claim, kept_attempts, models_of, order_of
from astra_rl.runs.until import Until, batch_size, earlier_attempts
from astra_rl.targets.ledger import Ledger, current_ledger

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
        shard: Shard | None = None,
    ) -> None:
        _check_is_played(attacker, attacks)
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
            self.attacker = _trained_attacker(folder)
        self.planned = len(self.openings) * trials if self.given is None else len(self.given)
        self.trials, self.until, self.shard = trials, until, shard
        if until is not None and shard is not None:
            raise ConfigurationError(
                "--until and --shard given: whether a condition is decided depends on the "
                "conversations of all shards. Leave out one of the two."
            )
        if until is not None and max(Counter(key for _, key in self.seeds()).values()) > trials:
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
        before = {} if self.shard else ledger.copied()  # the ledger of a shard is its own
        with template_time(self.folder.started):
            problem = self._problem()
            judge = plan.evaluation_judge.load()
        with self._recording(destination, problem, judge) as (log, kept):
            phase = PhaseRun(
                self.labels(categories=plan.openings.categories),
                problem,
                judge,
                log,
                settings=plan.evaluation,
                seed=plan.seed,
            )
            result = self._play(phase, problem, kept)
            log.flush()
            write_failures_of(log, destination, self.phase)
        if self.given is None:
            warnings_of_attacks(plan, result)
        metrics = {**result.metrics, "spent": ledger.as_dict(since=before)}
        if self.until is not None:  # what was not played was not needed
            plan_attempts(destination, self.phase, result.summary.planned)
        plan.unload()
        path = destination.evaluation(self.phase)
        destination.write_json(path, metrics)
        return Evaluated(result.attempts, result.summary, metrics, plan.record.target, path)

    @contextlib.contextmanager
    def _recording(
        self, destination: RunFolder, problem: Problem[str, str], judge: Moderator[Any, Any]
    ) -> Iterator[tuple[AttemptLog, list[Attempt]]]:
        """Yield the log of the phase, and the attempts of an earlier session that are kept in it.

        Without a condition to decide, an evaluation is played anew; a shard continues.
        """
        if self.shard is not None:
            self.follow([destination.path])
            identity = self.identity(problem, judge)
            claim(destination, self.phase, self.shard, identity)
            keys = self.order()
            own = [keys[at] for at in self.shard.places(self.planned)]
            whole = 1 if self.is_shuffled else EVALUATED_TOGETHER
            path = destination.attempts_of(self.phase)
            kept = kept_attempts(path, own, self.labels(), whole=whole)
            plan_attempts(destination, self.phase, len(own))
            with AttemptLog(path, write=True) as log:
                yield log, [] if all_calls_failed(kept) else kept
            return
        kept = self._earlier(destination)
        with recording(destination, self.phase, self.planned) as log:
            for attempt in kept:
                log.append(attempt)
            yield log, kept

    def labels(self, categories: Mapping[str, str] | None = None) -> Labels:
        """Return the labels of the attempts."""
        record = self.plan.record
        return labels_of(record, self.phase, attacker=self.name, categories=categories)

    @cached_property
    def is_shuffled(self) -> bool:
        """Whether the budget could end the evaluation, so that all shards play in random order.

        It is decided for the whole, by the whole budget, so that all shards decide the same.
        """
        return not Ledger(self.plan.budget).affords(needed(self.estimate()))

    def follow(self, folders: Sequence[Path]) -> None:
        """Keep the order of play of shards that were begun; their budget may change since."""
        order = order_of(folders, self.phase)
        if order is not None:
            self.is_shuffled = order == "random"

    def order(self) -> list[Key]:
        """Return the prompt id and trial of every planned conversation, in the order of play."""
        prompt_of = {opening_key(seed): prompt for seed, prompt in self.seeds()}
        seeds: Sequence[int | str] = [seed for seed, _ in self.seeds()]
        if self.is_shuffled:
            seeds = played_order(seeds, len(seeds), self.plan.seed)
        prompts = [prompt_of[opening_key(seed)] for seed in seeds]
        return list(zip(prompts, repetitions(prompts), strict=True))

    def known_identity(self) -> dict[str, Any]:
        """Return what identifies the evaluation of a shard, without that of its models."""
        labels = self.labels()
        texts = [[each.context, each.attack] for each in self.given or ()]
        examples = [[each.context, each.attack] for each in self.examples]
        return {
            "run": labels.run,
            "seed": self.plan.seed,
            "attacker": labels.attacker,
            "target": labels.target,
            "phase": self.phase,
            "trials": self.trials,
            "conversations": self.planned,
            "prompts": content_digest([self.order(), texts, examples]),
            "threshold": self.plan.evaluation.threshold,
            "order": "random" if self.is_shuffled else "planned",
            "batch": EVALUATED_TOGETHER,
            "versions": {k: v for k, v in versions().items() if k != "python"},
        }

    def identity(self, problem: Problem[str, str], judge: Moderator[Any, Any]) -> dict[str, Any]:
        """Return what identifies the evaluation of a shard; it must be the same in all shards."""
        return {
            **self.known_identity(),
            "models": models_of(problem),
            "judge": identity_of(judge).as_dict(),
        }

    def _problem(self) -> Problem[str, str]:
        plan = self.plan
        if plan.attacker is not None:
            return prompted_problem(plan)
        if plan.target is not None and self.given is not None and plan.record.attacker is None:
            return TargetOnlyProblem(plan.target, plan.evaluation_judge.load())
        return build_problem(plan, attacker=self.attacker)

    def seeds(self) -> list[tuple[int | str, str]]:
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

    def _earlier(self, destination: RunFolder) -> list[Attempt]:
        """Return the attempts of an earlier session; none without a condition to decide."""
        if self.until is None:
            return []
        labels = self.labels()
        prompts = [prompt for _, prompt in self.seeds()]
        return earlier_attempts(
            destination.attempts_of(self.phase),
            list(zip(prompts, repetitions(prompts), strict=True)),
            run=labels.run,
            attacker=labels.attacker,
            target=labels.target,
            size=batch_size(self.trials),
        )

    @property
    def prompt_ids(self) -> dict[int | str, str]:
        """Prompt id by number of a given attack; empty without given attacks."""
        return {number: each.prompt_id for number, each in enumerate(self.given or ())}

    def _play(
        self, phase: PhaseRun, problem: Problem[str, str], kept: Sequence[Attempt]
    ) -> PhaseResult:
        seeds = [seed for seed, _ in self.seeds()]
        part: Part | None = None
        if self.shard is not None:
            part = Part(self.shard.places(self.planned)[len(kept) :], self.is_shuffled)
        elif kept:  # trials are counted over the whole
            part = Part(range(len(kept), self.planned), is_shuffled=False)
        environment: Environment[str, str]
        if self.given is None:
            environment = self._environment(problem)
        else:
            environment = GivenAttacks(problem, self.given, seed=self.plan.seed)
        return phase.play(
            environment,
            seeds,
            self.planned,
            attacker=self.name,
            prompt_ids=self.prompt_ids,
            until=self.until,
            already=kept,
            batch=None if self.until is None else batch_size(self.trials),
            needs=needed(self.estimate()),
            part=part,
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


def write_failures_of(log: AttemptLog, destination: RunFolder, phase: str) -> None:
    """Write the successful attempts of an evaluation."""
    path = destination.path / f"failures_{phase}.jsonl"
    write_failures(log.attempts(outcome="success"), path)


def _check_is_played(attacker: str | None, attacks: str | Path | None) -> None:
    """Raise if an attacker is named and the attacks do not need one.

    Raises:
        ConfigurationError: It is.
    """
    plays = attacks is None or BEST_OF.fullmatch(str(attacks)) or str(attacks) == FEW_SHOT
    if attacker is not None and not plays:
        raise ConfigurationError(
            f"--attacker {attacker} and --attacks {attacks} given: these attacks are sent as "
            "they are, without an attacker. Give one of the two, or --attacks best-of-N or "
            "few-shot."
        )


def _trained_attacker(folder: RunFolder) -> str:
    """Return the folder of the trained attacker of a run.

    Raises:
        ConfigurationError: There is none.
    """
    attacker = folder.checkpoints / "last"
    if not attacker.is_dir():
        raise ConfigurationError(
            f"{folder.path} has no attacker to evaluate: {attacker} is missing, so its training "
            "did not end, or it is a test of prompts. Name an attacker with --attacker, or send "
            "the prompts as they are with --attacks direct."
        )
    return str(attacker)


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
