"""The live page as a reader meets it, in a real browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import render_run_page
from astra_rl.runs.view import LivePage, PageServer

pytestmark = pytest.mark.slow

NOTICE = "#astra-live"
POLL, UNTOUCHED = 2_100, 10_100
"""Milliseconds after which a page asks for news, and after which it loads them by itself."""
ALERT = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has trained for a step."""
    config = {
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
        "title": ALERT,
    }
    folder = RunFolder(tmp_path / "run")
    folder.config.write_text(json.dumps(config))
    train(folder, 1)
    return folder


def train(folder: RunFolder, steps: int) -> None:
    rows = [{"step": step, "asr": 0.5, "reward": 0.1} for step in range(1, steps + 1)]
    folder.write_lines(folder.metrics, rows)


@pytest.fixture
def server(folder: RunFolder) -> Iterator[PageServer]:
    with PageServer(LivePage(folder, render_run_page, render_every=0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Reader:
    """A page of the browser that notes all that must not happen; its clock can be put forward."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)
        self.page.clock.install()
        self.faults: list[str] = []
        self.requests: set[str] = set()
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append("dialog") or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.add(request.url))


@pytest.fixture
def reader(browser: Any, server: PageServer) -> Iterator[Reader]:
    reader = Reader(browser)
    reader.page.goto(server.address)
    yield reader
    reader.context.close()


def test_whoever_reads_is_told_of_news_and_not_disturbed(
    reader: Reader, server: PageServer, folder: RunFolder
) -> None:
    page = reader.page
    page.mouse.click(600, 600)
    version = page.get_attribute("meta[name=astra-version]", "content")
    train(folder, 2)
    page.clock.fast_forward(POLL)
    page.wait_for_selector(NOTICE)
    assert page.inner_text(NOTICE).startswith("New results: training step 2.")
    assert page.get_attribute("meta[name=astra-version]", "content") == version
    page.click(f"{NOTICE} button")
    page.wait_for_selector(f'meta[name=astra-version]:not([content="{version}"])', state="attached")
    page.wait_for_selector(NOTICE, state="detached")
    assert reader.requests == {server.address, f"{server.address}version"}
    assert reader.faults == []


def test_a_page_that_nobody_touched_keeps_itself_fresh(reader: Reader, folder: RunFolder) -> None:
    version = reader.page.get_attribute("meta[name=astra-version]", "content")
    train(folder, 2)
    reader.page.clock.fast_forward(UNTOUCHED)
    other = f'meta[name=astra-version]:not([content="{version}"])'
    reader.page.wait_for_selector(other, state="attached")
    assert reader.faults == []


def test_the_page_outlives_the_view(reader: Reader, server: PageServer) -> None:
    server.shutdown()
    server.server_close()
    reader.page.clock.fast_forward(POLL)
    reader.page.wait_for_selector(NOTICE)
    assert (
        reader.page.inner_text(NOTICE) == "The server has stopped; this page is no longer updated."
    )


@pytest.fixture
def elsewhere(server: PageServer) -> Iterator[str]:
    """Another site on this machine, which is as near as another site can be; it frames the page."""

    class Framing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src='{server.address}'></iframe>".encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Framing) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{other.server_address[1]}/"
        other.shutdown()
        thread.join()


def test_another_site_can_neither_frame_nor_read_it(
    browser: Any, server: PageServer, elsewhere: str
) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(300_000)
    with page.expect_response(server.address) as refused:
        page.goto(elsewhere)
    assert refused.value.status == 403
    reading = """async address => {
        try { return (await fetch(address)).status; } catch (error) { return String(error); }
    }"""
    assert "Failed to fetch" in page.evaluate(reading, f"{server.address}version")
    page.context.close()
