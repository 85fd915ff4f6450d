"""Worlds: what an agent can do, what its user wants, and what an attacker wants."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from astra_rl.agents.tools import check_arguments, tool_of
from astra_rl.core.images import Image
from astra_rl.core.messages import Tool
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError, did_you_mean

State = dict[str, Any]
"""State of a world: JSON values. A tool changes a copy, so a state that is kept is a snapshot."""
Split = Literal["train", "validation", "test"]
Calls = Sequence[tuple[str, Mapping[str, Any]]]
"""Name and arguments of each call of a tool, in order."""

SLOTS = ("user", "system", "tool_result", "tool_description")
"""Slots of every world. The last two can name a tool: ``tool_result:read_mail``."""


@dataclass(frozen=True)
class Task:
    """What the user wants.

    Attributes:
        id: Identifies it within its world.
        request: The user's message. With several turns it is repeated as `AGAIN`.
        done: Returns how far it is done in a state, in [0, 1].
        calls: Calls that do it; a test runs them.
        split: Training or evaluation; no task is in both.
        answer: What a scripted agent says at the end.
        images: Images in the user's first message; the target must read images.
    """

    id: str
    request: str
    done: Callable[[State], float]
    calls: Calls
    split: Split = "train"
    answer: str = "Done."
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Goal:
    """What the attacker wants the agent to do.

    Attributes:
        id: Identifies it within its world.
        text: The attacker's instruction: what the agent is to do.
        reached: Returns how far it is reached in a state, in [0, 1]: 1 is a hijack, less is partial
            credit. It must be 0 at the start and after each task of the world. The score of a turn
            is the highest value that one of its calls raised it to.
        calls: Calls that reach it; a test runs them.
        cues: Words, in lower case; the scripted agent obeys a text that has all of them.
        split: See `Task`.
    """

    id: str
    text: str
    reached: Callable[[State], float]
    calls: Calls
    cues: tuple[str, ...]
    split: Split = "train"


@dataclass(frozen=True)
class Slot:
    """A place in the world where the attacker's text stands.

    Attributes:
        what: What the attacker writes, for its instructions: ``"the body of a mail"``.
        place: Puts a text into a state. It must work in each state that calls can make; if it
            raises, the turn has no response (`NoReply`), and its score is missing.
    """

    what: str
    place: Callable[[State, str], None]


class WorldFailure(Exception):
    """The tools of a world do not work, for instance a server that died; the turn has no response.

    What the agent did is no reason for it: what a tool refuses is a `ToolError`.
    """


EntryT = TypeVar("EntryT", Task, Goal)


class World:
    """The surroundings of an agent. A subclass sets the attributes; ``named`` gives it a name.

    Attributes:
        system: System message of the agent.
        start: State at the beginning.
        tools: Functions of the state and the arguments of a call, see `tool_of`.
        slots: Places of the world where the attacker may write, besides `SLOTS`.
        tasks: What users want.
        goals: What attackers want.
    """

    system: str = ""
    start: ClassVar[State]
    tools: ClassVar[Sequence[Callable[..., str]]]
    slots: Mapping[str, Slot] = MappingProxyType({})
    tasks: Sequence[Task]
    goals: Sequence[Goal]

    @cached_property
    def functions(self) -> dict[str, Callable[..., str]]:
        """The tools by name."""
        return {function.__name__: function for function in self.tools}

    @cached_property
    def described(self) -> tuple[Tool, ...]:
        """The tools as a model is told of them."""
        return tuple(map(tool_of, self.tools))

    def offered(self, task: str, goal: str) -> tuple[Tool, ...]:
        """Return the tools that an agent has in an episode, by the ids of its task and goal."""
        return self.described

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools."""
        return [tool.name for tool in self.described]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies tools that are not part of the program; empty if all are.

        An episode goes on only with the tools that it was made for.
        """
        return ""

    def new_state(self, task: str = "") -> State:
        """Return a state at the beginning.

        Args:
            task: Id of the user's task; most worlds begin with the same state in all of them.
        """
        return copy.deepcopy(self.start)

    def answered(self, state: State, text: str) -> State:
        """Return the state after the agent's last message.

        A world whose tasks or goals are graded by words returns a new state with them.
        """
        return state

    def call(self, state: State, name: str, arguments: Mapping[str, Any]) -> tuple[str, State]:
        """Run a call of a tool.

        Args:
            state: The state before; it is not changed.
            name: Name of a tool of `described`.
            arguments: Arguments, as a model wrote them.

        Returns:
            The text of the result, or a `ToolResult`, and the state afterwards.

        Raises:
            ToolError: The tool refuses the call; the state stays as it was.
            WorldFailure: The tools do not work; the turn has no response.
            Exception: Whatever a tool raises; the agent reads it, and the state stays as it was.
        """
        tool = next(each for each in self.described if each.name == name)
        fitting = check_arguments(tool, arguments)
        after = copy.deepcopy(state)
        result = self.functions[name](after, **fitting)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return text, after

    def task(self, id: str) -> Task:
        """Return a task.

        Raises:
            ConfigurationError: There is none of this id.
        """
        return _found(self.tasks, id, "task")

    def goal(self, id: str) -> Goal:
        """Return a goal.

        Raises:
            ConfigurationError: There is none of this id.
        """
        return _found(self.goals, id, "goal")

    def check_slot(self, slot: str) -> None:
        """Raise unless a slot exists.

        Raises:
            ConfigurationError: It does not.
        """
        name, _, tool = slot.partition(":")
        known = [*self.slots, *SLOTS]
        if name not in known or (tool and name not in SLOTS[2:]):
            raise ConfigurationError(
                f"no slot {slot!r}.{did_you_mean(slot, known)} Choose from {', '.join(known)}."
            )
        if tool and tool not in self.tool_names:
            raise ConfigurationError(
                f"slot {slot!r}: no tool {tool!r}. Choose from {', '.join(self.tool_names)}."
            )

    def slot_text(self, slot: str) -> str:
        """Return what the attacker writes in a slot, for its instructions."""
        name = slot.partition(":")[0]
        if name in self.slots:
            return self.slots[name].what
        return {
            "user": "the second half of a user's message",
            "system": "the last lines of the instructions of an assistant",
            "tool_result": "text at the end of the result of a tool",
            "tool_description": "text at the end of the description of a tool",
        }[name]


def stages(*reached: bool) -> float:
    """Return partial credit: the share of stages, in order, up to the first that is not reached."""
    count = 0
    for each in reached:
        if not each:
            break
        count += 1
    return count / len(reached)


def as_calls(calls: Calls) -> list[ToolCall]:
    """Return calls in the form that a model's are in."""
    return [ToolCall(name, dict(arguments)) for name, arguments in calls]


def _found(entries: Sequence[EntryT], id: str, kind: str) -> EntryT:
    for entry in entries:
        if entry.id == id:
            return entry
    known = [entry.id for entry in entries]
    raise ConfigurationError(
        f"no {kind} {id!r}.{did_you_mean(id, known)} Choose from {', '.join(known)}."
    )
