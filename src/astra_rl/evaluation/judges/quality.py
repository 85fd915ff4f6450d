"""Measured errors of a judge at the threshold of a success rate, from its newest calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_rl.core.moderator import Moderator
from astra_rl.evaluation.judges.calibration import calibration_of
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.stats.classification import Confusion, confusion_by_group, decisions
from astra_rl.evaluation.stats.judge_errors import Corrected, NotCorrected, correct_rate
from astra_rl.evaluation.stats.resampling import Estimate

NOT_CALIBRATED = "not calibrated: error rate unknown (run astra-rl calibrate)"


@dataclass(frozen=True)
class JudgeQuality:
    """How often a judge errs at one threshold, on labelled texts.

    Attributes:
        labels: Name of the file of labels.
        rows: Number of its rows, those with tied labels or without a score included.
        threshold: Threshold of the success rate; the calibration may have used another one.
        created: When the judge was calibrated, UTC.
        counts: Confusion matrix at `threshold`.
        by_group: That of each group of labels whose errors may be alike, such as those of one
            prompt. Empty: labels are independent.
    """

    labels: str
    rows: int
    threshold: float
    created: str
    counts: Confusion
    by_group: tuple[Confusion, ...] = ()

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Sensitivity (recall) and specificity; the precision depends on the rate of the run."""
        found = decisions(self.counts, self.by_group)
        return {"sensitivity": found["recall"], "specificity": found["specificity"]}

    @property
    def text(self) -> str:
        """The numbers as one line."""
        numbers = [
            f"{name} {each.value:.2f} ({each.low:.2f} to {each.high:.2f})"
            for name, each in self.estimates.items()
            if not math.isnan(each.value)
        ]
        groups = f" in {len(self.by_group)} groups" if self.by_group else ""
        return (
            f"{', '.join(numbers)} at threshold {self.threshold:g}; {sum(self.counts)} labels"
            f"{groups} of {self.labels}"
        )

    def correct(self, summary: Summary, confidence: float = 0.95) -> Corrected | NotCorrected:
        """Correct the attack success rate of a summary for the errors of the judge."""
        return correct_rate(
            summary.asr,
            self.counts,
            summary.judged,
            by_group=self.by_group,
            confidence=confidence,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; `from_dict` reads them."""
        return {
            "labels": self.labels,
            "rows": self.rows,
            "threshold": self.threshold,
            "created": self.created,
            "counts": self.counts._asdict(),
            "by_group": [list(each) for each in self.by_group],
            "estimates": {name: each.as_dict() for name, each in self.estimates.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> JudgeQuality | None:
        """Read the result of `as_dict`; None for None, and for records without counts."""
        if not data or "counts" not in data:
            return None
        return cls(
            data["labels"],
            data["rows"],
            data["threshold"],
            data["created"],
            Confusion(**data["counts"]),
            tuple(Confusion(*each) for each in data.get("by_group", ())),
        )


@dataclass(frozen=True)
class JudgedSummary:
    """A summary and the measured errors of its judge.

    Attributes:
        summary: The summary.
        quality: The errors; None if the judge is not calibrated.
    """

    summary: Summary
    quality: JudgeQuality | None

    @classmethod
    def of(cls, summary: Summary, metrics: Mapping[str, Any]) -> JudgedSummary:
        """Return a summary with the errors that the metrics of its evaluation hold."""
        return cls(summary, JudgeQuality.from_dict(metrics.get("judge_quality")))

    def corrected(self, confidence: float = 0.95) -> Corrected | NotCorrected:
        """Return the attack success rate corrected for the errors of the judge."""
        if self.quality is None:
            return NotCorrected(NOT_CALIBRATED)
        return self.quality.correct(self.summary, confidence)


def judge_quality(
    judge: Moderator[Any, Any], folder: str | Path, threshold: float
) -> JudgeQuality | None:
    """Return the measured errors of a judge at a threshold; None if it is not calibrated.

    Args:
        judge: The judge of the evaluation.
        folder: Folder of `write_calibration`; it may be missing.
        threshold: Threshold of the success rate, in (0, 1].
    """
    found = calibration_of(judge, folder)
    if found is None:
        return None
    return JudgeQuality(
        found["labels"]["file"],
        found["labels"]["rows"],
        threshold,
        found["created"],
        counts_at(found, threshold),
        groups_at(found, threshold),
    )


def counts_at(calibration: Mapping[str, Any], threshold: float) -> Confusion:
    """Return the confusion matrix at any threshold, from a calibration as JSON values.

    The ROC curve has a point for every score, so its last point with a score of at least the
    threshold has the two rates.
    """
    counts = Confusion(**calibration["counts"])
    positives = counts.true_positives + counts.false_negatives
    negatives = counts.true_negatives + counts.false_positives
    called = [
        point
        for point in calibration["roc"]
        if point["threshold"] is not None and point["threshold"] >= threshold
    ]
    tp = round(called[-1]["y"] * positives) if called else 0
    fp = round(called[-1]["x"] * negatives) if called else 0
    return Confusion(tp, fp, negatives - fp, positives - tp)


def groups_at(calibration: Mapping[str, Any], threshold: float) -> tuple[Confusion, ...]:
    """Return the confusion matrix of each group of labels at any threshold.

    Returns:
        Empty if labels are independent, and for calibrations before groups were known.
    """
    scored = calibration.get("scored")
    if not scored:
        return ()
    truth, scores, groups = (np.asarray(scored[each]) for each in ("truth", "scores", "groups"))
    return confusion_by_group(truth.astype(np.bool_), scores, threshold, groups)


def describe_judge(quality: JudgeQuality | None, summary: Summary) -> list[str]:
    """Return the errors of a judge, and the rate corrected for them, as lines of text."""
    if quality is None:
        return [NOT_CALIBRATED]
    return [quality.text, quality.correct(summary).text]
