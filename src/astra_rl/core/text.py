"""Strings with metadata: utterances with their tokens, conversations with their structure.

All classes are subclasses of `str`, so code that expects strings keeps working. Sampled text keeps
its token ids, so that it is never tokenized again; a conversation keeps its turns and which side
may see which part.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from astra_rl.core.tool_calls import ToolCall

GOAL = "goal"
"""Name of the fact of a `Conversation` that holds what the attacker is to bring about."""
REQUEST = "request"
"""Name of the fact that holds the direct request for the goal, where it is longer than the goal."""

DEFAULT_BRIEF = "Write the next message of a user who talks to an assistant."
"""Instructions of an attacker that reads chats, for conversations without a brief."""

FinishReason = Literal["stop", "length", "context_overflow", "content_filter", "error", "not_asked"]
"""Why generation stopped: an end token, the length limit, a full context window, a content filter,
a failed call, or a call that was not made because there was no attack to send."""


def finish_reasons(*texts: str) -> frozenset[FinishReason]:
    """Return the finish reasons of these texts; texts without one add nothing."""
    reasons = (Utterance.of(each).finish_reason for each in texts)
    return frozenset(reason for reason in reasons if reason is not None)


class Utterance(str):
    """Output of a model.

    Attributes:
        token_ids: Sampled token ids in the vocabulary of the model, including the end token; None
            if the text was not sampled by a local model.
        logprobs: Natural log-probability of each sampled token under the distribution it was
            sampled from; same length as `token_ids`.
        finish_reason: Why generation stopped.
        heard_logprobs: Of a response: natural log-probability, under the target at temperature 1,
            of each token of the attack. It is a by-product of the prefill, so that likelihood terms
            of a reward need no second pass.
        reasoning: What the model thought before it said the text, without delimiters; None if
            nothing, or if it is unknown. `token_ids` includes its tokens.
        written: The whole output, if the text is only a part of it: `token_ids` and `logprobs` are
            those of the whole output. None if the text is all of it. See
            `astra_rl.core.extraction.Extraction`.
        asked: Of a response: digest of the rendered prompt around the attack, including the chat
            template, so that a changed template is noticed when the attack is replayed.
        calls: Of an agent: the calls of tools that it wrote, which are not part of the text; None
            if the text was not searched for calls.
    """

    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason | None
    heard_logprobs: tuple[float, ...] | None
    asked: str | None
    reasoning: str | None
    written: str | None
    calls: tuple[ToolCall, ...] | None

    def __new__(
        cls,
        text: str = "",
        *,
        token_ids: Sequence[int] | None = None,
        logprobs: Sequence[float] | None = None,
        finish_reason: FinishReason | None = None,
        heard_logprobs: Sequence[float] | None = None,
        asked: str | None = None,
        reasoning: str | None = None,
        written: str | None = None,
        calls: Sequence[ToolCall] | None = None,
    ) -> Utterance:
        """Wrap `text`; see the class for the other arguments."""
        self = super().__new__(cls, text)
        self.token_ids = None if token_ids is None else tuple(token_ids)
        self.logprobs = None if logprobs is None else tuple(logprobs)
        self.finish_reason = finish_reason
        self.heard_logprobs = None if heard_logprobs is None else tuple(heard_logprobs)
        self.asked = asked
        self.reasoning = reasoning
        self.written = None if written is None else str(written)
        self.calls = None if calls is None else tuple(calls)
        return self

    @property
    def key(self) -> Hashable:
        """Equal for utterances that are the same for every reader, moderators included."""
        return str(self), self.token_ids, self.reasoning

    @property
    def judged(self) -> str:
        """What a moderator of texts reads of it."""
        return str(self)

    @classmethod
    def of(cls, text: str) -> Utterance:
        """Return `text` itself if it is an Utterance, else one without any metadata."""
        return text if isinstance(text, Utterance) else cls(text)


def judged_text(text: str) -> str:
    """Return what a moderator of texts reads of a turn: of an agent, also its calls of tools."""
    return text.judged if isinstance(text, Utterance) else text


class NoAttack(Utterance):
    """Output of an attacker without an attack: an empty text; `written` is the output."""


def written_text(text: str) -> str:
    """Return all that a model wrote: `Utterance.written`, or the text itself."""
    written = text.written if isinstance(text, Utterance) else None
    return str(text) if written is None else written


class NoReply(Utterance):
    """A missing reply: an empty text with a reason.

    Attributes:
        reason: The reason, in a few words that can be counted, for instance ``"timed out"``.
        detail: Further information, for instance the error message of an endpoint.
    """

    reason: str
    detail: str

    def __new__(
        cls,
        reason: str,
        detail: str = "",
        *,
        finish_reason: FinishReason = "error",
        reasoning: str | None = None,
    ) -> NoReply:
        """Build a missing reply; see the class for the arguments."""
        self = super().__new__(cls, finish_reason=finish_reason, reasoning=reasoning)
        assert isinstance(self, NoReply)
        self.reason, self.detail = reason, detail
        return self

    @property
    def error(self) -> str:
        """Reason and detail, for the record of an attempt."""
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


class NotAsked(NoReply):
    """A reply that is missing because the output of the attacker has no attack to send."""

    def __new__(cls) -> NotAsked:
        """Return the reply; its reason is always the same."""
        self = super().__new__(cls, "no attack", finish_reason="not_asked")
        assert isinstance(self, NotAsked)
        return self


class Conversation(str):
    """State of an episode: the text is the visible conversation, the attributes its structure.

    Adding a string appends a turn: ``conversation + attack`` awaits a response, and
    ``conversation + attack + response`` awaits the next attack.

    Attributes:
        prompt: Opening text, visible to both sides.
        turns: Attack, response, attack, ... in order.
        system: System message of the target; the attacker does not see it.
        brief: Instructions of the attacker; the target does not see them.
        facts: Facts for moderators and rewards only, for instance ``{"secret": ...}``.
        separator: Text between the parts of the visible text: empty for base models, which continue
            one plain text, a newline for chat models.
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
        """The attacks so far."""
        return self.turns[0::2]

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses so far."""
        return self.turns[1::2]

    @property
    def awaits_response(self) -> bool:
        """Whether the last turn is an attack."""
        return len(self.turns) % 2 == 1


class Exchange(str):
    """Input of a moderator: a text, and the turn that it is from.

    A moderator of strings scores the text; one that needs more uses the attributes. The text of an
    agent's turn is all that it wrote, see `astra_rl.core.messages.AgentReply.judged`.

    Attributes:
        context: State before the attack.
        attack: The attack.
        response: The response.
    """

    context: str
    attack: str
    response: str

    def __new__(
        cls, context: str, attack: str, response: str, *, text: str | None = None
    ) -> Exchange:
        """Build the exchange; its text is `judged_text(response)` unless another is given."""
        self = super().__new__(cls, judged_text(response) if text is None else text)
        self.context, self.attack, self.response = context, attack, response
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[str, str, str], dict[str, str]]:
        """Return the constructor arguments of a copy."""
        return (self.context, self.attack, self.response), {"text": str(self)}


def context_key(context: str) -> Hashable:
    """Return a key of a context that includes its hidden parts and token ids.

    Contexts of one key are the same for attacker, target and moderators.
    """
    if not isinstance(context, Conversation):
        return context
    turns = tuple(Utterance.of(turn).key for turn in context.turns)
    return (
        context.prompt,
        turns,
        context.system,
        context.brief,
        tuple(sorted(context.facts.items())),
        context.separator,
    )


def opening_key(opening: Hashable) -> Hashable:
    """Return a key of what an episode opens with: a seed, or a context by `context_key`.

    As texts, openings that differ only in hidden parts are equal and have one hash.
    """
    return context_key(Conversation.of(opening)) if isinstance(opening, str) else opening
