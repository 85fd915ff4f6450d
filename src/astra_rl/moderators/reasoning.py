"""A moderator that also judges what a model thought before it answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.text import Exchange, Utterance
from astra_rl.infra.redaction import REDACTED
from astra_rl.moderators.identity import identity_of


class WithReasoning(Moderator[str, str]):
    """Shows another moderator the reasoning of a response, an empty line, and the answer.

    Moderators see the answer only by default. Texts without reasoning are judged as they are. A
    score is missing if a credential was redacted from the recorded reasoning.

    Args:
        inner: The moderator.
    """

    def __init__(self, inner: Moderator[str, str]) -> None:
        self.inner = inner

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text.

        Raises:
            ContractError: `inner` returned another number of scores.
        """
        shown = [_with_reasoning(each) for each in x]
        known = [each for each in shown if each is not None]
        returned = self.inner.moderate(known) if known else []
        check_length(returned, len(known), source=type(self.inner).__name__)
        scores = iter(returned)
        return [
            Score.missing("a credential was redacted from the reasoning")
            if each is None
            else next(scores)
            for each in shown
        ]

    def forget(self) -> None:
        """Let `inner` forget."""
        self.inner.forget()

    def identity_settings(self) -> dict[str, Any]:
        """Return the identity of the moderator."""
        return {"moderator": self.inner}

    def identity_weights(self) -> str | None:
        """Return the model of the moderator."""
        return identity_of(self.inner).weights


def _with_reasoning(text: str) -> str | None:
    if not isinstance(text, Exchange):
        return text
    response = Utterance.of(text.response)
    if response.reasoning is None:
        return text
    if REDACTED in response.reasoning:
        return None
    whole = f"{response.reasoning}\n\n{response}"
    shown = {str(response): whole, str(text.attack + response): text.attack + whole}.get(str(text))
    if shown is None or str(text) == text.attack != response:  # the attack alone is judged
        shown = str(text)
    return Exchange(text.context, text.attack, whole, text=shown)
