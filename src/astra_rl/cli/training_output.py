"""The run of ``train``, ``demo`` and ``resume``, and the tables they print."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from astra_rl.cli.console import console, error_console, quiet_libraries
from astra_rl.cli.output import Printer, as_text
from astra_rl.distributed.ranks import is_raised_by_all, join
from astra_rl.errors import AstraError
from astra_rl.logging import logger

if TYPE_CHECKING:
    from astra_rl.config.plan import Plan
    from astra_rl.evaluation.measures.failure_kinds import NamedFailure
    from astra_rl.evaluation.records.attempt import Attempt
    from astra_rl.methods.ast_evaluator import EvaluationResult
    from astra_rl.runs.folder import RunFolder
    from astra_rl.runs.runner import Result

MOST_FAILURES = 20
"""Most different failures that are listed at the end of a run."""


def follows_another_process() -> bool:
    """Take part in the run of process 0, if this is another one of several; return whether it is.

    Raises:
        AstraError: The run ended early.
    """
    ranks = join()
    if ranks.is_first:
        return False
    from astra_rl.runs.processes import follow

    quiet_libraries()
    logger.setLevel(logging.ERROR)  # process 0 logs the same
    try:
        follow(ranks)
    except AstraError as error:
        error_console.quiet = is_raised_by_all(error)  # process 0 prints the same
        raise
    return True


def train_and_print(plan: Plan, output: Path | None, *, name: str, force: bool = False) -> None:
    """Start or resume a run and print its results.

    Args:
        plan: The run.
        output: Run folder; None creates a new one under ``runs``.
        name: Name of a new run folder.
        force: Resume even if the configuration or the prompts changed.

    Raises:
        AstraError: A setting, file or model is wrong, or the run was interrupted, by a budget too.
    """
    from astra_rl.cli.display import ConsoleDisplay
    from astra_rl.config.resolve import check_training
    from astra_rl.runs.processes import leaving
    from astra_rl.runs.resume import starting_in
    from astra_rl.runs.runner import run_experiment

    with leaving(join()):
        check_training(plan)
        with starting_in(output, name) as folder:
            console.print_line(f"run folder: {folder.path}")
            quiet_libraries()
            display = ConsoleDisplay(console, max_minutes=plan.training.max_minutes)
            command = shlex.join(["astra-rl", *sys.argv[1:]])
            result = run_experiment(plan, folder, display, command=command, force=force)
    _print_result(result, plan.seed)
    if result.ended is not None:
        raise result.ended


def _print_result(result: Result, seed: int) -> None:
    from astra_rl.evaluation.stats.seed_spread import SeedSpread

    folder, out = result.folder, Printer()
    evaluations = {} if result.before is None else {"before training": result.before}
    evaluations |= {"after training": result.after}
    print_evaluations(evaluations, out)
    rates = {name: evaluation.summary.asr for name, evaluation in evaluations.items()}
    for name, rate in rates.items():
        if rate.unscored:
            out.line(f"{name}: {rate.bounds_text}")
    out.line(SeedSpread({seed: rates["after training"]}).text)
    print_failures(folder, out)
    out.line(
        f"\nreport:     {folder.report}\nfailures:   {folder.failures}\n"
        f"attacker:   {folder.checkpoints / 'last'}"
    )


def print_evaluations(evaluations: Mapping[str, EvaluationResult], out: Printer) -> None:
    """Print the success rate of each evaluation, and the measured quality of the judge."""
    from astra_rl.evaluation.stats.percent import format_percent

    table = Table(title="attack success on held-out conversations")
    for column in (
        "attacker",
        "successes",
        "ASR",
        "95% interval",
        "effective kinds",
        "NLL per token",
    ):
        table.add_column(column, justify="left" if column == "attacker" else "right")
    for name, result in evaluations.items():
        rate, metrics = result.summary.asr, result.metrics
        nll = metrics["mean_attack_nll"]
        table.add_row(
            as_text(name),
            rate.counts_text,
            format_percent(rate.estimate),
            f"{format_percent(rate.interval.low)} to {format_percent(rate.interval.high)}",
            _kinds(metrics),
            f"{nll:.2f}" if isinstance(nll, float) else "-",
        )
    out.table(table)
    for name, result in evaluations.items():
        for what, rate in result.summary.of_agents:
            out.line(f"{name}: {what}: {rate.text}")
    (*_, last) = evaluations.values()
    print_judge(last, out)


def print_judge(last: EvaluationResult, out: Printer) -> None:
    """Print the judge of an evaluation, its threshold, and its measured errors."""
    from astra_rl.evaluation.judges.quality import JudgeQuality, describe_judge
    from astra_rl.runs.evaluations import judge_model

    quality = JudgeQuality.from_dict(last.metrics["judge_quality"])
    described, *corrected = describe_judge(quality, last.summary)
    model = judge_model(last.metrics)
    judge = f"{last.metrics['judge']} ({model})" if model else last.metrics["judge"]
    out.line(
        f"judge: {judge}, success at a score of at least {last.metrics['threshold']:g}; {described}"
    )
    for line in corrected:
        out.line(line)


def _kinds(metrics: Mapping[str, Any]) -> str:
    """Return the effective number of kinds by words, and by meaning where there is an embedder."""
    effective, count = metrics["effective_attacks"]["estimate"], metrics["distinct_attacks"]
    if not count or effective is None:
        return "-"
    meaning = metrics["diversity"]["effective_by_meaning"]
    by_meaning = f"; {meaning['estimate']:.1f} by meaning" if meaning else ""
    return f"{effective:.1f} of {count}{by_meaning}"


def print_failures(folder: RunFolder, out: Printer) -> None:
    """Print the different failures of a run, by name if the judge names them, else by attack."""
    from astra_rl.evaluation.measures.failure_kinds import named_failures
    from astra_rl.runs.attempt_log import AttemptLog

    with AttemptLog(folder.attempts) as log:
        found = named_failures(log.attempts(phase="after", outcome="success"))
    if found:
        print_different(found, out)


def print_different(found: Sequence[NamedFailure], out: Printer) -> None:
    """Print how failures are grouped, and for each group its share, its name and an example.

    Args:
        found: The groups, the largest first; at least one.
        out: Where to print.
    """
    from astra_rl.evaluation.measures.diversity import effective_number
    from astra_rl.evaluation.show.escaping import shorten, terminal_text
    from astra_rl.evaluation.stats.percent import format_percent

    def example(attempt: Attempt) -> str:
        turn = attempt.failing_turn
        said = (attempt.failing_request, "" if turn is None else turn.response)
        return " -> ".join(shorten(terminal_text(" ".join(text.split())), 60) for text in said)

    sizes = [len(each.attempts) for each in found]
    effective = effective_number(sizes).estimate
    out.line(
        f"\n{len(found)} different failures were found ({effective:.1f} effective), "
        f"{_grouping(found)}:"
    )
    width = max(len(each.name) for each in found)
    for each in found[:MOST_FAILURES]:
        share = format_percent(len(each.attempts) / sum(sizes))
        named = f"{terminal_text(each.name):<{width}}  " if width else ""
        out.line(f"{share:>6}  {named}{example(each.attempts[0])}")
    rest = sizes[MOST_FAILURES:]
    if rest:
        share = format_percent(sum(rest) / sum(sizes))
        out.line(f"{share:>6}  {len(rest)} more, in the report")


def _grouping(found: Sequence[NamedFailure]) -> str:
    """Return the judges that name the groups; those without a name are groups by words."""
    by_words = "grouped by the words of the attacks"
    judges = sorted({attempt.judge for each in found if each.name for attempt in each.attempts})
    if not judges:
        return by_words
    rest = "" if all(each.name for each in found) else f", the others {by_words}"
    return f"named by {' and '.join(judges)}{rest}"
