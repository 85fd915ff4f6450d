"""Play a phase of a run; `astra_rl.runs.recorded` reads one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from astra_rl.config.experiment import ordinary_use
from astra_rl.config.resolve import EVALUATED_TOGETHER
from astra_rl.config.schema import EvaluationConfig
from astra_rl.core.environment import Environment
from astra_rl.core.evaluator import GraphMetrics
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.core.seeding import derive_seed, repetitions
from astra_rl.errors import BudgetSpentError
from astra_rl.evaluation.judges.quality import JudgeQuality, judge_quality
from astra_rl.evaluation.measures.embeddings import KindEmbedder
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels, LogProbs
from astra_rl.evaluation.records.turn import Opening
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_evaluator import ASTEvaluator, EvaluationResult
from astra_rl.rewards.embedding import named_embedder
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.spending import WithinBudget, batches_within_budget, checking_budget
from astra_rl.runs.until import StopWhenDecided, Until
from astra_rl.targets.ledger import current_ledger


@functools.lru_cache(maxsize=1)
def embedder_of(name: str, similarity: float) -> KindEmbedder:
    """Load and check the embedder of a name, see `named_embedder`; the phases of a run share it.

    Args:
        name: ``evaluation.embedder``.
        similarity: ``evaluation.embedder_similarity``.

    Raises:
        ConfigurationError: It does not tell unrelated sentences apart.
        ModelError: It cannot be loaded.
    """
    found = KindEmbedder(
        named_embedder(name), similarity=similarity, name=f"evaluation.embedder={name!r}"
    )
    found.check_tells_apart()
    return found


def kind_embedder(settings: EvaluationConfig) -> KindEmbedder | None:
    """Return the embedder of the settings of an evaluation, see `embedder_of`; None without one."""
    if settings.embedder is None:
        return None
    return embedder_of(settings.embedder, settings.embedder_similarity)


@dataclass(frozen=True)
class PhaseResult(EvaluationResult):
    """Result of a phase.

    Attributes:
        spent: The budget limit that ended the phase early; None if none did.
    """

    spent: BudgetSpentError | None = None


class Part(NamedTuple):
    """A part of an evaluation that is played on its own.

    Attributes:
        places: The conversations that are played, by their place in the order of play of the whole.
        is_shuffled: Whether the order of play of the whole is random, see `played_order`.
    """

    places: Sequence[int]
    is_shuffled: bool


class PhaseRun:
    """Plays, judges, records and budgets one phase of a run.

    Args:
        labels: Names of run, phase, attacker and target in the records.
        problem: The models. Likelihoods of attacks are measured if it has a baseline model.
        judge: Moderator that scores the turns.
        log: Log that the attempts are appended to.
        settings: Threshold of a success, brief of the baseline, and folder of calibrations.
        seed: Seed of the run; it determines the order of play under a budget.
        likelihoods: See `ASTEvaluator`; beside the baseline of ordinary use.
        allow_partial: Whether a spent budget ends the phase with the attempts made so far. If
            False, it raises.
    """

    def __init__(
        self,
        labels: Labels,
        problem: Problem[str, str],
        judge: Moderator[Any, Any],
        log: AttemptLog,
        *,
        settings: EvaluationConfig,
        seed: int,
        likelihoods: Mapping[str, LogProbs] | None = None,
        allow_partial: bool = True,
    ) -> None:
        self.labels, self.judge, self.log = labels, judge, log
        self.settings, self.seed = settings, seed
        self.allow_partial = allow_partial
        self.embed = kind_embedder(settings)
        self.likelihoods = dict(likelihoods or {})
        if isinstance(problem, HFASTProblem):
            ordinary = ordinary_use(problem, settings.ordinary_brief)
            self.likelihoods.setdefault("baseline", ordinary.get_baseline_logprobs)

    def play(
        self,
        environment: Environment[str, str],
        seeds: Sequence[int | str],
        planned: int,
        *,
        attacker: str | None = None,
        prompt_ids: Mapping[int | str, str] | None = None,
        until: Until | None = None,
        already: Sequence[Attempt] = (),
        batch: int | None = None,
        needs: Mapping[str, float] | None = None,
        part: Part | None = None,
    ) -> PhaseResult:
        """Play the conversations, append them to the log and summarise them.

        Args:
            environment: Plays the conversations.
            seeds: What they open with, see `ASTEvaluator`.
            planned: Number of conversations.
            attacker: Name of the attacker in the records; None names the attacker of the run.
            prompt_ids: See `ASTEvaluator`.
            until: Ends the phase when this is decided; None plays all conversations.
            already: Attempts of an earlier session, which are in the log.
            batch: Number of conversations that are played together; None uses the default.
            needs: What the calls need at most, by limit of the budget, see `needed`; None is
                unknown. If the budget could end the phase, conversations are played in random
                order, and in batches that shrink.
            part: Which of the planned conversations are played; None plays all.

        Raises:
            BudgetSpentError: No conversation could be completed, or `allow_partial` is False.
        """
        within = WithinBudget()
        around: Any = within if self.allow_partial else checking_budget
        rows = [attempt.row for attempt in already]
        stop = None if until is None else StopWhenDecided(until, rows, around)

        def record(attempt: Attempt) -> None:
            self.log.append(attempt)
            if stop is not None:
                rows.append(attempt.row)

        # A condition to decide has an order of its own, and batches of whole prompts.
        # What a budget cannot end is played as without one, so that it is equal to the last bit.
        can_end = not (until or current_ledger().affords(needs)) and self.allow_partial
        can_end = can_end if part is None else part.is_shuffled
        kind = _BudgetedEvaluator if can_end else ASTEvaluator
        evaluator = kind(
            environment,
            played_order(seeds, planned, self.seed) if can_end else seeds,
            threshold=self.settings.threshold,
            judge=self.judge,
            batch_size=batch or EVALUATED_TOGETHER,
            record=record,
            labels=self.labels if attacker is None else replace(self.labels, attacker=attacker),
            likelihoods=self.likelihoods,
            prompt_ids=prompt_ids,
            around_batch=around if stop is None else stop,
            already=already,
            sequential=until is not None,
            embed=self.embed,
            places=None if part is None else part.places,
        )
        found = evaluator.run(planned - len(already) if part is None else planned)
        if within.spent is not None and not found.attempts:
            raise within.spent
        if can_end:
            list_as_without_a_budget(found.metrics["conversations"], seeds, prompt_ids or {})
        quality = judge_quality(self.judge, self.settings.calibrations, self.settings.threshold)
        metrics = {
            **found.metrics,
            **rate_corrected(quality, found.summary),
            "until": until and until.condition.expression,
            "decided": until and until.verdict(rows),
        }
        return PhaseResult(found.attempts, found.summary, metrics, within.spent)


def rate_corrected(quality: JudgeQuality | None, summary: Summary) -> dict[str, Any]:
    """Return the measured errors of a judge and the success rate that they imply, as metrics."""
    return {
        "judge_quality": quality and quality.as_dict(),
        "asr_corrected": quality and quality.correct(summary).as_dict(),
    }


def list_as_without_a_budget(
    conversations: list[GraphMetrics],
    seeds: Sequence[int | str],
    prompt_ids: Mapping[int | str, str],
) -> None:
    """Sort the metrics of conversations by trial, then in the order of the seeds."""
    place = {}
    for at, each in enumerate(seeds):
        if each in prompt_ids:
            place[prompt_ids[each]] = at
        elif isinstance(each, str):
            place[Opening.of(each).id] = at
    conversations.sort(key=lambda each: (each["trial"], place.get(each["prompt_id"], len(place))))


def played_order(seeds: Sequence[int | str], planned: int, seed: int) -> Sequence[int | str]:
    """Return what an evaluation plays in random order, so that a part of it is a random sample.

    Every prompt is played once, then the second trial of each, and so on.

    Args:
        seeds: What the conversations open with, see `ASTEvaluator`.
        planned: Number of conversations; beyond the number of seeds they are further trials.
        seed: Determines the order.
    """
    played = [seeds[index % len(seeds)] for index in range(planned)]
    random = Random(derive_seed(seed, "order of an evaluation"))
    order = [(trial, random.random(), at) for at, trial in enumerate(repetitions(played))]
    return [played[at] for _, _, at in sorted(order)]


class _BudgetedEvaluator(ASTEvaluator):
    """Evaluator whose batches shrink as the budget runs out; see `batches_within_budget`."""

    def batch_sizes(self, count: int) -> Iterator[int]:
        """Yield the number of conversations of each batch."""
        return batches_within_budget(count, self.batch_size)
