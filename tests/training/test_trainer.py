import copy
import logging
import math
from itertools import chain
from pathlib import Path

import pytest
import torch

from astra_rl import (
    DPO,
    GRPO,
    Algorithm,
    ConfigurationError,
    ContractError,
    Environment,
    Graph,
    Node,
    NonFiniteLossError,
    Trainer,
    TrainingConfiguration,
    TrainingError,
)
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem, graph_signature
from astra_rl.training.trainer import mean_metrics


class Numbers(Environment):
    """Each episode is one turn whose reward is its own number: 0, 1, 2, ..."""

    def rollout(self, seed=None):
        return Graph("c", [Node("c", "a", "r", float(seed))])

    def rollouts(self, seeds):
        return [self.rollout(index) for index in range(len(seeds))]


class Fit(Algorithm):
    """Fits the first weight to the rewards: the mean squared distance."""

    def __init__(self, problem):
        super().__init__(problem)
        self.batches = []

    def flatten(self, graph):
        return [node.reward for node in graph.nodes()]

    def collate_fn(self, steps):
        return list(steps)

    def step(self, batch):
        self.batches.append(batch)
        loss = ((self.problem.attacker[0] - torch.tensor(batch)) ** 2).mean()
        return loss, {"loss": loss.item()}


def trainer_of(algorithm=Fit, kind=Trainer, **settings):
    defaults = {
        "lr": 0.1,
        "batch_size": 2,
        "optimizer": "sgd",
        "training_steps": 1,
        "num_episodes_per_experience": 7,
        "max_grad_norm": None,
        "seed": 0,
    }
    problem = ToyProblem()
    return kind(
        TrainingConfiguration(**{**defaults, **settings}), Numbers(problem), algorithm(problem)
    )


def first_weight(trainer):
    return trainer.algorithm.problem.attacker[0].item()


def counting_steps(trainer):
    calls = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *arguments: (calls.append(1), step(*arguments))
    return calls


def test_the_configured_batch_size_reaches_the_algorithm():
    for size, sizes in ((2, [2, 2, 2, 1]), (16, [7]), (7, [7])):
        trainer = trainer_of(batch_size=size)
        trainer.train()
        assert [len(batch) for batch in trainer.algorithm.batches] == sizes


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_no_micro_batch_is_lost_and_a_short_last_group_makes_a_step(accumulation, updates):
    trainer = trainer_of(gradient_accumulation_steps=accumulation)
    calls = counting_steps(trainer)
    trainer.train()
    assert len(calls) == updates
    assert sorted(chain.from_iterable(trainer.algorithm.batches)) == list(map(float, range(7)))


@pytest.mark.parametrize(("size", "accumulation"), [(1, 7), (2, 4), (3, 3), (3, 100), (6, 2)])
def test_micro_batches_make_the_same_update_as_one_big_batch(size, accumulation):
    """Rows 0..6, weight w, rate 0.1: w - 0.1 * 2 * (w - 3), however they are cut."""
    trainer = trainer_of(batch_size=size, gradient_accumulation_steps=accumulation)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) == pytest.approx(before - 0.2 * (before - 3), rel=1e-6)


def test_each_short_group_is_scaled_by_its_own_size():
    """Two updates: the mean of the first four rows, then the mean of the last three."""
    trainer = trainer_of(gradient_accumulation_steps=2)
    weight = first_weight(trainer)
    trainer.train()
    rows = list(chain.from_iterable(trainer.algorithm.batches))
    for group in (rows[:4], rows[4:]):
        weight -= 0.2 * (weight - sum(group) / len(group))
    assert first_weight(trainer) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("make", [DPO, GRPO, lambda problem: GRPO(problem, kl_in_loss=0.2)])
def test_accumulating_algorithms_of_the_library_equals_one_big_batch(make):
    def weights(size, accumulation):
        problem = ToyProblem()
        config = TrainingConfiguration(
            lr=0.5,
            optimizer="sgd",
            batch_size=size,
            gradient_accumulation_steps=accumulation,
            training_steps=1,
            num_episodes_per_experience=5,
            max_grad_norm=None,
            seed=3,
        )
        environment = ASTEnvironment(problem, ["one"], tree_width=3, tree_depth=2)
        Trainer(config, environment, make(problem)).train()
        return problem.attacker.detach()

    whole = weights(1000, 1)
    assert not torch.equal(whole, ToyProblem().attacker)
    torch.testing.assert_close(weights(4, 1000), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(7, 1000), whole, rtol=1e-5, atol=1e-6)


def test_the_base_trainer_neither_saves_nor_logs_nor_evaluates(
    tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.DEBUG):
        trainer_of(training_steps=3).train()
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


def test_training_steps_are_experiences():
    class Counting(Numbers):
        experiences = 0

        def rollouts(self, seeds):
            type(self).experiences += 1
            assert len(seeds) == 3
            return super().rollouts(seeds)

    problem = ToyProblem()
    config = TrainingConfiguration(training_steps=5, num_episodes_per_experience=3)
    Trainer(config, Counting(problem), Fit(problem)).train()
    assert Counting.experiences == 5


class Hooked(Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.events = []

    def on_train_begin(self):
        self.events.append("begin")

    def on_step_end(self, step, logs):
        self.events.append((step, sorted(logs)))
        self.should_stop = step == 2

    def on_train_end(self):
        self.events.append("end")


def test_hooks_are_called_and_may_stop_the_training():
    trainer = trainer_of(kind=Hooked, training_steps=9)
    trainer.train()
    keys = ["grad_norm", "loss", "skipped_updates"]
    assert trainer.events == ["begin", (1, keys), (2, keys), "end"]
    assert trainer.completed_steps == 2


def test_no_training_steps_change_nothing():
    trainer = trainer_of(kind=Hooked, training_steps=0)
    before = first_weight(trainer)
    trainer.train()
    assert trainer.events == ["begin", "end"]
    assert first_weight(trainer) == before


def test_a_subclass_may_override_train_wholly():
    class Own(Trainer):
        def train(self):
            for batch in self.harness.experience():
                loss, step_logs = self.harness.step(batch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.seen = step_logs

    trainer = trainer_of(kind=Own)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) != before
    assert trainer.seen["loss"] > 0


def test_logs_are_means_over_the_batches():
    trainer = trainer_of(kind=Hooked, lr=1e-9)
    trainer.on_step_end = lambda step, logs: trainer.events.append(logs["loss"])
    trainer.train()
    weight = first_weight(trainer)
    losses = [
        sum((weight - row) ** 2 for row in batch) / len(batch)
        for batch in trainer.algorithm.batches
    ]
    assert trainer.events[1] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("logs", [None, {}])
def test_an_algorithm_may_have_nothing_to_log(logs):
    class Silent(Fit):
        def step(self, batch):
            return super().step(batch)[0], logs

    trainer = trainer_of(Silent, kind=Hooked)
    trainer.train()
    assert trainer.events[1] == (1, ["grad_norm", "skipped_updates"])


def test_the_logs_of_an_algorithm_are_not_written_into():
    shared = {"constant": 1.0}

    class Same(Fit):
        def step(self, batch):
            return super().step(batch)[0], shared

    trainer_of(Same).train()
    assert shared == {"constant": 1.0}


def test_mean_metrics_take_each_over_the_mappings_that_have_it():
    assert mean_metrics([{"a": 1.0}, {"a": 2.0, "b": 5.0}]) == {"a": 1.5, "b": 5.0}
    assert mean_metrics([]) == {}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_every_optimizer_trains(name):
    trainer = trainer_of(optimizer=name, training_steps=20, lr=0.05)
    assert type(trainer.optimizer).__name__.lower() == name
    before = abs(first_weight(trainer) - 3)
    trainer.train()
    assert abs(first_weight(trainer) - 3) < before


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_no_optimizer_decays_weights_that_the_loss_does_not_ask_for(name):
    trainer = trainer_of(optimizer=name, training_steps=5)
    before = trainer.algorithm.problem.attacker[1:].clone()
    trainer.train()
    torch.testing.assert_close(trainer.algorithm.problem.attacker[1:], before, rtol=0, atol=0)


def test_gradients_longer_than_the_limit_are_scaled_to_it():
    trainer = trainer_of(max_grad_norm=0.5, batch_size=7)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) - before == pytest.approx(0.1 * 0.5, rel=1e-4)


@pytest.mark.slow
def test_a_seed_fixes_the_whole_training_and_zero_is_a_seed():
    def weights(seed):
        problem = ToyProblem()
        config = TrainingConfiguration(lr=0.1, training_steps=4, seed=seed, batch_size=3)
        Trainer(config, ASTEnvironment(problem, ["one", "two"]), GRPO(problem)).train()
        return problem.attacker.tolist()

    assert weights(0) == weights(0)
    assert weights(0) != weights(1)
    assert weights(None) != weights(None)


def test_the_episodes_of_different_steps_differ():
    problem = ToyProblem()
    config = TrainingConfiguration(training_steps=3, seed=0)
    seen = []

    class Watching(Trainer):
        def on_step_end(self, step, logs):
            seen.append(str([graph_signature(graph) for graph in self.harness.graphs]))

    Watching(config, ASTEnvironment(problem, ["one"]), GRPO(problem)).train()
    assert len(set(seen)) == 3


@pytest.mark.slow
def test_nothing_but_the_attacker_is_trained_or_gets_a_gradient():
    problem = ToyProblem()
    problem.baseline.requires_grad_(True)
    problem.target.requires_grad_(True)
    frozen = problem.baseline.detach().clone()
    config = TrainingConfiguration(lr=0.1, training_steps=3, seed=0)
    for make in (DPO, lambda p: GRPO(p, kl_in_loss=0.1)):
        Trainer(config, ASTEnvironment(problem, ["one"]), make(problem)).train()
        assert problem.baseline.grad is None
        assert problem.target.grad is None
        assert torch.equal(problem.baseline, frozen)


class Bad(Fit):
    """Its loss is not finite in the first `bad` optimizer steps."""

    bad = 2

    def step(self, batch):
        loss, logs = super().step(batch)
        if len(self.batches) <= self.bad:
            loss = loss * math.nan
        return loss, logs


def test_an_update_that_is_not_finite_is_skipped_and_counted_with_a_warning(caplog):
    skipped = []

    class Watching(Trainer):
        def on_step_end(self, step, logs):
            skipped.append(logs["skipped_updates"])

    trainer = trainer_of(Bad, kind=Watching, batch_size=7, training_steps=2)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) == before
    assert len(caplog.records) == 2
    assert "training step 1: the loss or a gradient is not finite" in caplog.text
    trainer = trainer_of(Bad, kind=Watching, batch_size=7, training_steps=3)
    trainer.train()
    assert first_weight(trainer) != before
    assert skipped == [1, 1, 1, 1, 0]


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    class Steep(Fit):
        def step(self, batch):
            # the derivative of sqrt at 0 is infinite
            return (self.problem.attacker[0].detach() - self.problem.attacker[0]).abs().sqrt(), {}

    trainer = trainer_of(Steep, batch_size=7)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) == before


class AllBad(Bad):
    bad = 10**9


@pytest.mark.parametrize("most", [1, 3, 5])
def test_too_many_bad_steps_in_a_row_end_the_training_with_an_error_that_names_the_step(most):
    trainer = trainer_of(AllBad, batch_size=7, training_steps=100, max_nonfinite_losses=most)
    before = first_weight(trainer)
    message = rf"no finite loss in {most} consecutive .* up to training step {most}\."
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        trainer.train()
    assert caught.value.step == most
    assert isinstance(caught.value, TrainingError)
    assert copy.copy(caught.value).step == most
    assert first_weight(trainer) == before
    assert trainer.completed_steps == most - 1


def test_a_trainer_is_told_when_its_training_fails():
    told = []

    class Told(Trainer):
        def on_train_failed(self):
            told.append(self.completed_steps)

        def on_train_end(self):
            told.append("end")

    with pytest.raises(NonFiniteLossError):
        trainer_of(AllBad, kind=Told, batch_size=7, training_steps=100).train()
    assert told == [2]


def test_bad_steps_that_are_not_in_a_row_do_not_end_it():
    class EveryOther(Fit):
        def step(self, batch):
            loss, logs = super().step(batch)
            return loss * (math.nan if len(self.batches) % 2 else 1.0), logs

    trainer_of(EveryOther, batch_size=7, training_steps=20).train()


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros(2, requires_grad=True)])
def test_a_loss_that_cannot_be_trained_on_names_the_algorithm(loss):
    class Wrong(Fit):
        def step(self, batch):
            return loss, {}

    with pytest.raises(ContractError, match=r"Wrong\.step returned a loss"):
        trainer_of(Wrong).train()


def test_a_problem_with_nothing_to_train_is_refused():
    problem = ToyProblem()
    problem.attacker.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"ToyProblem\.parameters\(\) yields nothing"):
        Trainer(TrainingConfiguration(), Numbers(problem), Fit(problem))


def test_batches_that_weigh_nothing_do_no_harm():
    class Weightless(Fit):
        def weight(self, batch):
            return 0.0

    trainer = trainer_of(Weightless)
    before = first_weight(trainer)
    trainer.train()
    assert first_weight(trainer) == before


def test_a_learning_rate_schedule_may_be_built_on_the_optimizer():
    class Scheduled(Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, lambda step: 1.0 if step == 0 else 0.0
            )

        def on_step_end(self, step, logs):
            self.scheduler.step()

    once, many = trainer_of(kind=Scheduled), trainer_of(kind=Scheduled, training_steps=5)
    once.train()
    many.train()
    assert first_weight(once) == first_weight(many)


def test_the_trainer_names_its_parts():
    trainer = trainer_of()
    assert trainer.harness.environment is trainer.environment
    assert trainer.harness.algorithm is trainer.algorithm
    assert trainer.config.training_steps == 1
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    assert not Path("checkpoints").exists()
