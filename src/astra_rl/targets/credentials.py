"""Credentials: named in a configuration, read from the environment, never stored."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from astra_rl.errors import ConfigurationError
from astra_rl.infra.redaction import VARIABLE, keep_secret

_SECRET_HEADERS = re.compile(r"authorization|cookie|key|token|secret|password", re.IGNORECASE)

_SENT_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


def read_variable(name: str, needed_by: str) -> str:
    """Return an environment variable.

    Raises:
        ConfigurationError: It is not set, or contains characters that a header cannot hold.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigurationError(
            f"{needed_by} needs a key, and the environment variable {name} is not set. Set it."
        )
    if not _fits_header(value):
        raise ConfigurationError(
            f"the environment variable {name} contains characters that a header cannot hold. "
            "Set it to the key alone."
        )
    keep_secret(value)
    return value


def check_sent_variables() -> None:
    """Check the environment variables that the official client sends beside the key.

    Raises:
        ConfigurationError: One contains characters that a header cannot hold.
    """
    for name in _SENT_VARIABLES:
        if not _fits_header(os.environ.get(name, "")):
            raise ConfigurationError(
                f"the environment variable {name} contains characters that a header cannot hold. "
                "Correct or unset it."
            )


def _fits_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers with a plain-text credential, which would be stored with the configuration.

    Raises:
        ConfigurationError: A header contains one, or is not a string.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(
                f"headers.{name}: names and values of headers must be strings."
            )
        if _SECRET_HEADERS.search(name) and not VARIABLE.search(value):
            raise ConfigurationError(
                f"headers.{name}: a credential must not be part of the configuration, which is "
                "stored in every run. Name an environment variable, as in 'Bearer ${MY_KEY}'."
            )


def filled(template: str, needed_by: str) -> str:
    """Return a text with each ``${NAME}`` replaced by the environment variable."""
    return VARIABLE.sub(lambda found: read_variable(found[1], needed_by), template)


def check_url(url: str, what: str) -> str:
    """Return the host, and the port if there is one, of a URL.

    Raises:
        ConfigurationError: The URL is not valid, or contains a user name or password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what}={url!r} is not a valid URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(
            f"{what}={url!r}; it must begin with http:// or https:// and have a host."
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            f"{what} contains a user name or password. Give them as a header that names an "
            "environment variable."
        )
    return f"{host}:{port}" if port else host
