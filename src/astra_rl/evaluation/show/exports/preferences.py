"""Training data to fix the target: preference pairs and labelled replies in the formats of TRL.

The prompt of each row is exactly what the target read: its system message and the conversation up
to and including the attack. Of an agent, each message is a reply of its own, with its calls; its
prompt is all that came before, and the column ``tools`` has its tools. In a turn in which the agent
failed, only the message that reached the attacker's goal is one: what it did before is not judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from astra_rl.agents.assignment import Assignment
from astra_rl.agents.history import kept_turns
from astra_rl.agents.loop import earlier_messages, placed
from astra_rl.core.images import image_urls, text_of_content
from astra_rl.core.messages import Message as AgentMessage
from astra_rl.core.messages import Trace, chat_messages
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.infra.jsonio import atomic_file, json_line, parse_json, unredacted_line
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
    """One response of the target.

    Attributes:
        prompt: What it read, as JSON: the field ``prompt``, and of an agent ``tools``.
        attack: The attack.
        message: The response, as a message in JSON.
        failed: Whether the target failed.
        is_blank: Whether it says nothing and calls nothing.
    """

    prompt: str
    attack: str
    message: str
    failed: bool
    is_blank: bool


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
                        **parse_json(reply.prompt),
                        "chosen": [parse_json(chosen)],
                        "rejected": [parse_json(reply.message)],
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
    good: dict[str, dict[str, None]] = defaultdict(dict)
    bad: dict[_Reply, None] = {}  # each once, in order
    for reply in replies:
        if reply.failed:
            bad[reply] = None
        elif not reply.is_blank:
            good[reply.prompt][reply.message] = None
    for reply in bad:
        given = safe.get(reply.attack) if safe is not None else None
        yield reply, [*good[reply.prompt]] if given is None else [_said(given)]


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
            rows: dict[tuple[str, str, bool], None] = {}
            for reply in replies:
                rows[reply.prompt, reply.message, not reply.failed] = None
                given = safe.get(reply.attack) if safe is not None and reply.failed else None
                if given is not None:
                    rows[reply.prompt, _said(given), True] = None
            for prompt, message, label in rows:
                row = {
                    **parse_json(prompt),
                    "completion": [parse_json(message)],
                    "label": label,
                }
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
        assignment = Assignment.of(context)
        if assignment is not None:
            yield from _replies_of_agent(attempt, assignment)
            continue
        for turn in attempt.turns:
            context = context + turn.attack
            score = turn.score(attempt.judge)
            if score is not None and not turn.blocked:
                failed = score >= attempt.threshold
                prompt = unredacted_line({"prompt": messages_of(context)})
                said = turn.response
                yield _Reply(prompt, turn.attack, _said(said), failed, not said.strip())
            context = context + turn.response


def _replies_of_agent(attempt: Attempt, assignment: Assignment) -> Iterator[_Reply]:
    """Yield the judged messages of an agent; see the module."""
    played: list[Trace] = []
    for turn in attempt.turns:
        if turn.trace is None:  # no response, and none after it
            return
        trace, score = turn.trace.reply("").trace, turn.score(attempt.judge)
        read = placed(assignment, "", turn.attack)
        system = [AgentMessage("system", read.system)] if read.system else []
        tools = [tool.as_json() for tool in read.tools]
        failed = score is not None and score >= attempt.threshold
        earlier = [message for each in kept_turns(played) for message in earlier_messages(each)]
        for at, message in enumerate(trace.messages):
            judged = at == trace.failed_at if failed else score is not None
            if message.role == "assistant" and judged:
                before = [*system, *earlier, *trace.messages[:at]]
                prompt = unredacted_line({"prompt": _chat(before), "tools": tools})
                (said,) = _chat([message])
                blank = not (message.text.strip() or message.calls)
                yield _Reply(prompt, turn.attack, unredacted_line(said), failed, blank)
        played.append(trace)


def _chat(messages: Sequence[AgentMessage]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: arguments of calls are no JSON text.

    Images are parts with a ``data:`` URL, as processors of transformers read them.
    """
    chat = chat_messages(messages)
    for message in chat:
        if urls := image_urls(message["content"]):
            text = text_of_content(message["content"])
            parts = [{"type": "text", "text": text}] if text else []
            message["content"] = [*parts, *({"type": "image", "url": each} for each in urls)]
    for call in (call for each in chat for call in each.get("tool_calls", ())):
        call["function"]["arguments"] = parse_json(call["function"]["arguments"])
    return chat


def messages_of(conversation: Conversation) -> list[Message]:
    """Return a conversation that ends in an attack as the messages that the target reads."""
    messages = [("system", conversation.system)] if conversation.system else []
    for index, said in enumerate(conversation.turns):
        # The opening prompt precedes the first attack in the same message.
        parts = (conversation.prompt, said) if index == 0 else (said,)
        text = conversation.separator.join(part for part in parts if part)
        messages.append(("assistant" if index % 2 else "user", text))
    return [{"role": role, "content": text} for role, text in messages]


def _said(text: str) -> str:
    return unredacted_line({"role": "assistant", "content": text})
