"""``astra-rl probability``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astra_rl.cli.console import quiet_libraries
from astra_rl.cli.options import ResultOptions, Run, SettingOptions

if TYPE_CHECKING:
    from astra_rl.actions.probability import OrdinaryFailure
    from astra_rl.actions.rare_answers import RareAnswers


def probability(
    run: Run,
    options: SettingOptions,
    result: ResultOptions,
    conversations: Annotated[
        int, typer.Option("--conversations", "-n", min=2, help="Number of conversations.")
    ] = 400,
    share: Annotated[
        float, typer.Option(help="Share of the conversations sampled from the baseline alone.")
    ] = 0.5,
    splitting: Annotated[
        bool,
        typer.Option(
            "--splitting",
            help=(
                "Adaptive multilevel splitting instead: conversations whose score rises are "
                "copied and continued. Needs no trained attacker; --share is not used."
            ),
        ),
    ] = False,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Let the other saved attackers of the run lead conversations too, such as 'best'.",
        ),
    ] = False,
    proposal: Annotated[
        list[str] | None,
        typer.Option(
            "--proposal",
            metavar="TARGET",
            help=(
                "Estimate rare answers to single messages instead, with this less safe copy of "
                "the target: a folder, hub id or YAML file. Repeatable."
            ),
        ),
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            metavar="TEXT",
            help=(
                "The same with the target itself, and this text added to its system message. "
                "Repeatable."
            ),
        ),
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Messages that --proposal and --steer answer: 'direct', the goals of the held-out "
            "prompts, or a file as for evaluate."
        ),
    ] = "direct",
    target: Annotated[
        str | None, typer.Option(help="Target. Default: the target of the run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: RUN.")
    ] = None,
) -> None:
    """Estimate the probability of failure in ordinary use by importance sampling or splitting.

    Samples conversations from the baseline and from the trained attacker, and weights them by their
    likelihood under the baseline. This gives an estimate for failures that are too rare for plain
    sampling, or states that none is possible.

    With --proposal or --steer, estimates the probability that the target's answer to a message
    fails: answers of the target and of less safe copies are weighted by their probability under
    the target. Needs no trained attacker, but a local target.

    --fail-on takes 'probability', 'lower(probability)'
    and 'upper(probability)'.
    """
    from astra_rl.actions.probability import ordinary_failure
    from astra_rl.actions.rare import rare_failure
    from astra_rl.actions.rare_answers import rare_answers
    from astra_rl.errors import ConfigurationError
    from astra_rl.evaluation.show.gate import OF_ORDINARY_USE
    from astra_rl.evaluation.stats.rates import describe_rate

    out = result.printer(OF_ORDINARY_USE)
    quiet_libraries()
    of_answers = bool(proposal or steer)
    if splitting + checkpoints + of_answers > 1:
        raise ConfigurationError(
            "--splitting, --checkpoints, and --proposal or --steer are three methods; give one."
        )
    if splitting:
        rare = rare_failure(
            run,
            conversations=conversations,
            target=target,
            overrides=options.overrides(),
            output=output,
        )
        out.line(rare.found.text)
        out.path("result", rare.path)
        out.data(rare.found.as_dict())
        out.gate(rare.found)
        return
    estimated: OrdinaryFailure | RareAnswers
    if of_answers:
        estimated = rare_answers(
            run,
            proposals=proposal or (),
            steer=steer or (),
            attacks=attacks,
            answers=conversations,
            share=share,
            target=target,
            overrides=options.overrides(),
            output=output,
        )
    else:
        estimated = ordinary_failure(
            run,
            conversations=conversations,
            share=share,
            checkpoints=checkpoints,
            target=target,
            overrides=options.overrides(),
            output=output,
        )
    sampled, source = ("answers", "target") if of_answers else ("conversations", "baseline")
    out.line(estimated.found.text)
    evidence = estimated.found.evidence
    out.line(
        f"{evidence.failures} of {evidence.samples} {sampled} failed; of those sampled from "
        f"the {source} alone {describe_rate(evidence.plain)}"
        + (f"; {evidence.left_out} left out" if evidence.left_out else "")
    )
    out.path("result", estimated.path)
    out.data(estimated.found.as_dict())
    out.gate(estimated.found)
