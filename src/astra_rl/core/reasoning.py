"""Separation of a model's reasoning from its answer, by the delimiters of released models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DELIMITERS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, GLM-4.5, MiniMax-M1
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
"""Start and end of reasoning."""
OUT_OF_TOKENS = "cut before any text"
"""Reason of a reply that reached its token limit without a text."""
NO_ANSWER = "reasoning without an answer"
"""Reason of a reply that ended in its reasoning."""

_CHANNEL = re.compile(  # the harmony format of gpt-oss
    r"(?:<\|start\|>assistant)?(?:<\|channel\|>(?P<channel>\w+)[^<]*)?(?:<\|constrain\|>[^<]*)?"
    r"<\|message\|>(?P<text>.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|\Z)",
    re.DOTALL,
)


class Reply(NamedTuple):
    """A reply of a model in its two parts.

    Attributes:
        answer: What the model says; None if it did not get beyond its reasoning.
        reasoning: What it thought before, without delimiters; None if there was none.
        start: Offset of the answer in the whole text.
    """

    answer: str | None
    reasoning: str | None = None
    start: int = 0


def split_reply(
    text: str,
    delimiters: Sequence[tuple[str, str]] = DELIMITERS,
    *,
    end: str | None = None,
) -> Reply:
    """Separate the reasoning at the start of a reply from the answer after it.

    Delimiters within the answer are part of it. An end of reasoning without a start belongs to a
    start in the prompt, where many templates have it; it counts only on a line of its own, because
    what is before it is not judged.

    Args:
        text: The reply.
        delimiters: Known starts and ends of reasoning.
        end: End of the reasoning that the prompt has already started; None if it did not.
    """
    if text.lstrip().startswith(("<|channel|>", "<|message|>", "<|start|>assistant")):
        return _split_channels(text)
    at = 0
    thoughts: list[str] = []
    if end is None:
        end = _end_without_start(text, delimiters)
    while True:
        if end is not None:
            stop = text.find(end, at)
            if stop < 0:
                thoughts.append(text[at:])
                return Reply(None, _joined(thoughts), len(text))
            thoughts.append(text[at:stop])
            at = stop + len(end)
        rest = text[at:].lstrip()
        begin, end = next((pair for pair in delimiters if rest.startswith(pair[0])), ("", None))
        if end is None:
            break
        at = len(text) - len(rest) + len(begin)
    if not thoughts:
        return Reply(text)
    return Reply(rest, _joined(thoughts), len(text) - len(rest))


def _end_without_start(text: str, delimiters: Sequence[tuple[str, str]]) -> str | None:
    ends = [
        (stop, end)
        for begin, end in delimiters
        if (stop := text.find(end)) >= 0 and begin not in text[:stop] and _is_line(text, stop, end)
    ]
    return min(ends)[1] if ends else None


def _is_line(text: str, start: int, part: str) -> bool:
    """Return whether a part of a text is a line of its own."""
    before, _, _ = text[:start][::-1].partition("\n")
    after, _, _ = text[start + len(part) :].partition("\n")
    return not before.strip() and not after.strip()


def _split_channels(text: str) -> Reply:
    messages = list(_CHANNEL.finditer(text))
    final = next((each for each in reversed(messages) if each["channel"] in ("final", None)), None)
    thoughts = [each["text"] for each in messages if each is not final]
    if final is None:
        return Reply(None, _joined(thoughts) if messages else text, len(text))
    return Reply(final["text"], _joined(thoughts), final.start("text"))


def _joined(thoughts: Sequence[str]) -> str | None:
    return "\n\n".join(filter(None, map(str.strip, thoughts))) or None
