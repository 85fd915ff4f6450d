"""What a run or a command spends on calls, and the replies that it keeps meanwhile."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from astra_rl.config.experiment import Experiment
from astra_rl.config.resolve import Plan
from astra_rl.errors import BudgetSpentError
from astra_rl.ext.transformers.target_adapters import NO_LIKELIHOODS
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.targets.base import Target
from astra_rl.targets.budget import Budget
from astra_rl.targets.ledger import Ledger, current_ledger, describe_spent
from astra_rl.targets.reply_cache import ReplyCache, remembering


@contextlib.contextmanager
def spending(
    plans: Sequence[Plan],
    folder: Path | None,
    *,
    occasion: str = "",
    keep_ledger: bool = False,
) -> Iterator[Ledger]:
    """Charge the calls inside the block to one ledger, and answer from replies that are kept.

    Args:
        plans: Their budgets, of which the smallest limits count, and their endpoints; the first
            says where replies are cached.
        folder: Of the run, or of what a command writes; None keeps nothing.
        occasion: Distinguishes a command from the run itself.
        keep_ledger: Go on with what earlier sessions spent.
    """
    with spending_on(
        Budget.least(plan.budget for plan in plans),
        folder,
        asks=any(plan.endpoints for plan in plans),
        cache=plans[0].config.cache,
        occasion=occasion,
        keep_ledger=keep_ledger,
    ) as ledger:
        yield ledger


@contextlib.contextmanager
def spending_on(
    budget: Budget,
    folder: Path | None,
    *,
    asks: bool,
    cache: bool | str = True,
    occasion: str = "",
    keep_ledger: bool = False,
) -> Iterator[Ledger]:
    """Do the same without a configuration of a run; see `spending`.

    Replies are kept in the folder until the block ends without an error and with nothing left out
    for a budget: then there is nothing to go on with, and asking again shall ask again. Those in a
    file of the user's stay.

    Args:
        budget: What may be spent.
        folder: Where ledger and replies are kept.
        asks: Whether anything is asked at all.
        cache: Whether replies are kept, or a file in which they stay.
        occasion: See `spending`.
        keep_ledger: See `spending`.
    """
    suffix = f"_{occasion}" if occasion else ""
    with contextlib.ExitStack() as stack:
        own = None
        if folder is None:
            ledger = Ledger(budget)
        else:
            path = folder / f"ledger{suffix}.json"
            ledger = Ledger.open(path, budget) if keep_ledger else Ledger(budget, path=path)
            own = folder / f"replies{suffix}.sqlite"
            if not asks and budget == Budget():
                ledger.path = None
        place = own if cache is True else Path(cache) if cache else None
        if asks and place is not None:
            stack.enter_context(ReplyCache(place).answering())
        yield stack.enter_context(ledger.charging())
    if ledger.spent_by is None and own is not None:
        _remove(own)


ResultT = TypeVar("ResultT")


class WithinBudget:
    """Does work batch by batch until a budget is spent, and keeps all that was paid for.

    A batch in which a call was not sent is done once more with what was answered, which asks and
    costs nothing; of it remains what could be finished. Later batches are not begun. Where no
    replies are kept, those of a batch are remembered until it is done.

    Attributes:
        spent: The limit that ended it; None if none did.
    """

    def __init__(self) -> None:
        self.spent: BudgetSpentError | None = None

    def __call__(
        self,
        work: Callable[[], Sequence[ResultT]],
        is_finished: Callable[[ResultT], bool] = lambda result: True,
    ) -> Sequence[ResultT]:
        """Return the results of a batch, or those of them that are finished."""
        if self.spent is not None:
            return []
        ledger = current_ledger()
        with remembering() if ledger.budget != Budget() else contextlib.nullcontext():
            try:
                ledger.check()
            except BudgetSpentError as error:
                self.spent = error
                return []
            try:
                return work()
            except BudgetSpentError as error:
                self.spent = error
            with ledger.closed():
                return [each for each in work() if is_finished(each)]


def _remove(own: Path) -> None:
    for each in (own, own.with_name(f"{own.name}-wal"), own.with_name(f"{own.name}-shm")):
        each.unlink(missing_ok=True)


def evaluated_within_budget(
    evaluator: ASTEvaluator, planned: int, *, partly: bool = True
) -> tuple[dict[str, Any], BudgetSpentError | None]:
    """Evaluate, and sum up what could be played if a budget ends it early.

    Args:
        evaluator: Plays.
        planned: How many conversations.
        partly: Whether a part of them is worth summing up.

    Returns:
        The metrics, with ``planned``, how many conversations there were to be; and what was spent,
        if something was.

    Raises:
        BudgetSpentError: Nothing was played, or `partly` is false.
    """
    within = WithinBudget()
    if partly:
        evaluator.around_batch = within
    metrics = evaluator.evaluate(planned, progress=False)
    if within.spent is not None and not evaluator.measured:
        raise within.spent
    metrics["planned"] = planned
    return metrics, within.spent


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
