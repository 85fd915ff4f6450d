import itertools
import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.charts import (
    Panel,
    calibration_panels,
    learning_curve,
    learning_panels,
    severity_likelihood,
)
from astra_rl.evaluation.show.report.views import Chart
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.score_calibration import Bin
from astra_rl.evaluation.stats.score_curves import Point

HISTORY = [
    {"step": 0, "reward": -0.5, "asr": 0.04, "attack_nll": 3.0},
    {"step": 10, "reward": 0.1, "asr": math.nan, "attack_nll": 2.5},
    {"step": 20, "reward": 0.4, "asr": 0.88},
]
POINTS = [(2.0, 1.0), (3.5, 0.0), (math.nan, 1.0), (2.5, math.nan), (2.2, None)]

BINARY = [(2.0 + 0.01 * at, float(at % 4 == 0)) for at in range(20)]
BANDED = [{"step": 1, "asr": 0.2, "l": 0.1, "h": 0.4}, {"step": 2, "asr": 0.5, "l": 0.3, "h": 0.9}]

CHARTS = {
    "learning_curve": lambda: learning_curve(HISTORY),
    "learning_panels": lambda: learning_panels(BANDED, [Panel("asr", "rate", True, ("l", "h"))])[0],
    "severity_likelihood": lambda: severity_likelihood(POINTS, threshold=0.5),
    "severity_likelihood of 0 and 1": lambda: severity_likelihood(BINARY, threshold=1.0),
    "calibration_panels": lambda: calibration_panels(
        [Point(0, 0, math.inf), Point(0.1, 0.8, 0.5), Point(1, 1, 0)],
        [Point(0.8, 0.9, 0.5), Point(1, 0.5, 0)],
        [Bin(0.1, Rate(1, 20)), Bin(0.9, Rate(18, 20))],
        base_rate=0.5,
    ),
    "calibration_panels of nothing": lambda: calibration_panels([], [], [], base_rate=math.nan),
}
every_chart = pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS.keys())


def texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


@every_chart
def test_a_chart_is_one_svg_element_with_a_description_and_nothing_that_runs(draw):
    svg = draw()
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "style", "image", "foreignObject", "metadata", "a"}
    addresses = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert all((a or b).startswith("#") for a, b in addresses)


@pytest.mark.slow
@every_chart
def test_the_same_input_draws_the_same_text(draw):
    assert draw() == draw()


@every_chart
def test_drawing_leaves_matplotlibs_settings_alone_and_needs_no_pyplot(draw):
    before = matplotlib.rcParams.copy()
    draw()
    assert matplotlib.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.slow
@every_chart
def test_the_ground_is_transparent(draw):
    svg = draw().lower()
    assert "#ffffff" not in svg
    assert "fill: none" in svg


@pytest.mark.slow
def test_two_charts_share_no_ids_and_refer_to_none_but_their_own():
    first, second = learning_curve(HISTORY), severity_likelihood(POINTS)
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) <= own


def test_each_number_of_the_history_has_a_panel_with_its_last_value():
    shown = texts(learning_curve(HISTORY))
    assert {"reward", "0.4", "attack success rate", "88%", "2.5", "step"} <= set(shown)
    assert "100%" in shown


def test_panels_choose_names_and_leave_out_what_is_not_there():
    panels = [Panel("reward", "mean reward"), Panel("kl", "divergence")]
    shown = texts(learning_curve(HISTORY, panels=panels))
    assert "mean reward" in shown
    assert "divergence" not in shown
    assert "attack success rate" not in shown


def test_a_history_of_one_point_or_without_steps_is_drawn():
    assert "reward" in texts(learning_curve([{"reward": 1.0}]))


@pytest.mark.slow
def test_missing_numbers_are_left_out_and_never_drawn_as_zero():
    svg = severity_likelihood(POINTS)
    assert "Score against likelihood of 2 attacks" in svg
    assert "nan" not in svg.lower()
    assert "nan" not in learning_curve(HISTORY).lower()


def heights(svg):
    """Vertical places of the points of a scatter plot, from the bottom."""
    uses = re.findall(
        r'<use xlink:href="[^"]*" x="[^"]*" y="([^"]*)" style="fill: #(?:3f83c4|d0)', svg
    )
    return sorted({-float(y) for y in uses})


def test_a_judge_that_says_only_0_or_1_gets_stacks_and_not_a_line():
    svg = severity_likelihood([(2.0, float(at >= 9)) for at in range(12)], threshold=1.0)
    places = heights(svg)
    assert len(places) == 12  # no point hides another
    gaps = sorted(b - a for a, b in itertools.pairwise(places))
    assert gaps[-1] > 5 * gaps[-2]  # two strips
    assert {"0", "1"} <= set(texts(svg))
    graded = severity_likelihood([(2.0, at / 12) for at in range(12)], threshold=0.5)
    assert {"0.0", "1.0", "threshold 0.5"} <= set(texts(graded))


def test_each_panel_of_a_page_is_a_chart_of_its_own_and_bands_stand_behind_the_line():
    panels = [Panel("asr", "rate", percent=True, band=("l", "h")), Panel("kl", "divergence")]
    (svg,) = learning_panels(BANDED, panels)
    assert {"rate", "50%"} <= set(texts(svg))
    assert "fill-opacity: 0.2" in svg
    assert "rate by step: from 0.2 to 0.5" in svg
    (plain,) = learning_panels(BANDED, [Panel("asr", "rate")])
    assert "fill-opacity: 0.2" not in plain
    # Gaps of the band, as of the line, and no band where nothing is known.
    ElementTree.fromstring(learning_panels([{"step": 1, "asr": 0.5}], panels)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["</text><script>alert(1)</script>", "$x^2$ \\frac", "a\u202eb\0c\ud800", '"&<', "中文"]
)
def test_names_are_text_whatever_they_hold(name):
    svg = learning_curve([{"a": 1.0}], panels=[Panel("a", name)])
    ElementTree.fromstring(svg)
    svg.encode("utf-8")
    assert "<script" not in svg
    assert "\u202e" not in svg
    assert "\0" not in svg
    shown = learning_curve([{"a": 1.0}], panels=[Panel("a", "$x^2$ \\frac")])
    assert "$x^2$ \\frac" in texts(shown)


def test_a_calibration_names_its_three_curves_and_counts_its_rows():
    svg = CHARTS["calibration_panels"]()
    assert {"ROC", "Precision and recall", "Calibration"} <= set(texts(svg))
    assert "over 40 labelled texts" in svg


@pytest.mark.parametrize(
    "draw",
    [
        lambda: learning_curve([]),
        lambda: learning_curve([{"step": 1}, {"reward": math.nan}]),
        lambda: severity_likelihood([(math.nan, 1.0)]),
    ],
)
def test_a_chart_of_nothing_is_refused(draw):
    with pytest.raises(ConfigurationError):
        draw()


def test_without_matplotlib_a_chart_is_a_line_that_says_so(monkeypatch):
    drawn = severity_likelihood(POINTS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = severity_likelihood(POINTS)
    assert Chart("title", "caption", [text]).svgs == [text]
    assert "needs matplotlib" in ElementTree.fromstring(text)[0].text
    label = re.compile('aria-label="([^"]*)"')
    assert label.search(text)[1] == label.search(drawn)[1]  # with the numbers
