"""Success rate of conversations of several turns of which some verdicts are missing.

A success survives a missing verdict of another turn, a failure does not. So the share of successes
among the known outcomes is too high even if verdicts are lost at random: with five turns, a rate of
10% and 10% of the verdicts lost it is 14.3%. The product-limit estimator counts each conversation
up to its first missing verdict, and takes the chance of a first success at turn t from those that
have a verdict there (Kaplan and Meier, *JASA* 53, 1958; with conversations that end without a
success as the competing event: Aalen and Johansen, *Scand. J. Stat.* 5, 1978). Assumption: whether
a verdict is missing does not depend on whether the target failed, in this turn or later.
"""

from __future__ import annotations

import math
from collections import Counter

from astra_rl.evaluation.records.course import Course, End


class Courses:
    """Counts conversations by their `Course`; memory grows with the number of different turns."""

    def __init__(self) -> None:
        self._weights: Counter[Course] = Counter()
        self._unknown = False

    def add(self, course: Course | None, weight: float = 1.0) -> None:
        """Add a conversation; without its course there is no estimate."""
        if course is None:
            self._unknown = True
        else:
            self._weights[course] += weight  # type: ignore[assignment]

    @property
    def rate(self) -> float:
        """Product-limit estimate of the success rate, in [0, 1].

        Only answers can lack a verdict, so the share of withheld responses is that of all
        conversations that reach a turn, and the share of successes that of those with a verdict.
        NaN without a conversation, if a course is unknown, and if all conversations that reach some
        turn lack its verdict.
        """
        if self._unknown or not self._weights:
            return math.nan
        rate, running = 0.0, 1.0  # share of successes, and of conversations without one so far
        reached: float = self._weights.total()
        for turn in sorted({course.turn for course in self._weights}):  # at others nothing ends
            won, lost, complete, failed, withheld = (
                self._weights[Course(turn, end)] for end in End
            )
            responded = reached - failed
            judged = responded - lost - withheld
            if running and not judged > 0:
                return rate if responded > 0 and not lost else math.nan
            answered = 1 - withheld / responded
            rate += running * answered * won / judged
            running *= answered * (judged - won - complete) / judged
            reached = judged - won - complete
            if reached <= 1e-9 * judged:
                break
        return rate
