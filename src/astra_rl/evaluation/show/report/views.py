"""View model of the report: the numbers, labels and charts that the templates show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.agreement import JudgePair
from astra_rl.evaluation.measures.diversity import (
    EffectiveNumber,
    SampleDiversity,
    effective_number,
    sample_diversity,
)
from astra_rl.evaluation.measures.failure_kinds import Kind, kinds_of_failure, most_likely_kinds
from astra_rl.evaluation.measures.likely_failures import (
    Ranking,
    most_likely_failures,
    severity_and_likelihood,
)
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.charts import learning_panels, severity_likelihood, threshold_curve
from astra_rl.evaluation.show.exports import Export, known_formats
from astra_rl.evaluation.show.report.data import IN_TRAINING, PANELS, Evaluation, ReportData
from astra_rl.evaluation.show.report.numbers import MOST_RANKED, Problem
from astra_rl.evaluation.show.report.payload import Payload, pack_conversations, visible
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.evaluation.stats.rates import Rate

MOST_POINTS = 800
"""Points of the chart of severity and likelihood, successes of the attack first."""

OUTCOMES = {
    Outcome.SUCCESS: (
        "success",
        "The attack succeeded: the judge's score reached the threshold in at least one turn.",
    ),
    Outcome.FAILURE: (
        "no success",
        "Every response was judged and no score reached the threshold.",
    ),
    Outcome.REFUSED: ("refused", "No success: the target refused in every turn."),
    Outcome.BLOCKED: ("blocked", "No success: a content filter withheld the response."),
    Outcome.NO_ATTACK: (
        "no attack",
        "No success: an output of the attacker had no attack, so nothing was sent.",
    ),
    Outcome.ERROR: ("error", "A call failed, or the attempt was never made."),
    Outcome.UNSCORED: ("unscored", "The judge could not score at least one response."),
}
"""Label of each outcome (of the attack) on the page, and its meaning."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Heading.
        caption: How to read the chart.
        svgs: ``<svg>`` elements drawn by `astra_rl.evaluation.show.charts`. They are inserted
            without escaping, so they must not come from anywhere else.

    Raises:
        ConfigurationError: One is not an SVG element.
    """

    title: str
    caption: str
    svgs: Sequence[str]

    def __post_init__(self) -> None:
        if not all(svg.startswith("<svg ") and svg.endswith("</svg>") for svg in self.svgs):
            raise ConfigurationError(
                f"chart {self.title!r} is not an <svg> element; draw it with "
                "astra_rl.evaluation.show.charts."
            )


class Share(NamedTuple):
    """Number of conversations with one outcome."""

    outcome: Outcome
    name: str
    meaning: str
    conversations: int


class Pairing(NamedTuple):
    """Paired comparison of two evaluations on the same prompts."""

    a: Evaluation
    b: Evaluation
    pairs: PairedComparison

    @property
    def gain(self) -> float:
        """Attack success rate of B minus that of A."""
        return -self.pairs.difference

    @property
    def gain_interval(self) -> tuple[float, float]:
        """95% interval of `gain`."""
        low, high = self.pairs.interval
        return -high, -low


@dataclass(frozen=True)
class Page:
    """What the templates show of a run. Properties are computed on first access."""

    data: ReportData

    @property
    def result(self) -> Evaluation | None:
        """The evaluation that the page is about."""
        return self.data.result

    def shares(self, evaluation: Evaluation) -> list[Share]:
        """Return the counts by outcome; they add up to the planned conversations."""
        summary = evaluation.summary
        return [
            Share(outcome, *OUTCOMES[outcome], count) for outcome, count in summary.outcomes.items()
        ]

    @cached_property
    def effective_kinds(self) -> EffectiveNumber:
        """Effective number of kinds of successful attack, see `effective_number`."""
        return effective_number(
            [len(kind.attempts) for kind in self.kinds],
            [[each.prompt_id for each in kind.attempts] for kind in self.kinds],
        )

    @cached_property
    def pairings(self) -> list[Pairing]:
        """The result compared with all others that share a prompt, the judge and the threshold."""
        found = []
        for other in self.data.evaluations:
            if other is self.result or self.result is None or other.selected:
                continue
            if _rule(other) != _rule(self.result):
                continue
            first, second = [other, self.result], [self.result, other]
            later = self.data.evaluations.index(other) > self.data.evaluations.index(self.result)
            a, b = second if later else first
            if a.numbers.trials is None or b.numbers.trials is None:
                continue
            try:
                pairs = a.numbers.trials.compare(
                    b.numbers.trials, sequential=a.sequential or b.sequential
                )
            except ConfigurationError:  # no prompt in common
                continue
            if pairs.prompts:  # otherwise no outcome is known on both sides
                found.append(Pairing(a, b, pairs))
        return found

    @property
    def others(self) -> list[Evaluation]:
        """Evaluations beside the result whose rates are shown with it in the headline."""
        return [
            each
            for each in self.data.evaluations
            if each is not self.result and not each.selected and each.summary.asr.trials
        ]

    @property
    def compared(self) -> list[Evaluation]:
        """Evaluations whose rates can be compared, if there are several."""
        found = [each for each in self.data.evaluations if not each.selected]
        return found if len(found) > 1 else []

    @property
    def is_under_attack(self) -> bool:
        """Whether the rate of the result is that of a trained attacker."""
        has_estimate = self.data.probability is not None or self.data.rare is not None
        return self.data.training.steps != 0 or has_estimate

    @cached_property
    def kinds(self) -> list[Kind]:
        """Successful attacks of the result by kind; of training while there is no result."""
        return kinds_of_failure(
            self.data.training.attempts if self.result is None else self.result.attempts
        )

    @cached_property
    def likely_kinds(self) -> list[Kind]:
        """Kinds with a measured likelihood, the most likely first; at most `MOST_RANKED`."""
        return most_likely_kinds(self.kinds)[:MOST_RANKED]

    def number_of(self, kind: Kind) -> int:
        """Return the number of a kind, from 1."""
        return self.kind_numbers[kind.attempts[0].id]

    @cached_property
    def kind_numbers(self) -> dict[str, int]:
        """Number of the kind (from 1) by id of the attempt."""
        return {
            attempt.id: number
            for number, kind in enumerate(self.kinds, 1)
            for attempt in kind.attempts
        }

    @cached_property
    def diversity(self) -> SampleDiversity:
        """Diversity of the successful attacks."""
        attacks = [
            turn.attack
            for kind in self.kinds
            for each in kind.attempts
            if (turn := each.failing_turn)
        ]
        return sample_diversity(attacks)

    @cached_property
    def ranking(self) -> Ranking:
        """Failures of the result, most likely first."""
        return most_likely_failures(()) if self.result is None else self.result.numbers.ranking

    @cached_property
    def severity(self) -> Chart | None:
        """Chart of severity against likelihood."""
        if self.result is None:
            return None
        points = severity_and_likelihood(self.result.attempts)
        if not points:
            return None
        shown = sorted(points, key=lambda point: not point.fails)[:MOST_POINTS]
        left_out = len(points) - len(shown)
        more = f" {left_out} conversations without success are not drawn." if left_out else ""
        if self.result.not_shown:
            more += f" Drawn from the {len(self.result.attempts)} conversations of this page."
        return Chart(
            "Severity and likelihood",
            "Each point is a conversation; select one to read it. Left: more likely in ordinary "
            "use. Up: more harmful. Fix the failures in the upper left first."
            f"{more}",
            [
                severity_likelihood(
                    [(point.nll, point.severity) for point in shown],
                    threshold=self.result.threshold,
                    links=[f"#/conversations/{point.id}" for point in shown],
                )
            ],
        )

    @cached_property
    def categories(self) -> dict[str, Rate]:
        """Attack success rate by category."""
        return {} if self.result is None else self.result.numbers.by_category

    @property
    def archive_styles(self) -> list[str]:
        """Styles: the columns of the map of the archive."""
        return list(dict.fromkeys(cell["style"] for cell in self.data.archive))

    @property
    def archive_rows(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Cells of the archive, by risk and style."""
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for cell in self.data.archive:
            rows.setdefault(cell["risk"], {})[cell["style"]] = cell
        return rows

    @property
    def transfer_targets(self) -> list[str]:
        """Targets: the columns of the transfer matrix."""
        return list(dict.fromkeys(cell["target"] for cell in self.data.transfer))

    @property
    def transfer_rows(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Cells of the transfer matrix, by attacker and target."""
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for cell in self.data.transfer:
            rows.setdefault(cell["attacker"], {})[cell["target"]] = cell
        return rows

    @cached_property
    def judges(self) -> list[JudgePair]:
        """Agreement of every two judges that scored the same turns of the result."""
        return [] if self.result is None else self.result.numbers.judge_pairs

    @cached_property
    def threshold_curve(self) -> Chart | None:
        """Attack success rate of the result by threshold."""
        if self.result is None:
            return None
        rates = self.result.numbers.rates_by_threshold(self.result.judge)
        if not any(each.rate.trials for each in rates):
            return None
        return Chart(
            "Attack success rate at every threshold",
            "Flat: the rate depends little on the threshold. Steep: it depends strongly on the "
            "threshold. Dashed line: the threshold of this run.",
            [threshold_curve(rates, threshold=self.result.threshold)],
        )

    @cached_property
    def learning_curves(self) -> Chart | None:
        """Training metrics by step."""
        history = self.data.training.history
        svgs = learning_panels(history, PANELS)
        if not svgs:
            return None
        bands = [
            text
            for key, text in (
                ("asr/low", "of the success rate its 95% interval, clustered by prompt"),
                ("reward/low", "of the reward one standard deviation of the rewards"),
            )
            if any(key in row for row in history)
        ]
        band = f" Band: {'; '.join(bands)}." if bands else ""
        return Chart(
            "Learning curves",
            "One point per training step, on training prompts. The number is the last value."
            + band,
            svgs,
        )

    @cached_property
    def problems(self) -> list[Problem]:
        """Errors, missing scores and blocked responses, most frequent first."""
        found = [problem for each in self.data.evaluations for problem in each.numbers.problems]
        return sorted(found, key=lambda problem: -problem.conversations)

    @property
    def all_scored(self) -> bool:
        """Whether every planned conversation of every evaluation was run and judged."""
        return not any(each.summary.asr.unscored for each in self.data.evaluations)

    @cached_property
    def phases(self) -> dict[str, str]:
        """Display name of each phase, by its name in the records."""
        names = {each.attempts[0].phase: each.name for each in self.data.evaluations}
        return {**names, "training": IN_TRAINING}

    @cached_property
    def payload(self) -> Payload:
        """The conversations as embedded in the page."""
        return pack_conversations(
            self.data.attempts,
            self.kind_numbers,
            self.phases,
            sweeps=self.sweeps,
            replay={
                visible(name): visible(command)
                for name, command in self.data.reproduction.replay_commands.items()
            },
            marks=["chosen", "rejected"] if self.data.training.pairs else ["best", "worst"],
        )

    @property
    def exports(self) -> Mapping[str, Export]:
        """Formats of ``astra-rl export``."""
        return known_formats()

    @cached_property
    def sweeps(self) -> list[dict[str, Any]]:
        """Rates by threshold for each judge of each evaluation, as numbers and as text."""
        return [
            {
                "evaluation": visible(each.name),
                "judge": visible(judge),
                "threshold": each.threshold,
                "rates": [
                    _sweep_row(at.threshold, at.rate)
                    for at in each.numbers.rates_by_threshold(judge)
                ],
            }
            for each in self._result_first()
            for judge in each.judges
        ]

    def _result_first(self) -> list[Evaluation]:
        return sorted(self.data.evaluations, key=lambda each: each is not self.result)

    @cached_property
    def steps_done(self) -> int:
        """Number of the last recorded training step."""
        return int(max((row.get("step", 0) for row in self.data.training.history), default=0))

    def share_of_kind(self, kind: Kind) -> float:
        """Return the size of a kind relative to the largest, in (0, 1]."""
        return len(kind.attempts) / len(self.kinds[0].attempts)


def _sweep_row(threshold: float, rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    return {
        "threshold": threshold,
        "successes": rate.successes,
        "trials": rate.trials,
        "unscored": rate.unscored,
        "estimate": None if math.isnan(rate.estimate) else rate.estimate,
        "low": low,
        "high": high,
        "lowest": rate.bounds.low,
        "highest": rate.bounds.high,
        "words": [format_percent(each) for each in (rate.estimate, low, high, *rate.bounds)],
        "method": rate.method,
    }


def _rule(evaluation: Evaluation) -> tuple[str, str, float]:
    """Return what decides the outcomes."""
    return evaluation.judge, evaluation.attempts[0].judge_id, evaluation.threshold
