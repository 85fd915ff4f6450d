"""Attacks with their scores as JSONL, for warm start and few-shot examples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from astra_rl.core.serialization import to_record
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.infra.jsonio import atomic_file, json_line


def write_attacks(attempts: Iterable[Attempt] | AttemptSource, path: str | Path) -> int:
    """Write one row of ``context``, ``attack`` and ``reward`` per turn; return the number of rows.

    An attack that is a part of an output with private reasoning is written with that output, which
    is what an attacker is trained on.

    ``reward`` is the score of the deciding judge, so that attempts of evaluations and of training
    are comparable; null if the score is missing.
    """
    count = 0
    with atomic_file(path) as file:
        for attempt in source_of(attempts).attempts():
            for turn, exchange in zip(attempt.turns, attempt.exchanges(), strict=True):
                if turn.without_attack:
                    continue
                row = {
                    "context": to_record(exchange.context),
                    "attack": to_record(turn.output),
                    "reward": turn.score(attempt.judge),
                }
                file.write(json_line(row) + "\n")
                count += 1
    return count
