"""Conversations and utterances as JSON values, and back."""

from __future__ import annotations

from typing import Any

from astra_rl.core.text import Conversation, NoAttack, Utterance


def to_record(text: str) -> Any:
    """Return a text as JSON values: a plain text as a string, else its parts.

    Token ids of an utterance are kept, so that it can be trained on exactly, and the whole output
    that it is a part of; log-probabilities are not.
    """
    if isinstance(text, Conversation):
        return {
            "prompt": text.prompt,
            "turns": [to_record(turn) for turn in text.turns],
            "system": text.system,
            "brief": text.brief,
            "facts": dict(text.facts),
            "separator": text.separator,
        }
    if isinstance(text, Utterance) and not (text.token_ids is None and text.written is None):
        record: dict[str, Any] = {"said": str(text)}
        if text.token_ids is not None:
            record["token_ids"] = list(text.token_ids)
        if text.written is not None:
            record["written"] = text.written
        if text.reasoning is not None:
            record["reasoning"] = text.reasoning
        if isinstance(text, NoAttack):
            record["said"] = None
        return record
    return str(text)


def from_record(record: Any) -> str:
    """Return the text of a record of `to_record`."""
    if isinstance(record, str):
        return record
    if "said" in record:
        kind = NoAttack if record["said"] is None else Utterance
        return kind(
            record["said"] or "",
            token_ids=record.get("token_ids"),
            written=record.get("written"),
            reasoning=record.get("reasoning"),
        )
    return Conversation(
        record["prompt"],
        turns=[from_record(turn) for turn in record["turns"]],
        system=record["system"],
        brief=record["brief"],
        facts=record["facts"],
        separator=record["separator"],
    )
