"""Export formats of attempts: one module per format, with one function that writes a file.

Every writer takes attempts and a path, writes atomically, and escapes model text (see
`astra_rl.evaluation.show.escaping`). The attempts are any iterable, which is held in memory, or an
`AttemptSource`, of which one attempt at a time is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from astra_rl.errors import AstraError, ConfigurationError
from astra_rl.evaluation.show.exports.attacks import write_attacks
from astra_rl.evaluation.show.exports.harmbench import write_harmbench
from astra_rl.evaluation.show.exports.inspect_log import write_inspect_log
from astra_rl.evaluation.show.exports.jailbreakbench import write_jailbreakbench
from astra_rl.evaluation.show.exports.junit import write_junit
from astra_rl.evaluation.show.exports.markdown import write_markdown
from astra_rl.evaluation.show.exports.preferences import write_preference_pairs, write_unpaired
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.evaluation.show.exports.regression import write_regression_suite
from astra_rl.evaluation.show.exports.sarif import write_sarif
from astra_rl.evaluation.show.exports.table import write_csv, write_parquet
from astra_rl.infra.importing import is_path
from astra_rl.infra.registry import Registry


@dataclass(frozen=True)
class Export:
    """One export format.

    Attributes:
        filename: Default name of the file.
        purpose: Purpose, in a few words.
        write: Writer, called with attempts (an iterable or an `AttemptSource`) and a path. It
            returns the number of entries, or another object whose text says what was written.
        counts_planned: Whether `write` also takes `planned`, the number of planned attempts.
        has_intervals: Whether `write` also takes `sequential`, see `Rate`.
        extra: Extra of this distribution that it needs; empty if it needs none.
    """

    filename: str
    purpose: str
    write: Callable[..., Any]
    counts_planned: bool = False
    has_intervals: bool = False
    extra: str = ""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call `write`."""
        return self.write(*arguments, **options)


EXPORTS: Registry[Any] = Registry(
    "export format",
    "astra_rl.exports",
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
            has_intervals=True,
        ),
        "jailbreakbench": Export(
            "jailbreakbench.json", "a JailbreakBench artifact", write_jailbreakbench
        ),
        "harmbench": Export(
            "harmbench.json", "completions of HarmBench, with labels", write_harmbench
        ),
        "inspect": Export(
            "inspect.eval",
            "an evaluation log of Inspect",
            write_inspect_log,
            counts_planned=True,
            has_intervals=True,
            extra="inspect",
        ),
        "preferences": Export(
            "preferences.jsonl", "prompt, chosen, rejected for TRL", write_preference_pairs
        ),
        "unpaired": Export("unpaired.jsonl", "prompt, completion, label for TRL", write_unpaired),
        "regression": Export(
            "regression.json", "attacks to replay against the next version", write_regression_suite
        ),
    },
)
"""Formats by name: an `Export` each, or a writer that an installed package declares."""


def export_format(name: str) -> Export:
    """Return a format by its name or import path.

    A writer that is a plain function has its own name as the name of the file.

    Raises:
        ConfigurationError: There is no such format, or what is named is neither an `Export` nor a
            function.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    found = EXPORTS.load(name)
    if isinstance(found, Export):
        return found
    if isinstance(found, type):
        raise ConfigurationError(
            f"the export format {name!r} is the class {found.__name__}; it must be an "
            "astra_rl.evaluation.show.exports.Export, or a function of attempts and a path."
        )
    short = name.partition(":")[2] if is_path(name) else name
    return Export(short, (found.__doc__ or "").strip().partition("\n")[0].rstrip("."), found)


def known_formats() -> dict[str, Export]:
    """Return all formats by name, without those of installed packages that cannot be imported."""
    found = {}
    for name in EXPORTS:
        with contextlib.suppress(AstraError):
            found[name] = export_format(name)
    return found


__all__ = ["EXPORTS", "Export", "export_format", "known_formats"]
