"""Charts as inline SVG, drawn by matplotlib; a line of text each if it is not installed.

Each function returns one ``<svg>`` element to insert into an HTML page, without script or style
sheet; ids are unique per chart. Colours have middle lightness on a transparent background and are
legible in light and dark themes. The output is deterministic.
"""

from astra_rl.evaluation.show.charts.calibration import calibration_panels
from astra_rl.evaluation.show.charts.learning import (
    Panel,
    has_value,
    learning_curve,
    learning_panels,
)
from astra_rl.evaluation.show.charts.severity import severity_likelihood
from astra_rl.evaluation.show.charts.svg import FAILURE, INK, NOT_DRAWN, SERIES
from astra_rl.evaluation.show.charts.thresholds import threshold_curve

__all__ = [
    "FAILURE",
    "INK",
    "NOT_DRAWN",
    "SERIES",
    "Panel",
    "calibration_panels",
    "has_value",
    "learning_curve",
    "learning_panels",
    "severity_likelihood",
    "threshold_curve",
]
