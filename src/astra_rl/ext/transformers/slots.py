"""Token ids of attacks in the slots where agents read them."""

from __future__ import annotations

from collections.abc import Sequence

from astra_rl.agents.assignment import Assignment
from astra_rl.agents.reading import reading, shown_in
from astra_rl.core.text import Conversation
from astra_rl.models.rendering import ConversationRenderer

Ids = Sequence[int]


def slot_token_ids(
    renderer: ConversationRenderer, context: str, attack: str
) -> tuple[Ids, Ids] | None:
    """Return the token ids before an attack in its slot, and those of the attack.

    A line stands for each image. Both are empty if the attack cannot be shown there, or if the
    prompt exceeds the window.

    Args:
        renderer: Renderer of the model that reads it.
        context: Context of the attack.
        attack: The attack.

    Returns:
        The ids; None if the context is of no agent.

    Raises:
        ConfigurationError: As `reading`.
    """
    conversation = Conversation.of(context) + attack
    assignment = Assignment.of(conversation)
    if assignment is None:
        return None
    read = reading(conversation)
    if read is None:
        return (), ()
    dialogue = read.as_text()
    return renderer.place_in_dialogue(dialogue, attack, shown_in(dialogue, assignment.slot))
