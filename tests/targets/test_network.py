"""Proxies and certificates of the environment, with real servers on loopback."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Endpoint, serving

from astra_rl.errors import ConfigurationError
from astra_rl.infra.loopback import is_loopback
from astra_rl.moderators import OpenAIModerationModerator
from astra_rl.targets import HTTPTarget, OpenAITarget
from astra_rl.targets.network import check_network_settings

REMOTE = "http://provider.example/v1"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NO_NAMES = [
    *(
        "[::1]",
        "10.0.0.0/8,fd00::/8",
        "*.corp, ,localhost:99",
        "::::",
        "[",
        "%zz",
        "*:*",
        "all://*",
    ),
]
"""Values of NO_PROXY that are no lists of names."""


@pytest.fixture(autouse=True)
def environment(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of the machine."""
    for name in (*VARIABLES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy() -> Iterator[Endpoint]:
    """A server that answers in place of the endpoint, and records what came."""
    with pytest.MonkeyPatch.context(), serving() as server:
        yield server


def openai_target(url: str) -> Any:
    return OpenAITarget("m", base_url=url, calls={"max_tries": 1})


def http_target(url: str) -> Any:
    reply = "choices[0].message.content"
    return HTTPTarget(url, {"message": "{message}"}, reply, calls={"max_tries": 1})


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize("name", [*VARIABLES, "http_proxy", "all_proxy"])
def test_calls_of_this_machine_use_no_proxy(
    endpoint: Endpoint, proxy: Endpoint, monkeypatch: pytest.MonkeyPatch, make: Any, name: str
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    for host in ("127.0.0.1", "localhost"):
        assert make(f"http://{host}:{endpoint.port}/v1").respond(["hello"]) == ["you said hello"]
    assert proxy.requests == []
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("make", [openai_target, http_target])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
def test_calls_of_other_machines_use_the_proxy(
    proxy: Endpoint, monkeypatch: pytest.MonkeyPatch, make: Any, name: str
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    assert make(REMOTE).respond(["hello"]) == ["you said hello"]
    assert proxy.requests[0][0].startswith(REMOTE)


@pytest.mark.parametrize("value", NO_NAMES)
def test_what_no_proxy_holds_changes_nothing_for_others(
    endpoint: Endpoint, proxy: Endpoint, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NO_PROXY", value)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    assert openai_target(REMOTE).respond(["hello"]) == ["you said hello"]
    assert len(proxy.requests) == 1
    assert openai_target(endpoint.url).respond(["hello"]) == ["you said hello"]
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("name", ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
def test_what_the_client_sends_beside_the_key_is_checked_first(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "a\nb")
    with pytest.raises(ConfigurationError, match=f"variable {name} contains characters"):
        openai_target(REMOTE)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("api.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("127.1", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", True),
        ("[::]", True),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("10.0.0.1", False),
        ("192.168.0.1", False),
        ("[2001:db8::1]", False),
        ("provider.example", False),
        ("[::1%lo]", True),
        # Beginnings and ends that look like this machine, in names of other ones.
        ("127.0.0.1%25.example", False),
        ("127.0.0.1%20.example", False),
        ("127.0.0.1 .example", False),
        ("[::1%.example]", False),
        ("example\\.localhost", False),
        ("example%00.localhost", False),
        ("example;.localhost", False),
        ("127.0.0.1@example", False),
        ("[::1%İ]", False),
    ],
)
def test_names_of_this_machine_are_known(host: str, expected: bool) -> None:
    assert is_loopback(f"http://{host}:8000/v1") is expected


BROKEN = [
    ("ALL_PROXY", "socks9://127.0.0.1:1", "'socks9'"),
    ("all_proxy", "ftp://127.0.0.1:1", "'ftp'"),
    ("HTTPS_PROXY", "http://", "a host"),
    ("HTTP_PROXY", "http://127.0.0.1:none", "a host"),
    ("SSL_CERT_FILE", "/no/such/file.pem", "PEM"),
    ("SSL_CERT_DIR", "/no/such/directory", "PEM"),
]


@pytest.mark.parametrize(
    "make",
    [openai_target, http_target, lambda url: OpenAIModerationModerator(base_url=url, api_key="k")],
    ids=["openai", "http", "moderation"],
)
@pytest.mark.parametrize(("name", "value", "said"), BROKEN)
def test_a_setting_that_cannot_work_is_refused_at_once_by_its_name(
    monkeypatch: pytest.MonkeyPatch, make: Any, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"variable {name}.*{said}"):
        make(REMOTE)


def test_a_socks_proxy_is_refused_where_its_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigurationError, match=r"ALL_PROXY names a SOCKS proxy.*httpx2\[socks\]"):
        check_network_settings(REMOTE)


def test_a_password_of_a_proxy_is_not_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://me:hunter2@127.0.0.1:1")
    with pytest.raises(ConfigurationError) as caught:
        check_network_settings(REMOTE)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_without_certificates_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE.*empty\.pem"):
        check_network_settings("https://provider.example/v1")


def test_settings_that_a_call_does_not_use_are_not_checked(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    assert openai_target(endpoint.url).respond(["hello"]) == ["you said hello"]


def test_certificates_of_the_environment_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = ssl.get_default_verify_paths().openssl_cafile
    if not Path(known).is_file():
        pytest.skip("this machine has no file of certificates")
    monkeypatch.setenv("SSL_CERT_FILE", known)
    check_network_settings("https://provider.example/v1")
