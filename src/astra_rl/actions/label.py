"""Label conversations of a run by hand, and estimate the success rate from the labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.labelling import Labelled, LabelSession

Ask = Callable[[Attempt, int, int], bool | None]
"""Shows an attempt, the number of this label and of all; returns whether the target failed, or None
to stop."""


def label_run(
    run: str | Path, ask: Ask, *, rater: str, phase: str = "after", most: int = 50
) -> Labelled:
    """Ask a rater to label conversations of a run; see `LabelSession` for their order.

    Args:
        run: Folder of the run.
        ask: Asks for one label. It gets no label of others.
        rater: Name of the rater.
        phase: Phase of the run.
        most: Number of labels to ask for; 0 only computes the rate.

    Raises:
        ConfigurationError: The folder is no run, it has no such phase, or `rater` is empty.
    """
    session = LabelSession(open_run_folder(run), phase, rater, most)
    while (attempt := session.current) is not None:
        answer = ask(attempt, session.added + 1, session.count)
        if answer is None:
            break
        session.answer(answer)
    return session.result()
