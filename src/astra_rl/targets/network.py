"""Network settings of the environment: proxies and certificates, checked before models load."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.loopback import is_loopback

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def check_network_settings(url: str) -> None:
    """Check the proxies and certificates of the environment, as far as calls of a URL use them.

    Calls of this machine use no proxy, and without TLS no certificates.

    Raises:
        ConfigurationError: A setting cannot work; the message names the variable.
        MissingDependencyError: The extra ``openai``, which includes the client, is not installed.
    """
    if not is_loopback(url):
        httpx = require("httpx2", extra="openai")
        for name, value in _proxies():
            _check_proxy(httpx, name, value)
    if _certificates_variable() is not None:
        tls_settings(url)


def tls_settings(url: str) -> ssl.SSLContext:
    """Return the TLS settings of a client for a URL, with the certificates of the environment.

    Raises:
        ConfigurationError: They cannot be read; the message names the variable.
    """
    if is_loopback(url) and urlsplit(url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused; loading certificates is slow
    name = _certificates_variable()
    try:
        if name == "SSL_CERT_DIR" and not Path(os.environ[name]).is_dir():  # OpenSSL ignores it
            raise NotADirectoryError("it is not a directory")
        context: ssl.SSLContext = require("httpx2", extra="openai").create_ssl_context()
    except (OSError, ValueError) as error:
        given = "" if name is None else f"the environment variable {name}={os.environ[name]!r}: "
        raise ConfigurationError(
            f"{given}the certificates cannot be read ({error}). Set SSL_CERT_FILE to a file of "
            "certificates in PEM format, or unset it to use those of this machine."
        ) from error
    return context


def _certificates_variable() -> str | None:
    return next((name for name in _CERTIFICATES if os.environ.get(name)), None)


def _proxies() -> Iterator[tuple[str, str]]:
    """Yield the variables that name a proxy, in capital or small letters."""
    if "*" in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        return
    for name in _PROXIES:
        for spelling in (name, name.lower()):
            if value := os.environ.get(spelling, "").strip():
                yield spelling, value if "://" in value else f"http://{value}"


def _check_proxy(httpx: Any, name: str, value: str) -> None:
    """Raise unless the client can use a proxy. The message has no URL: it may have a password."""
    try:
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        httpx.AsyncHTTPTransport(proxy=value, verify=plain)
        if not urlsplit(value).hostname:
            raise ValueError("no host")
    except ImportError as error:
        raise ConfigurationError(
            f"the environment variable {name} names a SOCKS proxy, which needs the package "
            "socksio. Install it with: pip install 'httpx2[socks]'; or unset the variable."
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        scheme = value.split("://")[0]
        raise ConfigurationError(
            f"the environment variable {name} is not the URL of a proxy that can be used (scheme "
            f"{scheme!r}). Use http://, https:// or socks5:// and a host, or unset the variable."
        ) from None if "@" in value else error
