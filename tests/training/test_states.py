"""A training that was interrupted goes on to the bit, and damage is noticed."""

import contextlib
import copy
import json
import math
import os
import random
import shutil
from functools import partial
from itertools import product

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cases import cases

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.errors import NonFiniteLossError, StorageError, TrainingError, UnscoredError
from astra_rl.ext.transformers import HFValueProblem
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards import EmbeddingNovelty, Harm, SelfBLEU, WeightedSum
from astra_rl.testing import graph_signature, letter_game
from astra_rl.training.config import OPTIMIZERS
from astra_rl.training.states import load_state, save_state, states

OPTIONS = {
    "a2c": {"alpha": 0.01},
    "dr_grpo": {"max_tokens": 4},
    "expert_iteration": {"untrained_share": 0.5, "tempered_share": 0.5, "rehearse": 4},
    "kto": {"threshold": None},
    "ppo": {"kl_in_reward": 0.01, "kl_target": 8.0},
    "ppo_lagrangian": {"constraints": {"harm_response": {"at_least": 0.9}}},
    "reinforce": {"kl_in_reward": 0.01},
    "trajectory_balance": {"tempered_share": 0.5},
    "warm_start": {"attacks": ["xx", "yy", "xyx"]},
}


ONE_OF_EACH_STATE = (
    "a2c",
    "contrastive_balance",
    "dpo",
    "expert_iteration",
    "grpo",
    "kto",
    "ppo",
    "ppo_lagrangian",
    "reinforce",
    "trajectory_balance",
    "warm_start",
)
"""The others are forms of these that keep the same things."""


class Recording(Trainer):
    """Keeps every loss and every word."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def on_step_end(self, step, logs):
        episodes = [graph_signature(graph) for graph in self.harness.graphs]
        self.seen.append((step, dict(logs), episodes, self.harness.experience_metrics()))


def trainer_of(name, steps=6, **options):
    kind = partial(ALGORITHMS[name], **OPTIONS.get(name, {}))
    count = ALGORITHMS[name].values_needed(**OPTIONS.get(name, {}))
    values = {"kind": HFValueProblem, "value_count": count} if count else {}
    novel = {Harm("response"): 1.0, SelfBLEU(): 0.1, EmbeddingNovelty(): 0.1}
    torch.manual_seed(0)  # adapters begin at random
    environment = letter_game(**{"reward": WeightedSum(novel), **values, **options})
    config = TrainingConfiguration(
        lr=5e-3,
        optimizer="adam",
        batch_size=16,
        training_steps=steps,
        num_episodes_per_experience=4,
        seed=0,
    )
    return Recording(config, environment, kind(environment.problem))


def same(a, b):
    """Equal to the bit, NaN included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "steps"), cases([(2, 4), (1, 6), (4, 6)], by_default=[(2, 4)]))
@pytest.mark.parametrize("name", cases(ALGORITHMS, by_default=ONE_OF_EACH_STATE))
def test_every_algorithm_goes_on_to_the_bit(name, at, steps, tmp_path):
    whole = trainer_of(name, steps)
    whole.train()
    first = trainer_of(name, steps=at)
    first.train()
    save_state(tmp_path, at, first.state_dict())
    second = trainer_of(name, steps)
    torch.rand(3)  # the state of the process must not matter
    step, state = load_state(tmp_path)
    assert step == at
    second.load_state_dict(state)
    second.train()
    assert same(first.seen + second.seen, whole.seen)
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"lora": LoraOptions(rank=2)}])
def test_half_precision_and_adapters_go_on_to_the_bit(options, tmp_path):
    whole = trainer_of("grpo", **options)
    whole.train()
    first = trainer_of("grpo", steps=3, **options)
    first.train()
    save_state(tmp_path, 3, first.state_dict())
    second = trainer_of("grpo", **options)
    second.load_state_dict(load_state(tmp_path)[1])
    second.train()
    assert same(first.seen + second.seen, whole.seen)
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("then", "now"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_state_of_another_dtype_is_converted(then, now, tmp_path):
    """``dtype: auto`` resolves to another dtype on another machine."""
    first = trainer_of("grpo", steps=2, dtype=then)
    first.train()
    save_state(tmp_path, 2, first.state_dict())
    second = trainer_of("grpo", steps=3, dtype=now)
    second.load_state_dict(load_state(tmp_path)[1])

    def exact(trainer):
        masters = getattr(trainer.optimizer, "masters", None)
        return masters or [p for p in trainer.algorithm.problem.parameters() if p.requires_grad]

    for old, new in zip(exact(first), exact(second), strict=True):
        assert torch.equal(old.float(), new.float())
    moments = [trainer.optimizer.state_dict() for trainer in (first, second)]
    old, new = ({**each, **each.get("inner", {})}["state"] for each in moments)
    assert same(old, new)
    second.train()


@pytest.mark.parametrize("now", ["sgd", "rmsprop", "adagrad"])
def test_a_state_of_another_optimizer_is_refused_by_name(now, tmp_path):
    first = trainer_of("grpo", steps=1)
    first.train()
    save_state(tmp_path, 1, first.state_dict())
    second = trainer_of("grpo")
    second.optimizer = OPTIMIZERS[now](second.algorithm.problem.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=f"another optimizer, .*betas.*(?i:{now})"):
        second.load_state_dict(load_state(tmp_path)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("now", "then"),
    cases(
        product(
            ["reinforce", "trajectory_balance", "ppo_lagrangian"],
            ["grpo", "dpo", "warm_start", "trajectory_balance"],
        ),
        by_default={
            ("reinforce", "grpo"),
            ("reinforce", "trajectory_balance"),
            ("trajectory_balance", "dpo"),
            ("trajectory_balance", "warm_start"),
            ("ppo_lagrangian", "grpo"),
        },
    ),
)
def test_a_state_of_another_algorithm_is_used_or_refused_by_name(then, now, tmp_path):
    """Never another error than this one: whether it can be used depends on the two."""
    first = trainer_of(then, steps=1)
    first.train()
    save_state(tmp_path, 1, first.state_dict())
    second = trainer_of(now, steps=2)
    with contextlib.suppress(TrainingError):
        second.load_state_dict(load_state(tmp_path)[1])
        second.train()
        return
    names = type(first.algorithm).__name__, type(second.algorithm).__name__
    with pytest.raises(TrainingError, match=rf"algorithm \({names[0]}\).*{names[1]}|other shapes"):
        second.load_state_dict(load_state(tmp_path)[1])


class DrawingFromEverywhere(Harm):
    """A reward of somebody who draws from the generators that all share."""

    def evaluate(self, models, exchanges):
        draws = [torch.rand(1).item, random.random, numpy.random.rand]
        values = [draws[row % 3]() for row in range(len(exchanges))]
        return values, [{"draw": value} for value in values]


@pytest.mark.slow
def test_what_draws_from_global_generators_goes_on_to_the_bit(tmp_path):
    def trainer(steps):
        for seed in (torch.manual_seed, random.seed, numpy.random.seed):
            seed(steps)
        return trainer_of("grpo", steps, reward=DrawingFromEverywhere("response"))

    first = trainer(3)
    first.train()
    save_state(tmp_path, 3, first.state_dict())
    first.config.training_steps = 6
    first.train()
    second = trainer(6)
    second.load_state_dict(load_state(tmp_path)[1])
    second.train()
    assert same(second.seen, first.seen[3:])
    assert same(second.state_dict(), first.state_dict())


class Decaying(Recording):
    """Changes the learning rate after each step, as a scheduler does."""

    def on_step_end(self, step, logs):
        super().on_step_end(step, logs)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5


@pytest.mark.slow
def test_a_learning_rate_that_a_scheduler_set_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "Recording", Decaying)
    first = trainer_of("grpo", steps=2)
    first.train()
    save_state(tmp_path, 2, first.state_dict())
    second = trainer_of("grpo", steps=2)
    second.load_state_dict(load_state(tmp_path)[1])
    assert second.optimizer.param_groups[0]["lr"] == 5e-3 / 4


def scoring(*values):
    """Return a reward that gives these to all exchanges of a step, one step after the other."""
    left = list(values)

    class Scores(Harm):
        def evaluate(self, models, exchanges):
            return [left[0]] * len(exchanges), [{} for _ in exchanges]

        def observe(self, models, graphs):
            left.pop(0)

    return Scores("response")


def gone_on_with_after(step, error, values, folder):
    """Train until the error; the same with a break. Return the steps that both did."""
    done = []
    for break_at in (None, step):
        reward = scoring(*values)
        trainer = trainer_of("grpo", steps=step if break_at else 99, reward=reward)
        if break_at:
            trainer.train()
            save_state(folder, step, trainer.state_dict())
            trainer = trainer_of("grpo", steps=99, reward=reward)
            trainer.load_state_dict(load_state(folder)[1])
        with pytest.raises(error):
            trainer.train()
        done.append(trainer.completed_steps)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_steps_without_a_reward_are_counted_on(tmp_path, step):
    values = [0.5, 0.5, *[math.nan] * 20]
    whole, broken = gone_on_with_after(step, UnscoredError, values, tmp_path)
    assert whole == broken == 7


@pytest.mark.slow
def test_a_training_that_ended_without_rewards_is_given_as_many_steps_again(tmp_path):
    trainer = trainer_of("grpo", steps=99, reward=scoring(*[math.nan] * 5))
    with pytest.raises(UnscoredError):
        trainer.train()
    save_state(tmp_path, 5, trainer.state_dict())
    values = [math.nan, *[0.5] * 3]
    again = trainer_of("grpo", steps=9, reward=scoring(*values))
    again.load_state_dict(load_state(tmp_path)[1])
    again.train()
    assert again.completed_steps == 9


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
def test_losses_that_are_not_finite_are_counted_on(tmp_path, step, monkeypatch):
    monkeypatch.setattr(
        "astra_rl.algorithms.grpo.GRPO.step", lambda self, batch: (nowhere(self), {})
    )
    values = [0.1, 0.2] * 99
    whole, broken = gone_on_with_after(step, NonFiniteLossError, values, tmp_path)
    assert whole == broken == 2


def nowhere(algorithm):
    return next(iter(algorithm.problem.parameters())).sum() * math.nan


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_whatever_a_state_holds_is_read_back_with_its_types(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    state = {**state, "tensors": [torch.rand(2, 3).t(), torch.tensor(True), torch.zeros(0)]}
    save_state(folder, 7, state)
    step, back = load_state(folder)
    assert step == 7
    assert same(back, state)


def test_the_newest_two_states_are_kept(tmp_path):
    for step in (2, 9, 10, 30):
        save_state(tmp_path, step, {"step": step})
    assert [place.name for place in states(tmp_path)] == ["step-00000010", "step-00000030"]
    assert load_state(tmp_path) == (30, {"step": 30})
    assert load_state(tmp_path / "nothing") is None


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_state_is_noticed_and_the_one_before_it_taken(tmp_path, caplog, file, tenth):
    for step in (1, 2):
        save_state(tmp_path, step, {"weights": torch.full((50,), float(step))})
    path = tmp_path / "step-00000002" / file
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * tenth // 10])
    step, state = load_state(tmp_path)
    assert step == 1
    assert torch.equal(state["weights"], torch.ones(50))
    assert "damaged" in caplog.text


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path, file):
    save_state(tmp_path, 1, {"weights": torch.ones(50)})
    path = tmp_path / "step-00000001" / file
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 40)):
        damaged = bytearray(data)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="none of the 1 states"):
            load_state(tmp_path)


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_missing_file_is_noticed(tmp_path, file):
    for step in (1, 2):
        save_state(tmp_path, step, {"a": step})
    (tmp_path / "step-00000002" / file).unlink()
    assert load_state(tmp_path) == (1, {"a": 1})


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_states_take_no_place_of_good_ones(tmp_path, keep):
    for step in (2, 4):
        save_state(tmp_path, step, {"step": step})
    (tmp_path / "step-00000004" / "state.json").write_text("")
    assert load_state(tmp_path) == (2, {"step": 2})
    save_state(tmp_path, 3, {"step": 3}, keep=keep)
    kept = ["step-00000002", "step-00000003"]
    assert [place.name for place in states(tmp_path)] == kept[-keep:]
    assert load_state(tmp_path) == (3, {"step": 3})


def test_a_state_of_a_newer_version_is_refused_and_not_taken_for_damaged(tmp_path):
    import hashlib

    save_state(tmp_path, 1, {"a": 1})
    path = tmp_path / "step-00000001" / "state.json"
    body = json.loads(path.read_text().split("\n", 1)[1]) | {"schema_version": 99}
    text = json.dumps(body)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    with pytest.raises(TrainingError, match="newer version"):
        load_state(tmp_path)


def test_a_full_disk_is_an_error_and_loses_nothing_earlier(tmp_path, monkeypatch):
    save_state(tmp_path, 1, {"a": 1})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("astra_rl.training.states.save_file", full)
    with pytest.raises(StorageError, match=r"step-00000002: No space left on device.*intact"):
        save_state(tmp_path, 2, {"a": 2})
    assert [place.name for place in states(tmp_path)] == ["step-00000001"]
    assert load_state(tmp_path) == (1, {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_an_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="step-00000001: Permission denied"):
        save_state(tmp_path, 1, {})


def test_what_a_state_cannot_hold_is_named():
    with pytest.raises(TypeError, match="cannot hold object"):
        save_state("nowhere", 1, {"a": object()})


def test_a_state_of_another_model_is_refused(tmp_path):
    trainer = trainer_of("grpo", steps=1)
    trainer.train()
    state = copy.deepcopy(trainer.state_dict())
    state["weights"] = state["weights"][1:]
    with pytest.raises(TrainingError, match="another model"):
        trainer_of("grpo").load_state_dict(state)


def test_no_pickle_is_ever_read(tmp_path):
    """A planted one does nothing but make the state damaged."""
    save_state(tmp_path, 1, {"a": torch.ones(2)})

    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save(Planted(), tmp_path / "step-00000001" / "tensors.safetensors")
    with pytest.raises(TrainingError, match="none of the 1 states"):
        load_state(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_numbers_that_are_not_finite_survive(tmp_path):
    save_state(tmp_path, 1, {"best": -math.inf, "mean": math.nan})
    _, state = load_state(tmp_path)
    assert state["best"] == -math.inf
    assert math.isnan(state["mean"])
    shutil.rmtree(tmp_path / "step-00000001")
    assert load_state(tmp_path) is None
