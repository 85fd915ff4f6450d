"""Render the report as one self-contained HTML file without network requests.

Text written by models is hostile. The template environment, not the templates, passes every value
through `visible` and escapes it, so neither can be forgotten. Text that the script shows passes
`visible` in `payload` and is inserted as text nodes only. A content security policy allows the
page's own script and style sheet, by hash, and nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import hashlib
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from astra_rl.evaluation.show.escaping import shorten
from astra_rl.evaluation.show.report import formats
from astra_rl.evaluation.show.report.data import ReportData
from astra_rl.evaluation.show.report.payload import PREVIEW, visible
from astra_rl.evaluation.show.report.views import Page
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.infra.jsonio import write_atomic

SCRIPTS = ("store", "dom", "list", "reader", "tree", "save", "judges", "app")
"""Parts of the script, in the order in which they are joined."""


def render_report(data: ReportData) -> str:
    """Return the page as HTML."""
    # One function scope: the parts share names and define no globals.
    script = '"use strict";\n(() => {\n' + "\n".join(map(_script, SCRIPTS)) + "})();\n"
    return render_page(
        "report.html.j2",
        data=data,
        page=Page(data),
        result=data.result,
        script=Markup(script),
        script_hash=source_hash(script),
    )


def render_page(template: str, **values: Any) -> str:
    """Return a template of this package as HTML, with the style sheet of the report.

    Args:
        template: Name of the template.
        values: Its variables; every value that it prints is escaped.
    """
    style = _read("report.css")
    with _without_garbage_collection():
        return (
            _environment()
            .get_template(template)
            .render(style=Markup(style), style_hash=source_hash(style), **values)
        )


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Context without searches for reference cycles, a sixth of the time of a long page.

    Each search reads all conversations, and nearly everything that a page makes lives to its end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page as a UTF-8 file, atomically."""
    write_atomic(path, render_report(data))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("astra_rl.evaluation.show.report"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "points": formats.points,
        "signed": formats.signed_points,
        "p_value": formats.p_value,
        "decimal": formats.decimal,
        "tiny": formats.tiny,
        "duration": formats.duration,
        "svg": lambda chart: Markup("".join(chart.svgs)),
        "packed": Markup,  # base64, made by `payload`
        "line": _line,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "whole": lambda value: f"{value:,.0f}",
    }
    environment.globals |= {"infinity": math.inf, "unknown": math.nan, "listed": formats.listed}
    return environment


def _finalize(value: object) -> object:
    """Bound the length of a value's text and make hidden characters visible."""
    return value if isinstance(value, Markup) else visible(str(value))


def _line(text: str, most: int = PREVIEW) -> str:
    """Return the first `most` characters of a text on one line."""
    return shorten(" ".join(text[: 8 * most].split()), most) or "(empty)"


def source_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a script or a style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script(name: str) -> str:
    return _read(f"{name}.js")


def _read(name: str) -> str:
    file = resources.files("astra_rl.evaluation.show.report") / "templates" / name
    return file.read_text(encoding="utf-8")
