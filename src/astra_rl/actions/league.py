"""Train several methods at equal numbers of target calls, and tabulate what they found."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from astra_rl.bench.discovery import Call, KnownModes, Measured, caused, discovery, measured
from astra_rl.config.estimate import training_size
from astra_rl.config.league import LeagueConfig
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.failure_kinds import kinds_of_failure
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.show.escaping import csv_cell, markdown_text
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.infra.jsonio import atomic_file, write_atomic, write_json
from astra_rl.runs.file_types import FileOfARun
from astra_rl.runs.folder import RunFolder, file_stem, read_own
from astra_rl.runs.recorded import Recorded, summary_of_phase
from astra_rl.runs.resume import changed_settings, check_same_prompts, is_complete
from astra_rl.runs.runner import Display, run_experiment

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
        numbers: Numbers of `COLUMNS` by name; NaN is unknown.
        held_out: Success rate on held-out prompts, which all seeds share.
    """

    method: str
    seed: int
    calls: int
    numbers: Mapping[str, float]
    held_out: Rate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"method": self.method, "seed": self.seed, "calls": self.calls, **self.numbers}


@dataclass(frozen=True)
class League:
    """The cells of a league.

    Attributes:
        budget: Largest number of target calls of a training.
        cells: All trainings.
    """

    budget: int
    cells: Sequence[Cell]

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
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows of the table, the best recall or ASR first."""
        rows = self.rows()
        shown = [
            column
            for column in COLUMNS
            if any(not math.isnan(row[column.name].mean) for row in rows.values())
        ]
        used: dict[str, set[int]] = {}
        for cell in self.cells:
            used.setdefault(cell.method, set()).add(cell.calls)
        key = "recall" if "recall" in {column.name for column in shown} else "effective_kinds"
        order = sorted(rows, key=lambda name: _or_least(rows[name][key].mean), reverse=True)
        return ["method", "seeds", "calls", *(column.title for column in shown)], [
            [
                name,
                str(sum(cell.method == name for cell in self.cells)),
                f"{max(used[name]):,}",
                *(rows[name][column.name].text(column.digits) for column in shown),
            ]
            for name in order
        ]


def run_league(
    league: LeagueConfig,
    folder: str | Path,
    *,
    command: str = "",
    on_cell: Callable[[str, int, RunFolder], Display | None] = lambda *_: None,
) -> League:
    """Train all methods with all seeds, or those that an earlier call did not finish.

    A finished run is kept, and an interrupted one is resumed exactly. Seeds are the outer loop, so
    that partial results compare all methods. ``league.json`` and ``league.md`` are written after
    each run.

    Args:
        league: The league.
        folder: Folder of the league; each run has a folder in it.
        command: Command line that repeats it, for the reports.
        on_cell: Called with method, seed and folder before each run that is not finished; what it
            returns shows the progress.

    Raises:
        ConfigurationError: The folder has a run of a method and seed with other settings.
        AstraError: A run failed or was interrupted; calling it again resumes it.
    """
    cells: list[Cell] = []
    for seed, method in product(league.seeds, league.methods):
        run = RunFolder(_folder_of_run(folder, method, seed))
        plan = league.plan(method, seed)
        _check_same(plan, run)
        if not is_complete(run):
            run_experiment(plan, run, on_cell(method, seed, run), command=command)
        cells.append(read_cell(method, seed, run, resolve(league.config(method, seed))))
        write_league(League(league.calls, cells), Path(folder))
    return League(league.calls, cells)


def _check_same(plan: Plan, run: RunFolder) -> None:
    """Raise if the folder has a run with other settings or prompts, finished or not."""
    if not run.config.is_file():
        return
    if changes := changed_settings(plan.record.yaml, run):
        raise ConfigurationError(
            f"{run.path} has a run of this league with other settings ({'; '.join(changes)}); use "
            "the settings of then, or choose another --output."
        )
    check_same_prompts([source.as_dict() for source in plan.openings.sources], run)


def read_cell(method: str, seed: int, run: RunFolder, plan: Plan) -> Cell:
    """Return the numbers of a finished run.

    Args:
        method: Name of the method.
        seed: Its training seed.
        run: Its folder.
        plan: Its plan.
    """
    with Recorded(run, "training") as recorded:
        successes = list(recorded.attempts(outcome="success"))
        outcomes = [row.outcome for row in recorded.rows()]
        kinds = [len(kind.attempts) for kind in kinds_of_failure(successes)]
        found = _found(plan, recorded)
    known = [each for each in outcomes if each in KNOWN_OUTCOMES]
    # Without a success all attempts were not enough: leaving the seed out would flatter the method.
    first = next((at for at, each in enumerate(outcomes, 1) if each is Outcome.SUCCESS), None)
    held_out = summary_of_phase(run.path, "after").asr
    return Cell(
        method,
        seed,
        training_size(plan).replies,
        {
            "asr": held_out.estimate,
            "training_asr": known.count(Outcome.SUCCESS) / len(known) if known else math.nan,
            "kinds": float(len(kinds)),
            "effective_kinds": effective_number(kinds).estimate if kinds else 0.0,
            "first_success": float(first or len(outcomes)),
            **found,
        },
        held_out,
    )


def _found(plan: Plan, recorded: Recorded) -> dict[str, float]:
    """Return the recall of the modes of the target; unknown if they are not known."""
    target = plan.target
    if not isinstance(target, KnownModes):
        return {"recall": math.nan, "weighted_recall": math.nan}
    found = discovery(list(_calls(target, recorded)), target.mode_probabilities)
    return {"recall": found.recall, "weighted_recall": found.weighted_recall}


def _calls(target: KnownModes, recorded: Recorded) -> Iterator[Call]:
    for attempt in recorded.attempts():
        for turn in attempt.turns:
            score = turn.score(attempt.judge)
            mode = caused(target, turn.attack, turn.response)
            yield Call(mode, score is not None and score >= attempt.threshold)


def write_league(league: League, folder: Path) -> None:
    """Write ``league.json``, ``league.md`` and ``league.csv``."""
    headings, rows = league.table()
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    lines += [f"| {' | '.join([markdown_text(row[0]), *row[1:]])} |" for row in rows]
    write_json(league.as_dict(), folder / LEAGUE_FILE)
    write_atomic(folder / "league.md", "\n".join(lines) + "\n")
    with atomic_file(folder / "league.csv") as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(["method", "seed", "calls", *(column.name for column in COLUMNS)])
        for cell in league.cells:
            numbers = [cell.numbers[column.name] for column in COLUMNS]
            shown = ["" if math.isnan(each) else each for each in numbers]
            table.writerow([csv_cell(cell.method), cell.seed, cell.calls, *shown])


class _PlayedCell(FileOfARun):
    method: str
    seed: int


class _PlayedLeague(FileOfARun):
    """``league.json``, as far as the runs of a league are found by it."""

    cells: list[_PlayedCell]


def runs_of_league(folder: str | Path) -> list[Path]:
    """Return the folders of the finished runs of a league, in the order of its methods.

    Args:
        folder: Folder of the league.

    Raises:
        ConfigurationError: Its ``league.json`` cannot be read.
    """
    cells = read_own(Path(folder) / LEAGUE_FILE, _PlayedLeague)["cells"]
    return [_folder_of_run(folder, cell["method"], cell["seed"]) for cell in cells]


def _folder_of_run(folder: str | Path, method: str, seed: int) -> Path:
    return Path(folder) / file_stem(method) / f"seed-{seed}"


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value
