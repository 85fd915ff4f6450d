"""Page of a hardening: the rates of every attacker and target, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from astra_rl.evaluation.measures.hardening import Hardening
from astra_rl.evaluation.show.report.render import render_page


def render_hardening(
    result: Hardening, *, title: str, note: str | None, runs: Mapping[str, Path]
) -> str:
    """Return the page as HTML.

    Args:
        result: The rates.
        title: Title of the configuration.
        note: Why it ended early; None if it did not.
        runs: Run folder of each attacker, by name.
    """
    return render_page("hardening.html.j2", result=result, title=title, note=note, runs=runs)
