"""Scores of exchanges by a moderator, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator, missing_score
from astra_rl.core.text import Exchange, NoReply


def score_exchanges(moderator: Moderator[Any, Any], exchanges: Sequence[Exchange]) -> list[float]:
    """Score exchanges with one call of the moderator, in order.

    Where the target gave no reply the score is missing, and the moderator is not called for it.

    Raises:
        ContractError: The moderator returned another number of scores.
    """
    answered = [each for each in exchanges if not isinstance(each.response, NoReply)]
    # Not every moderator accepts an empty batch.
    returned = moderator.moderate(answered) if answered else []
    check_length(returned, len(answered), source=type(moderator).__name__)
    # float() would drop the reason of a missing Score.
    scores = iter([score if isinstance(score, float) else float(score) for score in returned])
    return [
        missing_score(each.response, each.response.reason)
        if isinstance(each.response, NoReply)
        else next(scores)
        for each in exchanges
    ]
