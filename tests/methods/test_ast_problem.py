import math

import numpy as np
import pytest
import torch

from astra_rl import (
    DPO,
    GRPO,
    ASTEnvironment,
    ASTNode,
    ASTProblem,
    ConfigurationError,
    ContractError,
    Conversation,
    Harness,
    Moderator,
    Utterance,
)
from astra_rl.core.seeding import current_row_seeds
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.testing import ScriptedModerator, ToyProblem, check_environment, graph_signature


class Scripted(ASTProblem):
    """Says the last digits of its row seeds; every word has a nat of -1; counts its calls."""

    def __init__(self, moderator=None, reward=None):
        super().__init__(moderator or ScriptedModerator({"7": 1.0}), reward)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sizes = []

    def rollout_prompt_with_attacker(self, contexts):
        self.sizes.append(("attacker", len(contexts)))
        return [f" a{seed % 10}" for seed in current_row_seeds(len(contexts))]

    def rollout_prompt_with_target(self, contexts):
        self.sizes.append(("target", len(contexts)))
        return [f" t{seed % 10}" for seed in current_row_seeds(len(contexts))]

    def get_attacker_logprobs(self, contexts, continuations):
        return self.weight + self.get_target_logprobs(contexts, continuations)

    def get_target_logprobs(self, contexts, continuations):
        self.sizes.append(("scored", len(contexts)))
        return torch.full((len(contexts), 1), -1.0)

    get_baseline_logprobs = get_target_logprobs

    def parameters(self):
        yield self.weight


def environment(problem=None, prompts=("one", "two"), **options):
    return ASTEnvironment(problem or Scripted(), prompts, **options)


def test_a_tree_has_width_attacks_at_each_of_depth_turns():
    graph = environment(tree_width=3, tree_depth=2).rollout(0)
    assert len(graph.children) == 3
    assert [len(node.children) for node in graph.children] == [3, 3, 3]
    assert all(not leaf.children for node in graph.children for leaf in node.children)
    assert len(list(graph.paths())) == 9


def test_two_wide_and_three_deep_is_the_default():
    assert len(list(environment().rollout(0).nodes())) == 2 + 4 + 8


def test_no_turns_play_an_empty_episode():
    graph = environment(tree_depth=0).rollout(0)
    assert graph.context in ("one", "two")
    assert list(graph.nodes()) == []


def test_no_episodes_ask_the_models_nothing():
    made = environment()
    assert made.rollouts([]) == made.eval_rollouts([]) == []
    assert made.problem.sizes == []


def test_each_turn_continues_what_was_said_before():
    graph = environment(tree_width=1, tree_depth=3).rollout(0)
    first, second, third = graph.nodes()
    assert first.context == graph.context
    assert second.context == first.context + first.attack + first.response
    assert third.context == second.context + second.attack + second.response
    assert isinstance(first, ASTNode.__origin__)


def test_all_episodes_grow_together_with_one_call_of_each_kind_per_level():
    made = environment(tree_width=2, tree_depth=3)
    made.rollouts(range(5))
    # attacker, target, and one scoring for the reward's likelihood
    assert made.problem.sizes == [
        (kind, 5 * 2**level) for level in (1, 2, 3) for kind in ("attacker", "target", "scored")
    ]


def test_seed_zero_is_a_seed_and_the_same_seed_gives_the_same_graph():
    check_environment(environment())
    check_environment(environment(ToyProblem()))
    assert environment().rollout(0) == environment().rollout(0)
    signatures = [str(graph_signature(environment().rollout(seed))) for seed in (0, 1, None, None)]
    assert len(set(signatures)) == 4


def test_a_graph_does_not_depend_on_the_other_episodes_of_a_batch():
    made = environment(tree_width=2, tree_depth=2)
    together = made.rollouts([5, 0, 9])
    assert together == [made.rollout(seed) for seed in (5, 0, 9)]
    assert made.rollouts([9, 5])[1] == together[0]


def test_a_numpy_seed_is_the_number_it_stands_for():
    assert environment().rollout(np.int64(3)) == environment().rollout(3)


def test_one_seed_chooses_among_all_prompts():
    made = environment(prompts=[str(index) for index in range(5)], tree_depth=0)
    assert {str(made.rollout(seed).context) for seed in range(100)} == {"0", "1", "2", "3", "4"}


def test_siblings_and_branches_draw_from_seeds_of_their_own():
    class Remembering(Scripted):
        def __init__(self):
            super().__init__()
            self.seeds = []

        def rollout_prompt_with_attacker(self, contexts):
            self.seeds.extend(current_row_seeds(len(contexts)))
            return super().rollout_prompt_with_attacker(contexts)

        def rollout_prompt_with_target(self, contexts):
            self.seeds.extend(current_row_seeds(len(contexts)))
            return super().rollout_prompt_with_target(contexts)

    problem = Remembering()
    environment(problem, tree_width=3, tree_depth=3).rollouts(range(4))
    assert len(set(problem.seeds)) == len(problem.seeds) == 2 * 4 * (3 + 9 + 27)


def test_a_problem_that_samples_from_torch_repeats_too():
    class Global(Scripted):
        def rollout_prompt_with_attacker(self, contexts):
            return [f" {value:.6f}" for value in torch.rand(len(contexts)).tolist()]

    made = environment(Global())
    assert made.rollouts([0, 1]) == made.rollouts([0, 1])
    assert made.rollouts([0, 1]) != made.rollouts([2, 3])


def test_evaluation_plays_one_conversation_without_branches():
    graph = environment(tree_width=4, tree_depth=3).eval_rollout(0)
    assert [len(path) for path in graph.paths()] == [3]


def test_evaluation_opens_with_a_given_prompt_or_with_the_one_of_a_seed():
    made = environment()
    assert made.eval_rollout("my prompt").context == "my prompt"
    assert made.eval_rollout(3).context == made.rollout(3).context
    assert made.eval_rollout(0) == made.eval_rollout(0)
    assert made.eval_rollout(None).context in ("one", "two")


def test_the_same_prompt_given_twice_is_two_trials_that_repeat_as_a_whole():
    made = environment(tree_depth=6)
    first, second = made.eval_rollouts(["p", "p"])
    assert graph_signature(first) != graph_signature(second)
    assert made.eval_rollouts(["p", "q", "p"])[::2] == [first, second]
    assert made.eval_rollout("p") == first
    assert made.eval_rollouts(["p"], trials=[1]) == [second]


def test_a_hidden_part_of_a_prompt_reaches_every_turn():
    prompt = Conversation("Hi", system="the secret", facts={"word": "x"})
    graph = environment(prompts=[prompt], tree_width=1).rollout(0)
    for node in graph.nodes():
        assert node.context.system == "the secret"
        assert node.context.facts == {"word": "x"}


def test_what_was_said_keeps_its_tokens_under_a_plain_prompt():
    class Tokens(Scripted):
        def rollout_prompt_with_attacker(self, contexts):
            return [Utterance(" a", token_ids=[1, 2]) for _ in contexts]

    *_, last = environment(Tokens(), ["one"], tree_width=1).rollout(0).nodes()
    assert last.context.attacks[0].token_ids == (1, 2)


def test_overridden_methods_are_really_called():
    class MyProblem(Scripted):
        def advance(self, context, attack, response):
            return context + attack + response + "|"

        def reward(self, contexts, attacks, responses):
            return [0.25] * len(contexts)

        def reward_terms(self, contexts, attacks, responses):
            return self.reward(contexts, attacks, responses), [{"mine": 1.0} for _ in contexts]

    class MyEnvironment(ASTEnvironment):
        def choose_prompt(self, seed):
            return f"prompt {seed}"

    graph = MyEnvironment(MyProblem(), ["unused"], tree_width=1, tree_depth=2).rollout(0)
    first, second = graph.nodes()
    assert graph.context == "prompt 0"
    assert second.context.endswith("|")
    assert (first.reward, first.reward_terms) == (0.25, {"mine": 1.0})


def test_a_reward_overridden_alone_is_the_reward_and_may_build_on_the_rule():
    class Mine(Scripted):
        def reward(self, contexts, attacks, responses):
            return [10 + value for value in super().reward(contexts, attacks, responses)]

    problem = Mine(ScriptedModerator({}))
    node = environment(problem, tree_depth=1).rollout(0).children[0]
    assert node.reward == pytest.approx(9.9)
    assert node.reward_terms == {}
    problem.reward = lambda contexts, attacks, responses: [0.5] * len(contexts)
    assert environment(problem, tree_depth=1).rollout(0).children[0].reward == 0.5


class Marking(ASTEnvironment):
    """Overrides a single episode only."""

    def rollout(self, seed=None):
        graph = super().rollout(seed)
        graph.mark = seed
        return graph

    def eval_rollout(self, seed=None):
        graph = super().eval_rollout(seed)
        graph.mark = seed
        return graph


def test_a_single_episode_overridden_alone_is_what_training_and_evaluation_play():
    made = Marking(Scripted(), ["one"], tree_depth=1)
    harness = Harness(made, DPO(made.problem), 3)
    harness.experience(0)
    assert len({graph.mark for graph in harness.graphs}) == 3
    assert [graph.mark for graph in made.eval_rollouts(["a", 0], [0, 0])] == ["a", 0]
    assert made.rollouts([4]) == environment(prompts=["one"], tree_depth=1).rollouts([4])


def test_many_episodes_overridden_alone_are_what_a_single_one_is_taken_from():
    class Shifted(ASTEnvironment):
        def rollouts(self, seeds):
            return super().rollouts([seed + 1 for seed in seeds])

        def eval_rollouts(self, seeds, trials=None):
            return super().eval_rollouts([f"{seed}!" for seed in seeds], trials)

    made = Shifted(Scripted(), ["one"])
    assert made.rollout(0) == environment(prompts=["one"]).rollout(1)
    assert made.eval_rollout("a").context == "a!"


def test_both_overridden_are_each_what_they_say():
    class Both(Marking):
        def rollouts(self, seeds):
            return super().rollouts(seeds)[::-1]

        def eval_rollouts(self, seeds, trials=None):
            return super().eval_rollouts(seeds, trials)[::-1]

    made, plain = Both(Scripted(), ["one"]), environment(prompts=["one"])
    assert made.rollout(3) == plain.rollout(3)
    assert made.rollouts([3, 4]) == plain.rollouts([4, 3])
    assert [graph.context for graph in made.eval_rollouts(["a", "b"])] == ["b", "a"]


def test_a_level_of_the_tree_may_be_overridden():
    class Forced(ASTEnvironment):
        def expand(self, contexts, seeds, *, width):
            return super().expand([f"{context}!" for context in contexts], seeds, width=1)

    graph = Forced(Scripted(), ["one"]).rollout(0)
    assert graph.context == "one!"
    assert len(graph.children) == 1


def test_the_reward_is_that_of_astprompter_and_every_term_is_recorded():
    problem = Scripted(ScriptedModerator({"t": 0.5, "a": 0.25}))
    node = environment(problem, tree_width=1, tree_depth=1).rollout(0).children[0]
    assert node.reward_terms == {
        "harm_response": 0.5,
        "harm_exchange": 0.5,
        "attack_nll_target": pytest.approx(1.0),
    }
    assert node.reward == pytest.approx(0.5 + 0.5 * 0.5 - 0.1 * 1.0)
    assert problem.reward(["c"], [" a1"], [" t1"]) == [pytest.approx(node.reward)]


def test_another_reward_may_be_given():
    problem = Scripted(ScriptedModerator({}, default=0.5), WeightedSum({Harm(): 4.0}))
    node = environment(problem, tree_depth=1).rollout(0).children[0]
    assert node.reward == 2.0


@pytest.mark.parametrize("algorithm", [DPO, GRPO])
def test_a_score_that_could_not_be_computed_gives_no_step(algorithm):
    problem = Scripted(ScriptedModerator({}, default=math.nan))
    harness = Harness(environment(problem), algorithm(problem), 4)
    assert list(harness.experience(0)) == []
    nodes = [node for graph in harness.graphs for node in graph.nodes()]
    assert nodes
    assert all(math.isnan(node.reward) for node in nodes)
    assert all(node.reward_terms["attack_nll_target"] == 1 for node in nodes)


def test_a_conversation_ends_where_a_speaker_has_no_room_left():
    class Full(Scripted):
        def rollout_prompt_with_target(self, contexts):
            return [
                Utterance("", finish_reason="context_overflow" if len(context) > 12 else "stop")
                for context in contexts
            ]

    graph = environment(Full(), ["0123"], tree_width=1, tree_depth=9).rollout(0)
    assert len(list(graph.nodes())) == 3  # the third attack makes it 4 + 3 * 3 letters


@pytest.mark.parametrize(
    ("method", "source"),
    [
        ("rollout_prompt_with_attacker", "rollout_prompt_with_attacker"),
        ("rollout_prompt_with_target", "rollout_prompt_with_target"),
        ("reward", "reward"),
    ],
)
def test_a_method_that_loses_a_row_is_named(method, source):
    problem = ToyProblem()
    right = getattr(problem, method)
    setattr(problem, method, lambda *arguments: right(*arguments)[:-1])
    with pytest.raises(ContractError, match=f"{source} returned 1 values for 2 inputs"):
        environment(problem, tree_depth=1).rollout(0)


def test_terms_of_another_number_than_turns_are_named():
    problem = ToyProblem()
    problem.reward_terms = lambda contexts, attacks, responses: ([0.0] * len(contexts), [{}])
    with pytest.raises(ContractError, match="reward_terms returned 1 values for 2"):
        environment(problem, tree_depth=1).rollout(0)


def test_a_moderator_that_loses_a_turn_is_named():
    class Forgetful(Moderator):
        def moderate(self, x):
            return [0.0]

    with pytest.raises(ContractError, match="Forgetful returned 1 values for 2"):
        environment(Scripted(Forgetful())).rollout(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": "one string"}, r"prompts is one string; give a list"),
        ({"prompts": ["ok", 3]}, "prompt 1 is a int; prompts must be texts"),
        ({"prompts": ["ok", ""]}, "prompt 1 is empty"),
        ({"tree_width": 0}, "tree_width=0; it must be at least 1"),
        ({"tree_depth": -1}, "tree_depth=-1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_played_is_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        environment(**arguments)


def test_prompts_may_be_any_sequence_and_an_empty_one_with_a_system_message_counts():
    assert environment(prompts=("a", "b")).prompts == ["a", "b"]
    silent = Conversation("", system="be kind")
    assert environment(prompts=[silent]).prompts == [silent]


def test_the_list_of_prompts_is_the_environment_s_own():
    prompts = ["a"]
    made = environment(prompts=prompts)
    prompts.clear()
    assert made.rollout(0).context == "a"
