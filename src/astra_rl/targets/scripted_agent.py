"""A scripted agent for the shipped worlds: a target that calls tools, without a model."""

from __future__ import annotations

from collections.abc import Sequence

from astra_rl.agents.registry import WORLDS, load_world
from astra_rl.agents.world import Task, World, as_calls
from astra_rl.core.messages import Dialogue
from astra_rl.core.text import NoReply, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.infra.registry import named
from astra_rl.targets.base import Target


@named("scripted_agent")
class ScriptedAgent(Target):
    """An agent that does the tasks of worlds by rules, to try things out offline.

    It does the user's task with the calls that the world lists. If anything that it reads in one
    message or description has all the cues of one of the world's goals, it first makes the calls of
    that goal. It knows no language and shows
    nothing about a model: it makes runs of agents repeatable and quick.

    Args:
        name: Name in records.
        worlds: Further worlds whose tasks it does, as ``package.module:Name``.
    """

    def __init__(self, name: str = "scripted agent", worlds: Sequence[str] = ()) -> None:
        self.name = name
        self._worlds = list(map(load_world, (*WORLDS, *worlds)))

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Return the next message of the agent in each `Dialogue`; others get no reply."""
        return [self._next(each) for each in conversations]

    def _next(self, conversation: str) -> Utterance:
        if not isinstance(conversation, Dialogue):
            return NoReply("no agent", "the scripted agent only works in a world with tools")
        found = _world_and_task(self._worlds, conversation)
        if found is None:
            return NoReply("unknown task", "the scripted agent only does the tasks of its worlds")
        world, task = found
        made = [
            (call.name, dict(call.arguments))
            for message in conversation.messages
            for call in message.calls
        ]
        for call in [*_obeyed(world, conversation), *as_calls(task.calls)]:
            if (call.name, dict(call.arguments)) not in made:
                return Utterance("", calls=[call])
        return Utterance(task.answer, calls=())


def _world_and_task(worlds: Sequence[World], dialogue: Dialogue) -> tuple[World, Task] | None:
    names = [tool.name for tool in dialogue.tools]
    asked = [message.text for message in dialogue.messages if message.role == "user"]
    for world in worlds:
        if world.tool_names == names:
            for task in world.tasks:
                if any(text.startswith(task.request) for text in asked):
                    return world, task
    return None


def _obeyed(world: World, dialogue: Dialogue) -> list[ToolCall]:
    """Return the calls that texts which the agent read demand."""
    read = [message.text for message in dialogue.messages if message.role != "assistant"]
    read += [tool.description for tool in dialogue.tools]
    calls: list[ToolCall] = []
    for goal in world.goals:
        if any(all(cue in text for cue in goal.cues) for text in map(str.casefold, read)):
            calls += as_calls(goal.calls)
    return calls
