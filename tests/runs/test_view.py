"""The live page answers this machine, and nobody else, with two things."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.cli.processes import Command

from astra_rl.errors import ConfigurationError
from astra_rl.runs import view as viewing
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import render_run_page
from astra_rl.runs.view import LivePage, PageServer, with_polling

PAGE = (
    '<html><head><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'sha256-x'\"></head><body>{}</body></html>"
)


class Drawing:
    """Draws a page that counts how often it was drawn."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    def __call__(self, folder: RunFolder) -> str:
        if self.error is not None:
            raise self.error
        self.count += 1
        return PAGE.format(f"drawing {self.count}")


@pytest.fixture
def drawing() -> Drawing:
    return Drawing()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.config.write_text("title: a run\n")
    return folder


@contextlib.contextmanager
def serving(page: LivePage) -> Iterator[PageServer]:
    with PageServer(page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(folder: RunFolder, drawing: Drawing) -> Iterator[PageServer]:
    with serving(LivePage(folder, drawing, render_every=0)) as server:
        yield server


def ask(
    server: PageServer,
    path: str = "",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    whole_path: str | None = None,
) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    target = f"/{server.token}/{path}" if whole_path is None else whole_path
    try:
        connection.request(method, target, headers=headers or {})
        reply = connection.getresponse()
        return reply, reply.read().decode()
    finally:
        connection.close()


def talk(server: PageServer, said: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back."""
    with socket.create_connection(server.server_address[:2], timeout=60) as client:
        client.sendall(said)
        with contextlib.suppress(ConnectionError):
            client.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                heard += part
        return heard


def test_it_listens_on_this_machine_only_and_on_a_free_port(server: PageServer) -> None:
    host, port = server.socket.getsockname()
    assert host == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{port}/{server.token}/"
    assert len(server.token) >= 20


def test_the_page_comes_with_everything_that_keeps_others_out(server: PageServer) -> None:
    reply, text = ask(server)
    assert reply.status == 200
    assert "drawing 1" in text
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Frame-Options"] == "DENY"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "Access-Control-Allow-Origin" not in reply.headers
    assert "Python" not in reply.headers["Server"]


def test_a_request_for_the_head_has_no_body(server: PageServer) -> None:
    reply, text = ask(server, method="HEAD")
    assert (reply.status, text) == (200, "")
    assert int(reply.headers["Content-Length"]) > 100


def test_the_version_changes_with_the_files_of_the_run(
    server: PageServer, folder: RunFolder
) -> None:
    def version() -> dict[str, object]:
        found: dict[str, object] = json.loads(ask(server, "version")[1])
        return found

    first = version()
    assert version() == first
    assert first["step"] is None
    folder.metrics.write_text('{"step": 7}\n{"st')
    second = version()
    assert second["step"] == 7
    assert second["version"] != first["version"]


def test_a_page_is_drawn_again_only_when_there_is_news(
    server: PageServer, folder: RunFolder, drawing: Drawing
) -> None:
    texts = [ask(server)[1] for _ in range(3)]
    assert drawing.count == 1
    folder.metrics.write_text('{"step": 1}\n')
    texts.append(ask(server)[1])
    assert drawing.count == 2
    versions = [re.findall('name="astra-version" content="(\\w+)"', text)[0] for text in texts]
    assert versions[0] == versions[1] != versions[3]
    assert versions[3] == json.loads(ask(server, "version")[1])["version"]


def test_many_who_ask_at_once_are_given_one_drawing(folder: RunFolder, drawing: Drawing) -> None:
    page = LivePage(folder, drawing, render_every=3600)
    with serving(page) as server, ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            folder.metrics.write_text(folder.metrics.name * (drawing.count + 1))
            assert {ask(server)[0].status for _ in pool.map(str, range(8))} == {200}
    assert drawing.count == 1


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/favicon.ico",
        "/config.yaml",
        "/{token}",
        "/{token}/config.yaml",
        "/{token}/../config.yaml",
        "/{token}/%2e%2e/config.yaml",
        "/{token}//etc/hostname",
        "/{token}/version/",
        "/{token}x/",
        "/{token}/?x",
        "http://localhost/{token}/",
    ],
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    reply, text = ask(
        server, whole_path=path.replace("{token}", server.token), headers={"Host": "localhost"}
    )
    assert (reply.status, text) == (404, "not found\n")
    assert reply.headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "user@localhost",
        "[::1",
        "",
        "0.0.0.0",
    ],
)
def test_another_host_is_refused(server: PageServer, host: str) -> None:
    for path in ("", "version"):
        reply, text = ask(server, path, headers={"Host": host})
        assert (reply.status, text) == (403, "only requests from this machine are allowed\n")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:8000"])
def test_names_of_this_machine_are_welcome_from_behind_a_tunnel(
    server: PageServer, host: str
) -> None:
    assert ask(server, headers={"Host": host, "Origin": f"http://{host}"})[0].status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"]
)
def test_another_origin_is_refused(server: PageServer, origin: str) -> None:
    assert ask(server, "version", headers={"Origin": origin})[0].status == 403


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
def test_a_request_that_another_site_made_is_refused(
    server: PageServer, site: str, status: int
) -> None:
    assert ask(server, headers={"Sec-Fetch-Site": site})[0].status == status


def test_no_host_or_two_are_refused(server: PageServer) -> None:
    path = f"/{server.token}/".encode()
    assert b" 403 " in talk(server, b"GET " + path + b" HTTP/1.0\r\n\r\n").split(b"\n")[0]
    both = b"Host: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in talk(server, b"GET " + path + b" HTTP/1.1\r\n" + both).split(b"\n")[0]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_reading_is_answered(server: PageServer, method: str) -> None:
    reply, _ = ask(server, method=method)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\xff\x1b[31m\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET /\x1b]0;title\x07 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_request_harms_nobody_and_prints_nothing(
    server: PageServer, said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    heard = talk(server, said)
    assert b"\x1b" not in heard
    assert ask(server)[0].status == 200
    assert capfd.readouterr() == ("", "")


def test_silent_clients_in_all_places_do_not_block_the_page(
    folder: RunFolder, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be disconnected after a time, and come again; here that is later than the test."""
    monkeypatch.setattr(viewing, "CONNECTION_TIMEOUT", 600.0)
    monkeypatch.setattr(viewing._Handler, "timeout", 600.0)
    with (
        serving(LivePage(folder, drawing)) as server,
        contextlib.ExitStack() as clients,
    ):
        address = server.server_address[:2]
        for _ in range(3):
            silent = [
                clients.enter_context(socket.create_connection(address, timeout=60))
                for _ in range(viewing.MAX_CLIENTS)
            ]
            for each in silent:
                each.sendall(b"GET /")
            assert ask(server)[0].status == 200
        assert len(server._waiting) <= viewing.MAX_CLIENTS
        with contextlib.suppress(ConnectionError):
            assert silent[0].recv(1) == b""  # the oldest of them was disconnected
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


def test_clients_whose_request_has_arrived_keep_their_places(
    folder: RunFolder, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewing, "MAX_CLIENTS", 2)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def draw(folder: RunFolder) -> str:
        begun.release()
        assert go_on.wait(60)
        return drawing(folder)

    with (
        serving(LivePage(folder, draw)) as server,
        ThreadPoolExecutor(2) as pool,
        socket.socket() as late,
    ):
        replies = [pool.submit(ask, server) for _ in range(2)]
        assert begun.acquire(timeout=60)  # the other one waits for the same drawing
        wait_until(lambda: server._clients == 2 and not server._waiting)
        late.settimeout(60)
        late.connect(server.server_address[:2])
        with contextlib.suppress(ConnectionError):
            assert late.recv(1) == b""  # closed at once
        go_on.set()
        assert [each.result()[0].status for each in replies] == [200, 200]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _send_slowly(client: socket.socket, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.sendall(b"G")
        time.sleep(0.1)


def test_clients_that_send_a_byte_at_a_time_lose_their_places(
    folder: RunFolder, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte would start a timeout of the socket anew."""
    with serving(LivePage(folder, drawing)) as server, contextlib.ExitStack() as clients:
        address = server.server_address[:2]
        with monkeypatch.context() as patched:
            patched.setattr(viewing, "CONNECTION_TIMEOUT", 0.5)
            slow = clients.enter_context(socket.create_connection(address, timeout=60))
            with pytest.raises(ConnectionError):
                _send_slowly(slow, seconds=60)
        assert ask(server)[0].status == 200


def test_what_cannot_be_drawn_is_said_and_an_earlier_page_stays(
    server: PageServer, folder: RunFolder, drawing: Drawing
) -> None:
    drawing.error = ConfigurationError("half \x1b[31mwritten, api_key=sentinel-1a2b3c4d")
    reply, text = ask(server)
    assert reply.status == 503
    assert text.startswith("the page cannot be shown yet: half")
    assert "\x1b" not in text
    assert "sentinel" not in text
    drawing.error = None
    assert "drawing 1" in ask(server)[1]
    folder.metrics.write_text('{"step": 1}\n')
    drawing.error = OSError("gone")
    reply, text = ask(server)
    assert (reply.status, "drawing 1" in text) == (200, True)


def test_a_port_that_is_taken_is_an_error_of_the_user(
    server: PageServer, folder: RunFolder
) -> None:
    with pytest.raises(ConfigurationError, match="Choose another with --port"):
        PageServer(LivePage(folder, str), server.server_address[1])


def test_the_policy_of_the_page_gains_the_live_script_and_its_own_requests_only() -> None:
    page, policy = with_polling(PAGE.format("text"), "abc")
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}' 'sha256-x'; connect-src 'self'; "
        "frame-ancestors 'none'"
    )
    assert "Content-Security-Policy" not in page
    with pytest.raises(ConfigurationError, match="no content security policy"):
        with_polling("<html><head></head></html>", "abc")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that has begun to train."""
    config = {
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
        "title": "</script><script>alert(1)</script>",
    }
    folder = RunFolder(tmp_path / "begun")
    folder.config.write_text(json.dumps(config))
    folder.write_lines(folder.metrics, [{"step": 1, "asr": 0.5, "reward": 0.1}])
    return folder.path


def test_the_page_of_a_real_run_is_served_under_its_own_policy(begun: Path) -> None:
    page, policy = with_polling(render_run_page(RunFolder(begun)), "abc")
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert scripts
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(begun: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*")}
    output = tmp_path / "output.txt"
    command = Command("view", str(begun), cwd=tmp_path, output=output)
    try:
        command.wait_until_written(output)
        address = urlsplit(output.read_text("utf-8").splitlines()[0])
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request("GET", address.path)
        reply = connection.getresponse()
        assert reply.status == 200
        assert b"<html" in reply.read()
        connection.close()
        command.send_signal(signal.SIGINT)
        code, errors = command.wait()
    finally:
        if command.is_running():
            command.kill()
    assert code == 0
    # On a busy machine the command says what it is doing, and for how long: "loading (3 s)".
    assert [line for line in errors.splitlines() if not re.search(r"\(\d+ s\)$", line)] == []
    assert "stopped" in output.read_text("utf-8")
    assert {path: path.read_bytes() for path in begun.rglob("*")} == before
