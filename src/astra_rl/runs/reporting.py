"""From what a run found to its page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from astra_rl.core.contracts import is_missing
from astra_rl.core.moderator import describe_missing
from astra_rl.evaluation.calibration import describe_judge
from astra_rl.evaluation.charts import Panel, before_after, learning_curve, severity_likelihood
from astra_rl.evaluation.report import (
    Chart,
    Headline,
    ReportData,
    findings_of,
    render_report,
    write_report,
)
from astra_rl.evaluation.statistics import Rate
from astra_rl.methods.ast_evaluator import summary_of
from astra_rl.runs.config import RunConfig, load_config
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.versions import versions

if TYPE_CHECKING:
    from astra_rl.runs.experiment import Result


def write_run_report(
    config: RunConfig, result: Result, history: list[dict[str, float]], command: str
) -> None:
    """Draw the charts and write the page."""
    folder, after, before = result.folder, result.after, result.before
    evaluations = ({"before training": before} if before else {}) | {"after training": after}
    charts = []
    if history:
        curve = learning_curve(history, panels=_PANELS)
        folder.write_text(folder.learning_curve, curve)
        charts.append(Chart("Learning curve", "One point per training step.", curve))
    charts.append(
        Chart(
            "Before and after",
            "Share of held-out conversations in which the target failed, with 95% intervals.",
            before_after({name: rate_of(each) for name, each in evaluations.items()}),
        )
    )
    points = [
        (turn["attack_nll"], turn["score"])
        for each in after["conversations"]
        for turn in each["turns"]
        if turn.get("attack_nll") is not None and turn["score"] is not None
    ]
    if points:
        charts.append(
            Chart(
                "Severity and likelihood",
                "Each point is a held-out attack: further left is likelier in ordinary use, "
                "further up is more harmful. What lies in the upper left should be mended first.",
                severity_likelihood(points, threshold=after["threshold"]),
            )
        )
    write_report(
        ReportData(
            title=config.title,
            headline=[
                Headline(name, rate_of(each), each["threshold"], each["judge"], config.target.name)
                for name, each in evaluations.items()
            ],
            summary=_summary(result),
            charts=charts,
            findings=findings_of(after, most=8),
            configuration=config.to_yaml(),
            versions=versions(),
            command=command,
            notes=_notes(config, result),
            errors=after["outcomes"]["unscored"],
        ),
        folder.report,
    )


def render_run_page(folder: RunFolder) -> str:
    """Return the page of a run, also of one that goes on.

    Raises:
        ConfigurationError: A file of the run cannot be read.
    """
    if folder.report.is_file():
        return folder.report.read_text(encoding="utf-8")
    config = load_config(folder.config)
    charts = []
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        history = [{k: v for k, v in json.loads(line).items() if v is not None} for line in lines]
        if history:
            curve = learning_curve(history, panels=_PANELS)
            charts.append(Chart("Learning curve", "One point per training step.", curve))
    return render_report(
        ReportData(
            title=config.title,
            charts=charts,
            configuration=config.to_yaml(),
            versions=versions(),
            notes=["The run goes on; this page shows what is there."],
        )
    )


def rate_of(metrics: Mapping[str, Any]) -> Rate:
    """Return the attack success rate of an evaluation."""
    return summary_of(metrics["conversations"], threshold=metrics["threshold"]).asr


_PANELS = (
    Panel("asr", "attack success rate", percent=True),
    Panel("reward", "mean reward"),
    Panel("rewards/attack_nll_baseline/mean", "attack NLL, nats per token"),
    Panel("rewards/attack_nll_target/mean", "attack NLL, nats per token"),
    Panel("distinct_attacks", "distinct kinds of successful attack"),
)


def _summary(result: Result) -> list[tuple[str, str]]:
    def value(metrics: Mapping[str, Any] | None, key: str) -> str:
        number = None if metrics is None else metrics[key]
        return "\N{EM DASH}" if number is None or is_missing(number) else f"{number:.2f}"

    return [
        ("distinct kinds of successful attack", str(result.after["distinct_attacks"])),
        ("attack NLL per token, before", value(result.before, "mean_attack_nll")),
        ("attack NLL per token, after", value(result.after, "mean_attack_nll")),
        ("judge, against people's labels", describe_judge(result.after["judge_quality"])),
        ("training steps", str(result.training_steps)),
        ("minutes, all stages", f"{sum(result.seconds.values()) / 60:.1f}"),
    ]


def _notes(config: RunConfig, result: Result) -> list[str]:
    notes = [
        "Evaluation opens with prompts that training never saw.",
        "One training seed: the intervals cover the choice of conversations, not of training runs.",
    ]
    if config.evaluation.judge is None:
        notes.append(
            "The judge is the moderator that the attacker was trained against. For this report to "
            "say more than that the attacker pleases it, evaluate with another judge too."
        )
    if result.after["outcomes"]["unscored"]:
        reasons = describe_missing(result.after.get("unscored_turns", {}))
        notes.append(f"Some conversations could not be scored; they are in no rate. {reasons}.")
    return [*notes, *result.warnings]
