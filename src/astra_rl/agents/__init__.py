"""Agents with tools as targets: worlds, the loop of calls and results, slots of the attacker.

See ``docs/agents.md``.
"""

from astra_rl.agents.assignment import Assignment, Limits
from astra_rl.agents.loop import answer
from astra_rl.agents.registry import WORLDS, load_world
from astra_rl.agents.tools import ToolError, ToolResult, tool_of
from astra_rl.agents.world import Goal, Slot, State, Task, World, stages

__all__ = [
    "WORLDS",
    "Assignment",
    "Goal",
    "Limits",
    "Slot",
    "State",
    "Task",
    "ToolError",
    "ToolResult",
    "World",
    "answer",
    "load_world",
    "stages",
    "tool_of",
]
