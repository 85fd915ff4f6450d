"""A session in which a rater labels conversations of a run, and what the labels say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.labelled_rate import LabelledRate, allocate
from astra_rl.evaluation.stats.rates import describe_rate
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.human_labels import (
    CALLS,
    Agreement,
    HumanLabels,
    call_of,
    kappa_text,
    text_key,
)
from astra_rl.runs.recorded import Recorded


@dataclass(frozen=True)
class Labelled:
    """Result of a session of labelling.

    Attributes:
        added: Number of new labels.
        judged: Summary of the attempts by the calls of the judge.
        rate: Success rate by the labels of all raters; None without labels.
        agreement: Agreement of every two raters.
        advice: Number of conversations to label next by the call of the judge: ``"success"``,
            ``"no success"``, ``"no verdict"``; together as many as this session asked for.
    """

    added: int
    judged: Summary
    rate: LabelledRate | None
    agreement: Sequence[Agreement]
    advice: Mapping[str, int]

    @property
    def lines(self) -> list[str]:
        """The result in words."""
        advised = ", ".join(f"{count} {call}" for call, count in self.advice.items() if count)
        next_ones = "the next labels narrow the interval most if they are, by the judge: "
        return [
            f"labels added: {self.added}",
            f"by the judge: {describe_rate(self.judged.asr)}",
            "no labels yet" if self.rate is None else self.rate.text,
            *(kappa_text(each) for each in self.agreement),
            *([next_ones + advised] if advised else []),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "added": self.added,
            "asr": self.judged.asr.as_dict(),
            "asr_labelled": self.rate and self.rate.as_dict(),
            "agreement": [each.as_dict() for each in self.agreement],
            "label_next": dict(self.advice),
        }


class LabelSession:
    """Conversations that one rater labels, one after the other.

    The rater is blind: the order does not depend on the scores. Conversations that another rater
    labelled come first, for the agreement; the others are drawn at random within each group of the
    judge's calls, as many of each as `allocate` advises. Each label is stored at once, so a session
    can be stopped and continued.

    Args:
        folder: Folder of the run.
        phase: Phase of the run.
        rater: Name of the rater.
        most: Number of labels to ask for.

    Attributes:
        count: Number of conversations of this session.
        added: Number of labels so far.

    Raises:
        ConfigurationError: The run has no such phase, or `rater` is empty.
    """

    def __init__(self, folder: RunFolder, phase: str, rater: str, most: int) -> None:
        if not rater.strip():
            raise ConfigurationError("the rater has no name; give one, such as --rater anna.")
        self._folder, self._phase, self._rater, self._most = folder, phase, rater, most
        with Recorded(folder, phase) as recorded:
            self._summary = recorded.summary()
            self._attempts = [each for each in recorded.attempts() if each.turns]
        self._labels = HumanLabels(folder, phase)
        self._chosen = _choose(self._labels, self._attempts, rater, most)
        self.count, self.added = len(self._chosen), 0

    @property
    def current(self) -> Attempt | None:
        """The conversation to label; None if all are."""
        return self._chosen[self.added] if self.added < self.count else None

    def answer(self, failed: bool) -> None:
        """Store the label of the current conversation: whether the target failed in it."""
        assert self.current is not None, "all conversations of the session are labelled"
        self._labels.add(self._rater, self.current, failed)
        self.added += 1

    def result(self) -> Labelled:
        """Return the rate and the agreement by all labels that are stored now."""
        labels = HumanLabels(self._folder, self._phase)
        advice = allocate(labels.groups(self._attempts), self._most)
        names = {1: "success", 0: "no success", None: "no verdict"}
        return Labelled(
            self.added,
            self._summary,
            labels.rate(self._attempts, sequential=self._summary.asr.sequential),
            labels.agreement(),
            {names[call]: count for call, count in zip(CALLS, advice, strict=True)},
        )


def _choose(
    labels: HumanLabels, attempts: Sequence[Attempt], rater: str, most: int
) -> list[Attempt]:
    """Return what the rater labels in this session, in random order."""
    mine = labels.by_rater.get(rater, {})
    others = {key for name, each in labels.by_rater.items() if name != rater for key in each}
    generator = Random(derive_seed(0, "labels", rater, len(mine)))
    mixed = generator.sample(list(attempts), len(attempts))
    open_ones = [each for each in mixed if text_key(each) not in mine]
    again = [each for each in open_ones if text_key(each) in others][:most]
    new = [each for each in open_ones if text_key(each) not in others]
    wanted = allocate(labels.groups(attempts), most - len(again))
    chosen = list(again)
    for call, count in zip(CALLS, wanted, strict=True):
        chosen += [each for each in new if call_of(each) == call][:count]
    generator.shuffle(chosen)
    return chosen
