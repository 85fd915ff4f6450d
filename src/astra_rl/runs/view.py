"""Serve the report of a run over HTTP while the run is in progress.

The server listens on the loopback interface, under an address with a random token, and answers
these requests: the page, its version, and the page on which raters label conversations
(`label_page`). No other file is served. Requests from other sites are refused (by Host, Origin and
Sec-Fetch-Site), so that no other page in the same browser can read a run, and no site can frame the
page. The only request that writes is a label: a POST of JSON that names the server's own origin,
so that no other site and no form can send it.

The page polls its version every few seconds and announces a newer one; it reloads by itself only if
the user has not interacted with it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.infra.jsonio import parse_json, parse_own_json
from astra_rl.infra.redaction import redact_message
from astra_rl.logging import logger
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.label_page import LabelDesk

HOST = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_CLIENTS = 16
"""Maximum number of concurrent connections. A further one takes the place of the oldest connection
whose request has not arrived; if all requests have arrived, it is closed."""
CONNECTION_TIMEOUT = 10.0
"""Most seconds that a client may take to send its request, and to receive the response."""
MOST_BYTES = 10_000
"""Largest body of a request."""
RENDER_EVERY = 3.0
"""Minimum number of seconds between two renderings of the page."""

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


class LivePage:
    """The current report of a run, rendered again when the files of the run have changed.

    Args:
        folder: Folder of the run; only labels are written to it.
        render: Renders the page.
        render_every: Minimum number of seconds between two renderings.
    """

    def __init__(
        self,
        folder: RunFolder,
        render: Callable[[RunFolder], str],
        *,
        render_every: float = RENDER_EVERY,
    ) -> None:
        self.folder = folder
        self.render_every = render_every
        self._render = render
        self._lock = threading.Lock()
        self._rendered: tuple[str, str, str] | None = None
        self._due = 0.0

    def version(self) -> str:
        """Return a checksum of the names, sizes and times of the files of the run."""
        digest = hashlib.blake2b(digest_size=8)
        for path in _files(self.folder):
            try:
                found = path.stat()
            except OSError:
                continue
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """Return the version, and the last completed training step."""
        return {"version": self.version(), "step": _last_step(self.folder.metrics)}

    def rendered(self) -> tuple[str, str]:
        """Return the page and its content security policy.

        If the files cannot be read at the moment, the previous page is returned.

        Raises:
            ConfigurationError: The files cannot be read, and there is no previous page.
        """
        with self._lock:  # concurrent requests share one rendering
            version = self.version()
            fresh = self._rendered is not None and (
                self._rendered[0] == version or time.monotonic() < self._due
            )
            if not fresh:
                try:
                    page, policy = with_polling(self._render(self.folder), version)
                    self._rendered = (version, page, policy)
                except (AstraError, OSError) as error:
                    if self._rendered is None:
                        raise ConfigurationError(f"{error}") from error
                    logger.warning(
                        "cannot render the page, showing the previous version: %s", error
                    )
                self._due = time.monotonic() + self.render_every
            assert self._rendered is not None
            return self._rendered[1:]


def with_polling(page: str, version: str) -> tuple[str, str]:
    """Return a page that polls for updates, and its content security policy as a header.

    The policy moves from the page to the header: policies can only be tightened by further ones,
    and the policy of the file forbids all connections.

    Raises:
        ConfigurationError: The page has no policy, so it is no report.
    """
    policies = _POLICY.findall(page)
    if len(policies) != 1 or "</head>" not in page:
        raise ConfigurationError("this is not a report page: it has no content security policy.")
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = policies[0].replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    policy = f"{policy}; connect-src 'self'; frame-ancestors 'none'"
    page = _POLICY.sub("", page, count=1)
    addition = f'<meta name="astra-version" content="{version}">\n<script>{script}</script>\n'
    return page.replace("</head>", f"{addition}</head>", 1), policy


def disconnect(connection: socket.socket) -> None:
    """End a connection that another thread may be reading."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class PageServer(ThreadingHTTPServer):
    """Serves a `LivePage` on this machine.

    Args:
        page: The page to serve.
        port: Port; 0 takes any free one.

    Attributes:
        address: URL of the page.

    Raises:
        ConfigurationError: The port cannot be opened.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = False
    request_queue_size = 128  # a client that finds the queue full tries again after a second

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page, self.desk = page, LabelDesk(page.folder)
        self.token = secrets.token_urlsafe(16)
        self._places = threading.Lock()
        self._clients = 0
        # In order of arrival; browsers send a request at once, so the oldest is the slowest.
        self._waiting: dict[socket.socket, None] = {}
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"cannot serve on port {port}: {error}. Choose another with --port, or leave it "
                "out to take any."
            ) from error

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, if there is a place; see `MAX_CLIENTS`."""
        with self._places:
            slowest = next(iter(self._waiting), None)
            is_full = self._clients >= MAX_CLIENTS
            if is_full and slowest is not None:
                del self._waiting[slowest]
                disconnect(slowest)  # its thread ends, and releases the place
            if is_full and slowest is None:
                self.shutdown_request(request)
                return
            self._clients += 1
            self._waiting[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._places:
                self._clients -= 1
                self._waiting.pop(request, None)

    def request_arrived(self, request: socket.socket) -> None:
        """Keep the place of a connection until its request is answered."""
        with self._places:
            self._waiting.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of a request; most are clients that disconnected."""
        logger.debug("a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = CONNECTION_TIMEOUT
    server: PageServer

    def setup(self) -> None:
        """Limit the time of the whole request: `timeout` starts anew with every byte."""
        super().setup()
        self._deadline = threading.Timer(CONNECTION_TIMEOUT, self._give_up)
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        """End the limit, and close the connection."""
        self._deadline.cancel()
        super().finish()

    def _give_up(self) -> None:
        disconnect(self.connection)

    def do_GET(self) -> None:
        """Answer with the page or its version."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(with_body=False)

    def do_POST(self) -> None:
        """Store a label, and answer with the next conversation."""
        length = self.headers.get("Content-Length", "")
        if not self._requests("label"):
            return self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        kind = self.headers.get_content_type()
        if not (self._is_from_here() and self._is_own_origin() and kind == "application/json"):
            return self.send_error(HTTPStatus.FORBIDDEN)
        if not (length.isascii() and length.isdigit() and int(length) <= MOST_BYTES):
            return self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        self._deadline.cancel()
        self.server.request_arrived(self.connection)
        status, found = HTTPStatus.OK, {}
        try:
            request = parse_json(body.decode("utf-8"))
            found = self.server.desk.answer(request if isinstance(request, dict) else {})
        except (AstraError, ValueError, OSError) as error:
            status = HTTPStatus.BAD_REQUEST
            found = {"error": visible_text(redact_message(str(error)))}
        return self._send(status, json.dumps(found), "application/json")

    def _answer(self, *, with_body: bool) -> None:
        self._deadline.cancel()  # drawing may take longer
        self.server.request_arrived(self.connection)
        if not self._is_from_here():
            return self._send(
                HTTPStatus.FORBIDDEN,
                "only requests from this machine are allowed\n",
                with_body=with_body,
            )
        page = self.server.page
        if self._requests("version"):
            text = json.dumps(page.state())
            return self._send(HTTPStatus.OK, text, "application/json", with_body=with_body)
        if self._requests("label"):
            text, policy = self.server.desk.page(), "frame-ancestors 'none'"  # the rest is in it
            return self._send(HTTPStatus.OK, text, "text/html", policy, with_body=with_body)
        if not self._requests(""):
            return self._send(HTTPStatus.NOT_FOUND, "not found\n", with_body=with_body)
        try:
            text, policy = page.rendered()
        except ConfigurationError as error:
            text = f"the page cannot be shown yet: {visible_text(redact_message(str(error)))}\n"
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, text, with_body=with_body)
        return self._send(HTTPStatus.OK, text, "text/html", policy, with_body=with_body)

    def _requests(self, name: str) -> bool:
        wanted = f"/{self.server.token}/{name}"
        return hmac.compare_digest(self.path.encode("utf-8", "replace"), wanted.encode())

    def _is_from_here(self) -> bool:
        """Whether the request names the loopback host and does not come from another site."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _host_name(hosts[0]) not in LOOPBACK_NAMES:
            return False
        if any(origin != f"http://{hosts[0]}" for origin in self.headers.get_all("Origin", [])):
            return False
        sites = self.headers.get_all("Sec-Fetch-Site", [])
        return all(site in ("same-origin", "none") for site in sites)

    def _is_own_origin(self) -> bool:
        """Whether the request says that it comes from a page of this server."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        return origins == [f"http://{host}" for host in hosts]

    def _send(
        self,
        status: HTTPStatus,
        text: str,
        kind: str = "text/plain",
        policy: str = _NOTHING,
        *,
        with_body: bool = True,
    ) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request with the security headers of every other response."""
        unknown = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unknown else HTTPStatus(code)
        self.close_connection = True
        self._send(status, f"{status.phrase}\n", with_body=self.command != "HEAD")

    def version_string(self) -> str:
        """Return a name without versions."""
        return "astra-rl"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a request may contain terminal escape sequences."""


def _host_name(host: str) -> str | None:
    try:
        found = urlsplit(f"//{host}")
        return found.hostname if found.username is None and not found.path else None
    except ValueError:
        return None


def _files(folder: RunFolder) -> Iterator[Path]:
    """Yield the files that the page is rendered from, as far as they exist."""
    yield from sorted(folder.path.glob("*.json"))
    yield from sorted(folder.path.glob("*.jsonl"))
    yield folder.config
    yield from sorted(folder.path.glob("transfer/*/attempts_again.jsonl"))
    yield from sorted(folder.path.glob("targets/*/*.json*"))


def _last_step(metrics: Path, most: int = 65_536) -> int | None:
    """Return the last completed training step; None if there is none yet."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - most))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = parse_own_json(line)["step"]
        except (ValueError, TypeError, KeyError):  # incomplete, or not written by this library
            continue
        if isinstance(step, int):
            return step
    return None


def _script() -> str:
    return (resources.files("astra_rl.runs") / "view.js").read_text(encoding="utf-8")
