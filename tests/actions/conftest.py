"""Run folders with recorded attempts, without models; a hardening; pages have no charts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.undrawn import undrawn

from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.runs.attempt_log import AttemptLog

if TYPE_CHECKING:  # it loads the libraries of models
    from astra_rl.actions.harden import Hardened

RecordRun = Callable[..., Path]

CONFIG = """
attacker: {{model: tiny}}
target: {{model: tiny}}
moderator: {{type: refusal}}
prompts: {{scenario: planted_secrets}}
seed: {seed}
"""


@pytest.fixture(scope="module", autouse=True)
def no_charts() -> Iterator[None]:
    """Draw no charts; they have tests of their own."""
    with undrawn():
        yield


@pytest.fixture
def record_run() -> RecordRun:
    def make(
        folder: Path,
        scores: Sequence[Sequence[float | None]],
        *,
        judge: str = "judge",
        threshold: float = 0.5,
        seed: int = 0,
        categories: Sequence[str] = (),
        settings: str = "",
    ) -> Path:
        """Write a run whose phase "after" has one attempt per score, by prompt and trial."""
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG.format(seed=seed) + settings)
        with AttemptLog(folder / "attempts.jsonl", write=True) as log:
            for prompt, trials in enumerate(scores):
                for trial, score in enumerate(trials):
                    given = JudgeScore(value=score, reason="no verdict" if score is None else None)
                    log.append(
                        Attempt.make(
                            run="run",
                            phase="after",
                            opening=f"prompt {prompt}",
                            target="target",
                            attacker="attacker",
                            turns=[Turn(attack="a", response="r", scores={judge: given})],
                            judge=judge,
                            threshold=threshold,
                            trial=trial,
                            category=categories[prompt] if categories else "",
                        )
                    )
        return folder

    return make


@pytest.fixture(scope="module")
def hardened(workplace: Path) -> "Hardened":
    """The hardening of the module's workplace."""
    from astra_rl.actions.harden import harden

    return harden(workplace / "config.yaml", workplace / "hardened")
