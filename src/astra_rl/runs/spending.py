"""Ledger and reply cache of a run or a command, and how work stops when a budget is spent."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from astra_rl.config.plan import Plan
from astra_rl.errors import BudgetEndedError, BudgetSpentError, EndpointError
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.resume import how_to_resume
from astra_rl.targets.budget import Budget
from astra_rl.targets.ledger import Ledger, current_ledger, enclosing_ledger
from astra_rl.targets.reply_cache import ReplyCache, caching_replies


@contextlib.contextmanager
def spending(
    plans: Sequence[Plan],
    folder: Path | None,
    *,
    occasion: str = "",
    keep_ledger: bool = False,
    share: Fraction | None = None,
) -> Iterator[Ledger]:
    """Charge all calls inside the block to one ledger, and cache replies.

    Inside another such block, calls also count in the outer ledger, and its limits apply, too.

    Args:
        plans: Plans that the block runs. The smallest of their budgets applies;
            replies are cached as the first one configures.
        folder: Folder of the run, or of the results of a command; None writes no files.
        occasion: Name of the command, part of the file names; empty for the run itself.
        keep_ledger: Continue the ledger of earlier sessions.
        share: Part of the budget that applies, see `Budget.part`; None is all of it.
    """
    budget = Budget.least(plan.budget for plan in plans)
    with spending_on(
        budget if share is None else budget.part(share),
        folder,
        uses_endpoints=any(plan.endpoints for plan in plans),
        cache=plans[0].cache,
        occasion=occasion,
        keep_ledger=keep_ledger,
    ) as ledger:
        yield ledger


@contextlib.contextmanager
def spending_on(
    budget: Budget,
    folder: Path | None,
    *,
    uses_endpoints: bool,
    cache: bool | str = True,
    occasion: str = "",
    keep_ledger: bool = False,
) -> Iterator[Ledger]:
    """Charge calls to a ledger and cache replies, like `spending`, but without a `Plan`.

    The cache in the folder is removed when the block ends without an error and the budget was
    not exhausted: the command is complete, and running it again calls the endpoints again. A cache
    file that the user named is kept.

    Args:
        budget: Limits of the block.
        folder: Where the ledger and the cache are written.
        uses_endpoints: Whether the block calls any endpoint.
        cache: Whether replies are cached, or the path of a cache file to keep.
        occasion: See `spending`.
        keep_ledger: See `spending`.
    """
    suffix = f"_{occasion}" if occasion else ""
    with contextlib.ExitStack() as stack:
        own, outer = None, enclosing_ledger()
        if folder is None:
            ledger = Ledger(budget, outer=outer)
        else:
            path = folder / f"ledger{suffix}.json"
            ledger = (
                Ledger.open(path, budget, outer)
                if keep_ledger
                else Ledger(budget, path=path, outer=outer)
            )
            own = folder / f"replies{suffix}.sqlite"
            if not uses_endpoints and budget == Budget():
                ledger.path = None
        place = own if cache is True else Path(cache) if cache else None
        if uses_endpoints and place is not None:
            stack.enter_context(ReplyCache(place).answering())
        yield stack.enter_context(ledger.charging())
    if not ledger.was_spent and own is not None:
        _remove(own)


@contextlib.contextmanager
def charged(plan: Plan, folder: RunFolder) -> Iterator[Ledger]:
    """Charge all calls inside the block to the ledger of a run.

    Raises:
        BudgetEndedError: A budget was spent; the message has the command that resumes the run.
        EndpointError: An endpoint kept failing; the same.
    """
    try:
        with spending([plan], folder.path, keep_ledger=True) as ledger:
            try:
                yield ledger
            except BudgetSpentError as error:
                raise budget_ended(ledger, error, folder) from error
    except EndpointError as error:
        raise EndpointError(f"{error} Everything is saved. {how_to_resume(folder)}") from error


def budget_ended(ledger: Ledger, spent: BudgetSpentError, folder: RunFolder) -> BudgetEndedError:
    """Record in the ledger that a budget ended a session, and return the error that says so."""
    ledger.ended_by.append(str(spent))
    option = "--" + spent.limit.replace("_", "-")
    kept = " ".join(getattr(spent, "__notes__", ["everything is saved."]))
    return BudgetEndedError(
        f"{spent}; {kept} {how_to_resume(folder)} {option} {spent.sufficient_limit:.15g}"
    )


def _remove(own: Path) -> None:
    for each in (own, own.with_name(f"{own.name}-wal"), own.with_name(f"{own.name}-shm")):
        each.unlink(missing_ok=True)


ResultT = TypeVar("ResultT")


def checking_budget(work: Callable[[], Sequence[ResultT]]) -> Sequence[ResultT]:
    """Call `work`, which processes one batch, if the budget is not spent.

    Raises:
        BudgetSpentError: A limit had already been reached.
    """
    current_ledger().check()
    return work()


FIRST_BATCH = 1
"""Items of the first batch under a budget; the following ones depend on what it needed."""


def batches_within_budget(count: int, most: int) -> Iterator[int]:
    """Yield the size of each batch before it is done, so that a budget leaves little half done.

    Each item of a batch may need calls of several endpoints in turn, for instance of a target and
    a judge. If the budget ends in between, the items are paid for and worth nothing. So a batch
    takes at most half of the calls that the budget may still pay for, by the calls per item so far.
    Replies from the cache count as calls, so that a repeated command uses no larger batches for
    work that is new.

    Args:
        count: Number of items; the sizes add up to it.
        most: Size of a batch without a budget.
    """
    ledger = current_ledger()
    before, done = _calls(ledger), 0
    size = FIRST_BATCH
    while done < count:
        size = min(size, count - done)
        yield size
        done += size
        calls_per_item = (_calls(ledger) - before) / done
        affordable = ledger.calls_left() / (2 * calls_per_item) if calls_per_item else math.inf
        size = max(1, math.floor(min(most, affordable)))


def _calls(ledger: Ledger) -> int:
    total = ledger.total()
    return total.requests + total.cached


class WithinBudget:
    """Processes batches until a budget is spent, and keeps every result that was paid for.

    If a call of a batch is not sent, the batch is repeated from the replies received so far, which
    costs nothing, and its complete results are kept. Later batches are not started. Without a reply
    cache the replies of a batch are kept in memory until it is done.

    Attributes:
        spent: The limit that was reached; None if none was.
    """

    def __init__(self) -> None:
        self.spent: BudgetSpentError | None = None

    def __call__(
        self,
        work: Callable[[], Sequence[ResultT]],
        is_complete: Callable[[ResultT], bool] = lambda result: True,
    ) -> Sequence[ResultT]:
        """Return the results of a batch, without the incomplete ones if a budget ended it."""
        if self.spent is not None:
            return []
        ledger = current_ledger()
        with caching_replies() if ledger.budget != Budget() else contextlib.nullcontext():
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
                return [each for each in work() if is_complete(each)]
