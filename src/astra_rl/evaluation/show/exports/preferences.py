"""Training data to fix the target: preference pairs and labelled replies in the formats of TRL.

The prompt of each row is exactly what the target read: its system message and the conversation up
to and including the attack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.infra.jsonio import atomic_file, json_line, parse_json
from astra_rl.infra.user_files import read_user_text

Message = dict[str, str]


class Written(NamedTuple):
    """Number of rows written, and of failures skipped for lack of a safe reply."""

    rows: int
    without_reply: int = 0

    def __str__(self) -> str:
        """Return the numbers in words, and how to get the rows that are missing."""
        if not self.without_reply:
            return f"{self.rows} rows"
        return (
            f"{self.rows} rows, and {self.without_reply} failures of the target without a reply to "
            f"prefer. {HOW_TO_GET_REPLIES}"
        )


HOW_TO_GET_REPLIES = (
    "Give safe replies with --safe-replies FILE, or play each prompt several times "
    "(astra-rl evaluate RUN --trials 8, then export --phase again; after a test, the same test "
    "with --trials 8 into a new folder), so that some replies are safe."
)


@dataclass(frozen=True)
class SafeReplies:
    """Preferred replies of the target.

    Attributes:
        by_attack: Reply by text of the attack.
        default: Reply to all other attacks; None if there is none.
    """

    by_attack: Mapping[str, str]
    default: str | None = None

    @classmethod
    def load(cls, path: str | Path, *, default: str | None = None) -> SafeReplies:
        """Read a JSONL file with an ``attack`` and a ``reply`` in each line.

        Raises:
            ConfigurationError: The file cannot be read, or a line has no such keys.
        """
        replies = {}
        try:
            lines = read_user_text(path, encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the safe replies {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                replies[str(row["attack"])] = str(row["reply"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"{path}, line {number}: expected an object with 'attack' and 'reply'."
                ) from error
        return cls(replies, default)

    def get(self, attack: str) -> str | None:
        """Return the reply to an attack; None if there is none."""
        return self.by_attack.get(attack, self.default)


class _Reply(NamedTuple):
    """One response of the target: its prompt, its text, and whether the target failed."""

    prompt: tuple[tuple[str, str], ...]
    attack: str
    text: str
    failed: bool


def write_preference_pairs(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    safe: SafeReplies | None = None,
) -> Written:
    """Write rows of ``prompt``, ``chosen`` and ``rejected``: TRL's preference format, as messages.

    ``rejected`` is a response in which the target failed. ``chosen`` is the reply in `safe`, or
    otherwise every response of the target to the same prompt in which it did not fail. A failure
    with neither is skipped and counted.

    Args:
        attempts: Attempts; repeated trials of the same attack give the most pairs.
        path: Output file, JSONL.
        safe: Preferred replies.

    Raises:
        ConfigurationError: There is no row to write; the file is left as it was.
    """
    rows = missing = 0
    with atomic_file(path) as file:
        for replies in _replies_by_prompt(attempts):
            for reply, choices in _with_choices(replies, safe):
                for chosen in choices:
                    row = {
                        "prompt": _messages(reply.prompt),
                        "chosen": [_said(chosen)],
                        "rejected": [_said(reply.text)],
                    }
                    file.write(json_line(row) + "\n")
                rows += len(choices)
                missing += not choices
        if not rows:
            raise ConfigurationError(
                f"no pair of replies to write: {missing} failures of the target, and no reply to "
                f"prefer to any of them. {HOW_TO_GET_REPLIES}"
                if missing
                else "no pair of replies to write: the target failed in no judged reply."
            )
    return Written(rows, missing)


def _with_choices(
    replies: Iterable[_Reply], safe: SafeReplies | None
) -> Iterator[tuple[_Reply, Sequence[str]]]:
    """Yield each different reply in which the target failed, with the replies to prefer."""
    good: dict[tuple[tuple[str, str], ...], dict[str, None]] = defaultdict(dict)
    bad: dict[_Reply, None] = {}  # each once, in order
    for reply in replies:
        if reply.failed:
            bad[reply] = None
        elif reply.text.strip():
            good[reply.prompt][reply.text] = None
    for reply in bad:
        given = safe.get(reply.attack) if safe is not None else None
        yield reply, [*good[reply.prompt]] if given is None else [given]


def write_unpaired(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    safe: SafeReplies | None = None,
) -> Written:
    """Write rows of ``prompt``, ``completion`` and ``label``: TRL's unpaired format, as messages.

    One row per judged response, labelled true if the target did not fail, and one per reply in
    `safe` to a failure. Responses without a score have no label and are skipped.

    Args:
        attempts: Attempts.
        path: Output file, JSONL.
        safe: Preferred replies, labelled true.

    Raises:
        ConfigurationError: No response has a score; the file is left as it was.
    """
    count = 0
    with atomic_file(path) as file:
        for replies in _replies_by_prompt(attempts):
            rows: dict[tuple[tuple[tuple[str, str], ...], str, bool], None] = {}
            for reply in replies:
                rows[reply.prompt, reply.text, not reply.failed] = None
                given = safe.get(reply.attack) if safe is not None and reply.failed else None
                if given is not None:
                    rows[reply.prompt, given, True] = None
            for prompt, text, label in rows:
                row = {"prompt": _messages(prompt), "completion": [_said(text)], "label": label}
                file.write(json_line(row) + "\n")
            count += len(rows)
        if not count:
            raise ConfigurationError(
                "no labelled reply to write: no response has a score. Score them first: astra-rl "
                "score."
            )
    return Written(count)


def _replies_by_prompt(
    attempts: Iterable[Attempt] | AttemptSource,
) -> Iterator[Iterator[_Reply]]:
    """Yield the replies prompt by prompt, so that those of one prompt are in memory at a time."""
    ordered = source_of(attempts).attempts(order="prompt")
    for _, group in groupby(ordered, key=attrgetter("prompt_id")):
        yield _replies(group)


def _replies(attempts: Iterable[Attempt]) -> Iterator[_Reply]:
    """Yield every judged response that no filter blocked."""
    for attempt in attempts:
        context = attempt.opening.conversation()
        for turn in attempt.turns:
            context = context + turn.attack
            score = turn.score(attempt.judge)
            if score is not None and not turn.blocked:
                failed = score >= attempt.threshold
                yield _Reply(_read_by_target(context), turn.attack, turn.response, failed)
            context = context + turn.response


def messages_of(conversation: Conversation) -> list[Message]:
    """Return a conversation that ends in an attack as the messages that the target reads."""
    return _messages(_read_by_target(conversation))


def _read_by_target(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    messages = [("system", conversation.system)] if conversation.system else []
    for index, said in enumerate(conversation.turns):
        # The opening prompt precedes the first attack in the same message.
        parts = (conversation.prompt, said) if index == 0 else (said,)
        text = conversation.separator.join(part for part in parts if part)
        messages.append(("assistant" if index % 2 else "user", text))
    return tuple(messages)


def _messages(prompt: Iterable[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in prompt]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}
