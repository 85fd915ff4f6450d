"""The table of a league: what each method found, over its seeds."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astra_rl.bench.discovery import Measured, measured
from astra_rl.evaluation.show.escaping import csv_cell, markdown_text
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.infra.jsonio import atomic_file, write_atomic, write_json

LEAGUE_FILE = "league.json"
"""File of the numbers of a league, in its folder."""


@dataclass(frozen=True)
class Number:
    """A column of the table.

    Attributes:
        name: Key of the column.
        title: Heading of the column.
        highest: Largest possible value; None if it has no limit.
        digits: Digits after the point.
    """

    name: str
    title: str
    highest: float | None = 1.0
    digits: int = 2


COLUMNS = (
    Number("asr", "held-out ASR"),
    Number("training_asr", "ASR in training"),
    Number("kinds", "kinds", None, 1),
    Number("effective_kinds", "effective kinds", None, 1),
    Number("first_success", "attempts until the first success, or all", None, 0),
    Number("recall", "recall of modes"),
    Number("weighted_recall", "recall by ordinary use", digits=3),
)
"""Numbers of a cell; those that are unknown for all cells are left out of the table."""


@dataclass(frozen=True)
class Cell:
    """One training of a league.

    Attributes:
        method: Name of the method.
        seed: Training seed.
        calls: Target calls of the training, at most, including those that a reward makes and all
            messages of an agent.
        calls_made: Those that were made: a search that stops at a success makes fewer, and an
            attack that was not written is not sent. See `replies_of`.
        numbers: Numbers of `COLUMNS` by name; NaN is unknown.
        held_out: Success rate on held-out prompts, which all seeds share.
    """

    method: str
    seed: int
    calls: int
    calls_made: int
    numbers: Mapping[str, float]
    held_out: Rate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "method": self.method,
            "seed": self.seed,
            "calls": self.calls,
            "calls_made": self.calls_made,
            **self.numbers,
        }


@dataclass(frozen=True)
class FailedCell:
    """A training of a league that failed; the same command tries it again.

    Attributes:
        method: Name of the method.
        seed: Training seed.
        reason: Why it failed, in one line, without credentials.
    """

    method: str
    seed: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"method": self.method, "seed": self.seed, "reason": self.reason}

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed} failed: {self.reason}"


@dataclass(frozen=True)
class League:
    """The cells of a league.

    Attributes:
        budget: Largest number of target calls of a training.
        cells: The trainings that are complete.
        failed: Those that failed.
    """

    budget: int
    cells: Sequence[Cell]
    failed: Sequence[FailedCell] = ()

    def rows(self) -> dict[str, dict[str, Measured]]:
        """Return the numbers of each method over its seeds.

        The interval of the rate on held-out prompts has the error of the prompts, which all seeds
        share, too (`SeedSpread`).
        """
        found = {}
        for method in dict.fromkeys(cell.method for cell in self.cells):
            cells = [cell for cell in self.cells if cell.method == method]
            row = {
                column.name: measured(
                    {cell.seed: cell.numbers[column.name] for cell in cells}, (0.0, column.highest)
                )
                for column in COLUMNS
            }
            rates = {cell.seed: cell.held_out for cell in cells if cell.held_out is not None}
            if rates:
                row["asr"] = replace(row["asr"], interval=SeedSpread(rates).interval)
            found[method] = row
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "calls": self.budget,
            "methods": {
                name: {key: each.as_dict() for key, each in row.items()}
                for name, row in self.rows().items()
            },
            "cells": [cell.as_dict() for cell in self.cells],
            "failed": [cell.as_dict() for cell in self.failed],
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows of the table, the best recall or ASR first.

        The calls are those that were made, as means over seeds, of those that could be. Methods
        that failed with all seeds are last.
        """
        rows = self.rows()
        shown = [
            column
            for column in COLUMNS
            if any(not math.isnan(row[column.name].mean) for row in rows.values())
        ]
        key = "recall" if "recall" in {column.name for column in shown} else "effective_kinds"
        order = sorted(rows, key=lambda name: _or_least(rows[name][key].mean), reverse=True)
        lost = dict.fromkeys(cell.method for cell in self.failed if cell.method not in rows)
        return ["method", "seeds", "calls", *(column.title for column in shown)], [
            *(
                [
                    name,
                    self._seeds(name),
                    self._calls(name),
                    *(rows[name][column.name].text(column.digits) for column in shown),
                ]
                for name in order
            ),
            *([name, self._seeds(name), "failed", *("" for _ in shown)] for name in lost),
        ]

    def markdown(self) -> str:
        """Return the table in Markdown, and below it the trainings that failed, each in a line."""
        headings, rows = self.table()
        lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
        lines += [f"| {' | '.join([markdown_text(row[0]), *row[1:]])} |" for row in rows]
        if self.failed:
            lines += ["", *(f"- {markdown_text(str(each))}" for each in self.failed)]
        return "\n".join(lines) + "\n"

    def _seeds(self, method: str) -> str:
        done, lost = (
            sum(cell.method == method for cell in cells) for cells in (self.cells, self.failed)
        )
        return f"{done} of {done + lost}" if lost else str(done)

    def _calls(self, method: str) -> str:
        cells = [cell for cell in self.cells if cell.method == method]
        made = round(math.fsum(cell.calls_made for cell in cells) / len(cells))
        return f"{made:,} of {max(cell.calls for cell in cells):,}"


def write_league(league: League, folder: Path) -> None:
    """Write ``league.json``, ``league.md`` and ``league.csv``."""
    write_json(league.as_dict(), folder / LEAGUE_FILE)
    write_atomic(folder / "league.md", league.markdown())
    with atomic_file(folder / "league.csv") as file:
        table = csv.writer(file, lineterminator="\r\n")
        names = [column.name for column in COLUMNS]
        table.writerow(["method", "seed", "calls", "calls_made", *names, "failed"])
        for cell in league.cells:
            numbers = [cell.numbers[name] for name in names]
            shown = ["" if math.isnan(each) else each for each in numbers]
            calls = [cell.calls, cell.calls_made]
            table.writerow([csv_cell(cell.method), cell.seed, *calls, *shown, ""])
        for lost in league.failed:
            empty = ["" for _ in ("calls", "calls_made", *names)]
            table.writerow([csv_cell(lost.method), lost.seed, *empty, csv_cell(lost.reason)])


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value
