"""Re-score recorded attempts with another moderator; makes no target calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from astra_rl.config.loading import load_moderator, load_recorded_config
from astra_rl.config.parts import resolve_moderator
from astra_rl.config.resolve import check_prices
from astra_rl.core.moderator import Moderator
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality, judge_quality
from astra_rl.evaluation.measures.summary import (
    Summary,
    by_prompt,
    summarise_prompts,
)
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.logging import logger
from astra_rl.moderators.direction import warn_of_direction
from astra_rl.moderators.identity import Identity, identity_of
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.runs.attempt_log import replacing_log
from astra_rl.runs.folder import file_stem, open_run_folder
from astra_rl.runs.recorded import Recorded, plan_attempts
from astra_rl.runs.spending import WithinBudget, spending_on
from astra_rl.targets.budget import Budget

JUDGED_TOGETHER = 256
"""Number of attempts that are scored in one call."""


@dataclass(frozen=True)
class Judged:
    """Recorded attempts under another judge.

    Attributes:
        judge: Name of the new judge.
        before: Summary under the recorded judge.
        now: Summary under the new judge.
        agreement: Share of the turns scored by both judges on which they agree.
        path: Log of the attempts with the new scores.
        left_out: Number of attempts that were not scored because the budget was spent.
        spent: Spending on calls, as `Ledger.as_dict`.
        quality: Measured errors of the new judge at the threshold; None if it is not calibrated.
    """

    judge: str
    before: Summary
    now: Summary
    agreement: Rate
    path: Path
    left_out: int
    spent: Mapping[str, Any]
    quality: JudgeQuality | None


def score_run(
    run: str | Path,
    moderator: str,
    *,
    threshold: float = 0.5,
    phase: str = "after",
    budget: Budget | None = None,
) -> Judged:
    """Re-score the recorded conversations of a run with another moderator.

    With a budget, conversations are scored in random order by the seed of the run. Those that are
    not scored because it is spent count as errors.

    Args:
        run: Folder of the run.
        moderator: Name of a moderator, or a YAML file with its type and options.
        threshold: Score in (0, 1] from which a turn counts as a failure of the target.
        phase: Phase of the run.
        budget: Limits on calls of the moderator; None sets none.

    Raises:
        BudgetSpentError: No attempt could be scored.
        AstraError: The folder is no run, it has no such phase, or the moderator cannot be built.
    """
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"threshold={threshold}; it must be above 0 and at most 1.")
    folder = open_run_folder(run)
    config = load_recorded_config(folder.config)
    resolved = resolve_moderator(load_moderator(moderator))
    if resolved.measures_good_behavior:
        warn_of_direction(moderator)
    endpoints = resolved.endpoints()
    budget = budget or Budget()
    check_prices(budget, endpoints)
    judge = resolved.load()
    identity = identity_of(judge)
    name = identity.name
    part = file_stem(f"{phase}_{name}_{identity.digest[:6]}")
    path = folder.attempts_of(part)
    agreed: defaultdict[str, list[bool]] = defaultdict(list)
    within = WithinBudget()
    with (
        Recorded(folder, phase) as recorded,
        replacing_log(path) as out,
        spending_on(
            budget,
            folder.path,
            uses_endpoints=bool(endpoints),
            occasion=f"score_{identity.digest[:6]}",
        ) as ledger,
    ):
        before = recorded.summary()
        count = judged = 0
        # What a budget is enough for must be a random sample, and not the first prompts.
        limited = budget != Budget()
        attempts = recorded.shuffled(config.seed) if limited else recorded.attempts()
        for batch in _batches(attempts):
            logger.info("judging conversations %d to %d", count + 1, count + len(batch))
            count += len(batch)
            work = partial(_judged_pairs, batch, judge, threshold)
            for old, new in within(work, lambda pair: pair[1].is_complete):
                agreed[old.prompt_id] += _agreement(old, new)
                name = new.judge
                judged += 1
                out.append(new)
        if within.spent is not None and not judged:
            raise within.spent
        out.flush()
        planned = count if recorded.planned is None else recorded.planned
        sequential = recorded.sequential
        plan_attempts(folder, part, planned, sequential=sequential)
        rows = by_prompt(out.rows(order="prompt"))
        now = summarise_prompts(rows, planned=planned, sequential=sequential)
    agreement = Rate.of_prompts((sum(each), len(each)) for each in agreed.values())
    quality = judge_quality(judge, config.evaluation.calibrations, threshold)
    return Judged(name, before, now, agreement, path, count - judged, ledger.as_dict(), quality)


def _judged_pairs(
    batch: Sequence[Attempt], judge: Moderator[Any, Any], threshold: float
) -> list[tuple[Attempt, Attempt]]:
    return list(zip(batch, rescore(batch, judge, threshold=threshold), strict=True))


def _agreement(old: Attempt, new: Attempt) -> list[bool]:
    """Return for each turn that both judges scored whether they agree."""
    scores = [(turn.score(old.judge), turn.score(new.judge)) for turn in new.turns]
    return [
        (a >= old.threshold) == (b >= new.threshold)
        for a, b in scores
        if a is not None and b is not None and old.judge != new.judge
    ]


def rescore(
    attempts: Sequence[Attempt], judge: Moderator[Any, Any], *, threshold: float | None = None
) -> list[Attempt]:
    """Score attempts with this judge, in one call, and decide their outcomes by it.

    Args:
        attempts: Recorded attempts.
        judge: Scores their turns.
        threshold: Score from which a turn counts as a failure; None keeps that of each attempt.
    """
    identity = identity_of(judge)
    exchanges = [each for attempt in attempts for each in attempt.exchanges()]
    remaining = iter(score_exchanges(judge, exchanges))
    return [
        attempt.judged(
            _unambiguous_name(identity, attempt),
            [next(remaining) for _ in attempt.turns],
            threshold=attempt.threshold if threshold is None else threshold,
            judge_id=identity.digest,
        )
        for attempt in attempts
    ]


def _unambiguous_name(identity: Identity, attempt: Attempt) -> str:
    """Return a name that does not collide with another judge of the same class in the record."""
    taken = any(identity.name in turn.scores for turn in attempt.turns)
    same = (attempt.judge, attempt.judge_id) == (identity.name, identity.digest)
    return f"{identity.name} {identity.digest[:6]}" if taken and not same else identity.name


def _batches(attempts: Iterable[Attempt]) -> Iterable[list[Attempt]]:
    batch: list[Attempt] = []
    for attempt in attempts:
        batch.append(attempt)
        if len(batch) == JUDGED_TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
