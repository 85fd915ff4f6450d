"""Published benchmarks of harmful behaviours, from a local copy or the hub; none is bundled.

The columns of each benchmark are mapped to rows whose prompt is the harmful behaviour. See
DATASETS.md for sources and licences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_rl.core.text import GOAL
from astra_rl.datasets.files import HUB_PREFIX, LoadedRows, RawTable, read_table, rows_from
from astra_rl.datasets.records import Record
from astra_rl.datasets.rows import MAX_CHARS
from astra_rl.errors import ConfigurationError, did_you_mean


@dataclass(frozen=True)
class Benchmark:
    """Metadata of a published benchmark.

    Attributes:
        title: Published name.
        paper: Citation.
        licence: Licence of the data, as stated by its authors.
        home: URL of the authors' files.
        hub: Dataset id on the Hugging Face Hub.
        columns: For each field of a row, the column names that may hold it: those of the authors'
            CSV first, then those of the hub and of copies in other tools.
        subset_column: Column of the authors' CSV that names the subset.
        hub_arguments: For each subset, its configuration and split on the hub. The first subset is
            the default.
    """

    title: str
    paper: str
    licence: str
    home: str
    hub: str
    columns: Mapping[str, tuple[str, ...]]
    subset_column: str | None = None
    hub_arguments: Mapping[str | None, Mapping[str, str]] = field(
        default_factory=lambda: {None: {"split": "train"}}
    )


BENCHMARKS: Mapping[str, Benchmark] = {
    "harmbench": Benchmark(
        title="HarmBench",
        paper="Mazeika et al. 2024, arXiv 2402.04249",
        licence="MIT",
        home="https://github.com/centerforaisafety/HarmBench",
        hub="walledai/HarmBench",
        columns={
            "prompt": ("Behavior", "prompt"),
            "id": ("BehaviorID",),
            "category": ("SemanticCategory", "category"),
            "facts.context": ("ContextString", "context"),
        },
        subset_column="FunctionalCategory",
        hub_arguments={
            name: {"subset": name, "split": "train"}
            for name in ("standard", "contextual", "copyright")
        },
    ),
    "advbench": Benchmark(
        title="AdvBench, harmful behaviors",
        paper="Zou et al. 2023, arXiv 2307.15043",
        licence="MIT",
        home="https://github.com/llm-attacks/llm-attacks",
        hub="walledai/AdvBench",
        columns={"prompt": ("goal", "prompt", "value"), "facts.target": ("target",)},
    ),
    "jailbreakbench": Benchmark(
        title="JailbreakBench, JBB-Behaviors",
        paper="Chao et al. 2024, arXiv 2404.01318",
        licence="MIT",
        home="https://github.com/JailbreakBench/jailbreakbench",
        hub="JailbreakBench/JBB-Behaviors",
        columns={
            "prompt": ("Goal",),
            "category": ("Category",),
            "facts.target": ("Target",),
        },
        hub_arguments={
            name: {"subset": "behaviors", "split": name} for name in ("harmful", "benign")
        },
    ),
    "strongreject": Benchmark(
        title="StrongREJECT",
        paper="Souly et al. 2024, arXiv 2402.10260",
        licence="MIT",
        home="https://github.com/alexandrasouly/strongreject",
        hub="walledai/StrongREJECT",
        columns={"prompt": ("forbidden_prompt", "prompt"), "category": ("category",)},
    ),
}


def load_benchmark(
    name: str,
    source: str | Path | None = None,
    *,
    subset: str | None = None,
    max_chars: int = MAX_CHARS,
) -> LoadedRows:
    """Load a published benchmark of harmful behaviours.

    Args:
        name: One of `BENCHMARKS`.
        source: A local copy (a file or folder, see `load_rows`), or another hub dataset
            (``hub:OWNER/NAME``) with the same columns. None downloads the benchmark's hub dataset.
        subset: ``"standard"``, ``"contextual"`` or ``"copyright"`` of HarmBench; ``"harmful"`` or
            ``"benign"`` of JailbreakBench on the hub.
        max_chars: Maximum length of a text, in characters.

    Returns:
        Rows whose prompt is the behaviour, preceded by its context if there is one (as in
        HarmBench), and whose ``facts["goal"]`` is the behaviour alone.

    Raises:
        ConfigurationError: The benchmark or subset is unknown, or a column is missing.
        MissingDependencyError: The extra ``data`` is required and not installed.
    """
    if name not in BENCHMARKS:
        raise ConfigurationError(
            f"no benchmark {name!r}; choose from {', '.join(BENCHMARKS)}."
            f"{did_you_mean(name, BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[name]
    if source is None:
        arguments = _hub_arguments(benchmark, subset)
        table = read_table(HUB_PREFIX + benchmark.hub, **arguments)
    elif str(source).startswith(HUB_PREFIX):
        table = read_table(source, **_hub_arguments(benchmark, subset))
    else:
        table = read_table(source)
        if subset is not None:
            table = _select_subset(table, benchmark, subset)
    return rows_from(_as_rows(table, benchmark), max_chars=max_chars)


def _hub_arguments(benchmark: Benchmark, subset: str | None) -> Mapping[str, str]:
    known = benchmark.hub_arguments
    if subset is None:
        return next(iter(known.values()))
    if subset not in known:
        raise _unknown_subset(benchmark, subset, [each for each in known if each])
    return known[subset]


def _select_subset(table: RawTable, benchmark: Benchmark, subset: str) -> RawTable:
    column = benchmark.subset_column or ""
    known = sorted({str(each.values[column]) for each in table.records if column in each.values})
    if subset not in known:
        raise _unknown_subset(benchmark, subset, known)
    chosen = [each for each in table.records if str(each.values[column]) == subset]
    return RawTable(table.name, chosen, table.errors, table.sha256)


def _unknown_subset(benchmark: Benchmark, subset: str, known: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"{benchmark.title} has no subset {subset!r} in this source; "
        + (f"choose from {', '.join(known)}." if known else "leave subset out.")
    )


def _as_rows(table: RawTable, benchmark: Benchmark) -> RawTable:
    """Rename the columns of a benchmark to the fields of a row."""
    present = {column for record in table.records for column in record.values}
    named = {
        name: next((column for column in columns if column in present), None)
        for name, columns in benchmark.columns.items()
    }
    if table.records and named["prompt"] is None:
        raise ConfigurationError(
            f"{table.name} is not a copy of {benchmark.title}: it has no column "
            f"{' or '.join(map(repr, benchmark.columns['prompt']))}. "
            f"The authors' files are at {benchmark.home}."
        )
    records = [
        Record(
            record.number,
            _with_goal(
                {name: record.values.get(column) for name, column in named.items() if column}
            ),
        )
        for record in table.records
    ]
    return RawTable(table.name, records, table.errors, table.sha256)


def _with_goal(values: dict[str, Any]) -> dict[str, Any]:
    behavior, context = values["prompt"], values.get("facts.context")
    if isinstance(context, str) and context.strip() and isinstance(behavior, str):
        values["prompt"] = f"{context}\n\n---\n\n{behavior}"
    return {**values, f"facts.{GOAL}": behavior}
