"""``astra-rl push``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from astra_rl.cli.options import Run
from astra_rl.cli.output import Printer


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    checkpoint: Annotated[
        Literal["last", "best"], typer.Option(help="Checkpoint of the attacker.")
    ] = "last",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. Default: private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card; upload nothing.")
    ] = False,
) -> None:
    """Upload a trained attacker to the Hugging Face Hub, with a card: over the network.

    The card says what the attacker is and is not for, and what the run measured.
    """
    from astra_rl.actions.push import card_of_run, push_run
    from astra_rl.runs.folder import open_run_folder

    out = Printer()
    if dry_run:
        name = repository.rpartition("/")[2]
        out.line(card_of_run(open_run_folder(run), name, checkpoint).text())
        return
    out.line(push_run(run, repository, checkpoint=checkpoint, private=not public))
