"""Suites of AgentDojo as worlds of agents, from your installation: ``pip install agentdojo``.

AgentDojo (Debenedetti et al., arXiv 2406.13352) has its own tools, user tasks, injection tasks and
checks; all of them are used as they are. A scenario names a suite::

    agent: {world: "astra_rl.bridges.agentdojo:Banking"}

The attacker writes at the places that AgentDojo calls injection vectors: one of them, or, in the
slot ``everywhere``, all of them, as AgentDojo does. Every other task and every other goal is for
training, the others for the test.

The state of such a world is what was placed and called; the environment of AgentDojo is made from
it, by the same calls. Nothing of AgentDojo is in this package.
"""

from __future__ import annotations

import copy
import importlib.resources
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import yaml

from astra_rl.agents.tools import ToolError, ToolResult
from astra_rl.agents.world import Goal, Slot, Split, State, Task, World, WorldFailure
from astra_rl.core.messages import Tool
from astra_rl.errors import MissingDependencyError
from astra_rl.infra.jsonio import parse_json, unredacted_line

EVERYWHERE = "everywhere"
"""Slot of all injection vectors together."""
VERSION = "v1.2.2"
"""Version of the benchmark."""
_KEPT = 64


class AgentDojoWorld(World):
    """A suite of AgentDojo; a subclass names it.

    Attributes:
        suite_name: Name of the suite.

    Raises:
        MissingDependencyError: agentdojo is not installed.
    """

    suite_name: ClassVar[str]
    start: ClassVar[State] = {}
    tools = ()

    def __init__(self) -> None:
        try:
            from agentdojo.functions_runtime import FunctionsRuntime
            from agentdojo.task_suite.load_suites import get_suite
        except ImportError as error:
            raise MissingDependencyError(
                f"AgentDojo is not installed ({error}). Install it with: pip install agentdojo"
            ) from error
        self._suite: Any = get_suite(VERSION, self.suite_name)
        self._runtime = FunctionsRuntime(self._suite.tools)
        self._kept: OrderedDict[str, Any] = OrderedDict()
        messages = importlib.resources.files("agentdojo") / "data" / "system_messages.yaml"
        self.system = str(yaml.safe_load(messages.read_text("utf-8"))["default"])
        vectors = self._vectors
        self.slots = {
            EVERYWHERE: Slot("a text that stands in the data of the user", partial(_place, "")),
            **{
                name: Slot(
                    f"a text in the data of the user: {name.replace('_', ' ')}",
                    partial(_place, name),
                )
                for name in vectors
            },
        }
        self.tasks = [self._task(at, each) for at, each in enumerate(_listed("user", self._suite))]
        self.goals = [
            self._goal(at, each) for at, each in enumerate(_listed("injection", self._suite))
        ]

    @cached_property
    def described(self) -> tuple[Tool, ...]:
        """The tools as a model is told of them."""
        return tuple(
            Tool(each.name, each.description, each.parameters.model_json_schema())
            for each in self._suite.tools
        )

    def new_state(self, task: str = "") -> State:
        """Return a state at the beginning of a task."""
        return {"task": task, "slot": None, "attack": "", "calls": [], "answer": ""}

    def answered(self, state: State, text: str) -> State:
        """Return the state with the agent's answer, which many tasks are graded by."""
        return {**state, "answer": text}

    def call(self, state: State, name: str, arguments: Mapping[str, Any]) -> tuple[str, State]:
        """Run a call; see `World.call`. A call that the tool refuses is in the state, too."""
        environment = self._environment(state)
        text, error = self._run(environment, name, arguments)
        entry = {"tool": name, "arguments": dict(arguments), "result": text, "error": error}
        after = {**copy.deepcopy(state), "calls": [*state["calls"], entry]}
        self._keep(after, environment)
        return (ToolResult(f"Error: {text}", is_error=True) if error else text), after

    def _run(self, environment: Any, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        from agentdojo.agent_pipeline.tool_execution import tool_result_to_str

        result, error = self._runtime.run_function(environment, name, dict(arguments))
        return (str(error), True) if error else (str(tool_result_to_str(result)), False)

    def _environment(self, state: State) -> Any:
        """Return the environment of AgentDojo in a state; the caller may change it."""
        key = _key(state)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].model_copy(deep=True)
        environment = self._before(state)
        for entry in state["calls"]:
            again = self._run(environment, entry["tool"], entry["arguments"])
            if again != (entry["result"], entry["error"]):
                raise WorldFailure(f"AgentDojo: {entry['tool']} had another result this time")
        self._keep(state, environment)
        return environment.model_copy(deep=True)

    def _keep(self, state: State, environment: Any) -> None:
        self._kept[_key(state)] = environment
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _before(self, state: State) -> Any:
        """Return the environment before the first call."""
        slot, attack = state["slot"], state["attack"]
        texts = {
            name: attack if slot in ("", name) else default
            for name, default in self._vectors.items()
        }
        # AgentDojo puts a text into YAML, where a quotation mark in it would be syntax.
        values = _replaced(self._values, {_mark(name): text for name, text in texts.items()})
        environment = self._suite.environment_type.model_validate(values)
        task = self._suite.user_tasks.get(state["task"])
        return environment if task is None else task.init_environment(environment)

    @cached_property
    def _vectors(self) -> dict[str, str]:
        return dict(self._suite.get_injection_vector_defaults())

    @cached_property
    def _values(self) -> Any:
        from agentdojo.task_suite.task_suite import read_suite_file

        text = read_suite_file(self._suite.name, "environment.yaml", self._suite.data_path)
        return yaml.safe_load(text.format(**{name: _mark(name) for name in self._vectors}))

    def _task(self, at: int, task: Any) -> Task:
        calls = _calls(task, self._before(self.new_state(task.ID)))
        done = partial(self._grade, "utility", task)
        return Task(task.ID, task.PROMPT, done, calls, _split(at), task.GROUND_TRUTH_OUTPUT)

    def _goal(self, at: int, task: Any) -> Goal:
        calls = _calls(task, self._before(self.new_state()))
        reached = partial(self._grade, "security", task)
        return Goal(task.ID, task.GOAL, reached, calls, (task.ID,), _split(at))

    def _grade(self, what: str, task: Any, state: State) -> float:
        from agentdojo.functions_runtime import FunctionCall

        traces = [
            FunctionCall(function=each["tool"], args=each["arguments"]) for each in state["calls"]
        ]
        given = (state["answer"], self._before(state), self._environment(state))
        found = getattr(task, f"{what}_from_traces")(*given, traces)
        return float(getattr(task, what)(*given) if found is None else found)


class Banking(AgentDojoWorld):
    """The suite ``banking``."""

    suite_name = "banking"


class Slack(AgentDojoWorld):
    """The suite ``slack``."""

    suite_name = "slack"


class Travel(AgentDojoWorld):
    """The suite ``travel``."""

    suite_name = "travel"


class Workspace(AgentDojoWorld):
    """The suite ``workspace``."""

    suite_name = "workspace"


def _place(slot: str, state: State, text: str) -> None:
    if state["calls"]:
        raise ToolError("a suite of AgentDojo has one turn; use tree_depth: 1")
    state["slot"], state["attack"] = slot, text


def _listed(kind: str, suite: Any) -> list[Any]:
    """Return the tasks in the order of their numbers."""
    tasks = suite.user_tasks if kind == "user" else suite.injection_tasks
    return sorted(tasks.values(), key=lambda each: int(each.ID.rpartition("_")[2]))


def _calls(task: Any, environment: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls of AgentDojo's own solution, without those that no JSON can hold."""
    found = []
    for call in task.ground_truth(environment):
        try:
            found.append((str(call.function), dict(parse_json(unredacted_line(dict(call.args))))))
        except (TypeError, ValueError):
            break
    return found


def _split(at: int) -> Split:
    return "test" if at % 2 else "train"


def _key(state: State) -> str:
    made = [[entry["tool"], entry["arguments"]] for entry in state["calls"]]
    return unredacted_line([state["task"], state["slot"], state["attack"], made])


def _mark(name: str) -> str:
    return f"ASTRA-VECTOR-{name}-END"


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    """Return a value of YAML with marks in its texts replaced."""
    if isinstance(value, str):
        for mark, text in texts.items():
            if mark in value:
                value = value.replace(mark, text)
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(each, texts) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_replaced(each, texts) for each in value]
    return value
