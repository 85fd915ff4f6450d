"""Send recorded attacks to a target again and compare the outcomes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from astra_rl.actions.score import JUDGED_TOGETHER, rescore
from astra_rl.config.estimate import Estimate, EstimateRow, estimate_given, needed
from astra_rl.config.experiment import build_problem
from astra_rl.config.loading import load_config
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality, judge_quality
from astra_rl.evaluation.measures.comparisons import compare
from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels, record_path
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.logging import logger
from astra_rl.methods.replay import RespondingProblem, TargetOnlyProblem, replay_attacks
from astra_rl.models.chat_template import template_time
from astra_rl.moderators.identity import identity_of
from astra_rl.runs.call_notes import check_any_known
from astra_rl.runs.evaluations import REPLAY, REPLAY_OF_FAILURES
from astra_rl.runs.folder import RunFolder, file_stem, open_run_folder
from astra_rl.runs.phases import played_order
from astra_rl.runs.provenance import labels_of
from astra_rl.runs.recorded import Recorded, is_sequential, recording
from astra_rl.runs.spending import WithinBudget, batches_within_budget, spending
from astra_rl.targets.ledger import current_ledger

CONVERSATION = "replayed conversation"
"""Phase of a single conversation that was sent again; it is no evaluation of the report."""


@dataclass(frozen=True)
class Replayed:
    """Recorded attacks that were sent again.

    Attributes:
        before: Summary of the recorded attempts; None if only failures, or one conversation, were
            sent again, because their rate is what they were selected by.
        now: Summary of the new attempts.
        drift: Paired comparison; A is the recorded attempt, B the new one. None if only failures
            or one conversation were sent again: an unchanged target would seem to improve
            (regression to the mean).
        read: Share of turns in which the input of the target changed (another template, tokenizer
            or system message), among those for which both inputs are known.
        path: Log of the new attempts.
        left_out: Number of attempts that were not made because the budget was spent.
        spent: Spending on calls, as `Ledger.as_dict`.
        conversation: The recorded and the new attempt if one conversation was sent again.
        quality: Measured errors of the judge; None if it is not calibrated, and for a selection:
            attacks that were chosen by a judge are not those on which its errors were measured.
    """

    before: Summary | None
    now: Summary
    drift: PairedComparison | None
    read: Rate
    path: Path
    left_out: int
    spent: Mapping[str, Any]
    conversation: tuple[Attempt, Attempt] | None = None
    quality: JudgeQuality | None = None


def replay_run(
    run: str | Path,
    *,
    target: str | None = None,
    phase: str = "after",
    only_failures: bool = False,
    conversation: str | None = None,
    overrides: Sequence[str] = (),
) -> Replayed:
    """Send the recorded attacks of a run to a target again and score the responses.

    If the budget ends it early, the attempts made so far are recorded and compared; running it
    again continues from the cached replies.

    Args:
        run: Folder of the run.
        target: Folder or hub id, or a YAML file of a target; None uses the target of the run.
        phase: Phase of the run.
        only_failures: Send only attempts in which the target failed. The result then has the new
            rate alone.
        conversation: Id of an attempt; send only this one, and keep an earlier replay of all.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.

    Raises:
        BudgetSpentError: No attempt could be completed.
        EndpointError: All attempts failed; they are recorded.
        AstraError: The folder is no run, it has no such attempts, or a model cannot be loaded.
    """
    folder = open_run_folder(run)
    plan = resolve(load_config(folder.config, overrides, target=target))
    saved = _saved(folder, phase, only_failures=only_failures, conversation=conversation)
    sequential = is_sequential(folder, phase)
    selected = only_failures or conversation is not None
    if conversation is not None:
        part, name = f"conversation_{conversation}", CONVERSATION
    else:
        part = file_stem(f"replay_{plan.record.target}")
        name = f"{REPLAY_OF_FAILURES if only_failures else REPLAY}{phase}"
    path = folder.attempts_of(part)
    with template_time(folder.started):
        judge = plan.evaluation_judge.load()
    labels = labels_of(plan.record, name)
    within = WithinBudget()
    pairs = []
    with (
        spending([plan], folder.path, occasion="replay") as ledger,
        recording(folder, part, len(saved), sequential=sequential) as out,
        template_time(folder.started),
    ):
        for then, now in resend_attacks(plan, saved, labels, judge=judge, within=within):
            out.append(now)
            pairs.append((then, now))
        if within.spent is not None and not pairs:
            raise within.spent
    if within.spent is None:
        check_any_known({plan.record.target: [now for _, now in pairs]})
    old, new = [then.row for then, _ in pairs], [now.row for _, now in pairs]
    changed: defaultdict[str, list[bool]] = defaultdict(list)
    for then, now in pairs:
        changed[then.prompt_id] += _changed_inputs(then, now)
    return Replayed(
        None if selected else summarise((attempt.row for attempt in saved), sequential=sequential),
        summarise(new, planned=len(saved), sequential=sequential),
        None if selected else compare(old, new, sequential=sequential),
        Rate.of_prompts((sum(each), len(each)) for each in changed.values()),
        path,
        len(saved) - len(pairs),
        ledger.as_dict(),
        pairs[0] if conversation is not None else None,
        None if selected else _quality(judge, plan, saved),
    )


def _quality(
    judge: Moderator[Any, Any], plan: Plan, saved: Sequence[Attempt]
) -> JudgeQuality | None:
    """Return the measured errors of the judge at the threshold of the attempts, if it is one."""
    thresholds = {attempt.threshold for attempt in saved}
    if len(thresholds) != 1:
        return None
    return judge_quality(judge, plan.evaluation.calibrations, thresholds.pop())


def estimate_replay(
    run: str | Path,
    *,
    target: str | None = None,
    phase: str = "after",
    only_failures: bool = False,
    conversation: str | None = None,
    overrides: Sequence[str] = (),
) -> Estimate:
    """Return the largest number of calls and tokens of `replay_run`; nothing is sent or loaded.

    Raises:
        AstraError: As in `replay_run`.
    """
    folder = open_run_folder(run)
    plan = resolve(load_config(folder.config, overrides, target=target))
    saved = _saved(folder, phase, only_failures=only_failures, conversation=conversation)
    return Estimate(_estimate(plan, saved), len(saved), plan.budget)


def _estimate(plan: Plan, saved: Sequence[Attempt]) -> list[EstimateRow]:
    openings = [attempt.opening.conversation() for attempt in saved]
    return estimate_given(plan, openings, [attempt.sent for attempt in saved])


def _saved(
    folder: RunFolder, phase: str, *, only_failures: bool, conversation: str | None
) -> list[Attempt]:
    with Recorded(folder, phase) as recorded:
        saved = [
            attempt
            for attempt in recorded.attempts()
            if attempt.sent
            and (attempt.outcome is Outcome.SUCCESS or not only_failures)
            and conversation in (None, attempt.id)
        ]
    if not saved and conversation is not None:
        raise ConfigurationError(
            f"{folder.path} has no conversation {conversation!r} to send again in {phase!r}; the "
            "report shows the id of each under 'About this conversation'."
        )
    if not saved:
        raise ConfigurationError(f"{folder.path} has no attempts to send again in {phase!r}.")
    return saved


def _changed_inputs(old: Attempt, new: Attempt) -> list[bool]:
    """Return for each turn whether the target's input changed, until its responses differ."""
    found = []
    for then, now in zip(old.turns, new.turns, strict=False):  # one may end early
        if then.asked is None or now.asked is None:
            break
        found.append(then.asked != now.asked)
        if then.response != now.response:  # later inputs contain the response, so they differ
            break
    return found


def resend_attacks(
    plan: Plan,
    saved: Sequence[Attempt],
    labels: Labels,
    *,
    judge: Moderator[Any, Any],
    within: WithinBudget,
) -> Iterator[tuple[Attempt, Attempt]]:
    """Send the attacks of attempts to the target of a plan, and score the responses.

    Yields pairs of recorded and new attempt, batch by batch, so that an error loses one batch at
    most. Attempts that a spent budget left incomplete are left out.

    Args:
        plan: Plan with the target.
        saved: The recorded attempts; their prompts, trials and attackers are kept.
        labels: Run, phase and target of the new attempts.
        judge: Scores the responses; the threshold of each attempt is kept.
        within: Stops when a budget is spent.

    Raises:
        AstraError: A model cannot be loaded.
    """
    identity = identity_of(judge)
    labels = replace(labels, judge_id=identity.digest)
    asked = _target_problem(plan, judge)

    def send(numbers: Sequence[int]) -> list[tuple[Attempt, Attempt]]:
        batch = [saved[number] for number in numbers]
        graphs = replay_attacks(
            asked,
            [attempt.opening.conversation() for attempt in batch],
            [list(attempt.sent) for attempt in batch],
            seed=plan.seed,
            numbers=numbers,
        )
        made = [
            _replayed_attempt(attempt, graph, labels, judge=identity.name)
            for attempt, graph in zip(batch, graphs, strict=True)
        ]
        return list(zip(batch, rescore(made, judge), strict=True))

    order: Sequence[int | str] = range(len(saved))
    sizes: Iterator[int] = (
        min(JUDGED_TOGETHER, len(saved) - at) for at in range(0, len(saved), JUDGED_TOGETHER)
    )
    if not current_ledger().affords(needed(_estimate(plan, saved))):  # the budget could end it
        order = played_order(order, len(saved), plan.seed)
        sizes = batches_within_budget(len(saved), JUDGED_TOGETHER)
    start = 0
    for size in sizes:
        numbers, start = [int(each) for each in order[start : start + size]], start + size
        logger.info("sending attacks %d to %d of %d", start - size + 1, start, len(saved))
        yield from within(partial(send, numbers), lambda pair: pair[1].is_complete)


def _replayed_attempt(
    attempt: Attempt, graph: Graph[str, str], labels: Labels, *, judge: str
) -> Attempt:
    """Record an attempt that was sent again, without scores."""
    nodes = next(graph.paths(), [])
    return record_path(
        nodes,
        attempt.opening,
        replace(labels, attacker=attempt.attacker),
        judge=judge,
        scores=[math.nan] * len(nodes),  # scored later, all in one call
        threshold=attempt.threshold,
        prompt_id=attempt.prompt_id,
        trial=attempt.trial,
        branch=attempt.branch,
        category=attempt.category,
    )


def _target_problem(plan: Plan, judge: Moderator[Any, Any]) -> RespondingProblem:
    """Return the target; a remote one needs no attacker."""
    if plan.target is not None:
        return TargetOnlyProblem(plan.target, judge)
    return build_problem(plan, moderator=judge)
