"""A problem of real, if tiny, models whose attacker also estimates returns."""

import copy
from itertools import product

import pytest
import torch
from tests.cases import cases
from transformers import AutoModelForCausalLM

from astra_rl import PPO, ASTEnvironment, ConfigurationError, FunctionModerator, PPOLagrangian
from astra_rl.errors import ModelError
from astra_rl.ext.transformers import HFASTConfiguration, HFASTTrainer, HFValueProblem
from astra_rl.models.generation import Sampling
from astra_rl.models.trainable import LoraOptions
from astra_rl.testing import check_algorithm, check_problem, tiny_model


def problem_of(attacker=None, *, family="llama", chat=False, **options):
    attacker = attacker or tiny_model(family, chat=chat, seed=1)
    moderator = FunctionModerator(lambda texts: [len(set(text)) / 40 for text in texts])
    return HFValueProblem(
        attacker,
        tiny_model(family, chat=chat, seed=2),
        attacker,
        moderator,
        attacker_sampling=Sampling(max_new_tokens=6),
        target_sampling=Sampling(max_new_tokens=4),
        **options,
    )


def shake(problem):
    """Move all that is trained away from where it began."""
    with torch.no_grad():
        for index, parameter in enumerate(problem.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return problem


def graphs_of(problem):
    environment = ASTEnvironment(problem, ["hello.", "good day"], tree_width=3, tree_depth=2)
    return environment.rollouts(range(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detach", "chat", "family"),
    cases(
        product([False, True], [False, True], ["gpt2", "llama"]),
        by_default={  # each pair of values of two of the three
            (False, False, "gpt2"),
            (False, True, "llama"),
            (True, False, "llama"),
            (True, True, "gpt2"),
        },
    ),
)
def test_loss_and_gradients_of_ppo_depend_on_the_steps_alone(family, chat, detach):
    problem = problem_of(family=family, chat=chat, value_detach=detach)
    graphs = graphs_of(problem)
    check_algorithm(PPO(shake(problem), kl_in_reward=0.1, kl_in_loss=0.1), graphs)


@pytest.mark.slow
def test_loss_and_gradients_under_constraints_depend_on_the_steps_alone():
    problem = problem_of(value_count=2)
    graphs = graphs_of(problem)
    bounds = {"harm_response": {"at_least": 0.5}}
    check_algorithm(PPOLagrangian(shake(problem), constraints=bounds), graphs)


def test_it_is_a_problem_like_any_other():
    check_problem(problem_of())


def test_estimates_do_not_know_the_token_that_they_precede():
    problem = shake(problem_of())
    values = problem.value(["hello."] * 3, ["abcd", "abxd", "abc"])
    assert values.shape == (3, 4)
    torch.testing.assert_close(values[0, :3], values[1, :3])
    assert not torch.isclose(values[0, 3], values[1, 3])
    torch.testing.assert_close(values[2, :3], values[0, :3])
    assert values[2, 3] == 0


def test_the_first_of_several_returns_is_the_value():
    problem = shake(problem_of(value_count=3))
    values = problem.values(["hello."], ["abc"])
    assert values.shape == (1, 3, 3)
    assert torch.equal(values[:, :, 0], problem.value(["hello."], ["abc"]))
    assert not torch.equal(values[:, :, 0], values[:, :, 1])


@pytest.mark.parametrize("detach", [False, True])
def test_errors_of_the_estimates_reach_the_attacker_only_if_asked_to(detach):
    problem = shake(problem_of(value_detach=detach))
    problem.value(["hello."], ["abc"]).sum().backward()
    assert all(parameter.grad is not None for parameter in problem.value_head.parameters())
    reached = any(parameter.grad is not None for parameter in problem.attacker.parameters())
    assert reached == (not detach)


def test_attacker_and_head_are_trained():
    problem = problem_of(lora=LoraOptions(rank=2))
    trained = {id(parameter) for parameter in problem.parameters()}
    assert {id(parameter) for parameter in problem.value_head.parameters()} < trained
    frozen = [p for p in problem.attacker.parameters() if not p.requires_grad]
    assert frozen
    assert not trained & {id(parameter) for parameter in frozen}


@pytest.mark.slow
def test_the_head_is_in_the_checkpoint_and_comes_back_with_the_attacker(tmp_path):
    problem = problem_of()
    config = HFASTConfiguration(lr=1e-2, training_steps=3, num_episodes_per_experience=2, seed=0)
    environment = ASTEnvironment(problem, ["hi.", "ho."], tree_width=2, tree_depth=2)
    before = copy.deepcopy(problem.value_head.state_dict())
    HFASTTrainer(config, environment, PPO(problem), ckpt_dir=tmp_path, eval_every=0).train()
    weights = problem.value_head.state_dict()
    assert any(not torch.equal(before[name], weights[name]) for name in weights)
    folder = tmp_path / "last"
    assert {"model.safetensors", "value_head.safetensors"} <= {p.name for p in folder.iterdir()}
    assert not list(folder.rglob("*.bin"))
    AutoModelForCausalLM.from_pretrained(folder)
    again = problem_of(folder, dtype="float32")
    torch.testing.assert_close(again.value(["hello."], ["abc"]), problem.value(["hello."], ["abc"]))
    with pytest.raises(ModelError, match="does not fit"):
        problem_of(folder, value_count=2)


def test_at_least_one_return_is_estimated():
    with pytest.raises(ConfigurationError, match="value_count=0"):
        problem_of(value_count=0)
