"""What each algorithm makes of a toy in three steps, against what it made of it before.

Losses are those of three training steps, logits those of the toy's attacker after them. A change on
purpose is written down with ``python tests/algorithms/test_snapshots.py``.
"""

import json
from pathlib import Path

import pytest

from astra_rl import ASTEnvironment, Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.testing import ScriptedModerator, ToyValueProblem

FILE = Path(__file__).parent.parent / "data/algorithm_snapshots.json"
OPTIONS = {
    "kto": {"threshold": None},
    "ppo_lagrangian": {"constraints": {"length": {"at_least": 9.0}}},
    "warm_start": {"attacks": [" boom", " boom calm", " tree"]},
}


class Problem(ToyValueProblem):
    """Graded rewards, and a term that may be bounded."""

    def reward_terms(self, contexts, attacks, responses):
        lengths = [{"length": float(len(attack))} for attack in attacks]
        return self.reward(contexts, attacks, responses), lengths


def played(name):
    """Losses of three steps and the logits after them."""
    options = OPTIONS.get(name, {})
    count = ALGORITHMS[name].values_needed(**options) or 1
    moderator = ScriptedModerator({"boom": 0.9, "tree": 0.4}, default=0.1)
    problem = Problem(count, moderator=moderator)
    losses = []

    class Recording(Trainer):
        def on_step_end(self, step, logs):
            losses.append(logs["loss"])

    config = TrainingConfiguration(
        lr=0.1,
        optimizer="sgd",
        batch_size=6,
        gradient_accumulation_steps=2,
        training_steps=3,
        num_episodes_per_experience=4,
        seed=0,
    )
    environment = ASTEnvironment(problem, ["one", "two"], tree_width=3, tree_depth=2)
    Recording(config, environment, ALGORITHMS[name](problem, **options)).train()
    return {"losses": losses, "logits": problem.attacker.tolist()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_three_steps_are_those_of_the_snapshot(name):
    known = json.loads(FILE.read_text())[name]
    found = played(name)
    assert found["losses"] == pytest.approx(known["losses"], rel=1e-4, abs=1e-6)
    assert found["logits"] == pytest.approx(known["logits"], rel=1e-4, abs=1e-6)


def test_the_snapshots_are_those_of_the_algorithms_there_are_and_differ():
    known = json.loads(FILE.read_text())
    assert set(known) == set(ALGORITHMS)
    logits = [tuple(each["logits"]) for each in known.values()]
    assert len(set(logits)) >= len(logits) - 1  # a form of another may agree on a toy


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: played(name) for name in ALGORITHMS}, indent=1) + "\n")
