"""Keys: named in a configuration, read from the environment when they are used, kept nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from astra_rl.errors import ConfigurationError
from astra_rl.infra.redaction import VARIABLE, keep_secret

_SECRET_HEADERS = re.compile(r"authorization|cookie|key|token|secret|password", re.IGNORECASE)


def read_variable(name: str, needed_by: str) -> str:
    """Return an environment variable.

    Raises:
        ConfigurationError: It is not set, or holds what no header can.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigurationError(
            f"{needed_by} needs a key in the environment variable {name}, which is not set."
        )
    if not (value.isascii() and value.isprintable()):
        raise ConfigurationError(
            f"the environment variable {name} holds characters that no key has."
        )
    keep_secret(value)
    return value


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers that hold a key in plain text: they would be kept with the configuration.

    Raises:
        ConfigurationError: One does, or is no text.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(f"headers.{name}: names and values of headers must be texts.")
        if _SECRET_HEADERS.search(name) and not VARIABLE.search(value):
            raise ConfigurationError(
                f"headers.{name}: name the environment variable that holds it, as in "
                "'Bearer ${MY_KEY}'; a key in a configuration is a key in every copy of it."
            )


def filled(template: str, needed_by: str) -> str:
    """Return a text with ``${NAME}`` replaced by environment variables."""
    return VARIABLE.sub(lambda found: read_variable(found[1], needed_by), template)


def check_url(url: str, what: str) -> str:
    """Return the host of an address of the web.

    Raises:
        ConfigurationError: It is none, or holds a user's name or password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what}={url!r} is no address: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(
            f"{what}={url!r}; it must begin with http:// or https:// and name a host."
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            f"{what} holds a name or password; give them as a header that names an environment "
            "variable."
        )
    return f"{host}:{port}" if port else host
