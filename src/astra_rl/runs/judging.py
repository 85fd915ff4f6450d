"""What was said in a run, judged, sent and compared again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.attempts import Attempt, Outcome
from astra_rl.evaluation.exports.regression import CaseResult, RegressionSuite
from astra_rl.evaluation.paired import PairedComparison
from astra_rl.evaluation.recording import Labels, record_path
from astra_rl.evaluation.summary import (
    Summary,
    compare,
    summarise,
)
from astra_rl.methods.ast_evaluator import judge_answered
from astra_rl.methods.resending import Answers, TargetAlone, resend
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.build import (
    build_moderator,
    build_problem,
    build_target,
    check_moderator_options,
    check_options,
    check_target,
)
from astra_rl.runs.config import (
    ModeratorConfig,
    RunConfig,
    check_credentials,
    load_config,
    load_moderator,
    load_target,
)
from astra_rl.runs.experiment import labels_of
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.records import AttemptLog
from astra_rl.runs.spending import spending
from astra_rl.targets.base import Target

JUDGED_TOGETHER = 256
"""Attempts that are judged in one call."""


@dataclass(frozen=True)
class Judged:
    """What a judge said of attempts that were made before.

    Attributes:
        judge: Its name.
        before: Summed up as they were judged before.
        now: Summed up as this judge decides.
        agreement: Share of turns scored by both on which they agree; NaN without any.
        path: The log of the attempts with the new scores.
    """

    judge: str
    before: Summary
    now: Summary
    agreement: float
    path: Path


def score_run(
    run: str | Path, moderator: str, *, threshold: float = 0.5, phase: str = "after"
) -> Judged:
    """Judge the recorded conversations of a run again, without attacking again.

    Args:
        run: Folder of the run.
        moderator: Name of a moderator, or a YAML file with its type and options.
        threshold: Score from which on a turn is a failure of the target.
        phase: Part of the run.

    Raises:
        AstraError: The folder is no run, it has no such attempts, or the moderator cannot be made.
    """
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"threshold={threshold}; it must be above 0 and at most 1.")
    folder = open_run_folder(run)
    config = load_moderator(moderator)
    check_moderator_options(config)
    judge = build_moderator(config)
    name = identity_of(judge).name
    path = folder.attempts_of(f"{phase}_{name}")
    path.unlink(missing_ok=True)
    agreed: list[bool] = []
    with open_attempts(folder, phase) as log, AttemptLog(path, write=True) as out:
        before = summarise(log.rows(phase=phase))
        for batch in _batches(log.attempts(phase=phase)):
            for old, new in zip(batch, judge_again(batch, judge, threshold=threshold), strict=True):
                agreed += _agreement(old, new)
                out.append(new)
        out.flush()
        now = summarise(out.rows())
    share = sum(agreed) / len(agreed) if agreed else math.nan
    return Judged(name, before, now, share, path)


def _agreement(old: Attempt, new: Attempt) -> list[bool]:
    """Whether both judges say the same of each turn that both scored."""
    scores = [(turn.score(old.judge), turn.score(new.judge)) for turn in new.turns]
    return [
        (a >= old.threshold) == (b >= new.threshold)
        for a, b in scores
        if a is not None and b is not None and old.judge != new.judge
    ]


@dataclass(frozen=True)
class Replayed:
    """What came of sending saved attacks again.

    Attributes:
        before: Summed up as recorded.
        now: Summed up as it is now.
        drift: Paired: A is as recorded, B is now.
        path: The log of the new attempts.
    """

    before: Summary
    now: Summary
    drift: PairedComparison
    path: Path


def replay_run(
    run: str | Path,
    *,
    target: str | None = None,
    phase: str = "after",
    only_failures: bool = False,
    overrides: Sequence[str] = (),
) -> Replayed:
    """Send the recorded attacks of a run to a target again and judge the answers as then.

    Args:
        run: Folder of the run.
        target: Folder or hub id, or a YAML file of a target; None is the run's.
        phase: Part of the run.
        only_failures: Send only what made the target fail.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.

    Raises:
        AstraError: The folder is no run, it has no such attempts, or a model cannot be loaded.
    """
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides)
    if target is not None:
        config = config.with_target(target)
    check_options(config)
    with open_attempts(folder, phase) as log:
        saved = [
            attempt
            for attempt in log.attempts(phase=phase)
            if attempt.outcome is Outcome.SUCCESS or not only_failures
        ]
    if not saved:
        raise ConfigurationError(f"{folder.path} has no attempts to send again in {phase!r}.")
    path = folder.attempts_of(f"replay_{config.target.name}")
    path.unlink(missing_ok=True)
    judge = build_moderator(config.evaluation.judge or config.moderator)
    labels = labels_of(config, f"replay of {phase}")
    with AttemptLog(path, write=True) as out, spending(config, folder.path, occasion="replay"):
        for attempt in send_again(config, saved, labels, judge=judge):
            out.append(attempt)
        out.flush()
        rows = list(out.rows())
    old = [attempt.row for attempt in saved]
    return Replayed(summarise(old), summarise(rows), compare(old, rows), path)


def send_again(
    config: RunConfig, saved: Sequence[Attempt], labels: Labels, *, judge: Moderator[Any, Any]
) -> list[Attempt]:
    """Send the attacks of attempts to the target of a configuration, and judge the answers.

    Args:
        config: Says how the target is called.
        saved: The attempts; prompt, trial and attacker stay as they are.
        labels: Run, phase and target of the new ones.
        judge: Scores the answers, from the threshold of each attempt on.

    Raises:
        AstraError: A model cannot be loaded.
    """
    graphs = resend(
        _answers(config, judge),
        [attempt.opening.conversation() for attempt in saved],
        [[turn.attack for turn in attempt.turns] for attempt in saved],
        seed=config.seed,
    )
    made = []
    for attempt, graph in zip(saved, graphs, strict=True):
        nodes = next(graph.paths(), [])
        made.append(
            record_path(
                nodes,
                attempt.opening,
                Labels(labels.run, labels.phase, attempt.attacker, labels.target),
                judge=identity_of(judge).name,
                scores=[math.nan] * len(nodes),  # until all are judged in one call
                threshold=attempt.threshold,
                prompt_id=attempt.prompt_id,
                trial=attempt.trial,
                branch=attempt.branch,
                category=attempt.category,
            )
        )
    return judge_again(made, judge)


def _answers(config: RunConfig, judge: Moderator[Any, Any]) -> Answers:
    """Return what is asked. A target that is not loaded needs no attacker beside it."""
    target = build_target(config.target)
    return TargetAlone(target) if isinstance(target, Target) else build_problem(config, judge)


def judge_again(
    attempts: Sequence[Attempt], judge: Moderator[Any, Any], *, threshold: float | None = None
) -> list[Attempt]:
    """Return the attempts as this judge decides them, all judged in one call.

    Args:
        attempts: What was said.
        judge: Scores it.
        threshold: Score from which on a turn is a failure; None keeps that of each attempt.
    """
    name = identity_of(judge).name
    exchanges = [each for attempt in attempts for each in attempt.exchanges()]
    remaining = iter(judge_answered(judge, exchanges))
    return [
        attempt.judged(
            name,
            [next(remaining) for _ in attempt.turns],
            threshold=attempt.threshold if threshold is None else threshold,
        )
        for attempt in attempts
    ]


def compare_runs(run_a: str | Path, run_b: str | Path, *, phase: str = "after") -> PairedComparison:
    """Compare two runs on the prompts that both played, pair by pair.

    Raises:
        ConfigurationError: They have no prompt in common.
    """
    rows = []
    for run in (run_a, run_b):
        with open_attempts(open_run_folder(run), phase) as log:
            rows.append(list(log.rows(phase=phase)))
    return compare(*rows)


def regress(
    suite_file: str | Path,
    target: str,
    *,
    run: str | Path | None = None,
    moderator: str | None = None,
    overrides: Sequence[str] = (),
) -> list[CaseResult]:
    """Send the attacks of a regression suite to a target and say what it withstands.

    Args:
        suite_file: Written by the export "regression".
        target: Folder or hub id, or a YAML file of a target.
        run: Folder of the run that says how target and judge are called; None needs `moderator`.
        moderator: Judge of the answers: a name, or a YAML file with its type and options. None is
            the run's.
        overrides: Changes to the configuration, as ``"a.b=value"``.

    Raises:
        AstraError: The suite cannot be read, or its judge is another one.
    """
    suite = RegressionSuite.load(suite_file)
    config = _regression_config(target, run, moderator, overrides)
    judge = build_moderator(config.moderator)
    name = identity_of(judge).name
    if name != suite.judge:
        raise ConfigurationError(
            f"the suite was judged by {suite.judge} and this judge is {name}: their scores cannot "
            "be compared. Name the judge of the suite with --moderator."
        )
    labels = Labels("regression", "regression", target=target)
    saved = [case.attempt(suite) for case in suite.cases]
    with spending(config, Path(suite_file).parent, occasion="regress"):
        made = send_again(config, saved, labels, judge=judge)
    return suite.check({case.id: each for case, each in zip(suite.cases, made, strict=True)})


def _regression_config(
    target: str, run: str | Path | None, moderator: str | None, overrides: Sequence[str]
) -> RunConfig:
    judge: ModeratorConfig | None = None if moderator is None else load_moderator(moderator)
    if run is not None:
        config = load_config(open_run_folder(run).config, overrides).with_target(target)
        judge = judge or config.evaluation.judge or config.moderator
    elif judge is None:
        raise ConfigurationError("give --moderator, or --run with a run that says which one.")
    else:
        asked = load_target(target)
        values = {
            # Nobody attacks; a local target is all that is loaded.
            "attacker": {"model": asked.name},
            "target": asked,
            "moderator": judge.model_dump(),
            "prompts": {"scenario": "planted_secrets"},
        }
        config = RunConfig.model_validate(values)
    check_moderator_options(judge)
    check_target(config.target)
    config = config.model_copy(update={"moderator": judge})
    check_credentials(config)
    return config


def open_attempts(folder: RunFolder, phase: str) -> AttemptLog:
    """Open the log of a run to read it.

    Raises:
        ConfigurationError: There is none, or none of this phase.
    """
    log = AttemptLog(folder.attempts if phase != "again" else folder.attempts_of("again"))
    if next(log.rows(phase=phase, limit=1), None) is None:
        phases = sorted({row.phase for row in log.rows()})
        log.close()
        raise ConfigurationError(
            f"{folder.path} has no attempts of the phase {phase!r}; it has {', '.join(phases)}."
        )
    return log


def _batches(attempts: Iterable[Attempt]) -> Iterable[list[Attempt]]:
    batch: list[Attempt] = []
    for attempt in attempts:
        batch.append(attempt)
        if len(batch) == JUDGED_TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
