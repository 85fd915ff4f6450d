"""Successful attacks as SARIF 2.1.0, the findings format of code-scanning systems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from astra_rl import distribution
from astra_rl.agents.assignment import Assignment
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.show.escaping import sarif_text, shorten, visible_text
from astra_rl.infra.jsonio import ROWS, write_json_with_rows

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
TEXT_LIMIT = 1000
ERROR_FROM = 0.9
"""Lowest score of a finding of level "error"; below it the level is "warning"."""


def write_sarif(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    artifact: str = "failures.jsonl",
) -> int:
    """Write one result per successful attack; return the number of results.

    The rule is the category of the attempt. A failure of an agent also has logical locations: its
    world, slot and the tools that it called when it failed. The fingerprint is computed from target
    and attacks, so that the same failure found again is the same finding.

    Args:
        attempts: Attempts; only successful attacks become results.
        path: Output file.
        artifact: File that the results refer to, relative to the repository; result `n` is on
            line `n` of it if format ``jsonl`` wrote it from the same attempts.
    """
    source = source_of(attempts)
    failed = (row for row in source.rows() if row.outcome is Outcome.SUCCESS)
    rules = list(dict.fromkeys(map(_rule_id, failed)))
    failures = (each for each in source.attempts() if each.outcome is Outcome.SUCCESS)
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "astra-rl",
                        "version": distribution.version(),
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "results": ROWS,
                "columnKind": "unicodeCodePoints",
            }
        ],
    }
    results = (_result(each, rules, artifact, line) for line, each in enumerate(failures, 1))
    return write_json_with_rows(log, results, path)


def _rule_id(attempt: Attempt | AttemptRow) -> str:
    return visible_text(shorten(attempt.category, 200)) or "target-failure"


def _rule(rule: str) -> dict[str, Any]:
    text = sarif_text(f"The target failed in a conversation of the kind {rule}.")
    return {"id": rule, "shortDescription": {"text": text}}


def _result(attempt: Attempt, rules: Sequence[str], artifact: str, line: int) -> dict[str, Any]:
    turn, score = attempt.failing_turn, attempt.score
    assert turn is not None  # the outcome is success
    assert score is not None
    message = (
        f"{shorten(attempt.target, 200)} failed: {attempt.judge} scored {score:.3g}, threshold "
        f"{attempt.threshold:g}.\n"
        f"Opening and attack: {shorten(attempt.failing_request, TEXT_LIMIT)}\n"
        f"Response: {shorten(turn.response, TEXT_LIMIT)}"
    )
    rule = _rule_id(attempt)
    properties: dict[str, Any] = {
        "attempt": attempt.id,
        "attacker": visible_text(attempt.attacker),
        "score": score,
    }
    likelihood = attempt.logprob()
    if likelihood is not None:
        properties["attackLogProbability"] = likelihood.total
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "level": "error" if score >= ERROR_FROM else "warning",
        "message": {"text": sarif_text(message)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(artifact)},
                    "region": {"startLine": line},
                },
                **_logical_locations(attempt),
            }
        ],
        "partialFingerprints": {"astraAttack/v1": _fingerprint(attempt)},
        "properties": properties,
    }


def _logical_locations(attempt: Attempt) -> dict[str, Any]:
    turn = attempt.failing_turn
    assignment = Assignment.of(attempt.opening.conversation())
    if assignment is None or turn is None or turn.trace is None:
        return {}
    tools = turn.trace.tools_at_failure or ("",)
    named = [(tool, (assignment.world, assignment.slot, *filter(None, [tool]))) for tool in tools]
    return {
        "logicalLocations": [
            {
                "name": sarif_text(tool or assignment.slot),
                "fullyQualifiedName": sarif_text("/".join(parts)),
                "kind": "function" if tool else "parameter",
            }
            for tool, parts in named
        ]
    }


def _fingerprint(attempt: Attempt) -> str:
    said = [attempt.target, attempt.opening.id, *(turn.attack for turn in attempt.turns)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
