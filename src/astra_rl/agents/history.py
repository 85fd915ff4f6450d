"""Long conversations with agents: what the attacker reads of them, and turns that are taken back.

Both are functions of the conversation alone. So a tree, a resumed run and the log-probabilities of
a training step have them again without any state beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from astra_rl.core.messages import Trace, trace_of
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError

HISTORY = "agent.history"
"""Fact of an opening: number of turns that `compacted` keeps; without it all are kept."""
BACK = "/back"
"""Attack that takes the turn before it back."""
TAKEN_BACK = "taken back"
"""`Trace.ended` of such an attack."""
NOT_TAKEN_BACK = "not taken back"
"""`Trace.ended` of one that had no effect."""

_QUOTES, _WORDS, _CHARACTERS = 8, 6, 60


def compacted(conversation: Conversation) -> Conversation:
    """Return what an attacker reads of a conversation: all of it, or its latest turns.

    With a history of n turns, the oldest turns are left out in blocks of n, so that at least n and
    at most 2 n - 1 turns are kept; between two cuts a prompt only grows. The brief then says how
    many turns are left out, and the first words of the latest `_QUOTES` attacks among them, of each
    at most `_CHARACTERS` characters.
    """
    turns = conversation.turns
    keep = int(conversation.facts.get(HISTORY, 0))
    blocks = len(turns) // 2 // keep - 1 if keep else 0
    if blocks < 1:
        return conversation
    left_out = turns[: 2 * keep * blocks]
    quotes = [
        " ".join(attack.split()[:_WORDS])[:_CHARACTERS]  # many languages write without spaces
        for attack in left_out[::2][-_QUOTES:]
    ]
    listed = "; ".join(f'"{each}"' for each in quotes)
    note = f"({keep * blocks} earlier turns are left out. What you wrote in them began: {listed})"
    return Conversation(
        conversation.prompt,
        turns=turns[len(left_out) :],
        system=conversation.system,
        brief=f"{conversation.brief or ''}\n\n{note}".strip(),
        facts=conversation.facts,
        separator=conversation.separator,
    )


def is_back(attack: str) -> bool:
    """Whether an attack is the action that takes a turn back."""
    return attack.strip().casefold() == BACK


def kept_turns(traces: Sequence[Trace]) -> list[Trace]:
    """Return what the agent did in the turns that were not taken back.

    Args:
        traces: What it did in each turn so far.
    """
    kept: list[Trace] = []
    for trace in traces:
        if trace.ended == TAKEN_BACK:
            del kept[-1:]
        elif trace.ended != NOT_TAKEN_BACK:
            kept.append(trace)
    return kept


def known_traces(responses: Sequence[str]) -> list[Trace]:
    """Return what an agent did in each of its responses.

    Raises:
        ConfigurationError: One is of no agent, or its state is not known.
    """
    traces = [trace for trace in map(trace_of, responses) if trace and trace.state is not None]
    if len(traces) < len(responses):
        raise ConfigurationError(
            "a conversation with an agent cannot go on from a response whose state is not known; "
            "replay it from its opening."
        )
    return traces
