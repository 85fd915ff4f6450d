"""Attacks without a recorded conversation: those of a file, or of a user."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

from astra_rl.core.result_files import (
    ScoredAttack,
    attacks_of_document,
    attacks_of_garak,
    is_garak,
)
from astra_rl.core.serialization import from_record
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.user_files import read_user_text


def read_attacks(file: str | Path) -> list[ScoredAttack]:
    """Read attacks from a file.

    Args:
        file: A ``.jsonl`` file has one JSON object per line, with ``attack`` and optionally
            ``context`` (a text, or a conversation as written by
            `astra_rl.core.serialization.to_record`) and ``reward``. Result files of other tools are
            read as well, see `astra_rl.core.result_files`. Any other file is plain
            text with one attack per line. Blank lines are skipped.

    Raises:
        ConfigurationError: The file or one of its lines cannot be read; the line number is named.
    """
    path = Path(file)
    try:
        text = read_user_text(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the attacks {str(file)!a}: {error}") from error
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _attacks_in_document(file, text)
    if suffix == ".csv" and (found := _attacks_in_table(file, text)) is not None:
        return found
    # Not splitlines(), because U+2028 may occur inside a text.
    lines = re.split(r"\r\n|\r|\n", text)
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if suffix != ".jsonl":
        return [ScoredAttack("", line) for _, line in numbered]
    return [attack for number, line in numbered for attack in _attacks_in_line(file, number, line)]


def _attacks_in_line(file: str | Path, number: int, line: str) -> list[ScoredAttack]:
    try:
        row = parse_json(line)
        if is_garak(row):
            return attacks_of_garak(row)
        attack, context = from_record(row["attack"]), from_record(row.get("context") or "")
        reward = float(math.nan if row.get("reward") is None else row["reward"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{str(file)!a}, line {number}: give a mapping with 'attack', for instance "
            f'{{"attack": "..."}} ({type(error).__name__}: {error}).'
        ) from error
    return [ScoredAttack(context, attack, reward)]


def _attacks_in_document(file: str | Path, text: str) -> list[ScoredAttack]:
    """Read a JSON file of another tool.

    Raises:
        ConfigurationError: It is no JSON, or of no known tool.
    """
    try:
        found = attacks_of_document(parse_json(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"cannot read the attacks {str(file)!a}: {type(error).__name__}: {error}."
        ) from error
    if found is None:
        raise ConfigurationError(
            f"{str(file)!a} is no result file of promptfoo, PyRIT, JailbreakBench or HarmBench. "
            "Attacks of your own are written one JSON object per line, in a file that ends in "
            ".jsonl, or one text per line."
        )
    return found


def _attacks_in_table(file: str | Path, text: str) -> list[ScoredAttack] | None:
    """Read a CSV file of PyRIT; None for one that has not its columns.

    Raises:
        ConfigurationError: It is no CSV.
    """
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        return attacks_of_document(rows)
    except (csv.Error, ValueError) as error:
        raise ConfigurationError(f"cannot read the attacks {str(file)!a}: {error}.") from error
    finally:
        csv.field_size_limit(limit)


__all__ = ["ScoredAttack", "read_attacks"]
