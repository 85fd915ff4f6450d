"""A run whose device is too small at times goes on with the same result."""

import dataclasses
import math

import pytest
import torch
from tests.cases import also

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.errors import OutOfMemoryError
from astra_rl.ext.transformers import HFValueProblem
from astra_rl.testing import letter_game

OPTIONS = {
    "ppo_lagrangian": {"constraints": {"harm_response": {"at_least": 0.9}}},
    "kto": {"threshold": None},  # of an untrained attacker all attacks are of one class by 0.5
}


class Short:
    """An algorithm on a device with room for a share of the rows of its first batch."""

    def __init__(self, algorithm, share, *, backward):
        self.algorithm, self.step = algorithm, algorithm.step
        self.share, self.backward = share, backward
        self.most = None
        self.failures = 0

    def __call__(self, batch):
        if self.most is None:
            self.most = self.share * len(batch.contexts)
        if len(batch.contexts) <= self.most:
            return self.step(batch)
        self.failures += 1
        if not self.backward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        # The embeddings get their gradient last: by then most others have been added.
        first = next(self.algorithm.problem.parameters())

        def fail(gradient):
            handle.remove()
            raise torch.OutOfMemoryError("CUDA out of memory")

        handle = first.register_hook(fail)
        return self.step(batch)


class Recording(Trainer):
    def on_step_end(self, step, logs):
        self.logs = logs


def trained(name, share=None, *, backward=False):
    """One update, on a device with room for a share of its rows."""
    options = OPTIONS.get(name, {})
    count = ALGORITHMS[name].values_needed(**options)
    values = {"kind": HFValueProblem, "value_count": count} if count else {}
    torch.manual_seed(0)
    environment = letter_game(**values)
    algorithm = ALGORITHMS[name](environment.problem, **options)
    short = None
    if share is not None:
        short = algorithm.step = Short(algorithm, share, backward=backward)
    config = TrainingConfiguration(
        # Plain gradients: Adam makes a step of any length out of a rounding error.
        lr=0.1,
        optimizer="sgd",
        batch_size=64,
        gradient_accumulation_steps=2,
        training_steps=1,
        num_episodes_per_experience=6,
        seed=0,
        max_grad_norm=None,
    )
    trainer = Recording(config, environment, algorithm)
    trainer.train()
    return trainer, short


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backward"),
    [
        ("grpo", False),  # a mean over tokens
        ("reinforce", True),  # a mean over attacks
        also("ppo_lagrangian", True),  # with value functions
        ("dpo", True),
        also("kto", True),
        also("trajectory_balance", True),
        ("contrastive_balance", True),  # a mean over pairs of a group
        also("expert_iteration", True),
    ],
)
def test_an_update_that_runs_out_of_memory_goes_on_in_halves_to_the_same_weights(name, backward):
    whole, _ = trained(name)
    halved, short = trained(name, share=0.7, backward=backward)
    assert short.failures
    for ours, theirs in zip(
        halved.algorithm.problem.parameters(), whole.algorithm.problem.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert halved.logs.keys() == whole.logs.keys()
    assert math.isclose(halved.logs["loss"], whole.logs["loss"], rel_tol=1e-3, abs_tol=1e-5)


@pytest.mark.slow
def test_a_batch_of_one_that_does_not_fit_ends_the_training_with_a_named_error():
    with pytest.raises(OutOfMemoryError, match="out of memory in an update"):
        trained("grpo", share=0)


def test_a_batch_of_another_kind_is_not_cut_and_the_error_says_what_helps():
    @dataclasses.dataclass
    class Odd:
        contexts: list
        words: list  # not one per row

    algorithm = ALGORITHMS["reinforce"](letter_game().problem)
    assert algorithm.halves(Odd(["a", "b"], ["x"])) is None
    assert algorithm.halves({"contexts": ["a", "b"]}) is None


def test_groups_that_are_compared_are_not_torn_apart():
    trainer, _ = trained("contrastive_balance")
    (batch, *_) = trainer.harness.experience(1)
    first, second = trainer.algorithm.halves(batch)
    assert not set(first.groups.tolist()) & set(second.groups.tolist())
    assert first.attacks + second.attacks == batch.attacks
    assert len(set(batch.groups.tolist())) > 2
    while halves := trainer.algorithm.halves(batch):
        batch = halves[0]
    assert len(set(batch.groups.tolist())) == 1
