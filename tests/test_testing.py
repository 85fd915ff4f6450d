"""The public fakes behave, and each check catches what it is there to catch."""

import math

import pytest
import torch
from tests.cases import also
from torch.nn import Parameter

from astra_rl import (
    DPO,
    GRPO,
    GSPO,
    IPO,
    PPO,
    RLOO,
    ASTEnvironment,
    ContractError,
    Environment,
    FunctionModerator,
    Graph,
    Moderator,
    Node,
    ReinforcePlusPlus,
)
from astra_rl.algorithms.dpo import ReducedLogprobs
from astra_rl.algorithms.losses import masked_mean
from astra_rl.core.contracts import token_mask
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.models.generation import Sampling
from astra_rl.testing import (
    ScriptedModerator,
    ToyProblem,
    ToyValueProblem,
    check_algorithm,
    check_environment,
    check_moderator,
    check_problem,
    learn,
    letter_game,
    tiny_model,
)

# The algorithms of the library on real, if tiny, models.


@pytest.fixture(
    scope="module",
    params=[
        "gpt2",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("gpt2-chat", "llama")),
        "llama-chat",
    ],
)
def tiny(request):
    """A problem of float32 models whose attacker has moved away from its baseline, and episodes."""
    family, chat = request.param.split("-")[0], request.param.endswith("chat")
    attacker, target = (tiny_model(family, chat=chat, seed=seed) for seed in (1, 2))
    moderator = FunctionModerator(lambda texts: [len(set(text)) / 40 for text in texts])
    problem = HFASTProblem(
        attacker,
        target,
        attacker,
        moderator,
        attacker_sampling=Sampling(max_new_tokens=6),
        target_sampling=Sampling(max_new_tokens=4),
    )
    graphs = ASTEnvironment(problem, ["hello.", "good day"], tree_width=3, tree_depth=2).rollouts(
        range(3)
    )
    with torch.no_grad():
        for index, parameter in enumerate(problem.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return problem, graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        DPO,
        also(IPO),
        also(GRPO),
        lambda problem: GRPO(problem, kl_in_loss=0.1, kl_in_reward=0.1),
        GSPO,
        lambda problem: RLOO(problem, credit="return_to_go", shared_nodes="per_path"),
        also(lambda problem: ReinforcePlusPlus(problem, kl_in_reward=0.1)),
    ],
    ids=["dpo", "ipo", "grpo", "grpo_with_kl", "gspo", "rloo_of_returns", "reinforce++_with_kl"],
)
def test_loss_and_gradients_of_every_algorithm_depend_on_the_steps_alone(make, tiny):
    problem, graphs = tiny
    lengths = {len(node.attack.token_ids) for graph in graphs for node in graph.nodes()}
    assert len(lengths) > 1, "the episodes need attacks of different lengths"
    check_algorithm(make(problem), graphs, tolerance=1e-5)


def test_problems_of_real_models_keep_the_contract(tiny):
    check_problem(tiny[0])
    check_problem(tiny[0], ["a", "b, and more of it", "hello."])


def test_environments_of_real_models_keep_the_contract(tiny):
    check_environment(ASTEnvironment(tiny[0], ["hello.", "hi"], tree_width=2, tree_depth=2))


# What is broken is caught: algorithms.


def graphs_of_toys(problem=None):
    environment = ASTEnvironment(problem or ToyProblem(), ["one", "two"], tree_width=3)
    return environment.rollouts(range(4))


def check(kind, problem=None):
    problem = problem or ToyProblem()
    with torch.no_grad():
        problem.attacker += torch.arange(6) * 0.2
    check_algorithm(kind(problem), graphs_of_toys(problem))


@pytest.mark.slow
def test_a_sound_algorithm_passes():
    check(DPO)
    check(GRPO)
    check(PPO, ToyValueProblem())


def test_a_loss_without_gradient_is_caught():
    class Detached(GRPO):
        def step(self, batch):
            loss, logs = super().step(batch)
            return loss.detach(), logs

    with pytest.raises(ContractError, match=r"Detached\.step returned a loss"):
        check(Detached)


def test_a_gradient_that_does_not_reach_the_attacker_is_caught():
    """The loss requires grad, by something that is not trained."""

    class Elsewhere(GRPO):
        def step(self, batch):
            loss, logs = super().step(batch)
            return loss.detach() + 0 * self.problem.attacker.sum(), logs

    with pytest.raises(ContractError, match="Elsewhere: the gradient of the loss is zero"):
        check(Elsewhere)


@pytest.mark.parametrize(
    "mutate",
    [
        lambda batch: batch.advantages.add_(1e-7),
        lambda batch: batch.old_logprobs[0].zero_(),
        lambda batch: batch.attacks.reverse(),
        lambda batch: batch.contexts.pop(),
    ],
)
def test_a_mutated_batch_is_caught(mutate):
    class Mutating(GRPO):
        def step(self, batch):
            result = super().step(batch)
            mutate(batch)
            return result

    with pytest.raises(ContractError, match=r"Mutating\.step modified its batch"):
        check(Mutating)


class PlainBatch:
    """A batch as anyone may write it, without `__eq__` or `__repr__`."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)


class Wrapping(GRPO):
    def collate_fn(self, steps):
        return PlainBatch(super().collate_fn(steps))

    def step(self, batch):
        return super().step(batch.inner)

    def weight(self, batch):
        return super().weight(batch.inner)


def test_a_batch_of_any_class_is_looked_into():
    check(Wrapping)

    class Mutating(Wrapping):
        def step(self, batch):
            result = super().step(batch)
            batch.inner.advantages.neg_()
            return result

    with pytest.raises(ContractError, match="modified its batch"):
        check(Mutating)


class Trainable(ToyProblem):
    """A toy whose frozen tables forgot to be frozen."""

    def __init__(self):
        super().__init__()
        self.baseline.requires_grad_(True)
        self.models = {"spare": [self.baseline]}


def test_a_frozen_model_that_receives_a_gradient_is_caught():
    class Leaking(DPO):
        def _reference(self, batch):
            scores = self.problem.get_baseline_logprobs(
                [*batch.contexts, *batch.contexts], batch.suffixes
            ).sum(dim=1)
            return ReducedLogprobs.of_rows(torch.stack([scores, scores]))

    with pytest.raises(ContractError, match=r"Leaking: problem\.baseline is not in"):
        check(Leaking, Trainable())
    check(DPO, Trainable())


def test_checking_leaves_no_gradient_behind():
    problem = Trainable()
    check(DPO, problem)
    assert problem.attacker.grad is None
    assert problem.baseline.grad is None
    assert "get_attacker_logprobs" not in vars(problem)


def test_a_loss_that_depends_on_padding_is_caught():
    class Padded(GRPO):
        def step(self, batch):
            logprobs = self.problem.get_attacker_logprobs(batch.contexts, batch.attacks)
            return -(logprobs * batch.advantages[:, :1]).mean(), {}

        def weight(self, batch):
            return float(len(batch))

    with pytest.raises(ContractError, match="Padded: loss or gradients depend on padding"):
        check(Padded)


def test_values_that_depend_on_padding_are_caught():
    class Padded(PPO):
        def with_objectives(self, tokens, batch, mask):
            values = self.problem.values(batch.contexts, batch.attacks)
            return tokens + values.mean(), {}

    with pytest.raises(ContractError, match="Padded: loss or gradients depend on"):
        check(Padded, ToyValueProblem())


def test_a_loss_that_depends_on_the_size_of_micro_batches_is_caught():
    class Summed(GRPO):
        def step(self, batch):
            loss, logs = super().step(batch)
            return loss * len(batch), logs

    with pytest.raises(ContractError, match="depend on micro-batch size"):
        check(Summed)


def test_a_loss_that_depends_on_the_order_of_the_rows_is_caught():
    class FirstRow(GRPO):
        def step(self, batch):
            logprobs = self.problem.get_attacker_logprobs(batch.contexts, batch.attacks)
            mask = token_mask(logprobs, batch.attacks)
            mask[1:] = False
            return masked_mean(logprobs, mask), {}

    with pytest.raises(ContractError, match="depend on row order"):
        check(FirstRow)


def test_logs_that_are_not_floats_are_caught():
    class Tensors(GRPO):
        def step(self, batch):
            loss, _ = super().step(batch)
            return loss, {"loss": loss.detach()}

    with pytest.raises(ContractError, match="logged loss as Tensor, not a float"):
        check(Tensors)


def test_episodes_that_teach_nothing_check_nothing():
    graphs = graphs_of_toys(ToyProblem(ScriptedModerator({}, default=0.5)))
    with pytest.raises(ContractError, match="DPO made 0 steps of these graphs; pass graphs"):
        check_algorithm(DPO(ToyProblem()), graphs)


# Problems.


def toy_with(**methods):
    return type("Broken", (ToyProblem,), methods)()


def test_a_sound_problem_passes_the_check():
    check_problem(ToyProblem())


@pytest.mark.parametrize("method", ["rollout_prompt_with_attacker", "rollout_prompt_with_target"])
def test_rollouts_of_a_wrong_length_are_caught(method):
    broken = toy_with(**{method: lambda self, contexts: [" boom"]})
    with pytest.raises(ContractError, match=f"{method} returned 1 values for 2 inputs"):
        check_problem(broken)


def test_rewards_of_a_wrong_length_are_caught():
    broken = toy_with(reward=lambda self, contexts, attacks, responses: [0.0])
    with pytest.raises(ContractError, match="reward returned 1 values for 2 inputs"):
        check_problem(broken)


def test_a_state_that_is_lost_is_caught():
    broken = toy_with(advance=lambda self, context, attack, response: None)
    with pytest.raises(ContractError, match="advance returned None"):
        check_problem(broken)


NAMES = ["get_attacker_logprobs", "get_target_logprobs", "get_baseline_logprobs"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spoil",
    [lambda x: x[:1], lambda x: x.sum(dim=1), lambda x: x.exp(), lambda x: x * math.nan],
    ids=["too few rows", "summed", "probabilities", "nan"],
)
def test_log_probabilities_that_are_none_are_caught(name, spoil):
    right = getattr(ToyProblem, name)
    broken = toy_with(**{name: lambda self, *arguments: spoil(right(self, *arguments))})
    with pytest.raises(ContractError, match=name):
        check_problem(broken)


def test_an_attacker_without_gradient_is_caught():
    broken = toy_with(
        get_attacker_logprobs=torch.no_grad()(ToyProblem.get_attacker_logprobs),
    )
    with pytest.raises(ContractError, match="get_attacker_logprobs returned no gradient"):
        check_problem(broken)


def test_parameters_that_are_not_the_attacker_s_are_caught():
    def parameters(self):
        yield Parameter(torch.zeros(1))

    with pytest.raises(ContractError, match="does not depend on the tensors"):
        check_problem(toy_with(parameters=parameters))


def test_rows_that_are_mixed_up_are_caught():
    def by_length(self, contexts, continuations):
        ordered = sorted(continuations)
        return ToyProblem.get_attacker_logprobs(self, contexts, ordered)

    with pytest.raises(ContractError, match="depends on the order of the rows"):
        check_problem(toy_with(get_attacker_logprobs=by_length), [f"context {i}" for i in range(6)])


def test_padding_that_is_not_zero_is_caught():
    def rollout(self, contexts):
        return [" boom" * (index + 1) for index in range(len(contexts))]

    def padded(self, contexts, continuations):
        right = ToyProblem.get_attacker_logprobs(self, contexts, continuations)
        return torch.where(right == 0, right - 1.0, right)

    broken = toy_with(rollout_prompt_with_attacker=rollout, get_attacker_logprobs=padded)
    with pytest.raises(ContractError, match=r"in a batch and .* alone; pad with zeros"):
        check_problem(broken)


# Environments.


def test_a_seed_that_is_ignored_is_caught():
    class Careless(ASTEnvironment):
        def rollouts(self, seeds):
            return super().rollouts([None for _ in seeds])

    with pytest.raises(ContractError, match="Careless: the seed 0 gave two different episodes"):
        check_environment(Careless(ToyProblem(), ["one", "two"]))


def test_a_seed_zero_that_is_taken_for_none_is_caught():
    class Falsy(ASTEnvironment):
        def rollouts(self, seeds):
            return super().rollouts([seed or None for seed in seeds])

    with pytest.raises(ContractError, match="Zero is a valid seed"):
        check_environment(Falsy(ToyProblem(), ["one", "two"]))


def test_a_seed_that_changes_nothing_is_caught():
    class Stuck(ASTEnvironment):
        def rollouts(self, seeds):
            return super().rollouts([0 for _ in seeds])

    with pytest.raises(ContractError, match="the seeds 0 and 1 gave the same episode"):
        check_environment(Stuck(ToyProblem(), ["one", "two"]))


def test_a_reward_that_depends_on_the_batch_is_caught():
    class Relative(ToyProblem):
        def reward(self, contexts, attacks, responses):
            return [1.0 / len(contexts)] * len(contexts)

    with pytest.raises(ContractError, match="a reward must not depend on the other episodes"):
        check_environment(ASTEnvironment(Relative(), ["one"]))


def test_a_reward_that_is_no_number_is_caught():
    class Whole(Environment):
        def rollout(self, seed=None):
            return Graph("c", [Node("c", str(seed), "r", 1)])

    with pytest.raises(ContractError, match="a reward is a int, not a float"):
        check_environment(Whole(ToyProblem()))


# Moderators.


def moderator_of(function):
    class Broken(Moderator):
        def moderate(self, x):
            return function(x)

    return Broken()


def test_sound_moderators_pass_the_check():
    check_moderator(ScriptedModerator({"hello": 0.5}))
    check_moderator(ScriptedModerator({}, default=math.nan))
    check_moderator(FunctionModerator(lambda texts: [0.0 for _ in texts]), ["a", "b", "c"])


@pytest.mark.parametrize("score", [1.5, -0.1, math.inf])
def test_a_score_out_of_range_is_caught(score):
    with pytest.raises(ContractError, match=r"Broken scored .* scores must be in \[0, 1\]"):
        check_moderator(moderator_of(lambda texts: [score for _ in texts]))


def test_a_lost_score_is_caught():
    with pytest.raises(ContractError, match="returned 0 values for 2 inputs"):
        check_moderator(moderator_of(lambda texts: []))


def test_scores_of_nothing_are_caught():
    with pytest.raises(ContractError, match=r"moderate\(\[\]\) must return an empty sequence"):
        check_moderator(moderator_of(lambda texts: [0.0]))


def test_a_score_that_depends_on_the_batch_is_caught():
    with pytest.raises(ContractError, match=r"in a batch and .* alone"):
        check_moderator(moderator_of(lambda texts: [1 / len(texts) for _ in texts]))


# Fakes.


def test_the_toy_s_log_probabilities_are_those_it_samples_from():
    problem = ToyProblem()
    attacks = problem.rollout_prompt_with_attacker(["c"] * 4000)
    boom = problem.words.index("boom")
    share = sum(attack.split().count("boom") for attack in attacks) / 8000
    probability = problem.get_attacker_logprobs(["c"], [" boom"]).exp().item()
    assert probability == pytest.approx(problem.attacker.softmax(0)[boom].item())
    assert share == pytest.approx(probability, abs=0.02)


def test_the_scripted_moderator_takes_the_first_word_and_remembers_what_it_was_asked():
    moderator = ScriptedModerator({"a": 0.1, "b": 0.2}, default=0.3)
    assert moderator.moderate(["b a", "b", "c"]) == [0.1, 0.2, 0.3]
    assert moderator.calls == [["b a", "b", "c"]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tiny_model_is_the_same_each_time_and_leaves_the_generator_alone(family):
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    first, second, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.rand(2).tolist() == expected
    weights = [pair.model.get_output_embeddings().weight for pair in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.tokenizer.decode(first.tokenizer("hi there!\n").input_ids) == "hi there!\n"
    assert not first.tokenizer.chat_template
    assert tiny_model(family, chat=True).tokenizer.chat_template


@pytest.mark.slow
def test_an_untrained_attacker_scores_little_in_the_letter_game_and_an_algorithm_learns_it():
    curve = learn(GRPO, steps=30)
    assert len(curve.rewards) == len(curve.losses) == 30
    assert curve.rewards[0] < 0.1
    assert curve.rewards[-1] > 0.8


def test_the_letter_game_rewards_the_share_of_its_letters_in_the_attack():
    moderator = letter_game().problem.moderator
    assert moderator.moderate(["xyxy", "ax", "", "abc"]) == [1.0, 0.25, 0.0, 0.0]


@pytest.mark.slow
def test_learning_repeats_with_its_seed_and_differs_with_another():
    first, again, other = (learn(DPO, steps=2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_letter_game_may_have_several_turns():
    graph = letter_game(depth=2).rollout(0)
    assert len(list(graph.nodes())) == 4 + 16
