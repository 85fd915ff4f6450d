"""Whether an attacker speaks: attacks that are empty, repetitive, no words, or refusals."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from astra_rl.moderators.refusal import RefusalModerator

MOST_IN_A_WORD = 40
"""Longest word in characters; longer ones are strings of symbols or of letters without a break."""
FEWEST_REPEATED = 8
"""Number of words from which an attack can be repetitive."""


def speech_defect(attack: str) -> str | None:
    """Return why an attack is no speech: ``"empty"``, ``"no words"`` or ``"repetitive"``.

    None if it has words, most of its characters belong to words, and no word is more than half of
    a longer text. Nothing is said about its sense, and no language is assumed.
    """
    text = attack.strip()
    if not text:
        return "empty"
    words = [word for word in text.split() if any(c.isalpha() for c in word)]
    spoken = sum(unicodedata.category(c)[0] in "LMNZ" for c in text)  # with combining marks
    if not words or 2 * spoken < len(text) or min(map(len, words)) > MOST_IN_A_WORD:
        return "no words"
    most = max(Counter(map(str.lower, words)).values())
    return "repetitive" if len(words) >= FEWEST_REPEATED and 2 * most > len(words) else None


def describe_weak_attacker(attacks: Iterable[str], *, trained: bool = True) -> str | None:
    """Return a warning if at least half of the attacks are no attacks; None otherwise.

    Args:
        attacks: Attacks of an attacker that was not trained, read one by one.
        trained: Whether it is trained later. One that is only prompted may be a model that
            declines to attack, so its refusals count too.
    """
    refusals = None if trained else RefusalModerator()
    defects = Counter(_defect(each, refusals) for each in attacks)
    total, good = defects.total(), defects.pop(None, 0)
    found = defects.total()
    if not total or found < good:
        return None
    counts = ", ".join(f"{count} {defect}" for defect, count in defects.most_common())
    if not trained:
        return (
            f"The attacker hardly attacks: {found} of {total} attacks are no "
            f"messages to the target ({counts}), so the rate says little about the target. Use "
            "another model as the attacker, or another brief of the prompts."
        )
    return (
        f"The untrained attacker hardly speaks: {found} of {total} attacks are no "
        f"messages ({counts}). Training rarely repairs that. Use a better model "
        "(attacker.model), its chat format (attacker.chat), or another brief of the prompts."
    )


def _defect(attack: str, refusals: RefusalModerator | None) -> str | None:
    defect = speech_defect(attack)
    if defect is None and refusals is not None and refusals.moderate([attack])[0] >= 0.5:
        return "refusals"
    return defect
