"""Export formats of attempts: one module per format, with one function that writes a file.

Every writer takes attempts and a path, writes atomically, and escapes model text (see
`astra_rl.evaluation.show.escaping`). The attempts are any iterable, which is held in memory, or an
`AttemptSource`, of which one attempt at a time is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from astra_rl.evaluation.show.exports.attacks import write_attacks
from astra_rl.evaluation.show.exports.jailbreakbench import write_jailbreakbench
from astra_rl.evaluation.show.exports.junit import write_junit
from astra_rl.evaluation.show.exports.markdown import write_markdown
from astra_rl.evaluation.show.exports.preferences import write_preference_pairs, write_unpaired
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.evaluation.show.exports.regression import write_regression_suite
from astra_rl.evaluation.show.exports.sarif import write_sarif
from astra_rl.evaluation.show.exports.table import write_csv, write_parquet


@dataclass(frozen=True)
class Export:
    """One export format.

    Attributes:
        filename: Default name of the file.
        purpose: Purpose, in a few words.
        write: Writer, called with attempts (an iterable or an `AttemptSource`) and a path.
        counts_planned: Whether `write` also takes `planned`, the number of planned attempts.
    """

    filename: str
    purpose: str
    write: Callable[..., Any]
    counts_planned: bool = False


EXPORTS: Mapping[str, Export] = MappingProxyType(
    {
        "jsonl": Export("failures.jsonl", "complete records of successful attacks", write_failures),
        "attacks": Export(
            "attacks.jsonl", "attacks and scores, for warm_start and few_shot", write_attacks
        ),
        "csv": Export("attempts.csv", "all turns, for a spreadsheet", write_csv),
        "parquet": Export("attempts.parquet", "all turns, for a data frame", write_parquet),
        "junit": Export("junit.xml", "test results for CI", write_junit, counts_planned=True),
        "sarif": Export("results.sarif", "findings for code scanning", write_sarif),
        "markdown": Export(
            "summary.md",
            "numbers and findings, for a pull-request comment",
            write_markdown,
            counts_planned=True,
        ),
        "jailbreakbench": Export(
            "jailbreakbench.json", "a JailbreakBench artifact", write_jailbreakbench
        ),
        "preferences": Export(
            "preferences.jsonl", "prompt, chosen, rejected for TRL", write_preference_pairs
        ),
        "unpaired": Export("unpaired.jsonl", "prompt, completion, label for TRL", write_unpaired),
        "regression": Export(
            "regression.json", "attacks to replay against the next version", write_regression_suite
        ),
    }
)
"""Formats by name."""

__all__ = ["EXPORTS", "Export"]
