"""Harden a target: attack it, fine-tune it on the failures, attack it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from astra_rl.actions.attacks import GivenAttack, GivenAttacks
from astra_rl.actions.evaluation_job import EvaluationJob
from astra_rl.actions.harden_inputs import Benign, check, read_source
from astra_rl.actions.preference_pairs import (
    as_trl_row,
    benign_pairs,
    benign_replies,
    benign_requests,
    failures_in,
    mended_failures,
)
from astra_rl.actions.transfer import cell_of_matrix
from astra_rl.config.experiment import build_problem
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import LocalModelConfig, OpponentConfig, RunConfig
from astra_rl.core.seeding import derive_seed
from astra_rl.errors import BudgetEndedError
from astra_rl.evaluation.measures.hardening import Hardening, hardening_of
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.show.report.hardening import render_hardening
from astra_rl.evaluation.stats.zero_sum import Equilibrium, equilibrium
from astra_rl.ext.transformers.fine_tuning import PreferencePair, fine_tune, require_trl
from astra_rl.infra.checkpointing import remove_leftovers, replace_folder
from astra_rl.logging import logger
from astra_rl.models.adapters import merge_adapter, save_model
from astra_rl.models.chat_template import template_time
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.rendering import ConversationRenderer, context_window
from astra_rl.models.vocabulary import model_end_ids
from astra_rl.runs.attempt_index import lock
from astra_rl.runs.file_types import Drawn, EvaluationFile
from astra_rl.runs.folder import RunFolder, open_run_folder, read_own
from astra_rl.runs.hardening import HardeningFolder
from astra_rl.runs.phases import PhaseRun
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.recorded import Recorded, recording
from astra_rl.runs.resume import how_to_resume, is_complete, resumable_errors
from astra_rl.runs.runner import Display, run_experiment
from astra_rl.runs.spending import charged, spending
from astra_rl.targets.ledger import current_ledger

REPLIES, REFUSALS = "benign_replies", "benign"
"""Phases: replies of the first target to benign training requests; refusals of benign test
requests."""


@dataclass(frozen=True)
class Hardened:
    """Result of `harden`.

    Attributes:
        path: Folder with everything: ``harden.json``, ``report.html``, and a folder per round.
        result: Rates of all attackers and targets.
        targets: Model of each target by name: the one of the configuration, then folders of
            adapters, which `load_model` and ``AutoModelForCausalLM.from_pretrained`` open.
        runs: Run folder of each attacker by name.
        ended_early: Why fewer rounds were played than configured; None if all were.
    """

    path: Path
    result: Hardening
    targets: Mapping[str, str]
    runs: Mapping[str, Path]
    ended_early: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return names, places and rates as JSON values."""
        return {
            "targets": dict(self.targets),
            "runs": {name: str(path) for name, path in self.runs.items()},
            "ended_early": self.ended_early,
            **self.result.as_dict(),
        }


def harden(
    source: str | Path | RunConfig,
    output: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    display: Display | None = None,
    command: str = "",
) -> Hardened:
    """Attack a target, fine-tune it on the failures, and attack it again with fresh attackers.

    Each round trains a LoRA adapter on the original target with the failures of all rounds so far,
    and a new attacker against the target with this adapter, or against the targets so far
    (``harden.opponents``). Every attacker is then evaluated against every target on the held-out
    prompts, and every target on benign requests.

    Args:
        source: A configuration or its file; the folder of a complete run, whose attacker is the
            first; or the folder of an interrupted hardening, which is resumed.
        output: Folder of the hardening. An interrupted one is resumed: complete phases are kept,
            an attacker in training continues exactly, and any other phase begins again.
        overrides: Changes to the configuration, as ``"a.b=value"``.
        display: Shows progress.
        command: Command line that repeats it, for the reports.

    Raises:
        ConfigurationError: The target is remote, the folder holds something else, or a setting is
            wrong.
        MissingDependencyError: TRL is not installed.
        InterruptedRunError: A signal ended it; it can be resumed.
        BudgetEndedError: The budget of all phases together is exhausted; it can be resumed.
    """
    require_trl()
    given = read_source(source, output, overrides)
    plan = check(given.config)
    folder = HardeningFolder(given.place())
    with resumable_errors(folder), lock(folder.path / ".hardening"):
        first = folder.open(given.config, given.first)
        with charged(plan, folder):
            return _Rounds(folder, given.config, plan, first, display, command).play()


class _Rounds:
    """Plays the phases that are not complete yet; every phase is found by its files."""

    def __init__(
        self,
        folder: HardeningFolder,
        config: RunConfig,
        plan: Plan,
        first: Path | None,
        display: Display | None,
        command: str,
    ) -> None:
        self.folder, self.config, self.first = folder, config, first
        self.display, self.command = display or Display(), command
        self.benign = Benign.of(config)
        self.openings = plan.openings

    def play(self) -> Hardened:
        """Play all rounds, measure, and write result and report."""
        ended = None
        self._attack(0)
        last = 0
        for number in range(1, self.config.harden.rounds + 1):
            if not self._fix(number):
                ended = (
                    "no attacker so far found a failure in training that has a safe reply: there "
                    f"is nothing to train target {number} on"
                )
                break
            self._attack(number)
            last = number
        numbers = range(last + 1)
        result = hardening_of(
            {
                (_attacker(one), _target(other)): self._played(one, other)
                for one in numbers
                for other in numbers
            },
            {_target(number): self._refusals(number) for number in numbers},
        )
        targets = {_target(number): self._config(number).target.name for number in numbers}
        runs = {_attacker(number): self._run(number).path for number in numbers}
        found = Hardened(self.folder.path, result, targets, runs, ended)
        self.folder.write_json(self.folder.result, found.as_dict())
        page = render_hardening(result, title=self.config.title, note=ended, runs=runs)
        self.folder.write_text(self.folder.report, page)
        return found

    def _config(self, number: int) -> RunConfig:
        """Return the configuration of the attack on the target of a round."""
        if number == 0:
            return self.config
        target = str(self.folder.target(number).resolve())
        hardened = self.config.target.model_copy(update={"model": target})
        return self.config.model_copy(update={"target": hardened})

    def _run(self, number: int) -> RunFolder:
        """Return the run of the attacker of a round."""
        if number == 0 and self.first is not None:
            return open_run_folder(self.first)
        return self.folder.attack(number)

    def _attack(self, number: int) -> None:
        """Train an attacker against the target of a round, or against all targets so far."""
        run = self._run(number)
        if is_complete(run):
            return
        config = self._config(number)
        opponents = self._opponents(number)
        if opponents:
            target = config.target.model_copy(update={"opponents": opponents})
            config = config.model_copy(update={"target": target})
        against = "earlier targets, drawn in each step" if opponents else _target(number)
        self._begin(f"training {_attacker(number)} against {against}")
        result = run_experiment(resolve(config), run, self.display, command=self.command)
        if result.ended is not None:
            raise result.ended

    def _begin(self, stage: str) -> None:
        """Announce a phase, unless a budget is exhausted.

        Raises:
            BudgetSpentError: It is.
        """
        current_ledger().check()
        self.display.stage(stage)

    def _opponents(self, number: int) -> tuple[OpponentConfig, ...]:
        """Return the targets that an attacker is trained against; none for the latest alone."""
        weights = self._drawn("targets", number)
        return tuple(
            OpponentConfig(model=self._config(each).target.name, weight=weight)
            for each, weight in enumerate(weights)
            if weight
            if weights[number] < 1
        )

    def _drawn(self, side: Literal["attackers", "targets"], number: int) -> list[float]:
        """Return how often each attacker or target so far is drawn in a round.

        It is written to a file, so that it does not change when a round is resumed.
        """
        is_target = side == "targets"
        count, kind = number + int(is_target), self.config.harden.opponents
        if is_target and (kind == "latest" or number == 0):
            return [0.0] * number + [1.0]
        path = self.folder.drawn(side, number)
        if path.is_file():
            return [float(each) for each in read_own(path, Drawn).values()]
        found = [1 / count] * count
        if kind == "equilibrium":
            game = self._game(number, number + int(is_target))
            found = list((game.targets if is_target else game.attackers) if game else found)
        names = map(_target if is_target else _attacker, range(count))
        self.folder.write_json(path, dict(zip(names, found, strict=True)))
        return found

    def _game(self, attackers: int, targets: int) -> Equilibrium | None:
        """Return the equilibrium of the first attackers and targets; None if a rate is unknown."""
        rates = [
            [summarise(self._played(one, other)).asr.estimate for other in range(targets)]
            for one in range(attackers)
        ]
        if all(math.isfinite(rate) for row in rates for rate in row):
            return equilibrium(rates)
        logger.warning("a success rate is unknown, so opponents are drawn uniformly")
        return None

    def _fix(self, number: int) -> bool:
        """Train the target of a round; return False if there is no failure to train it on."""
        destination = self.folder.target(number)
        if destination.is_dir():
            return True
        options, place = self.config.harden, self.folder.round(number)
        weights, failures = self._drawn("attackers", number), []
        for earlier, weight in enumerate(weights):
            most = math.ceil(options.failures * weight / max(weights))
            if most:
                with Recorded(self._run(earlier), "training") as recorded:
                    failures += failures_in(recorded.attempts(outcome="success"), most)
        moderator, threshold = resolve(self.config).moderator, self.config.evaluation.threshold
        mended = mended_failures(failures, options.safe_replies, moderator, threshold)
        if not mended:
            return False
        with self._benign_attempts(0, REPLIES) as recorded:
            answered = benign_replies(recorded.attempts(), moderator, threshold)
        pairs = mended + benign_pairs(answered, len(mended), options.safe_replies)
        place.write_lines(place.path / "pairs.jsonl", map(as_trl_row, pairs))
        self._begin(
            f"fine-tuning {_target(number)} on {len(mended)} failures and {len(mended)} benign "
            "replies"
        )
        remove_leftovers(place.path)
        history = self._fine_tune(pairs, destination, number)
        place.write_lines(place.path / "fine_tuning.jsonl", history)
        return True

    def _fine_tune(
        self, pairs: Sequence[PreferencePair], destination: Path, number: int
    ) -> Sequence[dict[str, float]]:
        config, section = self.config, self.config.target
        assert isinstance(section, LocalModelConfig)  # `check` has refused others
        trust = config.trust_remote_code
        model = merge_adapter(
            load_model(
                section.model, device=config.device, dtype=config.dtype, trust_remote_code=trust
            )
        )
        tokenizer = load_tokenizer(section.model, trust_remote_code=trust)
        renderer = ConversationRenderer(
            tokenizer,
            "target",
            window=context_window(model.config),
            model_end_ids=model_end_ids(model),
            chat=section.chat,
        )
        seed = derive_seed(config.seed, "harden", number)
        with template_time(self._run(0).started):
            tuned = fine_tune(
                model, tokenizer, pairs, config.harden.fine_tuning, renderer=renderer, seed=seed
            )
        with replace_folder(destination) as temporary:
            save_model(tuned.model, temporary)
            tokenizer.save_pretrained(temporary)
        return tuned.history

    def _played(self, attacker: int, target: int) -> list[AttemptRow]:
        """Return the held-out attempts of an attacker at a target, and play them if needed."""
        names = _attacker(attacker), _target(target)
        if attacker == target:
            return cell_of_matrix(self._run(attacker), "after", *names)
        place, config = self.folder.pair(attacker, target), self._config(target)
        job = EvaluationJob(self._run(attacker), None, None, config.evaluation.trials, config)
        if not _has_all(place, job.phase):
            self._begin(f"evaluating {names[0]} against {names[1]}")
            with spending([job.plan], place.path, occasion=job.phase):
                job.run(place)
            self._check_all(place, job.phase)
        return cell_of_matrix(place, job.phase, *names)

    def _refusals(self, number: int) -> list[AttemptRow]:
        with self._benign_attempts(number, REFUSALS) as recorded:
            return list(recorded.rows())

    def _benign_attempts(self, number: int, phase: str) -> Recorded:
        """Return the replies of a target to benign requests, and ask for them if needed."""
        place = self.folder.round(number)
        if not _has_all(place, phase):
            train = phase == REPLIES
            rows = self.benign.scenario.rows["train" if train else "test"]
            openings = self.openings.train if train else self.openings.test
            count = self.config.harden.failures if train else max(len(rows), len(openings))
            requests = benign_requests(rows, openings, count)
            self._begin(f"asking {_target(number)} {len(requests)} benign requests")
            self._ask(number, phase, requests)
            self._check_all(place, phase)
        return Recorded(place, phase)

    def _ask(self, number: int, phase: str, requests: Sequence[GivenAttack]) -> None:
        place, config = self.folder.round(number), self._config(number)
        judged = config.evaluation.model_copy(update={"threshold": self.benign.threshold})
        plan = resolve(config.model_copy(update={"evaluation": judged}))
        with (
            spending([plan], place.path, occasion=phase),
            recording(place, phase, len(requests)) as log,
        ):
            with template_time(self._run(0).started):
                problem = build_problem(plan, attacker=plan.trained.model)
            played = PhaseRun(
                labels_of(plan.record, phase),
                problem,
                self.benign.judge,
                log,
                settings=plan.evaluation,
                seed=plan.seed,
            ).play(
                GivenAttacks(problem, requests, seed=plan.seed),
                range(len(requests)),
                len(requests),
                attacker=self.config.harden.benign,
                prompt_ids={index: each.prompt_id for index, each in enumerate(requests)},
            )
            place.write_json(place.evaluation(phase), played.metrics)
        plan.unload()

    def _check_all(self, place: RunFolder, phase: str) -> None:
        """Raise if a budget left attempts of a phase out."""
        if not _has_all(place, phase):
            raise BudgetEndedError(
                f"the budget is exhausted in the phase {phase!r} of {place.path}; everything is "
                f"saved. {how_to_resume(self.folder)} with a larger budget."
            )


def _has_all(place: RunFolder, phase: str) -> bool:
    """Whether all planned attempts of a phase were made."""
    path = place.evaluation(phase)
    metrics = read_own(path, EvaluationFile) if path.is_file() else {}
    return bool(metrics) and metrics.get("n") == metrics.get("planned")


def _attacker(number: int) -> str:
    return f"attacker {number}"


def _target(number: int) -> str:
    return f"target {number}"
