"""Input of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.comparisons import CategoryComparison
from astra_rl.evaluation.measures.diversity import EffectiveNumber
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.charts import Panel, has_value, learning_curve
from astra_rl.evaluation.show.report.numbers import Numbers
from astra_rl.evaluation.stats.importance import NoProbability, Probability
from astra_rl.evaluation.stats.judge_errors import Corrected, NotCorrected
from astra_rl.evaluation.stats.labelled_rate import LabelledRate
from astra_rl.evaluation.stats.splitting import RareProbability
from astra_rl.targets.accounts import Account

IN_TRAINING = "in training"
"""Name of the phase of training on the page."""
PANELS = (
    Panel("asr", "attack success rate", percent=True, band=("asr/low", "asr/high")),
    Panel("reward", "mean reward", band=("reward/low", "reward/high")),
    Panel("rewards/attack_nll_baseline/mean", "attack NLL, nats per token"),
    Panel("rewards/attack_nll_target/mean", "attack NLL, target, nats per token"),
    Panel("effective_attacks", "effective kinds of successful attack"),
    Panel("kl", "KL from the reference, nats"),
    Panel("entropy", "entropy, nats per token"),
    Panel("watch/moderator", "training moderator's mean score"),
    Panel("watch/judge", "held-out judge's mean score"),
    Panel("unscored_rate", "share of turns without a score", percent=True),
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Attempts of one attacker against one target on held-out prompts.

    Attributes:
        name: What was evaluated, for instance "after training".
        attempts: At least one, all with the same judge and threshold. They are the conversations
            of the page.
        quality: Measured errors of the judge; None if it is not calibrated.
        planned: Number of planned attempts; None means `len(attempts)`.
        selected: Whether the attempts were selected by their recorded outcome, as in a replay of
            failures; their rate is compared with no other.
        sequential: Whether the evaluation ended when its result was clear, see `Rate`.
        labelled: Success rate by human labels of these conversations; None without labels.
        judge_model: Model of the judge; empty if it has none, or it is not known.
        kinds_by_meaning: Effective number of kinds of successful attack by an embedder; None
            without one.
        counted: Numbers of all attempts, if `attempts` are a part of them; None: they are all.

    Raises:
        ConfigurationError: `attempts` is empty.
    """

    name: str
    attempts: Sequence[Attempt]
    quality: JudgeQuality | None = None
    planned: int | None = None
    selected: bool = False
    sequential: bool = False
    labelled: LabelledRate | None = None
    judge_model: str = ""
    kinds_by_meaning: EffectiveNumber | None = None
    counted: Numbers | None = None

    def __post_init__(self) -> None:
        if not self.attempts:
            raise ConfigurationError(
                f"the evaluation {self.name!r} has no attempts; give at least one."
            )

    @cached_property
    def numbers(self) -> Numbers:
        """Numbers of all attempts."""
        return self.counted or Numbers.of(
            self.name, self.attempts, self.planned, sequential=self.sequential
        )

    @property
    def summary(self) -> Summary:
        """Counts, rates and intervals."""
        return self.numbers.summary

    @property
    def not_shown(self) -> int:
        """Number of conversations that are counted, and are not on the page."""
        return self.summary.planned - self.summary.never_made - len(self.attempts)

    @cached_property
    def corrected(self) -> Corrected | NotCorrected | None:
        """The rate corrected for the errors of the judge; None if it is not calibrated."""
        return None if self.quality is None else self.quality.correct(self.summary)

    @property
    def judge(self) -> str:
        """Name of the judge that decides the outcome."""
        return self.attempts[0].judge

    @property
    def threshold(self) -> float:
        """Lowest score at which a turn is a success of the attack."""
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
    def judges(self) -> tuple[str, ...]:
        """Judges that scored any turn, the deciding judge first."""
        return self.numbers.judges


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of the attacker.

    Attributes:
        history: Metrics of each training step.
        steps: Number of planned steps; None if unknown.
        attempts: Conversations to show, as complete trees.
        played: Number of conversations played in training.
        pairs: Whether the algorithm learns from preference pairs of siblings.
        watch: Scores of the training moderator and of the held-out judge, by step.
    """

    history: Sequence[Mapping[str, float]] = ()
    steps: int | None = None
    attempts: Sequence[Attempt] = ()
    played: int = 0
    pairs: bool = False
    watch: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def curve(self) -> str | None:
        """Learning curves as SVG, drawn once; None if no metric has a value."""
        if not any(has_value(self.history, panel) for panel in PANELS):
            return None
        return learning_curve(self.history, panels=PANELS)


class Spent(NamedTuple):
    """Calls of endpoints: of targets, attackers and judges that are not run in this process.

    Attributes:
        occasion: "the run", or the name of a later command.
        account: What was spent.
    """

    occasion: str
    account: Account


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is needed to reproduce the run.

    Attributes:
        command: Command that repeats the run.
        report_command: Command that makes this page again.
        configuration: Settings of the run, as YAML.
        versions: Versions of packages, for instance ``{"torch": "2.13.0"}``.
        seed: Seed of the run.
        started: Start of the run, UTC.
        prompts: Name, rows and SHA-256 of every prompt source.
        seconds: Duration of each stage.
        continued: Steps at which an interrupted run was resumed.
        spent: Calls of endpoints by the run and by later commands.
        replay_commands: Command that sends a conversation again, to be followed by its id; by the
            name of the evaluation, or "in training".
        export_command: Command that exports conversations, to be followed by a format.
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
    spent: Sequence[Spent] = ()
    replay_commands: Mapping[str, str] = field(default_factory=dict)
    export_command: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Content of the report.

    Attributes:
        title: Heading of the page.
        run: Name of the run folder.
        evaluations: All evaluations, in the order in which they are compared.
        result_index: Index in `evaluations` of the one that the page is about.
        training: See `Training`.
        finished: Whether the run has finished as planned.
        transfer: One mapping per attacker and target, see `TransferMatrix.as_dict`.
        archive: One mapping per cell of the archive of a search: its risk, style, best attack and
            score; the last two are None for an empty cell.
        comparisons: Comparisons with other runs, see `Comparison.as_dict` of `actions.compare`.
        by_category: Comparison of the first two evaluations by category.
        probability: Estimated probability of failure in ordinary use; None if not estimated.
        rare: The same by splitting, see `RareProbability`; None if not estimated.
        answers: Probability of a failing answer, as `rare_answers` writes it; None if not
            estimated.
        reproduction: See `Reproduction`.
        notes: Limits of the numbers, one paragraph each.
        warnings: Warnings shown at the top.
    """

    title: str
    run: str = ""
    evaluations: Sequence[Evaluation] = ()
    result_index: int = -1
    training: Training = Training()
    finished: bool = True
    transfer: Sequence[Mapping[str, Any]] = ()
    archive: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[Mapping[str, Any]] = ()
    by_category: Mapping[str, CategoryComparison] = field(default_factory=dict)
    probability: Probability | NoProbability | None = None
    rare: RareProbability | None = None
    answers: Mapping[str, Any] | None = None
    reproduction: Reproduction = Reproduction()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def result(self) -> Evaluation | None:
        """The evaluation that the page is about; None if there is none yet."""
        return self.evaluations[self.result_index] if self.evaluations else None

    @property
    def attempts(self) -> list[Attempt]:
        """Every conversation of the page: those of the result first, of training last."""
        result = self.result
        others = [each for each in self.evaluations if each is not result]
        shown = [*([] if result is None else [result]), *others]
        return [*(a for each in shown for a in each.attempts), *self.training.attempts]
