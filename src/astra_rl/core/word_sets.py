"""Similarity of texts by the words that they share."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
"""Runs of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def words_of(text: str) -> list[str]:
    """Return the lower-cased words of a text, in order.

    Canonically equivalent texts (NFC and NFD) have the same words. Combining marks belong to their
    word, as in Hindi. Of scripts without spaces, every two adjacent characters are a word. In a
    text without letters and digits, every symbol is a word.
    """
    if text.isascii():
        found = re.findall(r"\w+", text.lower())
    else:
        lowered = unicodedata.normalize("NFC", text.lower())
        found = []
        for run in "".join(each if _is_word(each) else " " for each in lowered).split():
            found += _split(run)
    return found or [each for each in text if not each.isspace()]


def _is_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def _split(run: str) -> list[str]:
    """Split a run of letters into words: bigrams where the script has no spaces."""
    words, at = [], 0
    for match in _NO_SPACES.finditer(run):
        words += [run[at : match.start()]] if match.start() > at else []
        part, at = match[0], match.end()
        words += [part[i : i + 2] for i in range(len(part) - 1)] or [part]
    return [*words, run[at:]] if at < len(run) else words


def word_set(text: str) -> frozenset[str]:
    """Return the set of the words of a text, see `words_of`."""
    return frozenset(words_of(text))


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    """Return the Jaccard similarity of two sets, in [0, 1]; two empty sets are equal."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0
