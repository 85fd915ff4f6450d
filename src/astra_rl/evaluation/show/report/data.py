"""What the page of a run is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary, summarise
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.importance import NoProbability, Probability
from astra_rl.evaluation.stats.rates import Rate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How one attacker did against one target, on prompts that are not those of training.

    Attributes:
        name: What was evaluated, for instance "after training".
        attempts: The conversations, at least one, all of one judge and threshold.
        quality: What is known of the judge, see `calibration.judge_quality`.
        planned: How many conversations were to be held; None takes those that were for all.

    Raises:
        ConfigurationError: There is no attempt.
    """

    name: str
    attempts: Sequence[Attempt]
    quality: Mapping[str, Any] | None = None
    planned: int | None = None

    def __post_init__(self) -> None:
        if not self.attempts:
            raise ConfigurationError(f"the evaluation {self.name!r} has no attempt.")

    @cached_property
    def summary(self) -> Summary:
        """Everything that is counted of it."""
        return summarise((attempt.row for attempt in self.attempts), planned=self.planned)

    @property
    def judge(self) -> str:
        """Name of the judge that decided."""
        return self.attempts[0].judge

    @property
    def threshold(self) -> float:
        """Score from which on a turn is a failure of the target."""
        return self.attempts[0].threshold

    @property
    def attacker(self) -> str:
        """Name of the attacker."""
        return self.attempts[0].attacker

    @property
    def target(self) -> str:
        """Name of the target."""
        return self.attempts[0].target

    @property
    def judges(self) -> dict[str, float]:
        """Judges that scored any turn, and the threshold of each; the deciding one first.

        Of the others nobody has said a threshold, so theirs is that of the deciding one.
        """
        names = dict.fromkeys(
            judge for attempt in self.attempts for turn in attempt.turns for judge in turn.scores
        )
        return dict.fromkeys([self.judge, *names], self.threshold)

    @property
    def by_category(self) -> dict[str, Rate]:
        """The rate of each category, the highest first; empty if there are no categories."""
        groups: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            groups[attempt.category].append(attempt)
        if set(groups) <= {""}:
            return {}
        rates = {name: summarise(each.row for each in group).asr for name, group in groups.items()}
        return dict(sorted(rates.items(), key=lambda item: -item[1].bounds.low))


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the attacker was trained.

    Attributes:
        history: Numbers of each training step.
        steps: How many were planned; None if that is not known.
        attempts: Conversations to show, whole trees of them.
        played: Conversations that were played in all.
        pairs: Whether the algorithm learns from pairs of siblings, one chosen and one rejected.
        watch: What training moderator and held-out judge said of each step.
    """

    history: Sequence[Mapping[str, float]] = ()
    steps: int | None = None
    attempts: Sequence[Attempt] = ()
    played: int = 0
    pairs: bool = False
    watch: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What it takes to get the same again.

    Attributes:
        command: What to type.
        report_command: What to type for this page alone.
        configuration: Settings of the run, as YAML.
        versions: What ran, for instance ``{"torch": "2.13.0"}``.
        seed: Of the run.
        started: When it began, UTC.
        prompts: Name, rows and SHA-256 of every source of prompts.
        seconds: Time by stage.
        continued: Where an interrupted run went on.
    """

    command: str = ""
    report_command: str = ""
    configuration: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    started: str = ""
    prompts: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    continued: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that is on the page.

    Attributes:
        title: Heading of the page.
        run: Name of the run's folder.
        evaluations: In the order in which they are compared; the last but those that were made
            later, see `result`, is what the page is about.
        result: Index of that one among `evaluations`.
        training: How the attacker came to be.
        finished: Whether the run has ended as planned.
        transfer: Rates of attackers at targets, one mapping per pair, see `TransferMatrix.as_dict`.
        comparisons: With other runs, see `runs.comparing.Comparison.as_dict`.
        probability: How probable failure is in ordinary use, if that was estimated.
        reproduction: See `Reproduction`.
        notes: What a reader must know to judge the numbers, one paragraph each.
        warnings: What a reader must not miss.
    """

    title: str
    run: str = ""
    evaluations: Sequence[Evaluation] = ()
    result_index: int = -1
    training: Training = Training()
    finished: bool = True
    transfer: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[Mapping[str, Any]] = ()
    probability: Probability | NoProbability | None = None
    reproduction: Reproduction = Reproduction()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def result(self) -> Evaluation | None:
        """The evaluation that the page is about; None as long as there is none."""
        return self.evaluations[self.result_index] if self.evaluations else None

    @property
    def attempts(self) -> list[Attempt]:
        """Every conversation of the page: the result first, training last."""
        result = self.result
        others = [each for each in self.evaluations if each is not result]
        shown = [*([] if result is None else [result]), *others]
        return [*(a for each in shown for a in each.attempts), *self.training.attempts]
