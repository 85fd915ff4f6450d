"""Parts of an attempt record: turns, scores, likelihoods and the opening."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from astra_rl.core.moderator import is_not_sent, reason_of
from astra_rl.core.text import GOAL, Conversation, NoAttack, Utterance
from astra_rl.evaluation.records.base import (
    Count,
    Flag,
    Fraction,
    Number,
    Record,
    Text,
    content_digest,
)
from astra_rl.evaluation.records.trace import TraceRecord


class JudgeScore(Record):
    """Score of a response by one judge.

    Attributes:
        value: In [0, 1]; None if it is missing.
        reason: Why it is missing.
        not_sent: Whether it is missing because a budget is spent; not written to JSON, because such
            attempts are dropped and counted as never made.
    """

    value: Fraction
    reason: Text | None = None
    not_sent: bool = Field(default=False, exclude=True)

    @classmethod
    def of(cls, value: float) -> JudgeScore:
        """Convert a score of a moderator; a missing one keeps its `reason`."""
        if math.isfinite(value):
            if not 0 <= value <= 1:
                return cls(value=None, reason="out of range")
            return cls(value=float(value))
        return cls(value=None, reason=reason_of(value), not_sent=is_not_sent(value))


class LogProb(Record):
    """Log-probability of an attack under a model.

    Attributes:
        total: Natural log-probability of the whole attack given its context; finite.
        tokens: Number of its tokens, at least 1, under the tokenizer of that model.
    """

    total: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    tokens: Annotated[Count, Field(ge=1)]

    @classmethod
    def of(cls, total: float, tokens: int) -> LogProb | None:
        """Convert a measurement; None without tokens, or if the total is not finite."""
        return cls(total=total, tokens=tokens) if tokens and math.isfinite(total) else None

    @property
    def per_token(self) -> float:
        """Nats per token, at most 0; the negative is the NLL per token."""
        return self.total / self.tokens


class Turn(Record):
    """One turn of a conversation, with its scores.

    Attributes:
        attack: Text of the attacker, as the target got it.
        response: Text of the target.
        written: Whole output of the attacker, if the attack is only a part of it. The
            log-probabilities under attacker and baseline, and `attack_tokens`, are of this output.
        scores: Score of the response by each judge, by the judge's name.
        reward: Reward of the turn, if the environment computed one.
        reward_terms: Terms of the reward by name.
        logprobs: Log-probability of the attack by model: ``attacker``, ``target``, ``baseline``, or
            the name of another model.
        attack_tokens: Length of the attack in the attacker's tokens.
        response_tokens: Length of the response in the target's tokens.
        finish_reason: Finish reason of the response.
        refused: Whether the response was classified as a refusal; None if it was not classified.
        reasoning: What the target thought before it responded; None if unknown.
        attack_reasoning: What the attacker thought before the attack; None if unknown.
        asked: Digest of the complete input of the target, including its template; None if unknown.
        trace: What the target did, if it is an agent with tools.
        unknown_alternatives: Number of attacks that were tried in this turn and whose result is not
            known, while this one was the best of the others; see `Node`.
        not_sent: Whether the target was not called because a budget is spent; not written to JSON.
    """

    attack: Text
    response: Text = ""
    written: Text | None = None
    scores: dict[Text, JudgeScore] = Field(default_factory=dict)
    reward: Number = None
    reward_terms: dict[Text, Number] = Field(default_factory=dict)
    logprobs: dict[Text, LogProb] = Field(default_factory=dict)
    attack_tokens: Count | None = None
    response_tokens: Count | None = None
    finish_reason: Text | None = None
    refused: Flag | None = None
    asked: Text | None = None
    reasoning: Text | None = None
    attack_reasoning: Text | None = None
    trace: TraceRecord | None = None
    unknown_alternatives: Count = 0
    not_sent: bool = Field(default=False, exclude=True)

    def score(self, judge: str) -> float | None:
        """Score by this judge; None if it is missing."""
        return self.scores[judge].value if judge in self.scores else None

    @property
    def output(self) -> str:
        """The attack; with private reasoning it knows the whole output that it is a part of."""
        if self.written is None:
            return self.attack
        kind = NoAttack if self.without_attack else Utterance
        return kind(self.attack, written=self.written)

    @property
    def blocked(self) -> bool:
        """Whether a filter around the target withheld the response."""
        return self.finish_reason == "content_filter"

    @property
    def without_attack(self) -> bool:
        """Whether the output of the attacker had no attack, so that nothing was sent."""
        return self.finish_reason == "not_asked"

    @property
    def unanswered(self) -> bool:
        """Whether the call of the target failed, so that there is no response."""
        return self.finish_reason == "error"


class Opening(Record):
    """State before the first turn; sufficient to replay the conversation.

    Attributes:
        prompt: Text that both sides see.
        turns: Attack, response, ... before the first recorded turn.
        system: System message of the target.
        brief: Instructions of the attacker.
        facts: Facts that only moderators see.
        separator: Text between the parts in a reader's view.
    """

    prompt: Text = ""
    turns: tuple[Text, ...] = ()
    system: Text | None = None
    brief: Text | None = None
    facts: dict[Text, Text] = Field(default_factory=dict)
    separator: Text = ""

    @classmethod
    def of(cls, context: str) -> Opening:
        """Convert an opening context."""
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
        """Return the opening context."""
        return Conversation(**self.model_dump())

    @property
    def goal(self) -> str:
        """What the attacker is to bring about; the prompt if the opening has no goal of its own."""
        return self.facts.get(GOAL) or self.prompt

    def is_silent(self, attacks: Sequence[str]) -> bool:
        """Whether attacks ask the target nothing: all are blank, and so is what precedes them."""
        return not any(text.strip() for text in (self.prompt, *self.turns, *attacks))

    @property
    def id(self) -> str:
        """Digest of the content; 16 hexadecimal digits."""
        return content_digest(self.model_dump(mode="json"))
