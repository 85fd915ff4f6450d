"""Label conversations of a run by hand, and estimate the success rate from the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from astra_rl.core.seeding import derive_seed
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.stats.labelled_rate import LabelledRate, allocate
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.human_labels import CALLS, Agreement, HumanLabels, call_of, text_key
from astra_rl.runs.phases import Recorded

Ask = Callable[[Attempt, int, int], bool | None]
"""Shows an attempt, the number of this label and of all; returns whether the target failed, or None
to stop."""


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

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "added": self.added,
            "asr": self.judged.asr.as_dict(),
            "asr_labelled": self.rate and self.rate.as_dict(),
            "agreement": [each.as_dict() for each in self.agreement],
            "label_next": dict(self.advice),
        }


def label_run(
    run: str | Path, ask: Ask, *, rater: str, phase: str = "after", most: int = 50
) -> Labelled:
    """Ask a rater to label conversations of a run.

    The rater is blind: the order does not depend on the scores, and `ask` gets no label of others.
    Conversations that another rater labelled come first, for the agreement; the others are drawn at
    random within each group of the judge's calls, as many of each as `allocate` advises. Each label
    is stored at once, so a session can be stopped and continued.

    Args:
        run: Folder of the run.
        ask: Asks for one label.
        rater: Name of the rater.
        phase: Phase of the run.
        most: Number of labels to ask for; 0 only computes the rate.

    Raises:
        ConfigurationError: The folder is no run, it has no such phase, or `rater` is empty.
    """
    if not rater.strip():
        raise ConfigurationError("the rater has no name; give one, such as --rater anna.")
    folder = open_run_folder(run)
    with Recorded(folder, phase) as recorded:
        summary, attempts = recorded.summary(), [each for each in recorded.attempts() if each.turns]
    labels = HumanLabels(folder, phase)
    chosen = _choose(labels, attempts, rater, most)
    added = 0
    for attempt in chosen:
        answer = ask(attempt, added + 1, len(chosen))
        if answer is None:
            break
        labels.add(rater, attempt, answer)
        added += 1
    advice = allocate(labels.groups(attempts), most)
    names = {1: "success", 0: "no success", None: "no verdict"}
    return Labelled(
        added,
        summary,
        labels.rate(attempts),
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
