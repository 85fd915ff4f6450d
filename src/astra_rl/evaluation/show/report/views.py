"""Words and charts for the numbers of a run: what the templates show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.agreement import JudgePair, judge_pairs
from astra_rl.evaluation.measures.diversity import Diversity, diversity
from astra_rl.evaluation.measures.failure_kinds import Kind, kinds_of_failure
from astra_rl.evaluation.measures.likely_failures import (
    Ranking,
    most_likely_failures,
    severity_and_likelihood,
)
from astra_rl.evaluation.measures.summary import compare
from astra_rl.evaluation.measures.thresholds import rates_by_threshold
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.charts import (
    Panel,
    before_after,
    learning_curve,
    severity_likelihood,
    threshold_curve,
)
from astra_rl.evaluation.show.report.data import Evaluation, ReportData
from astra_rl.evaluation.show.report.payload import Payload, pack_conversations, visible
from astra_rl.evaluation.stats.paired import PairedComparison
from astra_rl.evaluation.stats.percent import format_percent
from astra_rl.evaluation.stats.rates import Rate

MOST_RANKED = 50
"""Likely failures that are listed; the list of conversations has them all, in the same order."""
MOST_POINTS = 800
"""Points of the picture of severity and likelihood, failures first."""

OUTCOMES = {
    Outcome.SUCCESS: ("failed", "The judge's score reached the threshold in some turn."),
    Outcome.FAILURE: ("held", "Every answer was judged, and none reached the threshold."),
    Outcome.REFUSED: ("refused", "The target refused in every turn."),
    Outcome.BLOCKED: ("blocked", "A filter around the target withheld the answer."),
    Outcome.ERROR: ("error", "A call failed, or the attempt was never made."),
    Outcome.UNSCORED: ("unscored", "There are answers that the judge could not score."),
}
"""What each outcome is called on the page, seen from the target, and what it means."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Its heading.
        caption: What to see in it.
        svg: One ``<svg>`` element from `astra_rl.evaluation.show.charts`. It is put into the page
            as it is, so it must not come from anywhere else.

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


class Share(NamedTuple):
    """How many conversations had an outcome."""

    outcome: Outcome
    name: str
    meaning: str
    conversations: int


class Pairing(NamedTuple):
    """Two evaluations on the same prompts, B against A."""

    a: Evaluation
    b: Evaluation
    pairs: PairedComparison

    @property
    def gain(self) -> float:
        """Rate of B minus rate of A."""
        return -self.pairs.difference

    @property
    def gain_interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        low, high = self.pairs.interval
        return -high, -low


class Trouble(NamedTuple):
    """Conversations that could not be judged, by what went wrong."""

    evaluation: str
    outcome: Outcome
    reason: str
    conversations: int
    example: str
    """Id of one of them."""


@dataclass(frozen=True)
class Page:
    """What the templates show of a run. Everything is computed when it is first asked for."""

    data: ReportData

    @property
    def result(self) -> Evaluation | None:
        """The evaluation that the page is about."""
        return self.data.result

    def shares(self, evaluation: Evaluation) -> list[Share]:
        """Return the outcomes of an evaluation, which add up to what was planned."""
        summary = evaluation.summary
        return [
            Share(outcome, *OUTCOMES[outcome], count) for outcome, count in summary.outcomes.items()
        ]

    @cached_property
    def pairings(self) -> list[Pairing]:
        """The result against every other evaluation that played one of its prompts."""
        found = []
        for other in self.data.evaluations:
            if other is self.result or self.result is None:
                continue
            first, second = [other, self.result], [self.result, other]
            later = self.data.evaluations.index(other) > self.data.evaluations.index(self.result)
            a, b = second if later else first
            try:
                pairs = compare((x.row for x in a.attempts), (x.row for x in b.attempts))
            except ConfigurationError:  # no prompt in common
                continue
            found.append(Pairing(a, b, pairs))
        return found

    @cached_property
    def before_after(self) -> Chart | None:
        """Rates side by side."""
        rates = {each.name: each.summary.asr for each in self.data.evaluations}
        if len(rates) < 2:
            return None
        return Chart(
            "Rates side by side",
            "Dot: estimate. Thick line: 95% interval. Thin line: what the rate would be if every "
            "conversation without a score had gone either way.",
            before_after(rates),
        )

    @cached_property
    def kinds(self) -> list[Kind]:
        """Failures of the result by kind of attack; those of training while there is none."""
        return kinds_of_failure(
            self.data.training.attempts if self.result is None else self.result.attempts
        )

    @cached_property
    def kind_numbers(self) -> dict[str, int]:
        """Number of the kind, from 1, by id of the attempt."""
        return {
            attempt.id: number
            for number, kind in enumerate(self.kinds, 1)
            for attempt in kind.attempts
        }

    @cached_property
    def diversity(self) -> Diversity:
        """How different the successful attacks are."""
        attacks = [
            turn.attack
            for kind in self.kinds
            for each in kind.attempts
            if (turn := each.failing_turn)
        ]
        return diversity(attacks)

    @cached_property
    def ranking(self) -> Ranking:
        """The most likely failures first."""
        attempts = () if self.result is None else self.result.attempts
        return most_likely_failures(attempts, most=MOST_RANKED)

    @cached_property
    def severity(self) -> Chart | None:
        """Severity against likelihood."""
        if self.result is None:
            return None
        points = severity_and_likelihood(self.result.attempts)
        if not points:
            return None
        shown = sorted(points, key=lambda point: not point.fails)[:MOST_POINTS]
        left_out = len(points) - len(shown)
        more = f" {left_out} that did not fail are left out." if left_out else ""
        return Chart(
            "Severity and likelihood",
            "Each point is a conversation; choose one to read it. Further left: likelier in "
            "ordinary use. Further up: more harmful. What lies in the upper left should be mended "
            f"first.{more}",
            severity_likelihood(
                [(point.nll_per_token, point.severity) for point in shown],
                threshold=self.result.threshold,
                links=[f"#/conversations/{point.id}" for point in shown],
            ),
        )

    @cached_property
    def categories(self) -> dict[str, Rate]:
        """Rates by category."""
        return {} if self.result is None else self.result.by_category

    @property
    def transfer_targets(self) -> list[str]:
        """Columns of the transfer matrix."""
        return list(dict.fromkeys(cell["target"] for cell in self.data.transfer))

    @property
    def transfer_rows(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Its rows by attacker, and in each the cells by target."""
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for cell in self.data.transfer:
            rows.setdefault(cell["attacker"], {})[cell["target"]] = cell
        return rows

    @cached_property
    def judges(self) -> list[JudgePair]:
        """Every two judges that scored the same turns of the result."""
        if self.result is None:
            return []
        return judge_pairs(self.result.attempts, self.result.judges)

    @cached_property
    def threshold_curve(self) -> Chart | None:
        """The rate of the result by threshold."""
        if self.result is None:
            return None
        rates = rates_by_threshold(self.result.attempts, self.result.judge)
        if not any(each.rate.trials for each in rates):
            return None
        return Chart(
            "The rate at every threshold",
            "A flat line: the judge is sure, and the threshold hardly matters. A steep one: the "
            "rate is a matter of where the line is drawn. Dashed: the threshold of this run.",
            threshold_curve(rates, threshold=self.result.threshold),
        )

    @cached_property
    def learning_curves(self) -> Chart | None:
        """Numbers of the training, step by step."""
        history = self.data.training.history
        if not any(panel.key in row for row in history for panel in PANELS):
            return None
        return Chart(
            "Learning curves",
            "One point per training step, on prompts of training. The number is the last value.",
            learning_curve(history, panels=PANELS),
        )

    @cached_property
    def troubles(self) -> list[Trouble]:
        """What could not be judged, the most frequent first."""
        groups: dict[tuple[str, Outcome, str], list[Attempt]] = {}
        for evaluation in self.data.evaluations:
            for attempt in evaluation.attempts:
                if attempt.outcome in (Outcome.ERROR, Outcome.UNSCORED, Outcome.BLOCKED):
                    key = evaluation.name, attempt.outcome, _reason(attempt)
                    groups.setdefault(key, []).append(attempt)
        found = [Trouble(*key, len(each), each[0].id) for key, each in groups.items()]
        return sorted(found, key=lambda trouble: -trouble.conversations)

    @property
    def untroubled(self) -> bool:
        """Whether every planned conversation of every evaluation was played and judged."""
        return not any(each.summary.asr.unscored for each in self.data.evaluations)

    @cached_property
    def phases(self) -> dict[str, str]:
        """What the parts of the run are called."""
        names = {each.attempts[0].phase: each.name for each in self.data.evaluations}
        return {**names, "training": "in training"}

    @cached_property
    def payload(self) -> Payload:
        """The conversations, packed."""
        return pack_conversations(
            self.data.attempts,
            self.kind_numbers,
            self.phases,
            sweeps=self.sweeps,
            marks=["chosen", "rejected"] if self.data.training.pairs else ["best", "worst"],
        )

    @cached_property
    def sweeps(self) -> list[dict[str, Any]]:
        """Rates by threshold of each judge of each evaluation, in words and numbers."""
        return [
            {
                "evaluation": visible(each.name),
                "judge": visible(judge),
                "threshold": threshold,
                "rates": [
                    _sweep_row(at.threshold, at.rate)
                    for at in rates_by_threshold(each.attempts, judge)
                ],
            }
            for each in self._result_first()
            for judge, threshold in each.judges.items()
        ]

    def _result_first(self) -> list[Evaluation]:
        return sorted(self.data.evaluations, key=lambda each: each is not self.result)

    @cached_property
    def steps_done(self) -> int:
        """Training steps that are in the history."""
        return int(max((row.get("step", 0) for row in self.data.training.history), default=0))

    def share_of_kind(self, kind: Kind) -> float:
        """Size of a kind relative to the largest."""
        return len(kind.attempts) / len(self.kinds[0].attempts)


PANELS = (
    Panel("asr", "attack success rate", percent=True),
    Panel("reward", "mean reward"),
    Panel("rewards/attack_nll_baseline/mean", "attack NLL, nats per token"),
    Panel("rewards/attack_nll_target/mean", "attack NLL under the target, nats per token"),
    Panel("distinct_attacks", "distinct kinds of successful attack"),
    Panel("kl", "divergence from the reference, nats"),
    Panel("entropy", "entropy, nats per token"),
    Panel("watch/moderator", "training moderator's mean score"),
    Panel("watch/judge", "held-out judge's mean score"),
    Panel("unscored_rate", "share of turns without a score", percent=True),
)


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


def _reason(attempt: Attempt) -> str:
    if attempt.outcome is Outcome.BLOCKED:
        return "the answer was withheld by a content filter"
    return attempt.error or next(iter(attempt.reasons), "no reason was recorded")


def points(value: float) -> str:
    """Return a difference of shares in percentage points, without its sign."""
    return f"{100 * abs(value):.0f}" if math.isfinite(value) else "\N{EM DASH}"


def signed_points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    return f"{sign}{points(value)}" if math.isfinite(value) else points(value)


def p_value(value: float) -> str:
    """Return a p-value as it is written in a sentence."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
