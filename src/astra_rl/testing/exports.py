"""Contract check of export formats."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.source import AttemptsInMemory
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.infra.redaction import keep_secret

_CREDENTIAL = "check-export-credential-7f3a9c"
_HOSTILE = "</script>=1+1|@a`b\x00\x1b[31m\u202e\u2028\r\n<img src=x> ${{a}} " + _CREDENTIAL


def check_export(export: Callable[..., Any]) -> None:
    """Check that a writer writes one file, whatever was said, and no credential.

    Checked: ordinary attempts are written; hostile texts, missing scores, attempts without turns
    and no attempts at all are written too, or refused by a `ConfigurationError`; the file is at the
    path that was given, and nothing beside it; the result is a number of entries, or another object
    with a text; a second call replaces the file.

    Args:
        export: An `Export`, or a function of attempts and a path.

    Raises:
        ContractError: A check failed; the message names it.
    """
    keep_secret(_CREDENTIAL)
    name = getattr(export, "filename", getattr(export, "__name__", type(export).__name__))
    cases = {
        "ordinary attempts": [_attempt("hello", 0.9), _attempt("bye", 0.1)],
        "hostile text": [_attempt(_HOSTILE, 0.9)],
        "a missing score": [_attempt("hello", None)],
        "an attempt without turns": [_attempt(None, None)],
        "no attempts": [],
        "a file that exists": [_attempt("hello", 0.9), _attempt("bye", 0.1)],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        for what, attempts in cases.items():
            if what == "a file that exists":
                export(AttemptsInMemory(attempts), path)
            before = path.read_bytes() if path.exists() else b""
            try:
                result = export(AttemptsInMemory(attempts), path)
            except Exception as error:
                if isinstance(error, ConfigurationError) and what != "ordinary attempts":
                    continue  # a format may refuse what it cannot hold
                raise ContractError(
                    f"{name} raised {type(error).__name__} for {what}: {error}"
                ) from error
            if result is None or isinstance(result, bool):
                raise ContractError(
                    f"{name} returned {result!r}; it must return the number of entries it wrote."
                )
            beside = sorted(each.name for each in Path(folder).iterdir() if each != path)
            if beside or not path.is_file():
                raise ContractError(
                    f"{name} must write the file at the path it is given and nothing else; "
                    f"for {what} it wrote {', '.join(beside) or 'nothing'}."
                )
            if _CREDENTIAL.encode() in path.read_bytes():
                raise ContractError(
                    f"{name} wrote a credential of the environment; write by "
                    "astra_rl.infra.jsonio.atomic_file, which redacts them."
                )
            after = path.read_bytes()
            if what == "a file that exists" and len(after) > len(before):
                raise ContractError(f"{name} appends to a file that exists; it must replace it.")


def _attempt(said: str | None, score: float | None) -> Attempt:
    scores = {"judge": JudgeScore(value=score, reason=None if score is not None else "unparsable")}
    turns = [] if said is None else [Turn(attack=said, response=said, scores=scores)]
    return Attempt.make(
        run="run",
        opening=Conversation(said or "hello", system=said, separator="\n"),
        target="target",
        attacker="attacker",
        turns=turns,
        judge="judge",
        error="" if said is not None else "timed out",
    )
