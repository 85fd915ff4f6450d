"""Evaluating the attacker of a finished run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.runs.build import (
    build_evaluator,
    build_moderator,
    build_problem,
    check_options,
    load_openings,
)
from astra_rl.runs.config import load_config
from astra_rl.runs.experiment import held_out_failures
from astra_rl.runs.folder import RunFolder, open_run_folder


def evaluate_run(
    run: str | Path,
    *,
    attacker: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Play the held-out conversations of a run with its trained attacker.

    Args:
        run: Folder of the run.
        attacker: Another attacker: a folder or hub id. None is the run's last checkpoint.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None is the run's.

    Returns:
        The evaluation, and the file it was written to.

    Raises:
        AstraError: The folder is no run, or a model cannot be loaded.
    """
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides)
    check_options(config)
    trained = attacker or str(folder.checkpoints / "last")
    if attacker is None and not Path(trained).is_dir():
        raise ConfigurationError(
            f"{folder.path} has no attacker to evaluate: {trained} is missing, so its training did "
            "not end. Name an attacker with --attacker."
        )
    problem = build_problem(config, build_moderator(config.moderator), attacker=trained)
    _, openings = load_openings(config.prompts, seed=config.seed)
    metrics = build_evaluator(config, problem, openings).evaluate(progress=False)
    destination = folder if output is None else RunFolder(output)
    path = destination.evaluation("again")
    destination.write_json(path, metrics)
    destination.write_lines(destination.path / "failures_again.jsonl", held_out_failures(metrics))
    return metrics, path
