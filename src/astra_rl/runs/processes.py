"""A run on several processes: what the first tells the others, and what these do.

The first process is the only one that writes the folder of the run, calls endpoints and decides
when to stop. The others load the same models, play their parts of the episodes and compute their
parts of the gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from astra_rl.config.experiment import Experiment, build
from astra_rl.config.loading import parse_config
from astra_rl.config.plan import Plan
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.distributed.environment import DividedEnvironment
from astra_rl.distributed.ranks import Ranks, join, raised_by_all
from astra_rl.errors import (
    BudgetSpentError,
    ConfigurationError,
    InterruptedRunError,
    ProcessLostError,
)
from astra_rl.logging import logger
from astra_rl.models.chat_template import template_time
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.resume import how_to_resume, interruptible
from astra_rl.runs.trainer import callbacks_of_every_process
from astra_rl.training.callbacks.best import one_process_for_best
from astra_rl.training.trainer import Trainer


def with_shards(config: RunConfig, output: Path | None, processes: int) -> RunConfig:
    """Return the configuration with the number of parts that a step is divided into.

    A new run on several processes gets one part per process, and keeps this number when it is
    resumed on more or fewer.

    Args:
        config: The configuration; one with ``training.shards`` is returned as it is.
        output: The folder of the run; None is a new one.
        processes: Number of processes.
    """
    if config.training.shards is not None:
        return config
    shards: int | None = processes if processes > 1 else None
    if output is not None and (output / RunFolder.CONFIG).is_file():
        text = (output / RunFolder.CONFIG).read_text(encoding="utf-8", errors="replace")
        try:
            shards = parse_config(text, source=str(output / RunFolder.CONFIG)).training.shards
        except ConfigurationError:
            return config  # the start of the run says what is wrong with it
        if shards is None and processes > 1:
            logger.warning(
                "the run was started in one process, without training.shards, so it resumes on %d "
                "processes, but not bit-exactly",
                processes,
            )
    training = replace(config.training, shards=shards)
    return config.model_copy(update={"training": training})


@contextlib.contextmanager
def leaving(ranks: Ranks) -> Iterator[None]:
    """Tell the other processes of an error inside the block; see `Ranks.leave_unless_agreed`."""
    try:
        yield
    except BaseException as error:
        ranks.leave_unless_agreed(error)
        raise


def check_can_divide(config: RunConfig, processes: int) -> None:
    """Raise if a run cannot be divided among processes.

    Raises:
        ConfigurationError: There are several, and engines sample, or the best attacker is to be
            loaded, which the others do not know.
    """
    if processes > 1 and config.training.load_best_model_at_end:
        raise ConfigurationError(one_process_for_best(processes))
    if processes > 1 and not config.rollout.is_own:
        raise ConfigurationError(
            f"rollout: attacker: {config.rollout.attacker}, target: {config.rollout.target}, "
            f"judge: {config.rollout.judge} given, and {processes} processes were started; engines "
            "are for a run of one process. Start it without torchrun or accelerate, or use own for "
            "all three."
        )


def planned(config: RunConfig, output: Path | None) -> Plan:
    """Resolve the configuration of a run; its steps are divided among the processes.

    Args:
        config: The configuration.
        output: The folder of the run; None is a new one.

    Raises:
        ConfigurationError: See `resolve`, or the run cannot be divided.
    """
    ranks = join()
    with leaving(ranks):
        config = with_shards(config, output, ranks.size)
        check_can_divide(config, ranks.size)
        return resolve(config)


def announce(ranks: Ranks, settings: str, folder: RunFolder, started: datetime) -> None:
    """Tell the other processes, which are in `follow`, what they run.

    Args:
        ranks: The processes.
        settings: Configuration of the run as YAML.
        folder: Its folder.
        started: The time at which the run was started, see `template_time`.
    """
    if ranks.size > 1:
        ranks.share([settings, started.isoformat(), how_to_resume(folder)])


def divided(experiment: Experiment, shards: int | None, ranks: Ranks) -> Experiment:
    """Return an experiment whose evaluations are played by all processes.

    Args:
        experiment: The experiment.
        shards: Number of parts; None is the number of processes.
        ranks: The processes.
    """
    parts = shards or ranks.size
    if parts == 1 and ranks.size == 1:
        return experiment
    environment: Any = DividedEnvironment(experiment.evaluation_environment, ranks, parts)
    return replace(experiment, evaluation_environment=environment)


def dismiss(experiment: Experiment) -> None:
    """End an evaluation in the other processes."""
    environment: object = experiment.evaluation_environment
    if isinstance(environment, DividedEnvironment):
        environment.dismiss()


def signal_grace(ranks: Ranks) -> float:
    """Return the seconds in which a repeated signal is ignored; see `interruptible`."""
    return 10.0 if ranks.size > 1 else 0.0


def follow(ranks: Ranks) -> None:
    """Take part in a run whose folder another process writes.

    Raises:
        InterruptedRunError: A signal ended the run, or another process ended.
        AstraError: What the first process raises, too.
    """
    try:
        told: Sequence[str] = ranks.share()
    except ProcessLostError as error:  # the first process says why it did not start a run
        raise raised_by_all(error) from None
    text, started, resume = told
    try:
        with template_time(datetime.fromisoformat(started)):
            _follow(ranks, text)
    except ProcessLostError as error:
        raise ProcessLostError(f"process {ranks.rank}: {error} {resume}") from error


def _follow(ranks: Ranks, text: str) -> None:
    with ranks.together():
        plan = resolve(parse_config(text, source="the configuration of process 0"))
        experiment = divided(build(plan), plan.training.shards, ranks)
        callbacks = callbacks_of_every_process(experiment, plan)
    environment: Any = experiment.evaluation_environment
    environment.follow()
    trainer: Trainer[str, str, Any, Any] = Trainer(
        experiment.training, experiment.environment, experiment.algorithm, callbacks=callbacks
    )
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = trainer.should_stop = True

    # After a spent budget the final evaluation has its own part of it.
    with interruptible(interrupt, grace=signal_grace(ranks)), contextlib.suppress(BudgetSpentError):
        trainer.train()
    if ranks.any(interrupted):
        raise raised_by_all(InterruptedRunError("interrupted"))
    environment.follow()
