"""Memory of updates: a limit of tokens for a backward pass, and a warning before the first."""

import logging

import pytest
import torch
from tests.cases import also
from torch.optim import SGD, AdamW

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import ALGORITHMS
from astra_rl.core import device_memory
from astra_rl.core.token_limit import TooManyTokens, at_most_tokens, count_tokens
from astra_rl.ext.transformers import HFValueProblem
from astra_rl.models import forward, memory
from astra_rl.testing import letter_game
from astra_rl.training import memory_warning
from astra_rl.training.memory_warning import state_bytes


class Idle(Trainer):
    """Ends before it plays."""

    def on_train_begin(self):
        self.should_stop = True


def trained(name, monkeypatch, tokens=None):
    """Return the weights after one update, and the tokens of its forward passes with gradients."""
    count = ALGORITHMS[name].values_needed()
    values = {"kind": HFValueProblem, "value_count": count} if count else {}
    torch.manual_seed(0)
    environment = letter_game(**values)
    passes = []
    run = forward.forward_levels

    def counted(model, levels, **options):
        if torch.is_grad_enabled():
            passes.append(sum(len(each.segments) * each.width for each in levels))
        return run(model, levels, **options)

    config = TrainingConfiguration(
        lr=0.1,
        optimizer="sgd",
        batch_size=64,
        training_steps=1,
        num_episodes_per_experience=6,
        seed=0,
        max_grad_norm=None,
        micro_batch_tokens=tokens,
    )
    trainer = Trainer(config, environment, ALGORITHMS[name](environment.problem))
    with monkeypatch.context() as patch:
        patch.setattr(forward, "forward_levels", counted)
        trainer.train()
    return list(environment.problem.parameters()), passes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", also("dpo"), also("ppo"), also("reinforce")])
def test_a_backward_pass_has_at_most_the_tokens_of_the_limit_and_the_weights_are_those_without(
    name, monkeypatch
):
    whole, passes = trained(name, monkeypatch)
    limit = max(passes) // 2
    parts, shorter = trained(name, monkeypatch, tokens=limit)
    assert len(shorter) > len(passes)
    assert max(shorter) <= limit
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_cannot_be_split_is_computed_whole(monkeypatch):
    _, passes = trained("reinforce", monkeypatch, tokens=1)
    assert len(passes) > 1


def test_tokens_are_counted_over_the_forward_passes_of_a_batch():
    with at_most_tokens(10):
        count_tokens(6, lambda: 0)
        with pytest.raises(TooManyTokens):
            count_tokens(5, lambda: 100)
    with at_most_tokens(None), pytest.raises(TooManyTokens):
        count_tokens(5, lambda: 4)
    with at_most_tokens(1), torch.no_grad():
        count_tokens(5, lambda: 1)
    count_tokens(5, lambda: 1)  # nobody would split the batch


@pytest.mark.parametrize(("free", "warned"), [(1000, True), (10**12, False), (None, False)])
def test_an_update_that_will_not_fit_is_warned_of_before_it_is_tried(
    free, warned, monkeypatch, caplog
):
    monkeypatch.setattr(memory_warning, "free_bytes", lambda device: free)
    environment = letter_game()
    config = TrainingConfiguration(training_steps=1)
    trainer = Idle(config, environment, ALGORITHMS["reinforce"](environment.problem))
    with caplog.at_level(logging.WARNING, logger="astra_rl"):
        trainer.train()
    found = [each for each in caplog.messages if "the first update needs about" in each]
    assert bool(found) == warned
    assert all("training.micro_batch_tokens" in each for each in found)


@pytest.mark.parametrize(("kind", "numbers"), [(AdamW, 3), (SGD, 1)])
def test_gradients_and_states_of_an_optimizer_are_counted_until_they_exist(kind, numbers):
    weights = [torch.nn.Parameter(torch.ones(1000)), torch.nn.Parameter(torch.ones(10))]
    optimizer = kind(weights, lr=0.1)
    assert state_bytes(optimizer, weights) == numbers * 4 * 1010
    for each in weights:
        each.grad = torch.ones_like(each)
    optimizer.step()
    assert state_bytes(optimizer, weights) == 0


def test_the_limit_follows_the_memory_of_the_device(monkeypatch):
    environment = letter_game()
    model = environment.problem.attacker
    each = memory.activation_bytes(model.config)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 8 * 5000 * each)
    assert memory.backward_tokens(model) == 5000
    assert environment.problem.activation_bytes(None) == 5000 * each
    assert environment.problem.activation_bytes(70) == 70 * each
    monkeypatch.setattr(memory, "total_bytes", lambda device: 8 * 100 * each)
    assert memory.backward_tokens(model) == memory.LEAST_BACKWARD_TOKENS
    assert memory.activation_bytes(model.config, recomputed=True) < each


def test_the_memory_of_a_container_counts_if_it_is_less(monkeypatch):
    cpu = torch.device("cpu")
    assert 2**28 < device_memory.free_bytes(cpu) <= device_memory.machine_bytes()
    of_container = {"max": [5000], "current": [1000]}
    monkeypatch.setattr(device_memory, "_of_container", of_container.get)
    assert device_memory.machine_bytes() == 5000
    assert device_memory.free_bytes(cpu) == 4000
    monkeypatch.setattr(device_memory, "_of_container", lambda name: [])
    assert device_memory.machine_bytes() > 2**28


def test_activations_of_a_known_model_are_those_that_were_measured():
    from transformers import LlamaConfig

    smollm2 = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    assert 1.0e6 < memory.activation_bytes(smollm2) < 1.2e6
