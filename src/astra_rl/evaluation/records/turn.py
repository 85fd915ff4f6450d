"""What was said in a conversation, and what was measured of it: parts of a record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from astra_rl.core.moderator import is_not_sent, reason_of
from astra_rl.core.text import Conversation
from astra_rl.infra.unicode import well_formed


def _text(value: Any) -> Any:
    return well_formed(value) if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    missing = isinstance(value, float) and not math.isfinite(value)
    return None if missing else value


Text = Annotated[str, BeforeValidator(_text)]
"""Text that any file can hold: lone surrogates become U+FFFD."""
Number = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or None where it is missing; NaN and infinities become None."""


class Record(BaseModel):
    """A part of the record of an attempt: it never changes, and has no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JudgeScore(Record):
    """Score of a response by one judge.

    Attributes:
        value: In [0, 1]; None if it is missing.
        reason: Why it is missing.
        not_sent: Whether it is missing because a budget is spent; not written to JSON, because such
            attempts are dropped and counted as never made.
    """

    value: Number
    reason: Text | None = None
    not_sent: bool = Field(default=False, exclude=True)

    @classmethod
    def of(cls, value: float) -> JudgeScore:
        """Wrap what a moderator returned; a missing score may carry a `reason`."""
        if math.isfinite(value):
            return cls(value=float(value))
        return cls(value=None, reason=reason_of(value), not_sent=is_not_sent(value))


class LogProb(Record):
    """How likely a model found an attack.

    Attributes:
        total: Natural log-probability of the whole attack given what came before it.
        tokens: How many tokens it has in the vocabulary of that model.
    """

    total: float
    tokens: int = Field(ge=1)

    @property
    def per_token(self) -> float:
        """Nats per token, at most 0; the negative is the NLL per token."""
        return self.total / self.tokens


class Turn(Record):
    """What was said in one turn, and what was measured.

    Attributes:
        attack: What the attacker said.
        response: What the target answered.
        scores: What each judge said of the response, by the judge's name.
        reward: Reward of the turn, of an attempt made in training.
        reward_terms: Its parts by name.
        logprobs: Likelihood of the attack by the role of the model that was asked: ``attacker``,
            ``target``, ``baseline``, or the name of another model.
        attack_tokens: Length of the attack in the attacker's tokens.
        response_tokens: Length of the response in the target's tokens.
        finish_reason: Why the target stopped, as it said so.
        refused: Whether the response was recognised as a refusal; None if nobody looked.
        asked: Digest of all that the target read around the attack, its template included; None if
            unknown.
        not_sent: Whether the target was not called because a budget is spent; not written to JSON.
    """

    attack: Text
    response: Text = ""
    scores: dict[Text, JudgeScore] = {}
    reward: Number = None
    reward_terms: dict[Text, Number] = {}
    logprobs: dict[Text, LogProb] = {}
    attack_tokens: int | None = None
    response_tokens: int | None = None
    finish_reason: Text | None = None
    refused: bool | None = None
    asked: str | None = None
    not_sent: bool = Field(default=False, exclude=True)

    def score(self, judge: str) -> float | None:
        """What this judge said, None if it is missing."""
        return self.scores[judge].value if judge in self.scores else None

    @property
    def blocked(self) -> bool:
        """Whether a filter around the target withheld the response."""
        return self.finish_reason == "content_filter"

    @property
    def unanswered(self) -> bool:
        """Whether the call of the target failed, so that there is nothing to judge."""
        return self.finish_reason == "error"


class Opening(Record):
    """What a conversation opened with: all that is needed to hold it again.

    Attributes:
        prompt: Text that both sides see.
        turns: Attack, response, ... said before the first recorded turn.
        system: System message of the target.
        brief: What the attacker is told to do.
        facts: What only moderators may know.
        separator: Text between the parts in a reader's view.
    """

    prompt: Text = ""
    turns: tuple[Text, ...] = ()
    system: Text | None = None
    brief: Text | None = None
    facts: dict[Text, Text] = {}
    separator: Text = ""

    @classmethod
    def of(cls, context: str) -> Opening:
        """Take the parts of an opening context."""
        conversation = Conversation.of(context)
        return cls(
            prompt=conversation.prompt,
            turns=conversation.turns,
            system=conversation.system,
            brief=conversation.brief,
            facts=dict(conversation.facts),
            separator=conversation.separator,
        )

    def conversation(self) -> Conversation:
        """Return the context again."""
        return Conversation(**self.model_dump())

    @property
    def id(self) -> str:
        """Identifies the opening by its content; 16 hexadecimal digits."""
        return content_digest(self.model_dump(mode="json"))


def content_digest(value: Sequence[Any] | Mapping[str, Any]) -> str:
    """Identify JSON data by its content; 16 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
