"""``astra-rl init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astra_rl.cli.output import Printer


def init(
    file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="File to write; it must not exist.")
    ] = Path("astra-rl.yaml"),
    preset: Annotated[
        str, typer.Option(help="Preset to start from; see 'astra-rl info presets'.")
    ] = "endpoint_cpu",
    target: Annotated[
        str, typer.Option(help="Target, as of the command 'test': a URL, function, file or model.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(help="Model at the URL of --target.")] = "my-model",
    prompts: Annotated[str, typer.Option(help="File of prompts, or scenario.")] = "prompts.csv",
    judge: Annotated[
        str, typer.Option(help="Moderator, as of the command 'test'; also the training reward.")
    ] = "http://127.0.0.1:8000/v1",
    judge_model: Annotated[str, typer.Option(help="Model at the URL of --judge.")] = "my-judge",
) -> None:
    """Write a configuration to start from, for 'train'."""
    from astra_rl.actions.initial_config import write_initial_config

    path = write_initial_config(
        file,
        preset=preset,
        target=target,
        model=model,
        prompts=prompts,
        judge=judge,
        judge_model=judge_model,
    )
    out = Printer()
    out.path("written", path)
    out.line(f"check it with: astra-rl validate {path}\nrun it with:   astra-rl train {path}")
