"""Train several methods at equal numbers of target calls, and count what they found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

from astra_rl.actions.league_table import LEAGUE_FILE, Cell, FailedCell, League, write_league
from astra_rl.bench.discovery import Call, KnownModes, caused, discovery
from astra_rl.config.estimate import training_size
from astra_rl.config.league import LeagueConfig
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.errors import (
    AstraError,
    BudgetEndedError,
    ConfigurationError,
    InterruptedRunError,
    ProcessFailedError,
    StorageError,
    first_line,
)
from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.failure_kinds import kinds_of_failure
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.records.turn import Turn
from astra_rl.infra.redaction import redact_message
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.runs.file_types import FileOfARun
from astra_rl.runs.folder import RunFolder, file_stem, read_own
from astra_rl.runs.recorded import Recorded, summary_of_phase
from astra_rl.runs.resume import (
    changed_settings,
    check_same_files,
    check_same_prompts,
    is_complete,
)
from astra_rl.runs.runner import Display, run_experiment
from astra_rl.targets.ledger import current_ledger


def run_league(
    league: LeagueConfig,
    folder: str | Path,
    *,
    command: str = "",
    on_cell: Callable[[str, int, RunFolder], Display | None] = lambda *_: None,
) -> League:
    """Train all methods with all seeds, or those that an earlier call did not finish.

    A finished run is kept, an interrupted one is resumed exactly, and one that failed is tried
    again from its newest state. A run that fails, also by its own budget, is recorded with its
    reason, and the league goes on. Seeds are the outer loop, so that partial results compare all
    methods. ``league.json``, ``league.md`` and ``league.csv`` are written after each run.

    Args:
        league: The league.
        folder: Folder of the league; each run has a folder in it.
        command: Command line that repeats it, for the reports.
        on_cell: Called with method, seed and folder before each run that is not finished; what it
            returns shows the progress.

    Raises:
        ConfigurationError: The folder has a run of a method and seed with other settings; nothing
            was played.
        InterruptedRunError: A signal ended it; calling it again resumes it.
        BudgetSpentError: The budget of an enclosing ledger is spent.
        StorageError: The disk is full, or the folder read-only.
    """
    _check_same(league, folder)
    cells: list[Cell] = []
    failed: list[FailedCell] = []
    for seed, method in product(league.seeds, league.methods):
        run = RunFolder(_folder_of_run(folder, method, seed))
        try:
            plan = league.plan(method, seed)
            if not is_complete(run):
                _play(plan, run, on_cell(method, seed, run), command)
            with storing(run.path):
                cells.append(read_cell(method, seed, run, resolve(league.config(method, seed))))
        except Exception as error:
            if _ends_league(error):
                raise
            current_ledger().check()  # an enclosing budget ends the league
            failed.append(FailedCell(method, seed, _reason(error)))
            unexpected = None if isinstance(error, AstraError) else error
            logger.warning("%s", failed[-1], exc_info=unexpected)
        write_league(League(league.calls, cells, failed), Path(folder))
    return League(league.calls, cells, failed)


def _play(plan: Plan, run: RunFolder, display: Display | None, command: str) -> None:
    ended = run_experiment(plan, run, display, command=command).ended
    if ended is not None:
        raise ended


def _ends_league(error: Exception) -> bool:
    """Whether an error is none of the method: a signal, a lost process or a full disk."""
    if isinstance(error, BudgetEndedError):  # of the run
        return False
    return isinstance(error, InterruptedRunError | ProcessFailedError | StorageError)


def _reason(error: Exception) -> str:
    said = first_line(error)
    known = isinstance(error, AstraError)
    return redact_message(said if known else f"{type(error).__name__}: {said}")


def _check_same(league: LeagueConfig, folder: str | Path) -> None:
    """Raise if the folder has a run with other settings or prompts, finished or not."""
    for seed, method in product(league.seeds, league.methods):
        run = RunFolder(_folder_of_run(folder, method, seed))
        if not run.config.is_file():
            continue
        try:
            plan = league.plan(method, seed)
        except Exception:  # this training fails with it, and the others are played
            continue
        if changes := changed_settings(plan.record.yaml, run):
            raise ConfigurationError(
                f"{run.path} has a run of this league with other settings ({'; '.join(changes)}); "
                "use the settings of then, remove that folder to play it anew, or choose another "
                "--output."
            )
        check_same_prompts([source.as_dict() for source in plan.openings.sources], run)
        check_same_files(plan.files, run)


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
        replies = 1 + sum(part.replies_per_turn for part in plan.reward_parts())
        made = replies_of(recorded.attempts(), per_answer=replies)
    known = [each for each in outcomes if each in KNOWN_OUTCOMES]
    # Without a success all attempts were not enough: leaving the seed out would flatter the method.
    first = next((at for at, each in enumerate(outcomes, 1) if each is Outcome.SUCCESS), None)
    held_out = summary_of_phase(run.path, "after").asr
    return Cell(
        method,
        seed,
        training_size(plan).replies,
        made,
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


def replies_of(attempts: Iterable[Attempt], *, per_answer: int = 1) -> int:
    """Return how many target calls the turns of attempts made.

    Turns that several attempts share, as the branches of a tree do, count once. A turn whose output
    had no attack was not sent; that of an agent counts with all messages that it wrote.

    Args:
        attempts: Recorded attempts of one phase.
        per_answer: Replies to each attack, those that the reward samples included. It samples none
            where the first call failed.
    """
    turns = {
        (attempt.prompt_id, attempt.trial, attempt.branch[: depth + 1], depth): turn
        for attempt in attempts
        for depth, turn in enumerate(attempt.turns)
    }
    return sum(_replies(turn, per_answer) for turn in turns.values())


def _replies(turn: Turn, per_answer: int) -> int:
    if turn.without_attack or (turn.unanswered and not turn.attack):  # the attacker failed
        return 0
    first = 1 if turn.trace is None else turn.trace.queries
    return first if turn.unanswered else first * per_answer


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
