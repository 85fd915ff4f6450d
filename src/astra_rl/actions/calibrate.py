"""Calibrate moderators: measure them against human labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.config.loading import load_moderator
from astra_rl.config.parts import resolve_moderator
from astra_rl.config.resolve import check_prices
from astra_rl.evaluation.judges.calibration import (
    Calibration,
    agreement,
    calibrate,
    write_calibration,
)
from astra_rl.evaluation.judges.labels import LabelledTexts
from astra_rl.evaluation.stats.resampling import Estimate
from astra_rl.logging import logger
from astra_rl.runs.spending import spending_on
from astra_rl.targets.budget import Budget


@dataclass(frozen=True)
class Calibrated:
    """One calibrated moderator, and the files that hold its calibration."""

    calibration: Calibration
    paths: Sequence[Path]


@dataclass(frozen=True)
class Calibrations:
    """The result of `calibrate_moderators`.

    Attributes:
        results: One per moderator, in the order given.
        agreement: Agreement between the moderators by name; None if there is only one.
        spent: Endpoint calls, tokens and cost, as `Ledger.as_dict` returns them.
    """

    results: Sequence[Calibrated]
    agreement: Mapping[str, Estimate] | None
    spent: Mapping[str, Any]


def calibrate_moderators(
    references: Sequence[str],
    labelled: LabelledTexts,
    *,
    threshold: float = 0.5,
    folder: Path,
    seed: int = 0,
    budget: Budget | None = None,
    on_result: Callable[[Calibrated], None] = lambda result: None,
) -> Calibrations:
    """Calibrate moderators on the same labelled texts and write the results.

    If the budget ends it early, the results of the moderators before are written, and so are the
    replies to the current one: the same call with a larger budget continues from there.

    Args:
        references: Names of moderators, or YAML files with ``type`` and ``options``.
        labelled: Texts and their labels.
        threshold: Minimum score of a positive text.
        folder: Where calibrations, and the ledger of endpoint calls, are written.
        seed: Random seed of the bootstrap.
        budget: Limits of endpoint calls; None sets no limit.
        on_result: Called with every result as soon as it is written.

    Raises:
        BudgetSpentError: The budget is exhausted.
        AstraError: A moderator cannot be constructed; the message says why.
    """
    budget = Budget() if budget is None else budget
    moderators = [resolve_moderator(load_moderator(reference)) for reference in references]
    endpoints = [each for moderator in moderators for each in moderator.endpoints()]
    check_prices(budget, endpoints)
    results: list[Calibrated] = []
    with spending_on(
        budget, folder, uses_endpoints=bool(endpoints), occasion="calibrate"
    ) as ledger:
        for reference, moderator in zip(references, moderators, strict=True):
            logger.info("calibrating %s on %d texts", reference, len(labelled.rows))
            ledger.check()
            calibration = calibrate(moderator.load(), labelled, threshold=threshold, seed=seed)
            results.append(Calibrated(calibration, write_calibration(calibration, folder)))
            on_result(results[-1])
    agreed = None
    if len(results) > 1:
        agreed = agreement([each.calibration for each in results], seed=seed)
    return Calibrations(results, agreed, ledger.as_dict())
