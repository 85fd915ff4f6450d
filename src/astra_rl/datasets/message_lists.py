"""Rows whose prompt is a list of messages, as in data sets of TRL and verl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_rl.datasets.records import Record, RowErrors, kind_of
from astra_rl.logging import logger

_COLUMNS = ("prompt", "messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}  # of the ShareGPT form


def with_conversations(
    records: Sequence[Record], errors: RowErrors, column: str | None
) -> list[Record]:
    """Replace lists of messages by the system message and the first message of the user.

    These open a conversation; the attacker writes what follows. A warning counts the rows whose
    list has more messages before its last answer.

    Args:
        records: The records.
        errors: Errors of invalid lists are added.
        column: Column of the prompt; None uses the first list in ``prompt``, ``messages`` or
            ``conversations``.
    """
    converted = []
    longer = 0
    for record in records:
        names = _COLUMNS if column is None else (column,)
        name = next((each for each in names if _is_messages(record.values.get(each))), None)
        if name is None or (name != "prompt" and column is None and record.values.get("prompt")):
            converted.append(record)
            continue
        values = {key: value for key, value in record.values.items() if key != name}
        try:
            system, prompt, rest = _opening(record.values[name])
        except ValueError as error:
            errors.add(record.number, f"{name}: {error}")
            continue
        if system is not None and values.get("system"):
            errors.add(record.number, f"a system message both in {name} and in the column system")
            continue
        longer += rest > 1
        values[column or "prompt"] = prompt
        if system is not None:
            values["system"] = system
        converted.append(Record(record.number, values))
    if longer:
        logger.warning(
            "%s: %d rows have more messages than an opening; the first message of the user is used",
            errors.source,
            longer,
        )
    return converted


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _opening(messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, str, int]:
    """Return the system message, the first message of the user, and the number of later ones."""
    said = [(_role(each), _content(each)) for each in messages]
    system = said.pop(0)[1] if said[0][0] in ("system", "developer") else None
    if not said or said[0][0] != "user":
        found = f"{said[0][0]!a}" if said else "none"
        raise ValueError(f"the first message must be of the role user; it is {found}")
    return system, said[0][1], len(said) - 1


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise ValueError("a message has no role")
    return _ROLES.get(role, role)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts, of which text is used
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("a message has parts that are not text")
        return "".join(str(part) for part in parts)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"the content of a message is {kind_of(content)}; it must be a text")
    return content
