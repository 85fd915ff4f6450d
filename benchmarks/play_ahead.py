"""How far a training overlaps sampling and learning, with an engine and an update that only sleep.

    python benchmarks/play_ahead.py

The trainer, its threads and its turns are real; the attacker's engine sleeps in each of the two
turns of a conversation, and each of eight batches of an update sleeps as long as it would compute.
Prints seconds of a training step beside the formula of docs/scaling.md, and writes
results/play_ahead.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_rl import GRPO, Trainer, TrainingConfiguration, Utterance
from astra_rl.algorithms.policy_steps import PolicyBatch
from astra_rl.core.seeding import current_row_seeds
from astra_rl.core.turns import waiting
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem

STEPS, BATCHES = 12, 8
SECONDS = ((0.4, 0.4), (0.6, 0.2), (0.2, 0.6), (0.4, 0.1))
"""Of a rollout and of an update."""


class Sleeping(ToyProblem):
    """A policy over two words whose engine sleeps.

    Args:
        seconds: Of a call of the engine.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.logits = seconds, self.attacker.detach()

    def frozen_attacker(self) -> Callable[[], AbstractContextManager[None]]:
        logits = self.attacker.detach().clone()

        @contextmanager
        def block() -> Iterator[None]:
            self.logits = logits
            yield

        return block

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        table, seeds = self.logits.log_softmax(0), current_row_seeds(len(contexts))
        with waiting():
            time.sleep(self.seconds)
        found = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.multinomial(table.exp(), 2, replacement=True, generator=generator)
            text = "".join(f" {self.words[int(index)]}" for index in drawn)
            found.append(Utterance(text, token_ids=drawn.tolist(), logprobs=table[drawn].tolist()))
        return found


class SleepingGRPO(GRPO):
    """GRPO whose batches take their time."""

    seconds = 0.0

    def step(self, batch: PolicyBatch) -> tuple[Tensor, dict[str, Any]]:
        time.sleep(self.seconds)
        return super().step(batch)


def seconds_of_a_step(rollout: float, update: float, staleness: int) -> float:
    """Return the mean over the steps after the first, up to the last that plays ahead."""
    problem = Sleeping(rollout / 2)
    algorithm = SleepingGRPO(problem, old_logprobs="corrected")
    algorithm.seconds = update / BATCHES
    environment = ASTEnvironment(problem, ["one"], tree_width=2, tree_depth=2)
    config = TrainingConfiguration(
        lr=0.1,
        batch_size=6,
        training_steps=STEPS,
        num_episodes_per_experience=BATCHES,
        seed=0,
        max_staleness=staleness,
    )
    ends: list[float] = []

    class Timed(Trainer[str, str, Any, Any]):
        def on_step_end(self, step: int, logs: dict[str, Any]) -> None:
            ends.append(time.perf_counter())

    Timed(config, environment, algorithm).train()
    measured = len(ends) - 1 - staleness  # nothing is played ahead in the last ones
    return (ends[measured] - ends[0]) / measured


def main() -> None:
    rows = []
    for rollout, update in SECONDS:
        alone = 0.0
        for staleness in (0, 1, 2):
            predicted = rollout + update if staleness == 0 else max(rollout, update)
            seen = seconds_of_a_step(rollout, update, staleness)
            alone = alone or seen
            rows.append(
                {
                    "rollout": rollout,
                    "update": update,
                    "staleness": staleness,
                    "predicted": round(predicted, 3),
                    "seconds": round(seen, 3),
                    "ratio": round(seen / predicted, 3),
                    "speedup": round(alone / seen, 2),
                }
            )
            print(*(f"{name} {value}" for name, value in rows[-1].items()), sep="  ", flush=True)
    path = Path(__file__).parent / "results" / "play_ahead.json"
    record = {"benchmark": "play_ahead", "steps": STEPS, "batches": BATCHES, "table": rows}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
