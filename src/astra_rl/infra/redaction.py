"""Redaction of credentials in everything that is written or shown.

A credential is registered by its origin: an environment variable, a setting or a header with a
name such as ``API_KEY``, or a URL. Its value is then replaced in every file, terminal and log. In
recorded attempts and files made of them, text that only looks like a credential is kept, because a
planted secret is data under test; in messages it is replaced too.

| function | replaces | used for |
| --- | --- | --- |
| `redact` | registered values | every file of a run |
| `seal_text` | the same, reversibly | cached replies, training states |
| `redact_message` | these, and text in the format of a credential | terminals, logs, commands |
| `redact_settings` | these, and the values of settings by name | configuration and manifest |

A value is registered if it is unlikely to occur in data: at least 20 characters, or 8 with a letter
and a digit. Shorter values are only replaced by name.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from astra_rl.infra.user_key import user_key

REDACTED = "(redacted)"
"""Replacement of a credential; plain text in every file format."""

_SECRET_VARIABLE = re.compile(
    r"KEY|TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|BEARER|COOKIE|"
    r"_(?:PASS|PWD|PAT|AUTH)$"
)
_PLACE_VARIABLE = re.compile(r"_(FILE|PATH|DIR|HOME|SOCK|URL|URI|ENDPOINT)$")
# Not "secret", which is the name of a planted secret in a scenario.
_SECRET_SETTING = re.compile(
    r"(proxy[-_]|x[-_])?(api[-_]?key|api[-_]?token|authorization|auth[-_]?token|access[-_]?key|"
    r"access[-_]?token|refresh[-_]?token|bearer[-_]?token|hf[-_]?token|id[-_]?token|token|"
    r"(set[-_])?cookie|client[-_]?secret|secret[-_]?(access[-_]?)?key|private[-_]?key|"
    r"password|passwd)",
    re.IGNORECASE,
)
_SECRET_HEADER = re.compile("key|token|secret|password|auth|cookie", re.IGNORECASE)
_HEADERS = frozenset({"headers", "default_headers", "extra_headers", "query", "extra_query"})
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Reference to an environment variable in a setting, as in ``${MY_KEY}``."""
_SCHEME = re.compile(r"^(?:Bearer|Basic|Token|ApiKey)\s+", re.IGNORECASE)

# Each pattern is anchored at the start of a run of its characters, to stay linear.
_IN_ADDRESS = re.compile(
    r"(?P<before>(?<![a-zA-Z0-9+.-])[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<secret>[^\s/?#@]+)(?=@)"
)
_IN_QUERY = re.compile(
    r"(?P<before>[?&](?:[\w-]{0,40}(?:key|token|secret|password|passwd)|sig|signature|auth)=)"
    r"(?P<secret>[^&\s#'\"<>]+)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?P<before>(?<![\w-])[\w-]*(?:api[-_]?key|authorization|(?:access|auth|hf|refresh)[-_]?token|"
    r"client[-_]?secret|cookie)[\"']?\s*(?P<sign>[:=])\s*[\"']?(?:(?:Bearer|Basic|Token)\s+)?)"
    r"(?P<secret>[^\s\"',;&}\]]+)",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"(?P<before>\b(?:Bearer|Basic)\s+)(?P<secret>[A-Za-z0-9._~+/=-]{8,})"
    r"|(?<![\w-])(?:"
    r"(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}"
    r"|(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}"
    r"|AIza[0-9A-Za-z_-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"
    r")"
)
_IS_REDACTED = re.compile(rf"^{re.escape(REDACTED)}$|(?://|=){re.escape(REDACTED)}")

_registered: frozenset[str] = frozenset()
_forms: tuple[str, ...] = ()
_without_secrets: dict[str, str] = {}
"""Environment variables that were seen to hold none; they are looked through for every record."""
_learned: tuple[Mapping[Any, Any], frozenset[str]] = ({}, frozenset())
"""The environment that was looked through last, and what was registered then."""


def keep_secret(value: str) -> None:
    """Register a credential, if it is long enough; see the module."""
    global _registered, _forms
    value = value.strip()
    parts = {value, _SCHEME.sub("", value), unquote(value), _password_of_basic(value)}
    new = {part for part in parts if _is_worth_hiding(part)} - _registered
    if new:
        _registered = _registered | new
        found = {form for each in _registered for form in _written_as(each)}
        # Longest first, so that no part of a longer one remains.
        _forms = tuple(sorted(found, key=lambda form: (-len(form), form)))


def _password_of_basic(value: str) -> str:
    """Return the password in a value of the header Authorization; empty if it has none."""
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded).decode().partition(":")[2]
    except ValueError:
        return ""


def learn_from_environment() -> None:
    """Register the values of environment variables by name, and passwords in URLs."""
    global _learned
    # Decoding all variables takes longer than writing a record; what they are decoded from is
    # compared instead, where this Python has it.
    environment = dict(getattr(os.environ, "_data", os.environ))
    if _learned[1] is _registered and _learned[0] == environment:
        return
    for name, value in os.environ.items():
        if _without_secrets.get(name) == value:
            continue
        if _SECRET_VARIABLE.search(name.upper()) and not _PLACE_VARIABLE.search(name.upper()):
            keep_secret(value)
        elif "@" in value:
            _learn_from_text(value)
        else:
            _without_secrets[name] = value
    _learned = (environment, _registered)


def learn_from(settings: Any) -> None:
    """Register the values of settings and headers by name, and passwords in URLs."""
    for secret in _secrets_in(settings):
        keep_secret(secret)


def redact(text: str) -> str:
    """Replace every registered credential."""
    for form in _forms:
        if form in text:
            text = text.replace(form, REDACTED)
    return text


def seal_text(text: str) -> str | list[str | list[str]]:
    """Return a text as JSON values without credentials, from which `open_text` restores it.

    Returns:
        The text if it has no credential and no `REDACTED`. Otherwise its parts in order: strings,
        and for each credential a list with a digest that is keyed by `user_key`.
    """
    parts: list[str | list[str]] = [text]
    for form in _forms:
        if form in text:
            parts = [each for part in parts for each in _sealed(part, form)]
    return text if parts == [text] and REDACTED not in text else parts


def open_text(sealed: Any) -> str | None:
    """Restore a text from `seal_text`; None if one of its credentials is not registered.

    A plain string with `REDACTED` was written by a version that did not seal: None, too.
    """
    if isinstance(sealed, str):
        return None if REDACTED in sealed else sealed
    if not isinstance(sealed, list):
        return None
    known = {_digest(form): form for form in _forms}
    parts = [part if isinstance(part, str) else _opened(part, known) for part in sealed]
    present = [part for part in parts if part is not None]
    return "".join(present) if len(present) == len(parts) else None


def _sealed(part: str | list[str], form: str) -> Iterator[str | list[str]]:
    if isinstance(part, list):
        yield part
        return
    for number, piece in enumerate(part.split(form)):
        if number:
            yield [_digest(form)]
        if piece:
            yield piece


def _opened(part: Any, known: Mapping[str, str]) -> str | None:
    is_digest = isinstance(part, list) and len(part) == 1 and isinstance(part[0], str)
    return known.get(part[0]) if is_digest else None


def _digest(form: str) -> str:
    return hashlib.blake2b(form.encode(), key=user_key(), digest_size=16).hexdigest()


def redact_message(text: str) -> str:
    """Replace every registered credential, and text in the format of one."""
    learn_from_environment()
    text = redact(text)
    for pattern in (_IN_ADDRESS, _IN_QUERY, _FORMS):
        text = pattern.sub(_without_secret, text)
    return _NAMED.sub(_without_named_secret, text)


def redact_settings(value: Any, *, _headers: bool = False) -> Any:
    """Return settings with registered credentials and the values of telling names replaced."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if item and isinstance(item, str) and _names_secret(key, item, _headers)
            else redact_settings(item, _headers=_holds_headers(key))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_settings(item, _headers=_headers) for item in value]
    if isinstance(value, str):
        return _IN_QUERY.sub(_without_secret, _IN_ADDRESS.sub(_without_secret, redact(value)))
    return value


def redacted_places(value: Any, place: str = "") -> Iterator[str]:
    """Yield the paths of redacted credentials in settings."""
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = iter(enumerate(value))
    else:
        if isinstance(value, str) and _IS_REDACTED.search(value):
            yield place
        return
    for key, item in items:
        yield from redacted_places(item, f"{place}.{key}" if place else str(key))


def names_credential(setting: str) -> bool:
    """Whether a setting of this name holds a credential, for instance ``api_key``."""
    return _SECRET_SETTING.fullmatch(setting) is not None


def _without_secret(match: re.Match[str]) -> str:
    return f"{match.groupdict().get('before') or ''}{REDACTED}"


def _without_named_secret(match: re.Match[str]) -> str:
    # After a colon may follow an error message: "api_key: missing".
    is_secret = match["sign"] == "=" or _is_worth_hiding(match["secret"])
    is_known = match["secret"].startswith(REDACTED[:-1])
    return _without_secret(match) if is_secret and not is_known else match.group()


def _secrets_in(value: Any, *, headers: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and _names_secret(key, item, headers):
                yield item
            yield from _secrets_in(item, headers=_holds_headers(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, headers=headers)
    elif isinstance(value, str):
        _learn_from_text(value)


def _learn_from_text(text: str) -> None:
    """Register the passwords and keys in the URLs of a text."""
    for match in _IN_ADDRESS.finditer(text):
        user, _, password = match["secret"].partition(":")
        keep_secret(password or user)
        # What clients make of it: the header Authorization.
        keep_secret(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    for match in _IN_QUERY.finditer(text):
        keep_secret(match["secret"])


def _names_secret(name: object, value: str, headers: bool) -> bool:
    if not isinstance(name, str) or VARIABLE.search(value):
        return False
    return bool(
        _SECRET_HEADER.search(name)
        if headers and not name.endswith("_env")
        else names_credential(name)
    )


def _holds_headers(name: object) -> bool:
    return isinstance(name, str) and name.lower() in _HEADERS


def _is_worth_hiding(value: str) -> bool:
    if REDACTED in value:
        return False
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return len(value) >= 20 or (len(value) >= 8 and mixed)


def _written_as(value: str) -> Iterator[str]:
    """Yield a value as it is, and escaped for JSON, CSV, HTML and URLs."""
    for in_json in (json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (False, True)):
        yield in_json
        yield in_json.replace("/", "\\/")
        yield re.sub("[<>&']", lambda match: f"\\u{ord(match.group()):04x}", in_json)
        yield re.sub(r"\\u[0-9a-f]{4}", lambda match: "\\u" + match.group()[2:].upper(), in_json)
    yield value
    yield value.replace('"', '""')
    yield html.escape(value)
    yield html.escape(value).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    for quoted in (quote(value, safe=""), quote(value), quote_plus(value)):
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda match: match.group().lower(), quoted)
