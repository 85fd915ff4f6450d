"""Numbers and addresses as the templates print them."""

from __future__ import annotations

import math
from urllib.parse import urlencode

from astra_rl.core.contracts import is_missing
from astra_rl.evaluation.show.report.payload import visible
from astra_rl.evaluation.stats.percent import format_percent


def points(value: float) -> str:
    """Return a difference of shares in percentage points, without its sign."""
    return f"{100 * abs(value):.0f}" if math.isfinite(value) else "\N{EM DASH}"


def signed_points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    return f"{sign}{points(value)}" if math.isfinite(value) else points(value)


def p_value(value: float | None) -> str:
    """Return a p-value as text, such as ``p = 0.03``; one that is missing is undecided."""
    if value is None or is_missing(value):
        return "p undecided, because of conversations without a score"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def decimal(value: float | None) -> str:
    """Return a number with two decimals; a dash if it is missing."""
    return "\N{EM DASH}" if value is None or is_missing(value) else f"{value:.2f}"


def tiny(value: float) -> str:
    """Return a probability, which may be small, with two digits: ``4.5%``, ``0.012%``, ``3e-06``.

    A dash if it is missing.
    """
    if not 0 < value < 0.01:  # also NaN
        return format_percent(value)
    return f"{100 * value:.2g}%" if value >= 1e-5 else f"{value:.1g}"


def duration(seconds: float) -> str:
    """Return a duration, for instance ``44 minutes``."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return (
                f"{seconds / size:,.1f} {unit}"
                if seconds < 10 * size
                else (f"{seconds / size:,.0f} {unit}")
            )
    return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"


def listed(**filters: str | None) -> str:
    """Return the address of the list of conversations with these filters; empty ones are left out.

    Args:
        filters: Values by field of the list, as its script reads them.
    """
    query = urlencode({name: visible(value) for name, value in filters.items() if value})
    return f"#/conversations?{query}" if query else "#/conversations"
