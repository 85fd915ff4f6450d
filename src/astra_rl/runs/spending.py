"""What a run or a command spends on calls, and the replies that it keeps meanwhile."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from astra_rl.errors import BudgetSpentError
from astra_rl.ext.transformers.under_test import NO_LIKELIHOODS
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.runs.asking import asked_in
from astra_rl.runs.build import Experiment
from astra_rl.runs.config import RunConfig
from astra_rl.targets.base import Target
from astra_rl.targets.ledger import Ledger, current_ledger, describe_spent
from astra_rl.targets.reply_cache import ReplyCache


@contextlib.contextmanager
def spending(
    config: RunConfig, folder: Path, *, occasion: str = "", keep_ledger: bool = False
) -> Iterator[Ledger]:
    """Charge the calls inside the block to one ledger, and answer from replies that are kept.

    Replies of a run are kept in its folder until the block ends without an error and with a budget
    that is not spent: then there is nothing to go on with, and asking again shall ask again. Those
    in a file of the user's stay.

    Args:
        config: Says the budget, and where replies are kept.
        folder: Of the run, or of what a command writes.
        occasion: Distinguishes a command from the run itself.
        keep_ledger: Go on with what earlier sessions spent.
    """
    suffix = f"_{occasion}" if occasion else ""
    budget = config.budget.budget()
    path = folder / f"ledger{suffix}.json"
    ledger = Ledger.open(path, budget) if keep_ledger else Ledger(budget, path=path)
    own = folder / f"replies{suffix}.sqlite"
    asks = bool(asked_in(config))
    if not asks:
        ledger.path = path if any(config.budget.model_dump().values()) else None
    with contextlib.ExitStack() as stack:
        if asks and config.cache:
            place = own if config.cache is True else Path(config.cache)
            stack.enter_context(ReplyCache(place).answering())
        yield stack.enter_context(ledger.charging())
    with contextlib.suppress(BudgetSpentError):
        ledger.check()
        _remove(own)


def _remove(own: Path) -> None:
    for each in (own, own.with_name(f"{own.name}-wal"), own.with_name(f"{own.name}-shm")):
        each.unlink(missing_ok=True)


def evaluated_within_budget(
    evaluator: ASTEvaluator, planned: int, *, partly: bool = True
) -> tuple[dict[str, Any], BudgetSpentError | None]:
    """Evaluate, and sum up what could be played if a budget ends it early.

    Returns:
        The metrics, with ``planned``, how many conversations there were to be; and what was spent,
        if something was.

    Raises:
        BudgetSpentError: Nothing was played, or `partly` is false.
    """
    evaluator.before_batch = current_ledger().check
    spent = None
    try:
        metrics = evaluator.evaluate(planned, progress=False)
    except BudgetSpentError as error:
        if not (partly and evaluator.measured):
            raise
        metrics, spent = evaluator.aggregate_metrics(evaluator.measured), error
    metrics["planned"] = planned
    return metrics, spent


def notes_on_calls(
    experiment: Experiment, metrics: Mapping[str, Any], ledger: Ledger
) -> Iterator[str]:
    """Yield what a reader of the report must know of calls: what failed, what was spent."""
    target = experiment.problem.target
    if isinstance(target, Target):
        yield f"The target was asked, not loaded ({target.name}); {NO_LIKELIHOODS}."
    errors = metrics["outcomes"].get("error", 0)
    if errors:
        reasons = Counter(
            turn["unscored"]
            for each in metrics["conversations"]
            for turn in each["turns"][-1:]
            if each["outcome"] == "error" and "unscored" in turn
        )
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield (
            f"In {errors} conversations the call of a model failed ({listed}); they are in no "
            "rate, and the rate is bounded by what they could have been."
        )
    if metrics["planned"] > metrics["n"]:
        yield (
            f"A budget ended the evaluation: {metrics['n']} of {metrics['planned']} held-out "
            "conversations were played. The rest is missing, not safe."
        )
    spent = describe_spent(ledger.as_dict())
    if spent:
        yield f"Spent on calls: {spent}."
    for ended in dict.fromkeys(ledger.ended_by):
        yield f"A session of this run was ended early: {ended}."
