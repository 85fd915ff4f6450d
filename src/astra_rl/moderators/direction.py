"""Detect moderators whose high scores mean good behaviour where harm is expected."""

from __future__ import annotations

from typing import Any

from astra_rl.core.moderator import Moderator
from astra_rl.logging import logger
from astra_rl.moderators.composition import Composition, InverseModerator


def scores_good_behavior(moderator: Moderator[Any, Any]) -> bool:
    """Whether a high score of a moderator means that the target behaved well.

    A combination does if one of its moderators does, except for the inverse of one.
    """
    inner = moderator.identity_stands_for
    if inner is not None:
        return scores_good_behavior(inner)
    if isinstance(moderator, Composition):
        found = any(map(scores_good_behavior, moderator.moderators))
        return found and not isinstance(moderator, InverseModerator)
    return moderator.scores_good_behavior(**moderator.constructor_arguments())


def warn_of_direction(where: str) -> None:
    """Log that a moderator that scores good behaviour is used as the measure of harm."""
    logger.warning(
        "%s: it scores refusals, so each refusal counts as a failure of the target, and an "
        "attacker is rewarded for being refused. That measures over-refusal. To count answers as "
        "failures, write {type: inverse, of: [{type: refusal}]}, or use a moderator of harm.",
        where,
    )
