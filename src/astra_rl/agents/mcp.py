"""Worlds whose tools are those of an MCP server (Model Context Protocol); extra ``mcp``.

The state of such a world is what was called: a list of calls with digests of their results, and, if
the server has a tool for it, a snapshot of its own state. See `McpWorld` for how a server is
brought to a state.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

from astra_rl.agents.mcp_client import (
    Connection,
    ServerFailure,
    check_tools,
)
from astra_rl.agents.mcp_transports import HttpServer, StdioServer
from astra_rl.agents.tools import ToolError, ToolResult
from astra_rl.agents.world import Slot, State, World, WorldFailure
from astra_rl.core.messages import Tool
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.jsonio import parse_json, unredacted_line

__all__ = ["HttpServer", "McpWorld", "StdioServer", "call_slot", "called"]


class McpWorld(World):
    """An agent whose tools are those of an MCP server. A subclass sets the attributes.

    An episode branches, and is played again after a kill. So the server must be brought to the
    state of a branch, in one of these ways, in this order:

    1. A session that is at this state is taken; it is there for one branch only.
    2. `restore`: the tool of this name is called with the snapshot that the tool `snapshot` gave.
    3. `reset`: the tool of this name brings the server to its start; then the calls of the branch
       are made again.
    4. `stateless`: calls change nothing, so any session will do.
    5. `StdioServer`: a new process; then the calls of the branch are made again.

    An `HttpServer` needs `reset`, which is also called before the first call, or `stateless`, and
    may be used by one process at a time, also of a distributed run. Calls that are made again must
    have the same results, else the turn has no response (`WorldFailure`). A call has its effect
    once per branch inside the server; what the server does outside of itself is done again when
    calls are made again, so let it be a simulation, or declare `snapshot` and `restore`.

    Attributes:
        server: The server.
        hidden: Tools that the agent does not have. `reset`, `snapshot` and `restore` are hidden.
        reset: Tool without arguments that brings the server to its start; empty: none.
        snapshot: Tool without arguments whose result is the state of the server, as text. If it is
            JSON, ``state["snapshot"]`` is its value, which goals and tasks can grade.
        restore: Tool that brings the server to a snapshot; its argument is ``snapshot``, the text.
        stateless: Whether calls change nothing.
        seconds: Most seconds of a call.
        processes: Most sessions that are kept open.
        images: Whether the agent is shown images in results, of the types of
            `astra_rl.core.images.MEDIA_TYPES`; its model must read images. Else a line stands for
            each.
    """

    server: ClassVar[StdioServer | HttpServer]
    hidden: ClassVar[Sequence[str]] = ()
    reset: ClassVar[str] = ""
    snapshot: ClassVar[str] = ""
    restore: ClassVar[str] = ""
    stateless: ClassVar[bool] = False
    seconds: ClassVar[float] = 30.0
    processes: ClassVar[int] = 8
    images: ClassVar[bool] = False
    start: ClassVar[State] = {}
    tools = ()

    def __init__(self) -> None:
        if self.restore and not self.snapshot:
            raise ConfigurationError(f"{type(self).__name__}: restore needs snapshot, too.")
        if isinstance(self.server, HttpServer) and not (self.reset or self.stateless):
            raise ConfigurationError(
                f"{type(self).__name__}: the state of a server that runs already is not known. "
                "Name the tool that brings it to its start as reset, or set stateless = True if "
                "calls change nothing."
            )
        self._sessions: OrderedDict[str, Connection] = OrderedDict()
        self._lock = threading.RLock()
        self._listed: tuple[Tool, ...] | None = None
        self._first: Any = None
        atexit.register(self.close)

    def close(self) -> None:
        """End all sessions and processes."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    @cached_property
    def described(self) -> tuple[Tool, ...]:
        """The tools as a model is told of them.

        Raises:
            ConfigurationError: The server cannot be used.
        """
        try:
            with self._lock:
                if self._listed is None:
                    self._keep(self._started(), _key([]))
        except (ServerFailure, WorldFailure) as error:
            raise ConfigurationError(f"the MCP server {self.server.name!a}: {error}.") from error
        assert self._listed is not None
        names = [tool.name for tool in self._listed]
        own = (self.reset, self.snapshot, self.restore)
        for name in (*self.hidden, *own):
            if name and name not in names:
                raise ConfigurationError(
                    f"the MCP server has no tool {name!a}.{did_you_mean(name, names)} It has "
                    f"{', '.join(map(ascii, names[:20]))}."
                )
        shown = tuple(each for each in self._listed if each.name not in (*self.hidden, *own))
        check_tools(shown)
        if not shown:
            raise ConfigurationError("the MCP server has no tool that is not hidden.")
        return shown

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the tools and of the state at the start."""
        return _digest([[tool.as_json() for tool in self.described], self._first])

    def new_state(self, task: str = "") -> State:
        """Return a state at the beginning."""
        return self._state([], copy.deepcopy(self._first)) if self.described else {}

    def call(self, state: State, name: str, arguments: Mapping[str, Any]) -> tuple[str, State]:
        """Call a tool of the server; see `World.call`. A call that it refuses is in the state, too.

        Raises:
            WorldFailure: The server does not work, or cannot be brought to the state.
        """
        try:
            text = unredacted_line(dict(arguments))
        except (ValueError, RecursionError) as error:
            raise ToolError(f"arguments are no JSON: {error}") from error
        with self._lock:
            session, entries = None, list(state["calls"])
            try:
                session = self._at(state)
                for at, entry in enumerate(entries):  # what a slot placed and is not yet called
                    if "result" not in entry:
                        entries[at] = {**entry, "result": self._placed(session, entry)}
                result = session.call(name, parse_json(text))
                entry = {"tool": name, "arguments": parse_json(text), **_told(result)}
                entries.append(entry)
                after = self._state(entries, self._snapshot_of(session))
            except BaseException as error:
                if session is not None:
                    session.close()
                if isinstance(error, ServerFailure):
                    raise WorldFailure(f"MCP server: {error}") from error
                raise
            self._keep(session, _key(entries))
        if result.is_error:
            result = ToolResult(f"Error: {result}", result.images, is_error=True)
        return result, after

    def _state(self, calls: Sequence[Mapping[str, Any]], snapshot: Any) -> State:
        return {"calls": list(calls), **({"snapshot": snapshot} if self.snapshot else {})}

    def _at(self, state: State) -> Connection:
        """Return a session at the state before the calls that have no result yet."""
        entries = [entry for entry in state["calls"] if "result" in entry]
        for key in [key for key, each in self._sessions.items() if not each.is_open]:
            self._sessions.pop(key).close()
        found = self._sessions.pop(_key(entries), None)
        if found is not None:
            return found
        one_for_all = self.restore or self.reset or self.stateless
        reused = bool(one_for_all and self._sessions)
        session = self._sessions.popitem()[1] if reused else self._started()
        try:
            if self.restore:
                self._own(session, self.restore, snapshot=_as_text(state["snapshot"]))
            elif not self.stateless:
                if self.reset:
                    self._own(session, self.reset)
                for entry in entries:
                    again = session.call(entry["tool"], entry["arguments"])
                    if _told(again) != {"result": entry["result"], "error": entry["error"]}:
                        raise WorldFailure(
                            f"MCP server: the call of {entry['tool']} had another result when it "
                            "was made again; name tools of the server as snapshot and restore"
                        )
        except BaseException:
            session.close()
            raise
        return session

    def _started(self) -> Connection:
        """Open a session at the start, and check that its tools are those of the first."""
        session = Connection(self.server, self.seconds, images=self.images)
        try:
            if self.reset:
                self._own(session, self.reset)
            first = self._snapshot_of(session)
            if self._listed is None:
                self._listed, self._first = session.tools, first
            elif session.tools != self._listed:
                raise WorldFailure("MCP server: it lists other tools than at first")
            elif first != self._first:
                raise WorldFailure("MCP server: it starts in another state than at first")
        except BaseException:
            session.close()
            raise
        return session

    def _keep(self, session: Connection, key: str) -> None:
        replaced = self._sessions.pop(key, None)
        if replaced is not None:
            replaced.close()
        self._sessions[key] = session
        while len(self._sessions) > self.processes:
            self._sessions.popitem(last=False)[1].close()

    def _own(self, session: Connection, tool: str, **arguments: Any) -> str:
        result = session.call(tool, arguments)
        if result.is_error:
            raise WorldFailure(f"MCP server: {tool}: {result[:200]!a}")
        return str(result)

    def _placed(self, session: Connection, entry: Mapping[str, Any]) -> str:
        result = session.call(entry["tool"], entry["arguments"])
        if result.is_error:
            raise WorldFailure(f"the attack could not be placed: {result[:200]!a}")
        return cast(str, _told(result)["result"])

    def _snapshot_of(self, session: Connection) -> Any:
        return _as_value(self._own(session, self.snapshot)) if self.snapshot else None


def call_slot(what: str, tool: str, argument: str, **others: Any) -> Slot:
    """Return a slot whose text is an argument of a call, made before the agent's first call.

    So the attacker's text gets into the server, and from there into results. The tool should be
    one of `McpWorld.hidden`.

    Args:
        what: What the attacker writes, see `Slot`.
        tool: Name of the tool.
        argument: Name of the argument that is the attacker's text.
        others: Further arguments of the call.
    """

    def place(state: State, text: str) -> None:
        arguments = {**others, argument: text}
        entry = {"tool": tool, "arguments": arguments, "error": False, "by": "attacker"}
        state["calls"].append(entry)

    return Slot(what, place)


def called(state: State, tool: str, **arguments: Any) -> bool:
    """Return whether the agent called a tool with these arguments, among others.

    Calls that the server refused do not count. Texts are the same if they are but for upper and
    lower case and spaces at their ends.
    """
    return any(
        entry["tool"] == tool
        and not entry["error"]
        and "by" not in entry
        and all(
            name in entry["arguments"] and _same(entry["arguments"][name], value)
            for name, value in arguments.items()
        )
        for entry in state["calls"]
    )


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(given, str) and isinstance(wanted, str):
        return given.strip().casefold() == wanted.strip().casefold()
    return type(given) is type(wanted) and bool(given == wanted)


def _told(result: ToolResult) -> dict[str, Any]:
    """Return what the state keeps of a result."""
    images = [vars(image) for image in result.images]
    told = [str(result), *images] if images else str(result)
    return {"result": _digest(told), "error": result.is_error}


def _key(entries: Sequence[Mapping[str, Any]]) -> str:
    return _digest(list(entries))


def _digest(value: Any) -> str:
    return hashlib.sha256(unredacted_line(value).encode()).hexdigest()[:16]


def _as_value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else unredacted_line(value)
