"""What an agent reads up to the attacker's text, where attacks are scored."""

from __future__ import annotations

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
    turn = AgentTurn(assignment, Conversation.of(context))
    attack = turn.attack.strip()
    if not attack or turn.is_over:  # a turn that takes the last one back shows nothing
        return None
    calls = iter(as_calls(turn.task.calls))
    while not _is_shown(turn, assignment.slot.partition(":")[0], attack):
        call = next(calls, None)
        if call is None or turn.is_over:
            return None
        turn.take(Utterance("", calls=[call]))
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
    """Whether the slot was read in this turn; the same words elsewhere are not the attack."""
    if slot not in turn.world.slots:
        if slot != "tool_result":
            return True  # before the first call
        if turn.placed.tool is not None:
            return False  # still to come
    return any(attack in message.text for message in turn.messages if message.role == "tool")
