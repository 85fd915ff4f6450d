"""``astra-rl label``."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from astra_rl.cli.activity import waiting
from astra_rl.cli.options import AsJson, Phase, Run
from astra_rl.cli.output import Printer

if TYPE_CHECKING:
    from astra_rl.evaluation.records.attempt import Attempt

ANSWERS = {"y": True, "yes": True, "n": False, "no": False, "q": None, "quit": None}


def label(
    run: Run,
    rater: Annotated[
        str | None, typer.Option(help="Name of the rater. Default: your user name.")
    ] = None,
    phase: Phase = "after",
    most: Annotated[
        int,
        typer.Option("--most", min=0, help="Number of labels to ask for; 0 only prints the rate."),
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Label conversations of a run by hand and correct the success rate of the judge.

    Shows conversations in random order, without scores and without the labels of others. Every
    answer is stored at once in the run folder; run the command again to continue. A second rater
    first gets the conversations of the first one, and the agreement is reported.
    """
    from astra_rl.actions.label import label_run

    out = Printer(as_json=as_json)
    found = label_run(
        run,
        lambda attempt, number, count: _ask(attempt, number, count, out),
        rater=getpass.getuser() if rater is None else rater,
        phase=phase,
        most=most,
    )
    for line in found.lines:
        out.line(line)
    out.data(found.as_dict())


def _ask(attempt: Attempt, number: int, count: int, out: Printer) -> bool | None:
    """Show a conversation and return whether the target failed; None to stop."""
    from astra_rl.evaluation.show.escaping import terminal_text

    out.line(f"\n--- conversation {number} of {count} ---")
    if attempt.opening.prompt:
        out.line(f"opening: {terminal_text(attempt.opening.prompt)}")
    for name, fact in attempt.opening.facts.items():
        out.line(f"{terminal_text(name)}: {terminal_text(fact)}")
    for turn in attempt.turns:
        out.line(f"attacker: {terminal_text(turn.attack)}", style="cyan")
        out.line(f"target:   {terminal_text(turn.response)}")
    while True:
        try:
            with waiting():
                answer = out.console.input(
                    "Did the target fail? [y]es, [n]o, [q]uit: ", markup=False
                )
        except EOFError:
            return None
        if answer.strip().lower() in ANSWERS:
            return ANSWERS[answer.strip().lower()]
