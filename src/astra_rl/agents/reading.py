"""What an agent reads up to the attacker's text, where attacks are scored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from astra_rl.agents.assignment import Assignment
from astra_rl.agents.loop import AgentTurn
from astra_rl.agents.world import as_calls
from astra_rl.core.messages import Dialogue
from astra_rl.core.text import Conversation, Utterance


def reading(context: str) -> Dialogue | None:
    """Return the messages up to the first that shows the attack in its slot.

    They do not depend on a model, so the likelihoods of attacks can be compared: an agent makes the
    calls that the world lists for the user's task, one after the other, until a result shows the
    text.

    Args:
        context: A conversation that ends in an attack.

    Returns:
        The dialogue; its last message shows the attack, or, in the slots ``system`` and
        ``tool_description``, what stands before it does. None if the context is of no agent, the
        attack is blank, or no call of the task shows it.

    Raises:
        ConfigurationError: As `AgentTurn`.
    """
    assignment = Assignment.of(context)
    if assignment is None:
        return None
    conversation = Conversation.of(context)
    turn = AgentTurn(assignment, conversation)
    attack = turn.attack.strip()
    if not attack or turn.is_over:  # a turn that takes the last one back shows nothing
        return None
    slot = assignment.slot.partition(":")[0]
    least = 0
    if slot in turn.world.slots:
        earlier = conversation.turns[:-1]
        least = _shown_after(assignment, earlier) if earlier else _first_shown_after(assignment)
    calls, made = iter(as_calls(turn.task.calls)), 0
    while made < least or not _is_shown(turn, slot, attack):
        call = next(calls, None)
        if call is None or turn.is_over:
            return None
        turn.take(Utterance("", calls=[call]))
        made += 1
    return turn.dialogue()


def shown_in(dialogue: Dialogue, slot: str) -> str:
    """Return the whole text of the message or description that has the attack.

    Args:
        dialogue: What `reading` returned.
        slot: Where the attacker writes.
    """
    name, _, tool = slot.partition(":")
    if name == "system":
        return dialogue.messages[0].text
    if name == "tool_description":
        return next(each.description for each in dialogue.tools if tool in ("", each.name))
    return dialogue.messages[-1].text


def _is_shown(turn: AgentTurn, slot: str, attack: str) -> bool:
    """Whether the last message shows the slot; the same words elsewhere are not the attack."""
    if slot not in turn.world.slots:
        if slot != "tool_result":
            return True  # before the first call
        if turn.placed.tool is not None:
            return False  # still to come
    return turn.messages[-1].role == "tool" and attack in turn.messages[-1].text


_PROBE = "ASTRA-PROBE"
"""A text that stands nowhere in a world."""


def _shown_after(assignment: Assignment, earlier: Sequence[str]) -> int:
    """Return after how many calls of the task the slot is read first; 0 if that is not known.

    An attack of a few words may stand in an earlier result, too, where the attacker did not write
    it.

    Args:
        assignment: World, task and slot.
        earlier: The turns before.
    """
    turn = AgentTurn(assignment, Conversation(turns=[*earlier, _PROBE]))
    for made, call in enumerate(as_calls(turn.task.calls), 1):
        if turn.is_over:
            break
        turn.take(Utterance("", calls=[call]))
        if turn.messages[-1].role == "tool" and _PROBE in turn.messages[-1].text:
            return made
    return 0


@lru_cache(maxsize=4096)
def _first_shown_after(assignment: Assignment) -> int:
    return _shown_after(assignment, ())
