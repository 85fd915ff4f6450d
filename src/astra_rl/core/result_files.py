"""Attacks in the result files of other tools: promptfoo, PyRIT, garak, JailbreakBench, HarmBench.

| tool | file | attack | reward |
| --- | --- | --- | --- |
| promptfoo | output of ``promptfoo eval``, JSON | prompt | 1 - score; unknown after an error |
| PyRIT | message pieces, JSON or CSV | converted value of the user | score, if exported |
| garak | ``*.report.jsonl`` | last turn of the prompt | highest score of a detector, per output |
| garak | ``*.hitlog.jsonl`` | last turn of the prompt | score of the detector |
| JailbreakBench | artifact, JSON | prompt | 1 if jailbroken, else 0 |
| HarmBench | test cases or completions, JSON | test case | label, if there is one |

A reward is from 0 to 1, higher is a worse failure of the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from astra_rl.core.text import Conversation
from astra_rl.infra.jsonio import parse_json


@dataclass(frozen=True)
class ScoredAttack:
    """An attack and its reward.

    Attributes:
        context: State before the attack; empty if it is not known.
        attack: Text of the attack.
        reward: Its reward; NaN if it is not known.
    """

    context: str
    attack: str
    reward: float = math.nan


_ASSERTION_FAILED = 1
"""`failureReason` of promptfoo: 0 is none, 1 a failed assertion, 2 an error."""


def attacks_of_document(data: Any) -> list[ScoredAttack] | None:
    """Return the attacks of a parsed JSON file; None if it is of no known tool.

    Raises:
        ValueError: A part of it has another form than the tool writes; the message says which.
    """
    if isinstance(data, Mapping):
        results = data.get("results")
        if isinstance(results, Mapping) and isinstance(results.get("results"), list):
            return [each for row in results["results"] for each in _promptfoo(row)]
        if isinstance(data.get("jailbreaks"), list):
            return [each for row in data["jailbreaks"] for each in _jailbreakbench(row)]
        if data and all(isinstance(each, list) for each in data.values()):
            return [each for cases in data.values() for row in cases for each in _harmbench(row)]
    if isinstance(data, list) and data and all(_is_piece(each) for each in data):
        return _pyrit(data)
    return None


def is_garak(row: Any) -> bool:
    """Whether a line of JSON is of a report or a hit log of garak."""
    return isinstance(row, Mapping) and (
        "entry_type" in row or {"goal", "prompt", "detector", "probe"} <= set(row)
    )


def attacks_of_garak(row: Mapping[str, Any]) -> list[ScoredAttack]:
    """Return the attacks of a line of a report or a hit log of garak: one per judged output.

    A line of a report that is no attempt, or one that is not evaluated yet, has none.

    Raises:
        ValueError: The prompt has another form than garak writes.
    """
    if "entry_type" not in row:
        return [_garak(row["prompt"], _reward(row.get("score")))]
    if row["entry_type"] != "attempt" or row.get("status") != 2:
        return []
    detectors = [scores for scores in _mapping(row, "detector_results").values() if scores]
    found = []
    for number, output in enumerate(row.get("outputs") or ()):
        if output is None:
            continue
        scores = [_reward(each[number]) for each in detectors if number < len(each)]
        known = [score for score in scores if not math.isnan(score)]
        found.append(_garak(row.get("prompt"), max(known, default=math.nan)))
    return found


def _garak(prompt: Any, reward: float) -> ScoredAttack:
    if isinstance(prompt, str):  # before garak 0.12
        return ScoredAttack("", prompt, reward)
    turns = prompt.get("turns") if isinstance(prompt, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise ValueError("'prompt' is neither a text nor a conversation with 'turns'")
    chat = [{"role": each["role"], "content": each["content"]["text"] or ""} for each in turns]
    return _of_chat(chat, reward)


def _promptfoo(row: Any) -> Iterator[ScoredAttack]:
    prompt = row.get("prompt")
    raw = prompt.get("raw") if isinstance(prompt, Mapping) else prompt
    if not isinstance(raw, str):
        raise ValueError("a result has no 'prompt' with 'raw'")
    # A result without assertions, or of a call that failed, says nothing of the target. Where an
    # assertion failed, 'error' has its message.
    is_judged = isinstance(row.get("gradingResult"), Mapping) and (
        not row.get("error") or row.get("failureReason") == _ASSERTION_FAILED
    )
    reward = 1 - _reward(row.get("score")) if is_judged else math.nan
    chat = _chat_in(raw)
    yield ScoredAttack("", raw, reward) if chat is None else _of_chat(chat, reward)


def _chat_in(text: str) -> list[dict[str, str]] | None:
    """Return a prompt that is a chat as JSON; None if it is a text."""
    try:
        data = parse_json(text)
    except ValueError:
        return None
    is_chat = (
        isinstance(data, list)
        and data
        and all(
            isinstance(each, dict)
            and isinstance(each.get("role"), str)
            and isinstance(each.get("content"), str)
            for each in data
        )
    )
    return data if is_chat else None


def _jailbreakbench(row: Any) -> Iterator[ScoredAttack]:
    if isinstance(row["prompt"], str):  # None where no attack was found
        yield ScoredAttack("", row["prompt"], _reward(row.get("jailbroken")))


def _harmbench(row: Any) -> Iterator[ScoredAttack]:
    if isinstance(row, str):
        yield ScoredAttack("", row)
    elif isinstance(row, Mapping) and isinstance(row.get("test_case"), str):
        yield ScoredAttack("", row["test_case"], _reward(row.get("label")))
    else:
        raise ValueError("a behavior has a test case that is no text")


def _is_piece(row: Any) -> bool:
    return isinstance(row, Mapping) and {"role", "conversation_id", "converted_value"} <= set(row)


def _pyrit(rows: Sequence[Mapping[str, Any]]) -> list[ScoredAttack]:
    """Return every message of the user as an attack, after the messages before it."""
    conversations: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        conversations.setdefault(str(row["conversation_id"]), []).append(row)
    found = []
    for pieces in conversations.values():
        pieces = sorted(pieces, key=lambda each: int(each.get("sequence") or 0))
        chat = [
            {"role": _pyrit_role(each["role"]), "content": str(each["converted_value"] or "")}
            for each in pieces
            if (each.get("converted_value_data_type") or "text") in ("text", "error")
        ]
        scores = [_pyrit_score(each) for each in pieces]
        for at, message in enumerate(chat):
            if message["role"] == "user" and message["content"].strip():
                answered = scores[at + 1] if at + 1 < len(scores) else math.nan
                found.append(_of_chat(chat[: at + 1], answered))
    return found


def _pyrit_role(role: Any) -> str:
    return "assistant" if role == "simulated_assistant" else str(role)


def _pyrit_score(piece: Mapping[str, Any]) -> float:
    """Return the highest score of a piece that is a number or true or false."""
    given = piece.get("scores")
    texts = [
        str(each.get("score_value")).lower()
        for each in (given if isinstance(given, list) else ())
        if isinstance(each, Mapping)
    ]
    values = [_reward({"true": 1, "false": 0}.get(text, text)) for text in texts]
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _of_chat(chat: Sequence[Mapping[str, Any]], reward: float) -> ScoredAttack:
    """Return the last message of a chat as an attack; the messages before it are its context."""
    *before, last = chat
    system = "\n".join(each["content"] for each in before if each["role"] == "system") or None
    turns = [each["content"] for each in before if each["role"] != "system"]
    if not before:
        return ScoredAttack("", last["content"], reward)
    return ScoredAttack(
        Conversation(turns=turns, system=system, separator="\n"), last["content"], reward
    )


def _mapping(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def _reward(value: Any) -> float:
    """Return a number in [0, 1]; NaN for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if 0 <= number <= 1 else math.nan
