"""Calibrate moderators on human labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.config.loading import load_moderator
from astra_rl.config.resolve import check_prices, resolve_moderator
from astra_rl.evaluation.judges.calibration import (
    Calibration,
    agreement,
    calibrate,
    write_calibration,
)
from astra_rl.evaluation.judges.labels import read_labels
from astra_rl.evaluation.stats.classification import Estimate
from astra_rl.runs.spending import spending_on
from astra_rl.targets.budget import Budget


@dataclass(frozen=True)
class Calibrated:
    """The calibrations of several moderators on the same labels.

    Attributes:
        calibrations: One per moderator.
        agreement: Agreement between the moderators; empty for one moderator.
        spent: What the endpoint calls took, as `Ledger.as_dict` returns it.
    """

    calibrations: Sequence[Calibration]
    agreement: Mapping[str, Estimate]
    spent: Mapping[str, Any]


def calibrate_moderators(
    references: Sequence[str],
    labels: Path,
    *,
    text: str | None = None,
    attack: str | None = None,
    label: Sequence[str] = (),
    threshold: float = 0.5,
    folder: Path = Path("calibrations"),
    seed: int = 0,
    budget: Budget | None = None,
    on_result: Callable[[Calibration, Sequence[Path]], None] = lambda result, paths: None,
) -> Calibrated:
    """Calibrate moderators on one file of labels and write the results.

    If the budget ends it early, the finished calibrations and the replies received so far are kept;
    the same call continues.

    Args:
        references: Names of moderators, or YAML files with ``type`` and ``options``.
        labels: CSV or JSONL file of labelled texts.
        text: Column of the judged text; None finds it, see `read_labels`.
        attack: Column of the prompt that the text answers.
        label: Columns of the raters.
        threshold: A text with at least this score counts as harmful, in (0, 1].
        folder: Folder of the results.
        seed: Seed of the bootstrap.
        budget: Limits of what is spent on endpoint calls; None is no limit.
        on_result: Called with each finished calibration and the files it was written to.

    Raises:
        BudgetSpentError: The budget is exhausted.
        AstraError: A moderator cannot be loaded, or the file cannot be read.
    """
    budget = budget or Budget()
    moderators = [resolve_moderator(load_moderator(reference)) for reference in references]
    endpoints = [each for moderator in moderators for each in moderator.endpoints()]
    check_prices(budget, endpoints)
    labelled = read_labels(labels, text=text, attack=attack, labels=label)
    found = []
    with spending_on(budget, folder, asks=bool(endpoints), occasion="calibrate") as ledger:
        for moderator in moderators:
            ledger.check()
            calibration = calibrate(moderator.load(), labelled, threshold=threshold, seed=seed)
            found.append(calibration)
            on_result(calibration, write_calibration(calibration, folder))
    between = agreement(found, seed=seed) if len(found) > 1 else {}
    return Calibrated(found, between, ledger.as_dict())
