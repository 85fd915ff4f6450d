"""Table of success rates over training seeds, for papers and spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.escaping import csv_cell, latex_text, markdown_text
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.paired_seeds import SeedPairs
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.infra.jsonio import atomic_file, write_atomic

HEADER = (
    "method", "seeds", "mean", "mean_low", "mean_high", "lowest", "highest",
    "difference", "difference_low", "difference_high", "p", "p_adjusted",
)  # fmt: skip


def seed_rows(
    spreads: Mapping[str, SeedSpread],
    pairs: Mapping[str, SeedPairs],
    adjusted: Mapping[str, float | None],
) -> list[tuple[str, list[float | None]]]:
    """Return the name and the numbers of each method in the order of `HEADER`; None is missing.

    Args:
        spreads: Rates of each method over its seeds.
        pairs: Difference of each further method from the first, paired by seed.
        adjusted: P-values of these, adjusted for their number.
    """
    rows: list[tuple[str, list[float | None]]] = []
    for name, spread in spreads.items():
        pair = pairs.get(name)
        numbers: list[float | None] = [len(spread.rates), spread.mean, *_ends(spread.interval)]
        numbers += _ends(spread.range)
        numbers += [None] * 5 if pair is None else [pair.mean, *_ends(pair.interval), pair.p_value]
        numbers += [] if pair is None else [adjusted.get(name)]
        rows.append((name, numbers))
    return rows


def write_seed_table(rows: Sequence[tuple[str, Sequence[float | None]]], path: Path) -> None:
    """Write the rows of `seed_rows` in the format of the file name: .csv, .md or .tex.

    Raises:
        ConfigurationError: The file name has another ending.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ConfigurationError(
            f"{path}: a table is written as {', '.join(WRITERS)}, and all numbers as .json."
        )
    writer(rows, path)


def _write_csv(rows: Sequence[tuple[str, Sequence[float | None]]], path: Path) -> None:
    with atomic_file(path) as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(HEADER)
        for name, numbers in rows:
            table.writerow([csv_cell(name), *("" if each is None else each for each in numbers)])


def _write_markdown(rows: Sequence[tuple[str, Sequence[float | None]]], path: Path) -> None:
    lines = [f"| {' | '.join(HEADER)} |", f"| --- |{' ---: |' * (len(HEADER) - 1)}"]
    lines += [
        f"| {' | '.join([markdown_text(name), *map(_shown, numbers)])} |" for name, numbers in rows
    ]
    write_atomic(path, "\n".join(lines) + "\n")


def _write_latex(rows: Sequence[tuple[str, Sequence[float | None]]], path: Path) -> None:
    """Write a tabular of the package booktabs."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(HEADER) - 1)}}}",
        r"\toprule",
        " & ".join(map(latex_text, HEADER)) + r" \\",
        r"\midrule",
        *(" & ".join([latex_text(name), *map(_shown, numbers)]) + r" \\" for name, numbers in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    write_atomic(path, "\n".join(lines) + "\n")


WRITERS: Mapping[str, Callable[[Sequence[tuple[str, Sequence[float | None]]], Path], None]] = {
    ".csv": _write_csv,
    ".md": _write_markdown,
    ".tex": _write_latex,
}
"""Writers of the table by the ending of the file name."""


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else list(interval)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
