"""Text that remembers its tokens.

Everything here is a `str`, so code that only knows strings keeps working. What a string cannot say
is kept beside it: the token ids a model sampled (so that nothing is ever tokenised again), and who
may see which part of a conversation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

FinishReason = Literal["stop", "length", "context_overflow", "content_filter", "error"]
"""Why a model stopped: an end token, the length limit, a conversation that left it no room, a
filter around it, or a call that failed."""


def finish_reasons(*said: str) -> frozenset[FinishReason]:
    """Return the finish reasons of these texts; texts without one add nothing."""
    reasons = (Utterance.of(each).finish_reason for each in said)
    return frozenset(reason for reason in reasons if reason is not None)


class Utterance(str):
    """What a model said.

    Attributes:
        token_ids: The sampled tokens in the speaker's own vocabulary, the end token included;
            None when the text was not sampled by a local model.
        logprobs: Natural log-probability of each sampled token under the distribution it was
            sampled from; same length as `token_ids`.
        finish_reason: Why the speaker stopped.
        heard_logprobs: For a target's response: log-probability, under the target at temperature 1,
            of each token of the attack it answers. It falls out of reading the attack, so no
            second pass is needed for the likelihood terms of a reward.
        asked: For a target's response: digest of all that it read around the attack, its template
            included, so that a template that changed is noticed when the attack is sent again.
    """

    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason | None
    heard_logprobs: tuple[float, ...] | None
    asked: str | None

    def __new__(
        cls,
        text: str = "",
        *,
        token_ids: Sequence[int] | None = None,
        logprobs: Sequence[float] | None = None,
        finish_reason: FinishReason | None = None,
        heard_logprobs: Sequence[float] | None = None,
        asked: str | None = None,
    ) -> Utterance:
        """Wrap `text`; see the class for what the other arguments mean."""
        self = super().__new__(cls, text)
        self.token_ids = None if token_ids is None else tuple(token_ids)
        self.logprobs = None if logprobs is None else tuple(logprobs)
        self.finish_reason = finish_reason
        self.heard_logprobs = None if heard_logprobs is None else tuple(heard_logprobs)
        self.asked = asked
        return self

    @classmethod
    def of(cls, text: str) -> Utterance:
        """Return `text` itself if it is an Utterance, else one without any metadata."""
        return text if isinstance(text, Utterance) else cls(text)


class NoReply(Utterance):
    """What stands in the place of a reply that did not come: an empty text that says why.

    Attributes:
        reason: In a few words that can be counted, for instance ``"timed out"``.
        detail: What else is known, for instance what an endpoint said.
    """

    reason: str
    detail: str

    def __new__(cls, reason: str, detail: str = "") -> NoReply:
        """Say why there is no reply."""
        self = super().__new__(cls, finish_reason="error")
        assert isinstance(self, NoReply)
        self.reason, self.detail = reason, detail
        return self

    @property
    def error(self) -> str:
        """The reason and all that is known, for the record of an attempt."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def __repr__(self) -> str:
        return f"NoReply({self.error!r})"


class NotSent(NoReply):
    """A reply that is missing because the call was not sent: a budget is spent."""

    def __new__(cls) -> NotSent:
        """Return the reply; its reason is always the same."""
        self = super().__new__(cls, "budget spent")
        assert isinstance(self, NotSent)
        return self


class Conversation(str):
    """The state of an episode: its text is what a reader sees, its attributes are the structure.

    Adding a string says the next turn: ``conversation + attack`` awaits a response, and
    ``conversation + attack + response`` awaits the next attack.

    Attributes:
        prompt: Opening text that both sides see.
        turns: Attack, response, attack, ... in the order they were said.
        system: System message of the target. The attacker never sees it.
        brief: What the attacker is told to do. The target never sees it.
        facts: What only moderators may know, for instance ``{"secret": ...}``.
        separator: Text between the parts in the reader's view: empty for base models, whose
            conversation is one running text, a newline for chat models.
    """

    prompt: str
    turns: tuple[str, ...]
    system: str | None
    brief: str | None
    facts: Mapping[str, str]
    separator: str

    def __new__(
        cls,
        prompt: str = "",
        *,
        turns: Sequence[str] = (),
        system: str | None = None,
        brief: str | None = None,
        facts: Mapping[str, str] | None = None,
        separator: str = "",
    ) -> Conversation:
        """Build a conversation from its parts; see the class for their meaning."""
        self = super().__new__(cls, separator.join(part for part in (prompt, *turns) if part))
        # Plain `str` drops the structure of a Conversation that was passed as the prompt.
        self.prompt = str(prompt)
        self.turns = tuple(turns)
        self.system = system
        self.brief = brief
        self.facts = dict(facts or {})
        self.separator = separator
        return self

    @classmethod
    def of(cls, context: str, *, separator: str = "") -> Conversation:
        """Return `context` itself if it is a Conversation, else one that opens with this text."""
        return context if isinstance(context, Conversation) else cls(context, separator=separator)

    def __add__(self, utterance: str) -> Conversation:
        """Return the conversation with one more turn."""
        return Conversation(
            self.prompt,
            turns=(*self.turns, utterance),
            system=self.system,
            brief=self.brief,
            facts=self.facts,
            separator=self.separator,
        )

    @property
    def attacks(self) -> tuple[str, ...]:
        """What the attacker said so far."""
        return self.turns[0::2]

    @property
    def responses(self) -> tuple[str, ...]:
        """What the target said so far."""
        return self.turns[1::2]

    @property
    def awaits_response(self) -> bool:
        """Whether the last word was the attacker's."""
        return len(self.turns) % 2 == 1


class Exchange(str):
    """What a moderator is given to judge: a text, and the turn it comes from.

    A moderator that scores strings reads the text; one that needs more looks at the attributes.

    Attributes:
        context: The state before the attack.
        attack: What the attacker said.
        response: What the target answered.
    """

    context: str
    attack: str
    response: str

    def __new__(
        cls, context: str, attack: str, response: str, *, text: str | None = None
    ) -> Exchange:
        """Build the exchange; its text is `response` unless another is given."""
        self = super().__new__(cls, response if text is None else text)
        self.context, self.attack, self.response = context, attack, response
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str, str, str], dict[str, str]]:
        """What a copy or an unpickled one is built from."""
        return (self.context, self.attack, self.response), {"text": str(self)}


def context_key(context: str) -> Hashable:
    """Identify a context by all that makes it, not only by the text a reader sees.

    Contexts of one key are the same to whoever is given them, attacker, target or moderator.
    """
    if not isinstance(context, Conversation):
        return context
    turns = tuple(
        (str(turn), turn.token_ids if isinstance(turn, Utterance) else None)
        for turn in context.turns
    )
    return (
        context.prompt,
        turns,
        context.system,
        context.brief,
        tuple(sorted(context.facts.items())),
        context.separator,
    )
