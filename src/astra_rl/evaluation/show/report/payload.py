"""Embed conversations in the report: gzip-compressed JSON as base64 in inert script blocks.

A report may have ten thousand conversations. An index lists all of them; chunks of text are
unpacked by the page when a conversation is opened. Conversations of one tree share their turns.
Hidden characters are made visible here, once, for all embedded text.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.trace import MessageRecord, TraceRecord
from astra_rl.evaluation.records.turn import Turn
from astra_rl.evaluation.show.escaping import shorten, visible_text
from astra_rl.infra.jsonio import json_line, unredacted_line
from astra_rl.infra.redaction import learn_from_environment, redact

LONGEST = 20_000
"""Maximum characters of a text on the page; the records have the full text."""
PREVIEW = 140
CHUNK = 400_000
"""Characters of JSON per chunk."""


@dataclass(frozen=True)
class Payload:
    """Packed conversations.

    Attributes:
        index: Columns of the list of conversations, packed.
        chunks: Texts of the conversations, packed.
        conversations: Number of conversations.
    """

    index: str
    chunks: Sequence[str]
    conversations: int


@dataclass
class _Episode:
    """Embedded form of one tree of conversations."""

    shared: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    leaves: list[tuple[Attempt, int]] = field(default_factory=list)

    def add(self, attempt: Attempt) -> None:
        branch = attempt.branch or tuple(0 for _ in attempt.turns)
        parent = -1
        for depth, turn in enumerate(attempt.turns, 1):
            place = branch[:depth] if depth <= len(branch) else (*branch, depth)
            if place not in self.places:
                self.places[place] = len(self.nodes)
                self.nodes.append({"parent": parent, "branch": place[-1], **_turn(turn)})
            parent = self.places[place]
        self.leaves.append((attempt, parent))

    def as_dict(self) -> dict[str, Any]:
        leaves = [
            {"id": attempt.id, "node": node, "outcome": attempt.outcome.value}
            | _without_empty({"error": visible(attempt.error), "trial": attempt.trial})
            for attempt, node in self.leaves
        ]
        return {**self.shared, "nodes": self.nodes, "leaves": leaves}


def pack_conversations(
    attempts: Iterable[Attempt],
    kinds: Mapping[str, int],
    phases: Mapping[str, str],
    **more: Any,
) -> Payload:
    """Pack conversations for the page.

    Args:
        attempts: In the order in which the page lists them.
        kinds: Number of the attack kind by id of the attempt; attempts may be missing.
        phases: Display name of each phase, by its name in the records.
        more: Further values for the index.
    """
    episodes: dict[tuple[Any, ...], _Episode] = {}
    for attempt in attempts:
        key = _episode_key(attempt)
        if key not in episodes:
            episodes[key] = _Episode(_shared(attempt, phases))
        episodes[key].add(attempt)
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for number, episode in enumerate(episodes.values()):
        for leaf, (attempt, _) in enumerate(episode.leaves):
            row = _index_row(attempt, kinds, phases) | {"episode": number, "leaf": leaf}
            for name in _COLUMNS:
                columns[name].append(row[name])
    starts = []

    def texts() -> Iterator[str]:
        for start, chunk in _chunks(each.as_dict() for each in episodes.values()):
            starts.append(start)
            yield chunk

    with ThreadPoolExecutor() as pool:  # zlib compresses without the lock of Python
        chunks = list(pool.map(_pack, texts()))
    index = _pack(json_line({"columns": columns, "chunks": starts, **more}))
    return Payload(index, chunks, len(columns["id"]))


_COLUMNS = (
    *("id", "phase", "outcome", "score", "nll", "reward", "turns", "first"),
    *("kind", "category", "step", "prompt", "trial", "target", "preview", "episode", "leaf"),
    *("slot", "tools"),
)
_TOOL = re.compile(r"[\w.-]{1,64}", re.ASCII)
"""Names of tools to filter by; a model can call anything a tool."""


def visible(text: str) -> str:
    """Return at most `LONGEST` characters of a text, hidden characters made visible."""
    if not text:  # most fields are empty
        return text
    return visible_text(shorten(text, LONGEST))


def _episode_key(attempt: Attempt) -> tuple[Any, ...]:
    if not attempt.branch:
        return (attempt.id,)
    return (
        *(attempt.phase, attempt.attacker, attempt.target),
        *(attempt.prompt_id, attempt.trial, attempt.step),
    )


def _shared(attempt: Attempt, phases: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that all conversations of a tree share."""
    opening = attempt.opening
    return _without_empty(
        {
            "phase": visible(phases.get(attempt.phase, attempt.phase)),
            "step": attempt.step,
            "attacker": visible(attempt.attacker),
            "target": visible(attempt.target),
            "judge": visible(attempt.judge),
            "threshold": attempt.threshold,
            "category": visible(attempt.category),
            "seed": attempt.seed,
            "prompt": visible(opening.prompt),
            "said": [visible(each) for each in opening.turns],
            "system": visible(opening.system or ""),
            "brief": visible(opening.brief or ""),
            "facts": {visible(name): visible(fact) for name, fact in opening.facts.items()},
        }
    )


def _turn(turn: Turn) -> dict[str, Any]:
    return _without_empty(
        {
            "attack": visible(turn.attack),
            "response": visible(turn.response),
            "written": visible(turn.written or ""),
            "attack_reasoning": visible(turn.attack_reasoning or ""),
            "reasoning": visible(turn.reasoning or ""),
            "scores": {visible(name): _rounded(each.value) for name, each in turn.scores.items()},
            "unscored": {
                visible(name): visible(each.reason or "")
                for name, each in turn.scores.items()
                if each.value is None
            },
            "reward": _rounded(turn.reward),
            "terms": {visible(name): _rounded(each) for name, each in turn.reward_terms.items()},
            "nll": {
                visible(name): [_rounded(-each.total), each.tokens]
                for name, each in turn.logprobs.items()
            },
            "finish": visible(turn.finish_reason or ""),
            "refused": turn.refused,
            "trace": None if turn.trace is None else _trace(turn.trace),
        }
    )


def _trace(trace: TraceRecord) -> dict[str, Any]:
    return {
        "hijack": _rounded(trace.hijack),
        "utility": _rounded(trace.utility),
        "ended": visible(trace.ended),
        "failed_at": trace.failed_at,
        "messages": [_message(each) for each in trace.messages],
    }


def _message(message: MessageRecord) -> dict[str, Any]:
    return _without_empty(
        {
            "role": message.role,
            "name": visible(message.name),
            "parts": _parts(message),
            "calls": [
                _without_empty(
                    {
                        "name": visible(call.name),
                        "arguments": visible(call.arguments),
                        "error": visible(call.error),
                    }
                )
                for call in message.calls
            ],
        }
    )


def _parts(message: MessageRecord) -> list[list[Any]]:
    """Return the text in parts, each with 1 if the attacker wrote it, else 0.

    For an image there is a line with its type, size and digest: the page never shows it.
    """
    parts: list[list[Any]] = []
    end = 0
    for start, stop in message.written_by_attacker:
        if not end <= start < stop <= len(message.text):  # a record that was changed by hand
            continue
        parts += [[message.text[end:start], 0], [message.text[start:stop], 1]]
        end = stop
    parts.append([message.text[end:], 0])
    parts += [[f"\n{each.image().placeholder}", 0] for each in message.images]
    return [[visible(text), own] for text, own in parts if text]


def _index_row(
    attempt: Attempt, kinds: Mapping[str, int], phases: Mapping[str, str]
) -> dict[str, Any]:
    turn = attempt.failing_turn or (attempt.turns[0] if attempt.turns else None)
    known = attempt.logprob()
    rewards = [turn.reward for turn in attempt.turns if turn.reward is not None]
    tools = _tools(attempt)
    preview = " ".join((turn.attack if turn else attempt.opening.prompt)[: 4 * PREVIEW].split())
    return {
        "id": attempt.id,
        "phase": visible(phases.get(attempt.phase, attempt.phase)),
        "outcome": attempt.outcome.value,
        "score": _rounded(attempt.score),
        "nll": None if known is None else _rounded(-known.total),
        "reward": max(map(_rounded, rewards)) if rewards else None,
        "turns": len(attempt.turns),
        "first": attempt.first_failing_turn,
        "kind": kinds.get(attempt.id),
        "category": visible(attempt.category),
        "step": attempt.step,
        "prompt": attempt.prompt_id,
        "trial": attempt.trial,
        "target": visible(attempt.target),
        "preview": visible_text(preview[:PREVIEW]),
        "slot": visible(attempt.opening.facts["agent.slot"]) if tools is not None else None,
        "tools": tools,
    }


def _tools(attempt: Attempt) -> list[str] | None:
    """Return the names of the tools that an agent called; None for a target that is no agent."""
    if "agent.slot" not in attempt.opening.facts:
        return None
    traces = [turn.trace for turn in attempt.turns if turn.trace is not None]
    names = (call.name for trace in traces for each in trace.messages for call in each.calls)
    return sorted({name for name in names if _TOOL.fullmatch(name)})


def _rounded(value: float | None) -> Any:
    """Round to four decimals, and whole numbers to an int: shorter JSON."""
    if value is None:
        return None
    short = round(value, 4)
    return int(short) if short == int(short) else short


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in values.items() if each not in (None, "", [], {})}


def _chunks(episodes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    """Join episodes into JSON lists of about `CHUNK` characters, with the index of the first."""
    learn_from_environment()
    waiting: list[str] = []
    start = size = 0
    for number, episode in enumerate(episodes):
        waiting.append(unredacted_line(episode, is_plain=True))
        size += len(waiting[-1])
        if size >= CHUNK:
            yield start, redact(f"[{','.join(waiting)}]")
            waiting, start, size = [], number + 1, 0
    if waiting:
        yield start, redact(f"[{','.join(waiting)}]")


def _pack(text: str) -> str:
    # mtime=0: the same run gives the same page, byte for byte. Level 4 makes the page 6% larger
    # than level 6, in less than half of the time.
    packed = gzip.compress(text.encode("utf-8"), compresslevel=4, mtime=0)
    return base64.b64encode(packed).decode("ascii")
