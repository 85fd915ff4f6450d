"""Rewards that look into the models of an HFASTProblem."""

import math

import pytest
import torch

from astra_rl import (
    GRPO,
    ASTEnvironment,
    Conversation,
    FunctionModerator,
    Harness,
    Trainer,
    TrainingConfiguration,
)
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.environments import AttemptsEnvironment, SelfPlayEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards import (
    KL,
    ASTReward,
    EmbeddingNovelty,
    Entropy,
    Gate,
    Harm,
    MinK,
    Product,
    ResponseLikelihood,
    SelfBLEU,
    WeightedSum,
)
from astra_rl.testing import check_algorithm, check_environment, tiny_model

pytestmark = pytest.mark.slow


def problem_of(reward, *, kind="llama", chat=False, **options):
    attacker = tiny_model(kind, chat=chat, window=256, seed=1)
    return HFASTProblem(
        attacker,
        tiny_model(kind, chat=chat, window=256, seed=2),
        attacker,
        FunctionModerator(lambda texts: [text.count("e") / (len(text) + 1) for text in texts]),
        attacker_sampling=Sampling(max_new_tokens=6),
        target_sampling=Sampling(max_new_tokens=6),
        reward=reward,
        **options,
    )


def everything():
    return WeightedSum(
        {
            Product([Harm(replies=2), EmbeddingNovelty("baseline")]): 1.0,
            Gate(Harm("attack"), MinK(3), at_least=-10): 1.0,
            SelfBLEU(against="siblings"): 0.1,
            EmbeddingNovelty("target", against="siblings"): 0.0,
            KL(): -0.01,
            Entropy(): 0.01,
            ResponseLikelihood("yes"): 0.1,
        }
    )


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_likelihood_of_a_response_is_that_of_the_target_s_own_forward(kind, chat):
    problem = problem_of(Harm(), kind=kind, chat=chat)
    context = Conversation("hi.", system="be kind.") + " now?"
    rendered = problem.target_renderer.render(context, reserve=8).ids
    said = problem.target_renderer.tokenizer("yes", add_special_tokens=False).input_ids
    logits = problem.target(torch.tensor([[*rendered, *said]])).logits[0].float().log_softmax(-1)
    own = [logits[len(rendered) - 1 + i, token].item() for i, token in enumerate(said)]
    (row,) = problem.get_response_logprobs([context], ["yes"])
    assert row.tolist() == pytest.approx(own, abs=1e-4)  # three letters, and no end token


def test_a_response_may_stand_beside_longer_ones():
    problem = problem_of(Harm())
    together = problem.get_response_logprobs(["hi.", "ho."], ["a", "abc"])
    assert together.shape == (2, 3)
    assert together[0, 1:].tolist() == [0.0, 0.0]
    alone = problem.get_response_logprobs(["hi."], ["a"])
    torch.testing.assert_close(together[0, :1], alone[0])


def test_texts_are_embedded_by_a_frozen_model_without_the_adapter():
    problem = problem_of(Harm(), lora=LoraOptions(rank=2))
    before = problem.embed(["hello", "ab", ""], "baseline")
    assert before.shape == (3, 32)
    assert not before[2].any()
    with torch.no_grad():
        for parameter in problem.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(problem.embed(["hello", "ab", ""], "baseline"), before)
    assert not torch.allclose(problem.embed(["hello"], "target"), before[:1])


@pytest.mark.parametrize("chat", [False, True])
def test_rewards_that_look_into_models_do_not_depend_on_the_batch(chat):
    problem = problem_of(everything(), chat=chat)
    environment = ASTEnvironment(problem, ["hello.", "good day"], tree_width=3, tree_depth=2)
    check_environment(environment)
    harness = Harness(environment, GRPO(problem), 4)
    harness.experience(0)
    check_environment(environment)  # with a history as well
    together = environment.rollouts(range(4))
    for seed in range(4):
        for node, other in zip(
            together[seed].nodes(), environment.rollout(seed).nodes(), strict=True
        ):
            assert node.reward_terms == pytest.approx(other.reward_terms, abs=1e-4, nan_ok=True)


def test_the_reward_of_stress_testing_trains_in_a_tree():
    problem = problem_of(ASTReward(threshold=0.05, turns=2))
    environment = ASTEnvironment(problem, ["hi."], tree_width=3, tree_depth=2)
    config = TrainingConfiguration(lr=1e-3, training_steps=1, num_episodes_per_experience=2, seed=0)
    trainer = Trainer(config, environment, GRPO(problem))
    trainer.train()
    logs = trainer.harness.experience_metrics()
    assert 0 <= logs["rewards/event/mean"] <= 1
    assert math.isfinite(logs["reward"])


@pytest.mark.parametrize("chat", [False, True])
def test_one_language_model_attacks_and_defends(chat):
    problem = problem_of(Harm(), chat=chat)
    environment = SelfPlayEnvironment(problem, ["hello."], 3, replies=2)
    check_environment(environment)
    check_algorithm(GRPO(problem), environment.rollouts(range(2)), tolerance=1e-3)


@pytest.mark.parametrize("chat", [False, True])
def test_attempts_with_feedback_of_language_models(chat):
    environment = AttemptsEnvironment(problem_of(Harm(), chat=chat), ["hello."], tree_depth=3)
    check_environment(environment)
    *_, last = environment.rollout(0).nodes()
    assert last.context.responses == ("\nFailed!\n",) * 2 or "Success" in last.context
    assert last.attack.token_ids
