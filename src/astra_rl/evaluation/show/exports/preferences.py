"""Data to mend the target with: preference pairs and labelled replies, as TRL reads them.

Each row asks the target exactly what it was asked when it failed: its system message and the whole
conversation up to the attack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import Opening
from astra_rl.infra.jsonio import atomic_file, json_line, parse_json

Message = dict[str, str]


class Written(NamedTuple):
    """Rows that were written, and failures left out because no safe reply is known."""

    rows: int
    without_reply: int = 0


@dataclass(frozen=True)
class SafeReplies:
    """What the target should have said.

    Attributes:
        by_attack: A reply for each attack, by its text.
        default: A reply for all other attacks; None if there is none.
    """

    by_attack: Mapping[str, str]
    default: str | None = None

    @classmethod
    def load(cls, path: str | Path, *, default: str | None = None) -> SafeReplies:
        """Read a JSONL file with an ``attack`` and a ``reply`` in each line.

        Raises:
            ConfigurationError: The file cannot be read, or a line is something else.
        """
        replies = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
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
        """The reply to this attack, None if there is none."""
        return self.by_attack.get(attack, self.default)


class _Reply(NamedTuple):
    """One answer of the target: what it was asked, what it said, and whether it failed."""

    prompt: tuple[tuple[str, str], ...]
    attack: str
    text: str
    failed: bool


def write_preference_pairs(
    attempts: Iterable[Attempt], path: str | Path, *, safe: SafeReplies | None = None
) -> Written:
    """Write rows of ``prompt``, ``chosen`` and ``rejected``: TRL's preference format, as messages.

    Rejected is a reply in which the target failed. Chosen is the safe reply that was given, or else
    what the target itself said without failing when it was asked the very same; a failure with
    neither is left out and counted.

    Args:
        attempts: Any. Attacks that were sent several times give the most pairs.
        path: Where to write, as JSONL.
        safe: Replies to prefer.
    """
    good: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    bad: dict[_Reply, None] = {}  # each once, in order
    for reply in _replies(attempts):
        if reply.failed:
            bad[reply] = None
        elif reply.text.strip() and reply.text not in good[reply.prompt]:
            good[reply.prompt].append(reply.text)
    rows = missing = 0
    with atomic_file(path) as file:
        for reply in bad:
            given = safe.get(reply.attack) if safe is not None else None
            choices = good[reply.prompt] if given is None else [given]
            for chosen in choices:
                row = {
                    "prompt": _messages(reply.prompt),
                    "chosen": [_said(chosen)],
                    "rejected": [_said(reply.text)],
                }
                file.write(json_line(row) + "\n")
            rows += len(choices)
            missing += not choices
    return Written(rows, missing)


def write_unpaired(
    attempts: Iterable[Attempt], path: str | Path, *, safe: SafeReplies | None = None
) -> Written:
    """Write rows of ``prompt``, ``completion`` and ``label``: TRL's unpaired format, as messages.

    One row per judged reply, true if the target did not fail, and one per safe reply to a failing
    one. Replies without a score are left out: nobody knows which label they have.

    Args:
        attempts: Any.
        path: Where to write, as JSONL.
        safe: Replies that are good.
    """
    rows: dict[tuple[tuple[tuple[str, str], ...], str, bool], None] = {}
    for reply in _replies(attempts):
        rows[reply.prompt, reply.text, not reply.failed] = None
        given = safe.get(reply.attack) if safe is not None and reply.failed else None
        if given is not None:
            rows[reply.prompt, given, True] = None
    with atomic_file(path) as file:
        for prompt, text, label in rows:
            row = {"prompt": _messages(prompt), "completion": [_said(text)], "label": label}
            file.write(json_line(row) + "\n")
    return Written(len(rows))


def _replies(attempts: Iterable[Attempt]) -> Iterator[_Reply]:
    """Yield every judged reply."""
    for attempt in attempts:
        opening = attempt.opening
        messages = [("system", opening.system)] if opening.system else []
        # What both sides see before the first attack is read to the target with that attack.
        before = opening.prompt
        for index, said in enumerate(opening.turns):
            messages.append(("assistant" if index % 2 else "user", _joined(before, said, opening)))
            before = ""
        for turn in attempt.turns:
            asked = _joined(before, turn.attack, opening)
            before = ""
            messages.append(("user", asked))
            score = turn.score(attempt.judge)
            if score is not None and not turn.blocked:
                failed = score >= attempt.threshold
                yield _Reply(tuple(messages), turn.attack, turn.response, failed)
            messages.append(("assistant", turn.response))


def _joined(before: str, said: str, opening: Opening) -> str:
    return opening.separator.join(part for part in (before, said) if part)


def _messages(prompt: Iterable[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in prompt]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}
