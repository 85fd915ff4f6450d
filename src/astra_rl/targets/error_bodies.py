"""Error bodies of endpoints: which failure an error code or message stands for.

Providers report the same failure in different ways: as an HTTP status, as a code in the body, or as
a code in the body of a 200 response. Each failure is reduced to one HTTP status, and
`astra_rl.targets.call_errors.error_of_status` says what follows from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from astra_rl.infra.jsonio import parse_reply_json
from astra_rl.targets.call_errors import (
    LONGEST_WAIT,
    CallError,
    error_of_status,
    phrase,
    retry_after,
)


def _normalized(code: str) -> str:
    """Return a code without case and punctuation: ``ModelNotFound`` equals ``model_not_found``."""
    return re.sub(r"[^a-z0-9]", "", code.lower())


def _codes(text: str, status: int) -> dict[str, int]:
    return {_normalized(code): status for code in text.split()}


FILTERED = frozenset(
    _codes(
        "content_filter content_filtered content_policy_violation ResponsibleAIPolicyViolation "
        "moderation_blocked data_inspection_failed prohibited_content sensitive_words_detected",
        400,
    )
)
"""Codes of a request or reply that a content filter withheld."""

_PRECISE = {
    **_codes(
        "insufficient_quota insufficient_user_quota exceeded_current_quota_error "
        "billing_hard_limit_reached billing_not_active billing_error insufficient_balance "
        "insufficient_credits insufficient_funds payment_required arrearage account_overdue_error",
        402,
    ),
    **_codes(
        "invalid_api_key incorrect_api_key api_key_invalid api_key_expired authentication_error "
        "invalid_authentication unauthenticated account_deactivated",
        401,
    ),
    **_codes("model_not_found model_not_exist deployment_not_found", 404),
    **_codes(
        "context_length_exceeded context_window_exceeded exceed_context_size_error "
        "string_above_max_length prompt_too_long request_too_large",
        413,
    ),
}
"""Codes that say more than the HTTP status, for instance a spent quota as 429."""

_GENERAL = {
    **_codes(
        "rate_limit_exceeded rate_limit_error rate_limited too_many_requests throttling "
        "resource_exhausted quota_exceeded",
        429,
    ),
    **_codes("overloaded overloaded_error engine_overloaded engine_overloaded_error", 529),
    **_codes("service_unavailable unavailable insufficient_system_resource", 503),
    **_codes("server_error internal_server_error internal_error internal api_error", 500),
    **_codes("timeout deadline_exceeded gateway_timeout", 504),
    **_codes("permission_denied permission_error forbidden", 403),
    **_codes("not_found not_found_error", 404),
    **_codes("invalid_request_error invalid_argument bad_request", 400),
}
"""Codes that are read where the HTTP status says nothing, in a 200 response."""

_MAX_CODE = 40
"""Most characters of a code that are shown."""
_QUOTA = re.compile(
    r"insufficient (quota|balance|credit|funds)|quota (is |was |has been )?(exceeded|exhausted)"
    r"|exceeded your current quota|out of credit|no credits? (left|remaining)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"maximum context length|context (length|window|size)|prompt is too long", re.IGNORECASE
)


@dataclass(frozen=True)
class ErrorBody:
    """The error in a response.

    Attributes:
        message: Message of the endpoint.
        codes: Codes and types, normalized.
        code: The code, as it is shown; "" if there is none.
        status: Numeric code in the body, from 400 to 599; None if there is none.
        wait: Seconds that the body asks to wait; None if it does not say.
        is_flagged: Whether the body says that a moderation flagged the input.
    """

    message: str = ""
    codes: tuple[str, ...] = ()
    code: str = ""
    status: int | None = None
    wait: float | None = None
    is_flagged: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether a content filter withheld the reply."""
        return self.is_flagged or not FILTERED.isdisjoint(self.codes)

    def as_call_error(self, status: int, headers: Mapping[str, str]) -> CallError:
        """Return the failure, given the HTTP status and the headers of the response."""
        wait = retry_after(headers) if self.wait is None else self.wait
        meant = self._meant(status, may_pass=wait is not None)
        if meant is None:
            return CallError("error in the reply", self._detail(status), retryable=True)
        error = error_of_status(meant, headers, self._detail(status))
        if error.retryable:
            error.retry_after = wait
        return error

    def _meant(self, status: int, *, may_pass: bool) -> int | None:
        """Return the HTTP status that the failure stands for; None if it is unknown.

        Args:
            status: HTTP status of the response.
            may_pass: Whether the endpoint asks to wait: a quota per minute, not a spent one.
        """
        precise = next((_PRECISE[code] for code in self.codes if code in _PRECISE), None)
        if precise is not None:
            return precise
        general = next((_GENERAL[code] for code in self.codes if code in _GENERAL), None)
        known = status if status >= 300 else self.status or general
        if known in (None, 403, 429) and not may_pass and _QUOTA.search(self.message):
            return 402
        if known in (None, 400, 422) and _TOO_LONG.search(self.message):
            return 413
        return known

    def _detail(self, status: int) -> str:
        if status >= 300:
            return " ".join(filter(None, (phrase(status), self.message or self.code)))
        code = self.code or "an error"
        return f"{code} in a response of status {status}" + (self.message and f": {self.message}")


def read_error(data: Any) -> ErrorBody | None:
    """Return the error in a parsed body; None if there is none.

    It is the field ``error`` of the body, of its first choice, or of the first element of a list,
    or, where a body has no ``choices``, its own ``message`` or ``detail``.
    """
    body = data[0] if isinstance(data, list) and data else data
    if not isinstance(body, Mapping):
        return None
    errors = [body.get("error"), body.get("errors")]
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        errors.append(choices[0].get("error"))
    found = next((each for each in errors if each and each is not True), None)
    while isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, str):
        return ErrorBody(found, (_normalized(found),))
    if isinstance(found, Mapping):
        return _read_mapping(found) or ErrorBody(_shown(found))
    if found is not None:
        return _read_mapping({"code": found}) or ErrorBody()
    if reason := _mapping(body, "promptFeedback").get("blockReason"):  # of Gemini
        return ErrorBody(str(reason), is_flagged=True)
    if not choices and (body.get("object") == "error" or {"message", "detail"} & set(body)):
        return _read_mapping(body)
    return None


def error_of_response(body: bytes) -> ErrorBody:
    """Return the error of a response with an HTTP status of 300 or more."""
    return read_error(json_or_none(body)) or ErrorBody(message_of(body))


def json_or_none(body: bytes) -> Any:
    """Parse a body as JSON; None if it is not."""
    try:
        return parse_reply_json(body)
    except ValueError:
        return None


def message_of(body: bytes) -> str:
    """Return the message of an error response: its ``error.message``, or its beginning."""
    data = json_or_none(body)
    error = data.get("error", data) if isinstance(data, Mapping) else data
    said = error.get("message", error) if isinstance(error, Mapping) else error
    if said is None:
        return body[:200].decode("utf-8", "replace").strip()
    return said if isinstance(said, str) else _shown(said)


def _shown(data: Any) -> str:
    try:
        return json.dumps(data)
    except RecursionError:
        return "nested too deeply"


def _read_mapping(error: Mapping[str, Any]) -> ErrorBody | None:
    details = error.get("details")
    known = details if isinstance(details, list) else []
    parts = [each for each in known if isinstance(each, Mapping)]
    inner, metadata = _mapping(error, "innererror"), _mapping(error, "metadata")
    named = [error.get(key) for key in ("code", "type", "status")]
    named += [inner.get("code"), *(part.get("reason") for part in parts)]
    said = next((t for key in ("message", "detail") if isinstance(t := error.get(key), str)), "")
    codes = tuple(_normalized(each) for each in named if isinstance(each, str) and each)
    status = next(_statuses(named), None)
    shown = [str(each) for each in named if isinstance(each, str | int) and each]
    if not (said or shown):
        return None
    code = shown[0][:_MAX_CODE] if shown else ""
    return ErrorBody(
        said,
        codes,
        code,
        status,
        next(_waits(parts), None),
        "flagged_input" in metadata,
    )


def _statuses(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
        if isinstance(number, int) and 400 <= number <= 599:
            yield number


def _waits(parts: Iterable[Mapping[str, Any]]) -> Iterator[float]:
    """Yield the ``retryDelay`` of Google's errors, for instance ``"34s"``."""
    for part in parts:
        given = part.get("retryDelay")
        if isinstance(given, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?s", given):
            yield min(float(given[:-1]), LONGEST_WAIT)


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}
