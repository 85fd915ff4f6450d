"""Similarity of texts by the words that they share."""

from __future__ import annotations

import re


def word_set(text: str) -> frozenset[str]:
    """Return the lower-cased words of a text."""
    return frozenset(re.findall(r"\w+", text.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets, in [0, 1]; two empty sets are equal."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0
