"""Calibration of a moderator: its scores compared with human labels of the same texts."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.moderator import Moderator, count_missing
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.labels import LabelledTexts
from astra_rl.evaluation.show.charts import calibration_panels
from astra_rl.evaluation.stats.agreement import alpha_estimate
from astra_rl.evaluation.stats.classification import (
    Confusion,
    confusion,
    confusion_by_group,
    decisions,
)
from astra_rl.evaluation.stats.resampling import Estimate, Groups, Scores, Truth
from astra_rl.evaluation.stats.score_calibration import (
    Bin,
    brier_estimate,
    calibration_error_estimate,
    reliability,
)
from astra_rl.evaluation.stats.score_curves import (
    Point,
    auroc_estimate,
    average_precision_estimate,
    best_threshold_estimates,
    precision_recall_curve,
    roc_curve,
)
from astra_rl.infra.jsonio import parse_json, write_atomic, write_json
from astra_rl.logging import logger
from astra_rl.moderators.identity import Identity, identity_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """Result of a moderator's calibration on a file of labels.

    Attributes:
        identity: Identity of the moderator.
        labels: Name and checksum of the file, and its numbers of rows, ties and raters.
        threshold: Score at or above which a text is classified as positive.
        scores: One score per row of the file, NaN where missing.
        unscored: Number of rows without a score, by reason; they are excluded from all statistics.
        counts: Confusion matrix at the threshold.
        estimates: Statistics by name, each with a 95% confidence interval: ``accuracy``,
            ``precision``, ``recall``, ``specificity``, ``f1``, ``auroc``, ``average_precision``,
            ``brier``, ``calibration_error``, ``best_threshold``, ``f1_at_best`` (on rows that were
            not used to choose the threshold), and with several raters ``alpha_raters``.
        roc: ROC curve: false and true positive rates.
        precision_recall: Precision-recall curve: recall and precision.
        bins: Calibration curve: mean score and rate of positives per bin.
        groups: Number of groups of rows, of one prompt or conversation each, or of one text.
        scored: ``truth``, ``scores`` and ``groups`` of the rows with a score and without a tie, if
            any group has several rows, so that other thresholds can be measured; else empty.
    """

    identity: Identity
    labels: Mapping[str, Any]
    threshold: float
    scores: tuple[float, ...]
    unscored: Mapping[str, int]
    counts: Confusion
    estimates: Mapping[str, Estimate]
    roc: Sequence[Point]
    precision_recall: Sequence[Point]
    bins: Sequence[Bin]
    groups: int
    scored: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes except `scores`, as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity.as_dict(),
            "labels": dict(self.labels),
            "threshold": self.threshold,
            "unscored": dict(self.unscored),
            "counts": self.counts._asdict(),
            "estimates": {name: each.as_dict() for name, each in self.estimates.items()},
            "roc": [point._asdict() for point in self.roc],
            "precision_recall": [point._asdict() for point in self.precision_recall],
            "calibration_curve": [
                {"mean_score": each.mean_score, **each.positives.as_dict()} for each in self.bins
            ],
            "groups": self.groups,
            "scored": {name: list(each) for name, each in self.scored.items()},
        }


def calibrate(
    moderator: Moderator[Any, Any],
    labelled: LabelledTexts,
    *,
    threshold: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Compare a moderator's scores with human labels.

    Rows of one prompt or conversation (`LabelledText.cluster`) may have errors that are alike.
    Intervals are `clustered_interval` for proportions and F1, Newcombe's, widened by a bootstrap
    over groups, for the AUROC, and the bootstrap over groups, corrected where it covers too little,
    for the other statistics. That of ``alpha_raters`` counts rows as independent. Ties between
    raters and rows without a score are excluded and counted.

    Args:
        moderator: The moderator to calibrate.
        labelled: The labelled texts.
        threshold: Score at or above which a text is classified as positive, in (0, 1].
        resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Raises:
        ConfigurationError: `threshold` is out of range, or one class has no rows.
        ContractError: The number of scores differs from the number of rows.
    """
    if not 0 < threshold <= 1:
        raise ConfigurationError(f"threshold={threshold}; it must be in (0, 1].")
    truths = [row.truth for row in labelled.rows]
    if not {True, False} <= set(truths):
        missing = "positive" if False in truths else "negative"
        raise ConfigurationError(
            f"{labelled.name} has no {missing} row; calibration needs positive and negative rows."
        )
    found = moderator.moderate([row.text for row in labelled.rows])
    check_length(found, len(labelled.rows), source=type(moderator).__name__)
    used = [
        (truth, float(score), row.cluster)
        for row, truth, score in zip(labelled.rows, truths, found, strict=True)
        if truth is not None and not is_missing(score)
    ]
    truth = np.asarray([each for each, _, _ in used], dtype=np.bool_)
    scores = np.asarray([each for _, each, _ in used], dtype=np.float64)
    numbers: dict[tuple[str, str], int] = {}
    groups = np.asarray(
        [numbers.setdefault(each, len(numbers)) for _, _, each in used], dtype=np.int64
    )
    clustered = groups if len(numbers) < len(used) else None
    counts = confusion(truth, scores, threshold)
    estimates = _estimates(
        truth, scores, clustered, threshold=threshold, resamples=resamples, seed=seed
    )
    if len(labelled.raters) > 1:
        estimates["alpha_raters"] = alpha_estimate(
            [row.labels for row in labelled.rows], "interval", resamples=resamples, seed=seed
        )
    return Calibration(
        identity_of(moderator),
        {
            "file": labelled.name,
            "sha256": labelled.sha256,
            "rows": len(labelled.rows),
            "ties": truths.count(None),
            "raters": len(labelled.raters),
        },
        threshold,
        tuple(float(score) for score in found),
        dict(count_missing(found)),
        counts,
        estimates,
        roc_curve(truth, scores),
        precision_recall_curve(truth, scores),
        reliability(truth, scores),
        len(numbers),
        {}
        if clustered is None
        else {
            "truth": truth.astype(int).tolist(),
            "scores": scores.tolist(),
            "groups": groups.tolist(),
        },
    )


def _estimates(
    truth: Truth,
    scores: Scores,
    groups: Groups | None,
    *,
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Return the statistics of a calibration; `resamples` and `seed` are of its bootstrap."""
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed}
    best, f1 = best_threshold_estimates(truth, scores, groups, **drawn)
    by_group = () if groups is None else confusion_by_group(truth, scores, threshold, groups)
    return {
        **decisions(confusion(truth, scores, threshold), by_group),
        "auroc": auroc_estimate(truth, scores, groups, **drawn),
        "average_precision": average_precision_estimate(truth, scores, groups, **drawn),
        "brier": brier_estimate(truth, scores, groups),
        "calibration_error": calibration_error_estimate(truth, scores, groups, **drawn),
        "best_threshold": best,
        "f1_at_best": f1,
    }


def agreement(
    calibrations: Sequence[Calibration], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Krippendorff's alpha between moderators that were calibrated on the same file.

    Returns:
        ``alpha_decisions`` (nominal) of the classifications, each at its own threshold, and
        ``alpha_scores`` (interval) of the scores.

    Raises:
        ConfigurationError: There are fewer than two calibrations, or their files differ.
    """
    if len(calibrations) < 2 or len({each.labels["sha256"] for each in calibrations}) > 1:
        raise ConfigurationError("give at least two calibrations on the same file of labels.")
    decisions = [
        [math.nan if math.isnan(s) else float(s >= each.threshold) for s in each.scores]
        for each in calibrations
    ]
    scores = [each.scores for each in calibrations]
    return {
        "alpha_decisions": alpha_estimate(
            list(zip(*decisions, strict=True)), "nominal", resamples=resamples, seed=seed
        ),
        "alpha_scores": alpha_estimate(
            list(zip(*scores, strict=True)), "interval", resamples=resamples, seed=seed
        ),
    }


def write_calibration(calibration: Calibration, folder: str | Path) -> tuple[Path, Path]:
    """Write a calibration to a folder, as JSON and as an SVG figure, for `calibration_of`.

    Returns:
        Paths of the JSON file and the figure.
    """
    identity = calibration.identity
    key = f"{identity.weights} {identity.settings} {calibration.labels['sha256']}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", identity.name.rpartition(".")[2])
    stem = Path(folder) / f"calibration-{name}-{_short_hash(key)}"
    figure = calibration_panels(
        calibration.roc,
        calibration.precision_recall,
        calibration.bins,
        base_rate=_base_rate(calibration.counts),
    )
    data, image = stem.with_suffix(".json"), stem.with_suffix(".svg")
    write_atomic(image, figure)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json({**calibration.as_dict(), "created": created}, data)
    return data, image


def calibration_of(moderator: Moderator[Any, Any], folder: str | Path) -> dict[str, Any] | None:
    """Return the newest calibration of a moderator in a folder, as `Calibration.as_dict`.

    The identity must match: class, weights and settings. None if there is no such calibration.
    """
    wanted = identity_of(moderator).as_dict()
    found: dict[str, Any] | None = None
    for path in sorted(Path(folder).glob("calibration-*.json")):
        try:
            each = parse_json(path.read_text(encoding="utf-8"))
            matches = each["schema_version"] == SCHEMA_VERSION and each["identity"] == wanted
            newer = matches and (found is None or each["created"] >= found["created"])
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s is not a readable calibration file; it is ignored", path)
            continue
        found = each if newer else found
    return found


def example_labels() -> Path:
    """Return the path of a bundled example: replies labelled as refusals or not."""
    return Path(str(resources.files("astra_rl.evaluation.judges") / "examples" / "refusals.csv"))


def _base_rate(counts: Confusion) -> float:
    positives = counts.true_positives + counts.false_negatives
    return positives / sum(counts) if sum(counts) else math.nan


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
