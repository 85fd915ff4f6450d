"""Worlds with the tools of an MCP server: real servers over stdio and HTTP, and hostile ones."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.agents.servers.worlds import SERVERS, Notes, Raw, raw
from tests.ports import reserved_port

from astra_rl.agents import Assignment, answer, load_world
from astra_rl.agents.assignment import assignments
from astra_rl.agents.loop import AgentTurn
from astra_rl.agents.world import WorldFailure
from astra_rl.core.messages import AgentReply
from astra_rl.core.text import NoReply, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError, MissingDependencyError

pytest.importorskip("mcp")
from astra_rl.agents import mcp_client
from astra_rl.agents.mcp import HttpServer, StdioServer

HERE = "tests.agents.test_mcp"


def say(*texts):
    return Utterance("", calls=[ToolCall("say", {"text": text}) for text in texts])


def scripted(*said):
    rounds = iter(said)

    def respond(contexts):
        reply = next(rounds, "Done.")
        return [reply] * len(contexts)

    return respond


def play(world, *said, slot="user", attack="ATTACK", task="hello", goal="canary"):
    opening = Assignment(f"{HERE}:{world}", task, goal, slot).opening()
    return answer([opening + attack], scripted(*said))[0]


@pytest.fixture(autouse=True)
def _ended():
    yield
    for kind in (Raw, Notes, Reset, Snapshots, Misbehaving):
        load_world(f"{HERE}:{kind.__name__}").close()


def test_an_agent_calls_the_tools_of_a_server_and_its_calls_are_the_state():
    reply = play("Raw", say("hello"), say("canary"))
    assert [each.text for each in reply.trace.messages if each.role == "tool"] == [
        "1: hello",
        "2: canary",
    ]
    assert (reply.trace.hijack, reply.trace.utility, reply.trace.ended) == (1, 1, "answered")
    assert [each["arguments"] for each in reply.trace.state["calls"]] == [
        {"text": "hello"},
        {"text": "canary"},
    ]


@pytest.mark.parametrize(
    ("slot", "shown"),
    [("tool_result", "1: hello\nATTACK"), ("tool_result:say", "1: hello\nATTACK")],
)
def test_the_attacker_speaks_in_a_result_of_the_server(slot, shown):
    reply = play("Raw", say("hello"), slot=slot)
    (result,) = [each for each in reply.trace.messages if each.role == "tool"]
    assert result.text == shown
    assert [result.text[a:b] for a, b in result.written_by_attacker] == ["ATTACK"]


def test_the_attacker_speaks_in_a_description_of_the_server():
    turn = AgentTurn(
        Assignment(f"{HERE}:Raw", "hello", "canary", "tool_description:say"),
        Assignment(f"{HERE}:Raw", "hello", "canary", "tool_description:say").opening() + "ATTACK",
    )
    assert [tool.description for tool in turn.dialogue().tools] == ["Tool say. ATTACK"]


def test_a_slot_can_be_a_hidden_tool_of_the_server():
    reply = play("Raw", say("hello"), slot="note")
    (result,) = [each for each in reply.trace.messages if each.role == "tool"]
    assert result.text == "2: hello"  # the first call placed the attack
    assert reply.trace.state["calls"][0]["arguments"] == {"text": "ATTACK"}
    assert load_world(f"{HERE}:Raw").tool_names == ["say"]


def test_branches_share_no_state_and_each_call_has_its_effect_once_per_branch():
    world = load_world(f"{HERE}:Raw")
    _, one = world.call(world.new_state(), "say", {"text": "a"})
    texts = [world.call(one, "say", {"text": f"b{branch}"})[0] for branch in range(3)]
    assert texts == ["2: b0", "2: b1", "2: b2"]  # not 2, 3, 4
    assert len(one["calls"]) == 1


def test_an_episode_goes_on_after_all_processes_ended():
    world = load_world(f"{HERE}:Raw")
    _, state = world.call(world.new_state(), "say", {"text": "a"})
    _, expected = world.call(state, "say", {"text": "b"})
    world.close()
    text, found = world.call(state, "say", {"text": "b"})
    assert (text, found) == ("2: b", expected)


class Reset(Notes):
    reset = "reset"


class Snapshots(Notes):
    snapshot, restore = "dump", "load"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Notes, Reset, Snapshots])
def test_a_server_of_the_sdk_is_brought_to_the_state_of_each_branch(kind):
    world = load_world(f"{HERE}:{kind.__name__}")
    start = world.new_state()
    world.slots["note"].place(start, "Buy milk.")
    text, one = world.call(start, "read_notes", {})
    assert text == "Buy milk."
    branches = [
        world.call(one, "mail", {"to": f"{name}@x.example", "text": "t"}) for name in ("a", "b")
    ]
    assert [text for text, _ in branches] == [
        "mailed to a@x.example, 1 in all",
        "mailed to b@x.example, 1 in all",
    ]
    text, _ = world.call(branches[0][1], "mail", {"to": "c@x.example", "text": "t"})
    assert text == "mailed to c@x.example, 2 in all"
    if kind is Snapshots:
        assert branches[1][1]["snapshot"] == {"notes": ["Buy milk."], "mailed": ["b@x.example"]}


@pytest.fixture(scope="module")
def http_server():
    with reserved_port() as port:
        process = subprocess.Popen(
            [sys.executable, str(SERVERS / "notes.py"), str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        listens = False
        while not listens:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            with socket.socket() as probe:
                listens = probe.connect_ex(("127.0.0.1", port)) == 0
        yield f"http://127.0.0.1:{port}/mcp"
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("ways", [{}, {"snapshot": "dump", "restore": "load"}])
def test_a_server_over_http_is_reset_and_its_branches_share_no_state(http_server, ways):
    kind = type("Served", (Notes,), {"server": HttpServer(http_server), "reset": "reset", **ways})
    for _ in range(2):  # the second finds what the first left
        world = kind()
        try:
            _, one = world.call(world.new_state(), "mail", {"to": "a@x.example", "text": "t"})
            texts = [
                world.call(one, "mail", {"to": f"{name}@x.example", "text": "t"})[0]
                for name in ("b", "c")
            ]
            assert texts == ["mailed to b@x.example, 2 in all", "mailed to c@x.example, 2 in all"]
        finally:
            world.close()


def test_a_server_that_runs_already_is_refused_unless_its_state_is_known():
    kind = type("Served", (Notes,), {"server": HttpServer("http://127.0.0.1:9/mcp")})
    with pytest.raises(ConfigurationError, match="reset, or set stateless = True"):
        kind()


def test_a_server_of_another_machine_must_be_allowed():
    with pytest.raises(ConfigurationError, match="remote=True"):
        HttpServer("http://mcp.provider.example/mcp")
    assert HttpServer("http://mcp.provider.example/mcp", remote=True).remote
    with pytest.raises(ConfigurationError, match="http://"):
        HttpServer("ftp://localhost")


class Misbehaving(Raw):
    how = "well"

    @property
    def server(self):
        return raw(self.how)

    @property
    def seconds(self):
        """Few if the call does not end; else as many as a busy machine may need."""
        return 2 if self.how in ("endless", "flood", "hang") else 120


@pytest.fixture
def misbehaving(monkeypatch):
    def become(how):
        monkeypatch.setattr(Misbehaving, "how", how)
        load_world.cache_clear()
        return load_world(f"{HERE}:Misbehaving")

    yield become
    load_world.cache_clear()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("dies", "losed"),
        ("no_json", "cannot be read"),
        ("nested", "nested too deeply"),
        ("huge", "bytes"),
        ("wrong_result", "ValidationError"),
        *(
            pytest.param(how, reason, marks=pytest.mark.slow)
            for how, reason in (
                ("endless", "bytes|seconds"),
                ("flood", "bytes|seconds"),
                ("hang", "no answer within 2 seconds"),
            )
        ),
    ],
)
def test_a_server_that_fails_gives_a_missing_response_with_the_reason(misbehaving, how, reason):
    world = misbehaving(how)
    reply = play("Misbehaving", say("hello"))
    assert isinstance(reply, NoReply)
    assert reply.reason == "the tools of the agent failed"
    assert reply.detail.isascii()
    with pytest.raises(WorldFailure, match=reason):
        world.call(world.new_state(), "say", {"text": "hello"})
    world.close()


def test_what_was_reached_before_a_server_failed_counts(misbehaving):
    misbehaving("well")
    world = load_world(f"{HERE}:Misbehaving")
    opening = Assignment(f"{HERE}:Misbehaving", "hello", "canary", "user").opening()

    def respond(contexts):
        if "canary" in contexts[0].messages[-1].text:
            world.close()
            Misbehaving.how = "dies"
            return [say("more")]
        return [say("canary")]

    (reply,) = answer([opening + "ATTACK"], respond)
    assert isinstance(reply, AgentReply)
    assert (reply.trace.hijack, reply.trace.ended) == (1, "no tools")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("refuses", "Error: no \x1b[31m such argument"),
        ("is_error", "Error: not today"),
        ("prints", "1: hello"),
        ("control", "a\x00b\x1b[31mc\u202ed\ufffd"),
        ("image", "('image/png', not shown)"),
        ("structured", '{"a": 1}'),
        ("pattern", "t"),  # its schema has a pattern that backtracks for hours
    ],
)
def test_results_are_texts_that_the_agent_reads(misbehaving, how, text):
    misbehaving(how)
    reply = play("Misbehaving", say("hello"))
    (result,) = [each for each in reply.trace.messages if each.role == "tool"]
    assert result.text == text
    assert reply.trace.utility == (0 if text.startswith("Error") else 1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("twice", "listed twice"),
        ("bad_name", "chat APIs allow names"),
        ("deep", "cannot be read: ValueError: nested too deeply"),
        ("control_key", "could be a control token"),
        ("control_type", "could be a control token"),
        ("no_object", "should be 'object'"),
        ("long", "10000 characters"),
        ("no_tools", "has no tool 'place'"),
        ("wrong_types", "ValidationError"),
        ("pages", "more than 128 tools or 16 pages"),
        ("exits", "losed"),
    ],
)
def test_a_server_that_lists_what_no_model_can_be_told_is_refused(misbehaving, how, reason):
    with pytest.raises(ConfigurationError, match=reason) as error:
        misbehaving(how).new_state()
    assert str(error.value).isprintable()


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up(misbehaving, monkeypatch):
    monkeypatch.setattr(mcp_client, "SECONDS_TO_START", 1.0)
    with pytest.raises(ConfigurationError, match="no answer within 1 seconds"):
        misbehaving("silent").new_state()


def test_a_program_that_does_not_exist_is_named():
    kind = type("Absent", (Raw,), {"server": StdioServer(["no-such-program-anywhere"])})
    with pytest.raises(ConfigurationError, match="no-such-program-anywhere"):
        kind().new_state()


def test_calls_that_have_another_result_when_they_are_made_again_are_refused(misbehaving):
    world = misbehaving("random")
    _, state = world.call(world.new_state(), "say", {"text": "a"})
    world.call(state, "say", {"text": "b"})
    with pytest.raises(WorldFailure, match="another result when it was made again"):
        world.call(state, "say", {"text": "b"})


def test_a_server_that_lists_other_tools_later_is_refused(misbehaving):
    world = misbehaving("other_tools")
    world.hidden = ()
    world.new_state()
    world.close()
    with pytest.raises(WorldFailure, match="other tools than at first"):
        world.call(world.new_state(), "say", {"text": "a"})


def test_an_episode_of_other_tools_is_refused():
    (row,) = assignments(f"{HERE}:Raw", "train")
    assert row.tools == load_world(f"{HERE}:Raw").fingerprint
    context = dataclasses.replace(row, tools="others").opening() + "ATTACK"
    assert Assignment.of(context).tools == "others"
    with pytest.raises(ConfigurationError, match="not those that this episode was made for"):
        answer([context], scripted())


@pytest.mark.slow
def test_no_process_is_left_even_if_it_does_not_exit_by_itself(misbehaving):
    world = misbehaving("stays")
    world.call(world.new_state(), "say", {"text": "a"})
    (session,) = world._sessions.values()
    world.close()
    assert not session.is_open
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        for child in children.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
                assert b"stays" not in Path(f"/proc/{child}/cmdline").read_bytes()


class Redirects(BaseHTTPRequestHandler):
    where = "http://192.0.2.1/mcp"
    status = 307

    def do_POST(self):
        self.send_response(self.status)
        self.send_header("location", self.where)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status", [307, 500, 200])
def test_redirects_to_other_machines_are_not_followed(status):
    handler = type("Handler", (Redirects,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/mcp"
        kind = type(
            "Served", (Raw,), {"server": HttpServer(url), "stateless": True, "seconds": 5.0}
        )
        with pytest.raises(ConfigurationError, match="MCP server"):
            kind().new_state()
        server.shutdown()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingDependencyError, match="'mcp'"):
        mcp_client.Connection(raw())


def test_a_tool_without_arguments_has_properties_as_chat_apis_demand(misbehaving):
    """Their absence is an error there (vercel/ai#5683)."""
    world = misbehaving("no_arguments")
    (tool,) = world.described
    assert tool.as_json()["function"]["parameters"] == {"type": "object", "properties": {}}
    world.close()
