import math

import pytest
import torch

from astra_rl import DPO, GRPO, PPO, Environment, Graph, Harness, Node
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ScriptedModerator, ToyProblem, ToyValueProblem, graph_signature
from astra_rl.training.harness import ShuffledGroups


def harness_of(algorithm=DPO, *, width=3, episodes=4, problem=None, **options):
    problem = problem or ToyProblem()
    environment = ASTEnvironment(problem, ["one", "two", "three"], tree_width=width, tree_depth=2)
    return Harness(environment, algorithm(problem), episodes, **options)


def batches(harness, seed=0):
    return list(harness.experience(seed))


def test_the_batch_size_reaches_the_algorithm():
    sizes = [len(batch) for batch in batches(harness_of(GRPO, batch_size=16))]
    # 4 episodes of 3 + 9 nodes make 48 steps
    assert sizes == [16, 16, 16]


def test_options_of_the_dataloader_win_over_the_defaults():
    harness = harness_of(
        GRPO, batch_size=16, dataloader_kwargs={"batch_size": 20, "shuffle": False}
    )
    first, *_ = found = batches(harness)
    assert [len(batch) for batch in found] == [20, 20, 8]
    assert first.attacks[:3] == [node.attack for node in harness.graphs[0].children]


def test_every_step_is_in_exactly_one_batch():
    harness = harness_of(DPO, batch_size=5)
    pairs = sorted(
        (batch.contexts[row], batch.suffix_pos[row], batch.suffix_neg[row])
        for batch in batches(harness)
        for row in range(len(batch))
    )
    flat = [step for graph in harness.graphs for step in harness.algorithm.flatten(graph)]
    assert pairs == sorted((step.context, step.suffix_pos, step.suffix_neg) for step in flat)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_same_seed_gives_the_same_batches(seed):
    assert batches(harness_of(batch_size=2), seed) == batches(harness_of(batch_size=2), seed)


def test_seed_zero_is_a_seed_and_differs_from_others():
    signatures = []
    for seed in (0, 0, 1, None, None):
        harness = harness_of()
        harness.experience(seed)
        signatures.append([graph_signature(graph) for graph in harness.graphs])
    assert signatures[0] == signatures[1]
    assert len({str(each) for each in signatures}) == 4


def test_the_episodes_of_one_seeded_experience_differ():
    harness = harness_of(episodes=8)
    harness.experience(3)
    assert len({str(graph_signature(graph)) for graph in harness.graphs}) == 8
    assert len({graph.context for graph in harness.graphs}) > 1


def test_batches_of_an_experience_are_shuffled():
    harness = harness_of(GRPO, batch_size=48)
    (batch,) = batches(harness)
    in_order = [node.attack for graph in harness.graphs for node in graph.nodes()]
    assert list(batch.attacks) != in_order
    assert sorted(batch.attacks) == sorted(in_order)


def test_siblings_are_in_one_batch():
    harness = harness_of(GRPO, episodes=16, width=4, batch_size=4)
    contexts = [set(batch.contexts) for batch in batches(harness)]
    assert len(contexts) == 16 * 5
    assert all(len(each) == 1 for each in contexts)


def test_siblings_of_several_episodes_with_one_prompt_are_groups_of_their_own():
    harness = harness_of(GRPO, episodes=16, width=4, batch_size=4)
    for batch in batches(harness):
        nodes = [graph.children for graph in harness.graphs]
        nodes += [node.children for graph in harness.graphs for node in graph.nodes()]
        assert sorted(batch.attacks) in [sorted(node.attack for node in each) for each in nodes]


def test_an_actor_critic_algorithm_shuffles_each_step_alone():
    harness = harness_of(PPO, problem=ToyValueProblem(), episodes=16, width=4, batch_size=8)
    contexts = [len(set(batch.contexts)) for batch in batches(harness)]
    assert sum(contexts) / len(contexts) > 5


def test_groups_and_their_members_are_in_random_order():
    groups = [0, 0, 0, 1, 1, None, None, None]
    sampler = ShuffledGroups(groups, torch.Generator().manual_seed(0))
    orders = {tuple(sampler) for _ in range(500)}
    assert all(sorted(order) == list(range(8)) for order in orders)
    for order in orders:
        places = [order.index(index) for index in range(8)]
        assert max(places[:3]) - min(places[:3]) == 2
        assert abs(places[3] - places[4]) == 1
    firsts = [next(iter(sampler)) for _ in range(3000)]
    # Each of the five groups is first equally often, and so is each of its members.
    expected = {0: 200, 1: 200, 2: 200, 3: 300, 4: 300, 5: 600, 6: 600, 7: 600}
    for index, count in expected.items():
        assert firsts.count(index) == pytest.approx(count, abs=5 * count**0.5)


def test_an_experience_that_teaches_nothing_has_no_batches():
    harness = harness_of(DPO, problem=ToyProblem(ScriptedModerator({}, default=0.5)))
    assert batches(harness) == []
    missing = harness_of(GRPO, problem=ToyProblem(ScriptedModerator({}, default=math.nan)))
    assert batches(missing) == []
    assert missing.experience_metrics()["rewards/missing"] == 1


def test_an_algorithm_of_several_epochs_gets_each_step_in_each_of_them_in_another_order():
    harness = harness_of(lambda problem: GRPO(problem, epochs=3), episodes=2, batch_size=8)
    experience = harness.experience(0)
    found = [batch.attacks for batch in experience]
    assert len(found) == len(experience) == 3 * 3  # 24 steps per epoch
    epochs = [[attack for batch in found[i : i + 3] for attack in batch] for i in (0, 3, 6)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])


def test_an_algorithm_s_numbers_about_the_experience_are_among_the_metrics():
    harness = harness_of(GRPO)
    harness.experience(0)
    assert 0 <= harness.experience_metrics()["frac_reward_zero_std"] <= 1


def test_a_step_returns_a_scalar_loss_with_a_gradient_and_logs():
    harness = harness_of(batch_size=4)
    loss, step_logs = harness.step(batches(harness)[0])
    assert loss.shape == ()
    assert loss.requires_grad
    assert all(isinstance(value, float) for value in step_logs.values())


class Fixed(Environment):
    """Rewards 0, 1 and missing; terms that only some nodes have."""

    def rollout(self, seed=None):
        return Graph(
            "c",
            [
                Node("c", " boom", "r", 0.0, reward_terms={"harm": 0.25}),
                Node("c", " calm", "r", 1.0, reward_terms={"harm": 0.75, "nll": 2.0}),
                Node("c", " tree", "r", math.nan, reward_terms={"harm": math.nan}),
            ],
        )


def test_mean_scores_are_means_and_missing_ones_are_counted():
    problem = ToyProblem()
    harness = Harness(Fixed(problem), DPO(problem), 2)
    harness.experience()
    assert harness.experience_metrics() == {
        "reward": 0.5,
        # -0.5, 0.5 twice each: (4 * 0.25) / (4 - 1)
        "reward_std": pytest.approx(math.sqrt(1 / 3)),
        "rewards/missing": pytest.approx(1 / 3),
        "rewards/harm/mean": 0.5,
        "rewards/nll/mean": 2.0,
        "pairs": 2.0,
        "pairs/tied": 0.0,
        "pairs/missing": 2.0,
    }


def test_before_any_experience_the_metrics_are_missing_and_not_zero():
    metrics = harness_of().experience_metrics()
    assert all(math.isnan(value) for value in metrics.values())


def test_collecting_with_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    batches(harness_of(), seed=0)
    assert torch.rand(3).tolist() == expected
