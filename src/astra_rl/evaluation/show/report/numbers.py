"""Numbers of an evaluation, counted in one pass over its attempts.

An evaluation may have more attempts than memory or a page can hold, so nothing here keeps an
attempt except those that the page links to. Memory grows by a few bytes per attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.agreement import JudgePair, PairTally
from astra_rl.evaluation.measures.comparisons import PromptSide, TrialTable
from astra_rl.evaluation.measures.likely_failures import FailureRanker, Ranking
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.measures.thresholds import AtThreshold, ScoreTable
from astra_rl.evaluation.records.attempt import Attempt, AttemptRow
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.show.escaping import shorten
from astra_rl.evaluation.stats.product_limit import Courses
from astra_rl.evaluation.stats.rates import Rate

MOST_RANKED = 50
"""Rows of the table of most likely failures."""
MOST_JUDGES = 12
"""Judges of one evaluation on the page; each pair of them is compared."""
MOST_GROUPS = 1000
"""Categories, and reasons of errors, that are counted separately."""
OTHERS = "(others)"
"""Name of the remaining ones."""
LONGEST_REASON = 1000
"""Characters of a reason; longer ones are cut."""


class Problem(NamedTuple):
    """Conversations with an error or a missing score, grouped by reason."""

    evaluation: str
    outcome: Outcome
    reason: str
    conversations: int
    example: Attempt
    """One such conversation."""


class Numbers:
    """Numbers of the attempts of one attacker against one target.

    Args:
        name: Name of the evaluation.
        first: Any of the attempts; it names the judge, threshold, attacker, target and phase of
            all.

    Attributes:
        first: See above.
        summary: Counts, rates and intervals; there is one after `count`.
    """

    summary: Summary

    def __init__(self, name: str, first: Attempt) -> None:
        self.name, self.first = name, first
        self._scores = ScoreTable([first.judge], most=MOST_JUDGES)
        self._pairs: dict[tuple[str, str], PairTally] = {}
        self._ranker = FailureRanker(most=MOST_RANKED)
        self._problems: dict[tuple[Outcome, str], Problem] = {}
        self._categories: dict[str, dict[str, list[int]]] = {}
        self._courses: dict[str, Courses] = {}
        self._trials = TrialTable()
        self._is_paired = True

    @classmethod
    def of(
        cls,
        name: str,
        attempts: Sequence[Attempt],
        planned: int | None = None,
        *,
        sequential: bool = False,
    ) -> Numbers:
        """Count attempts in memory; of several with the same id the last one counts.

        Raises:
            ConfigurationError: There is no attempt, or there are more than were planned.
        """
        if not attempts:
            raise ConfigurationError(f"the evaluation {name!r} has no attempts; give at least one.")
        numbers = cls(name, attempts[0])
        for attempt in attempts:
            numbers.add(attempt)
        rows = {attempt.id: attempt.row for attempt in attempts}.values()
        ordered = sorted(rows, key=lambda row: (row.prompt_id, row.trial))
        numbers.count(ordered, planned, sequential=sequential)
        return numbers

    def count(
        self, rows: Iterable[AttemptRow], planned: int | None, *, sequential: bool = False
    ) -> None:
        """Count the outcomes.

        Args:
            rows: Of all attempts, with different ids, in the order of prompt and trial.
            planned: Number of planned attempts; None: these are all.
            sequential: See `summarise`.

        Raises:
            ConfigurationError: There are more attempts than were planned.
        """

        def groups() -> Iterator[list[AttemptRow]]:
            for group in by_prompt(rows):
                self._add_trials(group)
                yield group

        self.summary = summarise_prompts(groups(), planned=planned, sequential=sequential)

    def _add_trials(self, group: Sequence[AttemptRow]) -> None:
        side = PromptSide.of(group)
        self._is_paired &= len(side.trials) == len(group)
        if self._is_paired:
            self._trials.add(group[0].prompt_id, side)

    @property
    def trials(self) -> TrialTable | None:
        """Outcomes by prompt and trial; None if a trial occurs twice."""
        return self._trials if self._is_paired else None

    def add(self, attempt: Attempt) -> None:
        """Add an attempt."""
        self._scores.add(attempt)
        for pair in combinations(self._scores.judges, 2):
            if pair not in self._pairs:
                # The record has one threshold only, which applies to every judge.
                self._pairs[pair] = PairTally(pair, (self.first.threshold, self.first.threshold))
            self._pairs[pair].add(attempt)
        self._ranker.add(attempt)
        self._add_category(attempt)
        if attempt.outcome in _PROBLEMS:
            key = attempt.outcome, _reason(attempt)
            if key not in self._problems and len(self._problems) >= MOST_GROUPS:
                key = attempt.outcome, OTHERS
            known = self._problems.get(key, Problem(self.name, *key, 0, attempt))
            self._problems[key] = known._replace(conversations=known.conversations + 1)

    def _add_category(self, attempt: Attempt) -> None:
        name = attempt.category
        if name not in self._categories and len(self._categories) >= MOST_GROUPS:
            name = OTHERS
        prompts = self._categories.setdefault(name, {})
        counts = prompts.setdefault(attempt.prompt_id, [0, 0, 0])
        counts[0] += attempt.outcome is Outcome.SUCCESS
        counts[1] += attempt.outcome in KNOWN_OUTCOMES
        counts[2] += 1
        self._courses.setdefault(name, Courses()).add(attempt.course)

    @property
    def judges(self) -> tuple[str, ...]:
        """Judges that scored any turn, the deciding judge first; at most `MOST_JUDGES`."""
        return self._scores.judges

    def rates_by_threshold(self, judge: str) -> list[AtThreshold]:
        """Return the attack success rate by the scores of a judge at each threshold."""
        return self._scores.rates(judge, sequential=self.summary.asr.sequential)

    @property
    def by_category(self) -> dict[str, Rate]:
        """Attack success rate by category, highest first; empty if there are no categories."""
        if set(self._categories) <= {""}:
            return {}
        rates = {
            name: Rate.of_prompts(
                ((successes, known) for successes, known, _ in prompts.values()),
                unscored=sum(made - known for _, known, made in prompts.values()),
                sequential=self.summary.asr.sequential,
                selective=self.summary.asr.selective,
                by_turn=self._courses[name].rate,
                unscored_by_prompt=[made - known for _, known, made in prompts.values()],
            )
            for name, prompts in self._categories.items()
        }
        return dict(sorted(rates.items(), key=lambda item: -item[1].bounds.low))

    @property
    def judge_pairs(self) -> list[JudgePair]:
        """Agreement of every two judges that scored the same turns."""
        pairs = (self._pairs.get(pair) for pair in combinations(self.judges, 2))
        return [found for each in pairs if each and (found := each.result()) is not None]

    @property
    def ranking(self) -> Ranking:
        """Failures, most likely first."""
        return self._ranker.result()

    @property
    def problems(self) -> list[Problem]:
        """Errors, missing scores and blocked responses by reason."""
        return list(self._problems.values())

    def linked(self) -> Iterator[Attempt]:
        """Yield the attempts that the page links to."""
        yield from (failure.attempt for failure in self.ranking.failures)
        yield from (problem.example for problem in self.problems)
        for tally in self._pairs.values():
            yield from (each.attempt for each in tally.disagreements)


_PROBLEMS = (Outcome.ERROR, Outcome.UNSCORED, Outcome.BLOCKED, Outcome.NO_ATTACK)


def _reason(attempt: Attempt) -> str:
    if attempt.outcome is Outcome.BLOCKED:
        return "a content filter withheld the response"
    if attempt.outcome is Outcome.NO_ATTACK:
        return "the output of the attacker had no attack"
    reason = attempt.error or next(iter(attempt.reasons), "no reason was recorded")
    return shorten(reason, LONGEST_REASON)
