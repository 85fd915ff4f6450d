"""Why a call failed, and what follows from it."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from http import HTTPStatus

MAX_DETAIL = 300
"""Characters of what an endpoint said that a failure keeps."""

_OVERLOADED = frozenset({429, 503, 529})
_PASSING = frozenset({408, 409, 425, 500, 502, 504}) | _OVERLOADED
_HOPELESS = frozenset({401, 404})
_REASONS = {
    400: "refused by the endpoint",
    401: "key refused",
    403: "forbidden",
    404: "not found",
    413: "too long for the endpoint",
    422: "refused by the endpoint",
    429: "rate limited",
}


class CallError(Exception):
    """One try of a call failed.

    Args:
        reason: In a few words that can be counted.
        detail: What else is known.
        retryable: Whether it may pass.
        overload: Whether it says that too much was asked at once.
        hopeless: Whether every other call will fail for the same reason.
        retry_after: Seconds that the endpoint asked to wait.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retryable: bool = False,
        overload: bool = False,
        hopeless: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail[:MAX_DETAIL]
        self.retryable, self.overload, self.hopeless = retryable, overload, hopeless
        self.retry_after = retry_after


def error_of_status(status: int, headers: Mapping[str, str], detail: str = "") -> CallError:
    """Return what an HTTP status that is no success means.

    429, 503 and 529 say that too much was asked; they, other failures of a server, and timeouts may
    pass. 401 and 404 will be the answer to every call.
    """
    return CallError(
        _REASONS.get(status, f"endpoint error {status}"),
        " ".join(part for part in (_phrase(status), detail) if part),
        retryable=status in _PASSING,
        overload=status in _OVERLOADED,
        hopeless=status in _HOPELESS,
        retry_after=retry_after(headers) if status in _PASSING else None,
    )


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return how many seconds an endpoint asks to wait; None if it does not say.

    Reads ``Retry-After`` in seconds or as a date (RFC 9110, section 10.2.3) and
    ``Retry-After-Ms``. What is neither, negative or not finite says nothing.

    Args:
        headers: Of the answer; names in lower case or a mapping that ignores case.
        now: Seconds since 1970; None is the present.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return seconds
    try:
        then = email.utils.parsedate_to_datetime(given).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, then - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
