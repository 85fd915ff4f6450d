"""Figures of matplotlib as inline SVG."""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from astra_rl.errors import MissingDependencyError, require
from astra_rl.evaluation.show.escaping import visible_text

INK = "#757575"
"""Colour of text and axes; contrast at least 4:1 on white and on near-black."""
SERIES = "#3f83c4"
FAILURE = "#d0623f"
WIDTH = 7.2  # inches
PAGE_WIDTH = 5.2
"""Width of a chart that also has to be legible on a phone, in inches."""
_STYLE = {
    "svg.hashsalt": "astra-rl",
    "svg.fonttype": "none",  # keep text as text: accessible, searchable, restyled by CSS
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "font.size": 9,
}


def percent_axis(axis: Any) -> None:
    """Let an axis of shares have ticks at quarters, in percent."""
    ticker = matplotlib_module("ticker")
    axis.set_major_locator(ticker.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def one_line(text: str) -> str:
    """Return a text for a label: on one line, with invisible characters made visible."""
    return visible_text(text).replace("\n", " ")


def matplotlib_module(module: str) -> Any:
    """Import a module of matplotlib.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return require(f"matplotlib.{module}", extra="demo")


def draw_svg(
    draw: Callable[[Any], None],
    *,
    height: float,
    description: str,
    width: float = WIDTH,
    layout: str | None = "constrained",
) -> str:
    """Draw a figure and return it as one SVG element.

    Without matplotlib the element is a line of text: no result is lost for want of a picture.
    """
    try:
        matplotlib = require("matplotlib", extra="demo")
    except MissingDependencyError:
        return placeholder(description)
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser's fonts show the text, so letters that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = matplotlib_module("figure").Figure(figsize=(width, height), layout=layout)
        canvas = matplotlib_module("backends.backend_svg").FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.print_svg(file, metadata=nothing)
    return _inline(file.getvalue(), description)


NOT_DRAWN = "This chart needs matplotlib, which is not installed: pip install matplotlib"


def placeholder(description: str) -> str:
    """Return an element with a line of text in place of a chart that cannot be drawn."""
    label = html.escape(one_line(description))
    return (
        f'<svg role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 520 24" width="520pt" height="24pt"><text x="0" y="16" font-size="11" '
        f'style="fill: {INK}">{html.escape(NOT_DRAWN)}</text></svg>'
    )


def _inline(svg: str, description: str) -> str:
    """Turn matplotlib's SVG document into an element with unique ids and no style sheet."""
    svg = svg[svg.index("<svg") :]
    # A style sheet would apply to the whole page; the attribute applies to the chart only.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    label = html.escape(one_line(description))
    opening = (
        f'<svg role="img" aria-label="{label}" style="stroke-linejoin:round;stroke-linecap:butt" '
    )
    svg = svg.replace("<svg ", opening, 1)
    prefix = "c" + hashlib.blake2b(svg.encode(), digest_size=4).hexdigest() + "-"
    svg = svg.replace(' target="_blank"', "")  # links stay in the page
    # Prefix ids and references to them, but not links to fragments of the page.
    svg = re.sub(r'( id="|href="#(?!/)|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.strip()
