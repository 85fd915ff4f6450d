"""Attacks without a recorded conversation: those of a file, or of a user."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from astra_rl.core.serialization import from_record
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.user_files import read_user_text


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


def read_attacks(file: str | Path) -> list[ScoredAttack]:
    """Read attacks from a file.

    Args:
        file: A ``.jsonl`` file has one JSON object per line, with ``attack`` and optionally
            ``context`` (a text, or a conversation as written by
            `astra_rl.core.serialization.to_record`) and ``reward``. Any other file is plain text
            with one attack per line. Blank lines are skipped.

    Raises:
        ConfigurationError: The file or one of its lines cannot be read; the line number is named.
    """
    path = Path(file)
    try:
        text = read_user_text(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the attacks {str(file)!a}: {error}") from error
    # Not splitlines(), because U+2028 may occur inside a text.
    lines = re.split(r"\r\n|\r|\n", text)
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix.lower() != ".jsonl":
        return [ScoredAttack("", line) for _, line in numbered]
    attacks = []
    for number, line in numbered:
        try:
            row = parse_json(line)
            attack, context = from_record(row["attack"]), from_record(row.get("context") or "")
            reward = float(math.nan if row.get("reward") is None else row["reward"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"{str(file)!a}, line {number}: give a mapping with 'attack', for instance "
                f'{{"attack": "..."}} ({type(error).__name__}: {error}).'
            ) from error
        attacks.append(ScoredAttack(context, attack, reward))
    return attacks
