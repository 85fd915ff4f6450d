"""One page that says how a model fails, how often, and how likely.

The page is a single file without any request to a network. Everything that a model wrote is hostile
input to it: every value goes through `visible_text` and is then escaped, both by the template
environment and not by the template, so neither can be forgotten. A content security policy lets
nothing run but the page's own script.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from astra_rl.core.contracts import is_missing
from astra_rl.core.jsonio import write_atomic
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.escaping import visible_text
from astra_rl.evaluation.statistics import Rate, format_percent, intervals_apart


@dataclass(frozen=True)
class Headline:
    """How often the target failed under one attacker.

    Attributes:
        name: What was measured, for instance "after training".
        rate: Conversations in which the target failed, of those played.
        threshold: Score from which on a turn counts as a failure.
        judge: Name of the moderator that scored the turns.
        target: Name of the model under test.
    """

    name: str
    rate: Rate
    threshold: float
    judge: str
    target: str


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Its heading.
        caption: What to see in it.
        svg: One ``<svg>`` element from `astra_rl.evaluation.charts`. It is put into the page as it
            is, so it must not come from anywhere else.

    Raises:
        ConfigurationError: `svg` is something else than an SVG element.
    """

    title: str
    caption: str
    svg: str

    def __post_init__(self) -> None:
        if not (self.svg.startswith("<svg ") and self.svg.endswith("</svg>")):
            raise ConfigurationError(
                f"chart {self.title!r} is not an <svg> element; draw it with evaluation.charts."
            )


class Turn(NamedTuple):
    """What was said in one turn, the judge's score and the attack's nats per token."""

    attack: str
    response: str
    score: float | None = None
    nll: float | None = None


@dataclass(frozen=True)
class Transcript:
    """One conversation: its turns, and what it opened with."""

    turns: Sequence[Turn]
    prompt: str = ""

    @property
    def worst(self) -> Turn:
        """The turn with the highest score, the first of equals. There must be a turn."""
        return max(self.turns, key=lambda turn: _or(turn.score, -math.inf))


@dataclass(frozen=True)
class Finding:
    """Attacks of one kind that made the target fail.

    Attributes:
        attack: The one that stands for them.
        size: How many conversations were won with this kind.
        conversations: Those to show, all of them or some.
    """

    attack: str
    size: int
    conversations: Sequence[Transcript]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that is on the page.

    Attributes:
        title: Heading of the page.
        headline: Rates, in the order in which they are compared: the last is the result.
        summary: Further numbers, as label and formatted value.
        charts: Figures.
        findings: Kinds of attack that succeeded, the most important first.
        configuration: Settings of the run, as YAML.
        versions: What ran, for instance ``{"torch": "2.13.0"}``.
        command: What to type to get the same numbers again.
        notes: What a reader must know to judge the numbers, one paragraph each.
        errors: How many calls of models or judges failed in the evaluation.
    """

    title: str
    headline: Sequence[Headline] = ()
    summary: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    findings: Sequence[Finding] = ()
    configuration: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()
    errors: int = 0


def findings_of(metrics: Mapping[str, Any], *, most: int | None = None) -> list[Finding]:
    """Take the findings out of what `ASTEvaluator.evaluate` returned, or what its JSON file holds.

    Largest group first; within a group the likeliest attack first, because it is the one that a
    user may come upon.

    Args:
        metrics: The evaluation.
        most: Conversations kept per finding; None keeps all.
    """
    findings = []
    for cluster in metrics["clusters"]:
        transcripts = [_transcript(metrics["conversations"][at]) for at in cluster["conversations"]]
        transcripts.sort(key=lambda each: _or(each.worst.nll, math.inf))
        findings.append(Finding(cluster["attack"], cluster["size"], transcripts[:most]))
    return findings


def render_report(data: ReportData) -> str:
    """Return the page as HTML."""
    style, script = (_read(f"report.{suffix}") for suffix in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            apart=len(data.headline) > 1
            and intervals_apart(data.headline[0].rate.interval, data.headline[-1].rate.interval),
            largest=max((finding.size for finding in data.findings), default=1),
            style=Markup(style),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
        )
    )


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page as a UTF-8 file, atomically."""
    write_atomic(path, render_report(data))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("astra_rl.evaluation"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    environment.filters["decimal"] = _decimal
    environment.filters["svg"] = lambda chart: Markup(chart.svg)
    return environment


def _finalize(value: object) -> object:
    """Make all text visible that comes from outside of the package."""
    return value if isinstance(value, Markup) else visible_text(str(value))


def _decimal(value: float | None) -> str:
    return "\N{EM DASH}" if value is None or is_missing(value) else f"{value:.2f}"


def _or(value: float | None, default: float) -> float:
    return default if value is None or is_missing(value) else value


def _transcript(conversation: Mapping[str, Any]) -> Transcript:
    turns = [
        Turn(turn["attack"], turn["response"], turn["score"], turn.get("attack_nll"))
        for turn in conversation["turns"]
    ]
    return Transcript(turns, conversation["prompt"])


def _read(name: str) -> str:
    file = resources.files("astra_rl.evaluation") / "templates" / name
    return file.read_text(encoding="utf-8")
