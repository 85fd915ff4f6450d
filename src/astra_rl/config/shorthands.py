"""Short forms of sections: ``target: path/to/model`` and ``moderator: refusal``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from astra_rl.infra.importing import is_path

MODELS = ("attacker", "target")
"""Sections for which a text is a model, or a function as ``package.module:function``."""
MODERATORS = ("moderator", "judge")
"""Sections for which a text is the name of a moderator."""


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which short forms are sections.

    >>> expanded({"target": "my_app:answer", "moderator": "refusal"})
    {'target': {'type': 'my_app:answer'}, 'moderator': {'type': 'refusal'}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in MODELS and isinstance(value, str):
            is_function = is_path(value) and not value.startswith("bundled:")
            found[name] = {"type" if is_function else "model": value}
        elif name in MODERATORS:
            found[name] = _moderator(value)
        elif name == "evaluation" and isinstance(value, Mapping):
            found[name] = expanded(value)
        else:
            found[name] = value
    return found


def _moderator(value: Any) -> Any:
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, Mapping) and isinstance(value.get("of"), list):
        return {**value, "of": [_moderator(each) for each in value["of"]]}
    return value
