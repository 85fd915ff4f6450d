"""One page that says how a model fails, how often, and how likely.

`data` is what the page is made of, `payload` packs the conversations into it, `views` puts words
and charts to the numbers, and `render` makes the HTML. All numbers come from the modules beside
this package; nothing is computed here, and nothing in the page.
"""

from astra_rl.evaluation.show.report.data import Evaluation, ReportData, Reproduction, Training
from astra_rl.evaluation.show.report.render import render_report, write_report

__all__ = [
    "Evaluation",
    "ReportData",
    "Reproduction",
    "Training",
    "render_report",
    "write_report",
]
