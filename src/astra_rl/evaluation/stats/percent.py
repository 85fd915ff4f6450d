"""Shares as text: percentages for people."""

from __future__ import annotations

import math

from astra_rl.evaluation.stats.intervals import Interval


def format_percent(value: float) -> str:
    """Format a share as a percentage, with one decimal below 1% and above 99%; a dash if missing.

    Only exactly 0 and 1 become 0% and 100%.
    """
    if not math.isfinite(value):
        return "\N{EM DASH}"
    if 0 < value < 0.01 or 0.99 < value < 1:
        return f"{min(max(value, 0.001), 0.999):.1%}"
    return f"{value:.0%}"


def signed_percent(value: float) -> str:
    """Format a difference of shares with its sign and one decimal; a dash if missing."""
    return f"{value:+.1%}" if math.isfinite(value) else "\N{EM DASH}"


def estimated(estimate: float, interval: Interval, *details: str) -> str:
    """Return a share with its 95% interval, for instance ``12% (95% interval 6% to 24%)``.

    Args:
        estimate: The share.
        interval: Its 95% interval.
        details: What is added within the parentheses, such as the method.
    """
    described = ", ".join([f"95% interval {between(interval)}", *details])
    return f"{format_percent(estimate)} ({described})"


def between(interval: Interval) -> str:
    """Return an interval of shares, for instance ``6% to 24%``."""
    return f"{format_percent(interval.low)} to {format_percent(interval.high)}"
