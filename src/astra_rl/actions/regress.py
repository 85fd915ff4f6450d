"""Run a regression suite: send attacks that once succeeded to a target again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from astra_rl.actions.replay import resend_attacks
from astra_rl.config.loading import load_config, load_moderator, load_target
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import ModeratorConfig, PromptsConfig, RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality, judge_quality
from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.evaluation.show.exports.regression import CaseResult, RegressionSuite
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.spending import WithinBudget, spending
from astra_rl.targets.budget import Budget


@dataclass(frozen=True)
class Regression:
    """Result of a regression suite.

    Attributes:
        cases: Result of each case.
        summary: Summary of all trials, with a prompt per case; those not made count as errors.
        quality: Measured errors of the judge at the threshold of the suite; None if it is not
            calibrated.
    """

    cases: Sequence[CaseResult]
    summary: Summary
    quality: JudgeQuality | None


def regress(
    suite_file: str | Path,
    target: str,
    *,
    run: str | Path | None = None,
    moderator: str | None = None,
    overrides: Sequence[str] = (),
    budget: Budget | None = None,
    trials: int = 1,
) -> Regression:
    """Send the attacks of a regression suite to a target and check each case.

    Cases that a spent budget left incomplete are undecided.

    Args:
        suite_file: Written by the export "regression".
        target: Folder or hub id, or a YAML file of a target.
        run: Folder of the run whose configuration is used for target and judge; None requires
            `moderator`.
        moderator: Judge of the responses: a name, or a YAML file with its type and options. None
            uses the judge of the run.
        overrides: Changes to the configuration, as ``"a.b=value"``.
        budget: Limits on calls; None uses those of the configuration. With `run`, replies are
            cached in its folder until all cases are decided.
        trials: Number of times that each case is sent. A case fails if any trial fails.

    Raises:
        AstraError: The suite cannot be read or has no cases, or it was scored by another judge.
    """
    if trials < 1:
        raise ConfigurationError(f"trials={trials}; each case must be sent at least once.")
    suite = RegressionSuite.load(suite_file)
    config = _regression_config(target, run, moderator, overrides)
    if not suite.cases:
        raise ConfigurationError(
            f"{suite_file} has no cases, so nothing would be tested. Export a run in which attacks "
            "succeeded: astra-rl export RUN --format regression."
        )
    if budget is not None:
        config = config.model_copy(update={"budget": budget})
    plan = resolve(config)
    judge = plan.moderator.load()
    identity = identity_of(judge)
    known = suite.judge_id or identity.digest
    if (identity.name, identity.digest) != (suite.judge.split(" ")[0], known):
        raise ConfigurationError(
            f"the suite was judged by {suite.judge} ({known}) and this judge is {identity.name} "
            f"({identity.digest}): their scores cannot be compared. Give the judge of the suite, "
            "with the same options, with --moderator."
        )
    labels = Labels("regression", "regression", target=target)
    saved = [case.attempt(suite, trial) for case in suite.cases for trial in range(trials)]
    made: dict[str, list[Attempt]] = defaultdict(list)
    with spending([plan], None if run is None else Path(run), occasion="regress"):
        for then, now in resend_attacks(plan, saved, labels, judge=judge, within=WithinBudget()):
            made[then.prompt_id].append(now)
    # Trials that a spent budget left out make their case undecided.
    cases = [
        replace(result, status="undecided", detail=f"{result.detail}; not all trials were made")
        if 0 < len(made[result.case.id]) < trials and result.status == "passed"
        else result
        for result in suite.check(made)
    ]
    return Regression(
        cases,
        summarise(
            (each.row for attempts in made.values() for each in attempts), planned=len(saved)
        ),
        judge_quality(judge, config.evaluation.calibrations, suite.threshold),
    )


def _regression_config(
    target: str, run: str | Path | None, moderator: str | None, overrides: Sequence[str]
) -> RunConfig:
    judge: ModeratorConfig | None = None if moderator is None else load_moderator(moderator)
    if run is not None:
        config = load_config(open_run_folder(run).config, overrides, target=target)
        judge = judge or config.evaluation.judge or config.moderator
    elif judge is None:
        raise ConfigurationError(
            "no moderator given; use --moderator, or --run to take that of a run."
        )
    else:
        asked = load_target(target)
        values = {
            # The attacker is never used; only a local target is loaded.
            "attacker": {"model": asked.name},
            "target": asked,
            "moderator": judge.model_dump(),
            "prompts": _NO_PROMPTS,
        }
        config = RunConfig.model_validate(values)
    evaluation = config.evaluation.model_copy(update={"judge": None})
    return config.model_copy(
        update={"moderator": judge, "evaluation": evaluation, "prompts": _NO_PROMPTS}
    )


_NO_PROMPTS = PromptsConfig(scenario="planted_secrets")
"""Prompts of a configuration that plays none: the suite has its own openings."""
