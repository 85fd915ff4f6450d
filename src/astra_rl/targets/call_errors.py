"""Failures of calls: reasons, and whether to retry."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from http import HTTPStatus

from astra_rl.targets.budget import Usage

MAX_DETAIL = 300
"""Most characters of an endpoint's error message that are kept."""
LONGEST_WAIT = 365.0 * 24 * 60 * 60
"""Most seconds that an endpoint can ask to wait."""

NO_CONNECTION = "no connection"
"""Reason of a call for which no connection could be opened; the detail says why."""
BROKEN_HTTP = "broken HTTP reply"
"""Reason of a call whose reply is not HTTP, or ends early."""

_OVERLOADED = frozenset({429, 503, 529})
_TRANSIENT = frozenset({408, 409, 425, 500, 502, 504}) | _OVERLOADED
_PERMANENT = frozenset({401, 402, 404})
_REASONS = {
    400: "refused by the endpoint",
    401: "key refused",
    402: "quota spent",
    403: "forbidden",
    404: "not found",
    413: "too long for the endpoint",
    422: "refused by the endpoint",
    429: "rate limited",
}
_CHECK = "check the URL, the model and the key"
_ADVICE = {402: "add credit, or raise the limit of the account at the provider"}


class CallError(Exception):
    """One attempt of a call failed.

    Args:
        reason: The reason, in a few words that can be counted.
        detail: Further information, for instance the message of the endpoint.
        retryable: Whether the failure may be transient.
        overload: Whether the endpoint is overloaded or its rate limit is reached.
        permanent: Whether every further call will fail for the same reason.
        retry_after: Seconds that the endpoint asks to wait.
        usage: Tokens that the endpoint reported for the attempt; None if it reported none.
        advice: What to do about a permanent failure.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retryable: bool = False,
        overload: bool = False,
        permanent: bool = False,
        retry_after: float | None = None,
        usage: Usage | None = None,
        advice: str = _CHECK,
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail[:MAX_DETAIL]
        self.retryable, self.overload, self.permanent = retryable, overload, permanent
        self.retry_after, self.usage, self.advice = retry_after, usage, advice


def error_of_status(status: int, headers: Mapping[str, str], detail: str = "") -> CallError:
    """Return the failure that an HTTP status stands for.

    429, 503 and 529 mean overload. They, other server errors and timeouts are retryable. 401, 402
    and 404 are permanent: every call will fail.

    Args:
        status: The status.
        headers: Headers of the response.
        detail: What the response said.
    """
    return CallError(
        _REASONS.get(status, f"endpoint error {status}"),
        detail,
        retryable=status in _TRANSIENT,
        overload=status in _OVERLOADED,
        permanent=status in _PERMANENT,
        retry_after=retry_after(headers) if status in _TRANSIENT else None,
        advice=_ADVICE.get(status, _CHECK),
    )


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds that an endpoint asks to wait; None if it does not say.

    Reads ``Retry-After`` in seconds or as a date (RFC 9110, section 10.2.3) and
    ``Retry-After-Ms``. Invalid and negative values are ignored; `LONGEST_WAIT` is the most.

    Args:
        headers: Headers of the response; names in lower case, or a case-insensitive mapping.
        now: Current time in seconds since 1970; None is the system time.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, LONGEST_WAIT)
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return None if seconds is None else min(seconds, LONGEST_WAIT)
    try:
        then = email.utils.parsedate_to_datetime(given).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, then - (time.time() if now is None else now)), LONGEST_WAIT)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if number >= 0 else None


def phrase(status: int) -> str:
    """Return an HTTP status with its name."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
