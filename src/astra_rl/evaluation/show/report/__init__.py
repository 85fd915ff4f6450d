"""The HTML report of a run: how the target fails, how often, and how likely each failure is.

`data` holds the input, `payload` embeds the conversations, `views` selects numbers, labels and
charts, and `render` makes the HTML. Statistics come from `evaluation.stats` and
`evaluation.measures`; neither this package nor the script of the page computes any.
"""

from astra_rl.evaluation.show.report.data import (
    IN_TRAINING,
    Evaluation,
    ReportData,
    Reproduction,
    Spent,
    Training,
)
from astra_rl.evaluation.show.report.render import render_report, write_report

__all__ = [
    "IN_TRAINING",
    "Evaluation",
    "ReportData",
    "Reproduction",
    "Spent",
    "Training",
    "render_report",
    "write_report",
]
