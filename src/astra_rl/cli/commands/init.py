"""``astra-rl init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.output import Printer

SERVER = "http://127.0.0.1:8000/v1"


def init(
    file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="File to write; it must not exist.")
    ] = Path("astra-rl.yaml"),
    preset: Annotated[
        str, typer.Option(help="Preset to start from; see 'astra-rl list presets'.")
    ] = "endpoint_cpu",
    target: Annotated[
        str,
        typer.Option(
            help="What is tested: the folder or hub id of a local model, the URL of an endpoint, "
            "module:function, or a YAML file."
        ),
    ] = SERVER,
    model: Annotated[str, typer.Option(help="Model at the URL of --target.")] = "my-model",
    application: Annotated[
        bool,
        typer.Option(
            "--application",
            help="The URL of --target is an application with an HTTP API of its own.",
        ),
    ] = False,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts. Default: prompts.csv, without --scenario.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="Scenario, with its moderator: 'astra-rl list scenarios'."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Moderator, as of the command 'test'; also the training reward. Default: that of "
            f"--scenario, else {SERVER}."
        ),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="Model at the URL of --judge.")] = "my-judge",
    minutes: Annotated[
        float | None, typer.Option(help="Time that the run may take. Default: no limit.")
    ] = None,
) -> None:
    """Write a commented configuration to start from, for 'train'."""
    from astra_rl.actions.initial_config import write_initial_config

    path = write_initial_config(
        file,
        preset=preset,
        target=target,
        model=model,
        application=application,
        prompts=prompts or (None if scenario else "prompts.csv"),
        scenario=scenario,
        judge=judge or (None if scenario else SERVER),
        judge_model=judge_model,
        minutes=minutes,
    )
    out = Printer()
    out.path("written", path)
    out.line(f"check it with: astra-rl validate {path}\nrun it with:   astra-rl train {path}")
