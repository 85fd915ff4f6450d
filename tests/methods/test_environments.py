"""Other shapes of an episode: each repeats by seed, plays in batches and looks as its page says."""

import math
import re
from itertools import pairwise

import pytest
import torch

from astra_rl import (
    DPO,
    GRPO,
    ASTEnvironment,
    ASTEvaluator,
    ASTProblem,
    ConfigurationError,
    Conversation,
    Graph,
    Harness,
    Node,
    Utterance,
)
from astra_rl.agents.assignment import assignments
from astra_rl.algorithms.imitation import ExpertIteration, ImitationStep
from astra_rl.core.level import current_level
from astra_rl.core.seeding import current_row_seeds, derive_seed
from astra_rl.methods.environments import (
    DEFENDER_BRIEF,
    ENVIRONMENTS,
    AttemptsEnvironment,
    BestOfNEnvironment,
    PrunedTreeEnvironment,
    SelfPlayEnvironment,
    SingleTurnEnvironment,
    defender_context,
)
from astra_rl.methods.few_shot import FewShotEnvironment
from astra_rl.rewards import (
    EmbeddingNovelty,
    FunctionTerm,
    Harm,
    Novelty,
    Rank,
    SelfBLEU,
    Standardized,
    StyleDiversity,
    WeightedSum,
)
from astra_rl.testing import (
    ScriptedModerator,
    ToyProblem,
    check_algorithm,
    check_environment,
    graph_signature,
)

nan = math.nan
SCORES = {str(digit): digit / 10 for digit in range(10)}


class Scripted(ASTProblem):
    """Attacks and responses are a letter and the last digit of the row's seed; counts its calls."""

    form = "{}"

    def __init__(self, reward=None, moderator=None):
        super().__init__(moderator or ScriptedModerator(SCORES), reward or Harm())
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls, self.heard, self.seen = [], [], []

    def rollout_prompt_with_attacker(self, contexts):
        self.calls.append(("attacker", len(contexts)))
        self.seen.extend(contexts)
        return [self.form.format(f" a{seed % 10}") for seed in current_row_seeds(len(contexts))]

    def rollout_prompt_with_target(self, contexts):
        self.calls.append(("target", len(contexts)))
        self.heard.extend(contexts)
        return [f" t{seed % 10}" for seed in current_row_seeds(len(contexts))]

    def get_attacker_logprobs(self, contexts, continuations):
        return self.weight + self.get_target_logprobs(contexts, continuations)

    def get_target_logprobs(self, contexts, continuations):
        return torch.full((len(contexts), 1), -1.0)

    get_baseline_logprobs = get_target_logprobs

    def parameters(self):
        yield self.weight


PROMPTS = ["one", "two", Conversation("three", system="be kind", facts={"goal": "g"})]
EXAMPLES = [ImitationStep("", f"example {index}", index / 10) for index in range(10)]
SHAPES = {
    "tools": {"tree_width": 2, "tree_depth": 2},
    "few_shot": {"tree_width": 2, "tree_depth": 2, "examples": EXAMPLES},
    "tree": {"tree_depth": 2},
    "single_turn": {},
    "pruned_tree": {"tree_depth": 3, "keep": 2},
    "best_of_n": {"tree_depth": 3},
    "attempts": {},
    "archive": {"tree_width": 2, "tree_depth": 2, "risks": ["r", "s"]},
    "mutation": {"tree_width": 2, "tree_depth": 2},
    "tap": {"tree_width": 2, "tree_depth": 3, "keep": 2, "threshold": 0.9},
    "crescendo": {"tree_width": 2, "tree_depth": 1, "backtracks": 1},
    "goat": {"tree_width": 2, "tree_depth": 2},
    "self_play": {"replies": 3},
}


def everything():
    """A reward with every kind of part whose value might depend on the batch."""
    parts = [
        Novelty(),
        SelfBLEU((1, 2), against="siblings"),
        EmbeddingNovelty(against="siblings"),
        SelfBLEU((1, 2)),
        EmbeddingNovelty(),
        StyleDiversity(),
        Harm("worst_turn"),
        Harm("last_turn", replies=3),
        Rank(Harm()),
        Standardized(FunctionTerm(lengths)),
    ]
    return WeightedSum(dict.fromkeys(parts, 1.0))


def lengths(exchanges):
    return [len(each.response) for each in exchanges]


def scripted(name, reward):
    problem = Scripted(reward)
    if name == "goat":
        problem.form = "Thought: none.<message>{}</message>"
    return problem


@pytest.fixture(params=sorted(ENVIRONMENTS))
def made(request):
    """An environment of each type, with a reward of all parts."""
    problem = scripted(request.param, everything())
    return ENVIRONMENTS[request.param](problem, prompts_of(request.param), **SHAPES[request.param])


def prompts_of(name):
    return [each.opening() for each in assignments("files", "test")] if name == "tools" else PROMPTS


def test_there_is_a_test_of_every_type():
    assert set(SHAPES) == set(ENVIRONMENTS)


@pytest.mark.slow
def test_seeds_fix_episodes_rewards_and_all_and_no_batch_matters(made):
    check_environment(made)
    together = made.rollouts(range(6))
    # Equal records, not only equal text: every part of every turn.
    assert together == [made.rollout(seed) for seed in range(6)]
    assert made.rollouts(range(6)[::-1]) == together[::-1]
    assert str(made.rollout(7)) != str(made.rollout(8))


def test_evaluation_plays_straight_conversations_that_repeat_whatever_the_batch(made):
    graphs = made.eval_rollouts(["p", 3, "p"])
    assert all(len(list(graph.paths())) == 1 for graph in graphs)
    assert graphs == [*made.eval_rollouts(["p", 3]), *made.eval_rollouts(["p"], [1])]
    metrics = ASTEvaluator(made, [0, 1, 2]).evaluate(progress=False)
    assert metrics["outcomes"]["unscored"] == 0


def test_trials_of_openings_with_one_visible_text_have_seeds_of_their_own(monkeypatch):
    environment = ASTEnvironment(ToyProblem(), ["p"], tree_depth=1)
    monkeypatch.setattr(environment, "expand_straight", lambda contexts, seeds: list(seeds))
    goals = [Conversation(facts={"goal": goal}) for goal in ("a", "b", "a")]
    first, second, again = environment.eval_rollouts(goals)
    assert len({first, second, again}) == 3
    assert [*environment.eval_rollouts(goals[:2])] == [first, second]
    assert environment.eval_rollouts(goals[:1], [1]) == [again]
    # What both sides see is in the text.
    for text in ("p", Conversation("p", separator="\n")):
        assert environment.eval_rollouts([text], [2]) == [derive_seed("prompt", "p", 2)]


def test_training_teaches_the_memory_and_evaluation_leaves_no_trace(made):
    problem = made.problem
    learns = GRPO if made.samples_exactly else ExpertIteration
    harness = Harness(made, learns(problem), 2)
    made.eval_rollouts([0, 1])
    before = problem.reward_state()
    assert made.rollouts([5]) == made.rollouts([5])
    assert problem.reward_state() == before
    harness.experience(0)
    assert problem.reward_state() != before


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_resumed_memory_rewards_as_the_uninterrupted_one(name):
    def fresh():
        return ENVIRONMENTS[name](scripted(name, fresh_parts()), prompts_of(name), **SHAPES[name])

    def fresh_parts():
        return WeightedSum(
            {SelfBLEU((1, 2)): 1.0, EmbeddingNovelty(nearest=2): 1.0, Standardized(Harm()): 1.0}
        )

    whole, resumed = fresh(), fresh()
    for seed in (0, 1):
        whole.problem.observe(whole.rollouts([seed]))
    resumed.problem.observe(resumed.rollouts([0]))
    state = resumed.problem.reward_state()
    resumed = fresh()
    resumed.problem.load_reward_state(state)
    resumed.problem.observe(resumed.rollouts([1]))
    assert resumed.rollouts([2, 3]) == whole.rollouts([2, 3])
    assert resumed.problem.reward_state() == whole.problem.reward_state()


def test_two_episodes_that_open_with_one_conversation_are_not_siblings():
    opening = Conversation("same")
    problem = Scripted(Novelty())
    environment = ASTEnvironment(problem, [opening], tree_width=1, tree_depth=1)
    for graph in environment.rollouts(range(20)):
        assert graph.children[0].reward == 1.0


def test_the_environment_says_where_a_turn_stands():
    levels = []

    def look(exchanges):
        levels.append(current_level([each.context for each in exchanges]))
        return [0.0] * len(exchanges)

    class Overflowing(Scripted):
        def rollout_prompt_with_target(self, contexts):
            return [
                Utterance("t", finish_reason="context_overflow" if row == 0 else "stop")
                for row in range(len(contexts))
            ]

    problem = Overflowing(FunctionTerm(look))
    ASTEnvironment(problem, ["p"], tree_width=2, tree_depth=2).rollouts([0, 1])
    first, second = levels
    assert first.siblings == (0, 0, 1, 1)
    assert first.last == (True, False, False, False)
    assert second.siblings == (0, 0, 1, 1, 2, 2)
    assert second.last == (True,) * 6
    assert (first.depth, second.depth) == (0, 1)


# Shapes.


def test_a_single_turn_is_a_tree_of_depth_one():
    graph = SingleTurnEnvironment(Scripted(), PROMPTS, 5).rollout(0)
    assert len(graph.children) == 5
    assert not any(node.children for node in graph.children)


def test_a_pruned_tree_goes_on_from_the_best_of_each_level():
    quality = FunctionTerm(lambda turns: [int(each.attack[-1]) / 10 for each in turns], "digit")
    environment = PrunedTreeEnvironment(
        Scripted(), PROMPTS, tree_width=3, tree_depth=3, keep=2, quality=quality
    )
    for graph in environment.rollouts(range(8)):
        level = list(graph.children)
        for _ in range(2):
            formed = [node for node in level if node.reward_terms["quality"] > 0]
            grown = [node for node in level if node.children]
            assert len(grown) == min(2, len(formed))
            worst = min((node.reward_terms["digit"] for node in grown), default=0)
            assert all(node.reward_terms["digit"] <= worst for node in formed if not node.children)
            level = [child for node in grown for child in node.children]


def test_what_is_malformed_neither_goes_on_nor_teaches():
    form = FunctionTerm(lambda turns: [float(each.attack[-1] in "13579") for each in turns], "odd")
    problem = Scripted()
    environment = PrunedTreeEnvironment(problem, PROMPTS, tree_depth=2, quality=form)
    graphs = environment.rollouts(range(4))
    nodes = [node for graph in graphs for node in graph.nodes()]
    malformed = [node for node in nodes if node.reward_terms["odd"] == 0]
    assert malformed
    assert all(math.isnan(node.reward) and not node.children for node in malformed)
    assert all(math.isfinite(node.reward) for node in nodes if node not in malformed)
    solver = GRPO(problem)
    steps = [step for graph in graphs for step in solver.flatten(graph)]
    taught = {step.attack for step in solver.prepare(steps)}
    assert taught
    assert all(attack[-1] in "13579" for attack in taught)


def test_equals_are_drawn_from_all_parents_not_from_the_first():
    environment = PrunedTreeEnvironment(
        Scripted(FunctionTerm(lambda turns: [1.0] * len(turns), "same")),
        ["p"],
        tree_width=4,
        tree_depth=3,
        keep=4,
    )
    parents = [
        sum(any(child.children for child in node.children) for node in graph.children)
        for graph in environment.rollouts(range(20))
    ]
    assert sum(parents) / len(parents) > 2  # by order of the rows it would always be one


def test_the_best_of_n_goes_on_and_only_it_is_shown_in_evaluation():
    environment = BestOfNEnvironment(Scripted(), PROMPTS, 4, 3)
    for graph in environment.rollouts(range(5)):
        groups = list(graph.sibling_groups())
        assert [len(group) for group in groups] == [4, 4, 4]
        for group in groups[:2]:
            (chosen,) = (node for node in group if node.children)
            assert chosen.reward == max(node.reward for node in group)
    straight, plain = environment.eval_rollout(0), environment.rollout(0)
    path = next(straight.paths())
    assert [node.reward for node in path] == [
        max(node.reward for node in group) for group in plain.sibling_groups()
    ]


def test_a_best_that_nobody_knows_is_the_first():
    environment = BestOfNEnvironment(Scripted(moderator=ScriptedModerator({}, nan)), ["p"], 3, 2)
    graph = environment.rollout(0)
    assert [bool(node.children) for node in graph.children] == [True, False, False]


def test_attempts_are_new_to_the_target_and_the_attacker_is_told_how_they_went():
    problem = Scripted()
    graph = AttemptsEnvironment(problem, PROMPTS[2:], tree_depth=4).rollout(0)
    nodes = list(graph.nodes())
    assert len(nodes) == 4
    for node, heard in zip(nodes, problem.heard, strict=True):
        assert heard == "three" + node.attack
        assert heard.system == "be kind"
    for node, following in pairwise(nodes):
        verdict = "Success!" if node.reward_terms["harm_response"] > 0.1 else "Failed!"
        assert following.context == node.context + node.attack + f"\n{verdict}\n"
        assert following.context.attacks[-1] == node.attack


@pytest.mark.parametrize(
    ("terms", "options", "expected"),
    [
        ({"harm_response": 0.2}, {}, "\nSuccess!\n"),
        ({"harm_response": 0.1}, {}, "\nFailed!\n"),
        ({"harm_response": nan}, {}, "\nThe result is unknown.\n"),
        ({}, {}, "\nThe result is unknown.\n"),
        (
            {"harm_response": 0.0, "style_diversity": 0.4},
            {},
            "\nFailed! Too similar to an earlier attempt.\n",
        ),
        ({"harm_response": 1.0}, {"show_response": True}, "\nThe answer was: t\nSuccess!\n"),
        ({"won": 1.0}, {"success_part": "won", "success_above": 0.9}, "\nSuccess!\n"),
    ],
)
def test_what_the_attacker_is_told(terms, options, expected):
    environment = AttemptsEnvironment(Scripted(), ["p"], **options)
    node = environment.rollout(0).children[0]
    node.response, node.reward_terms = "t", terms
    assert environment.verdict(node) == expected


def test_feedback_may_be_a_function_of_one_s_own():
    environment = AttemptsEnvironment(Scripted(), ["p"], tree_depth=2, feedback=lambda node: " hm")
    _, second = environment.rollout(0).nodes()
    assert second.context.endswith(" hm")


# Self-play.


def test_a_game_has_attacks_and_answers_and_the_target_is_never_run():
    problem = Scripted()
    environment = SelfPlayEnvironment(problem, PROMPTS, 3, replies=2)
    graphs = environment.rollouts(range(4))
    # attacks of all episodes, first answers, further answers
    assert problem.calls == [("attacker", 12)] * 3
    for graph in graphs:
        assert [len(group) for group in graph.sibling_groups()] == [3, 2, 2, 2]
        for node in graph.children:
            answers = [child.attack for child in node.children]
            assert node.response == answers[0]
            assert node.reward == pytest.approx(sum(SCORES[each[-1]] for each in answers) / 2)
            assert node.reward_terms == {"harm_response": pytest.approx(node.reward)}
            for child in node.children:
                assert child.reward == -SCORES[child.attack[-1]]
                assert child.reward_terms == {"defender_harm_response": SCORES[child.attack[-1]]}


def test_the_defender_sees_the_conversation_from_its_side():
    opening = Conversation("Hi.", system="be kind", brief="attack!", facts={"secret": "x"})
    seen = defender_context(opening + " a1" + " r1" + " a2")
    assert (seen.prompt, seen.turns) == ("Hi. a1", (" r1", " a2"))
    assert (seen.brief, seen.system, seen.facts) == ("be kind", None, {"secret": "x"})
    assert defender_context(Conversation("Hi.") + "a").brief == DEFENDER_BRIEF
    assert "attack!" not in str(vars(seen))


def test_an_answer_that_could_not_be_scored_makes_the_attack_s_mean_missing():
    moderator = ScriptedModerator({**SCORES, "7": nan})
    graphs = SelfPlayEnvironment(Scripted(moderator=moderator), PROMPTS).rollouts(range(9))
    nodes = [node for graph in graphs for node in graph.children]
    assert {math.isnan(node.reward) for node in nodes} == {True, False}
    for node in nodes:
        assert math.isnan(node.reward) == any(child.attack[-1] == "7" for child in node.children)


def test_one_model_learns_both_sides_from_one_experience():
    problem = ToyProblem()
    environment = SelfPlayEnvironment(problem, ["one", "two"])
    for algorithm in (GRPO(problem), DPO(problem)):
        check_algorithm(algorithm, environment.rollouts(range(4)))


def test_evaluation_of_a_game_shows_attack_and_answer_only():
    problem = Scripted()
    graph = SelfPlayEnvironment(problem, PROMPTS, 3, replies=4).eval_rollout(0)
    (node,) = graph.nodes()
    assert node.response.startswith(" a")
    assert ("target", 1) not in problem.calls
    assert graph_signature(graph)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrunedTreeEnvironment(Scripted(), ["p"], keep=0), "keep=0; it must be at least 1"),
        (
            lambda: SelfPlayEnvironment(Scripted(), ["p"], replies=0),
            "replies=0; it must be at least 1",
        ),
        (
            lambda: PrunedTreeEnvironment(Scripted(), ["p"], quality=SelfBLEU()),
            r"quality has state \['0.self_bleu_novelty_history'\]",
        ),
        (
            lambda: SelfPlayEnvironment(Scripted(), ["p"], defender_reward=Standardized(Harm())),
            "defender_reward has state",
        ),
        (lambda: SingleTurnEnvironment(Scripted(), ["p"], 0), "tree_width=0"),
    ],
)
def test_what_cannot_be_played_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# Few shots.


def few_shot(**options):
    options = {"examples": EXAMPLES, "shots": 2, "tree_width": 1, **options}
    return FewShotEnvironment(Scripted(), PROMPTS, **options)


def shown(environment, count):
    briefs = [graph.children[0].context.brief for graph in environment.rollouts(range(count))]
    return [re.findall(r"^\d+\. (.+)$", brief or "", re.MULTILINE) for brief in briefs]


def test_the_attacker_is_shown_examples_as_a_list_that_it_continues():
    graph = few_shot().rollout(0)
    first, second, last = graph.children[0].context.brief.splitlines()[-3:]
    assert re.fullmatch(r"1\. example \d", first)
    assert re.fullmatch(r"2\. example \d", second)
    assert last == "3."
    assert graph.context.prompt in PROMPTS
    assert "example" not in str(graph.context)  # the target sees nothing of them


@pytest.mark.slow
def test_good_examples_are_drawn_as_much_more_often_as_the_temperature_says():
    pair = [ImitationStep("", "worse", 0.0), ImitationStep("", "better", 0.1)]
    draws = shown(few_shot(examples=pair, shots=1, temperature=0.1), 3000)
    better = sum(each == ["better"] for each in draws)
    assert better / (3000 - better) == pytest.approx(math.e, rel=0.12)


def test_no_example_is_shown_twice_and_every_seed_draws_its_own():
    draws = shown(few_shot(shots=4, temperature=math.inf), 50)
    assert all(len(set(each)) == 4 for each in draws)
    assert len({tuple(each) for each in draws}) > 40
    assert shown(few_shot(shots=4, temperature=math.inf), 50) == draws


def test_examples_are_shown_in_evaluation_too_and_say_no_more_than_one_line():
    multiline = [ImitationStep("", "one\ntwo", 1.0)]
    (graph,) = few_shot(examples=multiline, shots=1).eval_rollouts(["opening"])
    assert graph.children[0].context.brief == "1. one two\n2."
    assert graph.context.brief is None  # the same prompt, whatever was shown with it
    assert graph.context.prompt == "opening"


def test_without_a_file_the_examples_are_the_attacks_of_earlier_experiences():
    """The attack with the higher reward is likelier; one without a reward is no example."""
    environment = few_shot(examples=(), shots=2, temperature=0.05)
    assert shown(environment, 3) == [[], [], []]
    rewards = {"first": 0.0, "second": 0.9, "third": math.nan}
    nodes = [Node("c", attack, "r", reward) for attack, reward in rewards.items()]
    environment.observe([Graph("c", [*nodes, Node("c", "first", "r", 1.0)])])
    assert {each.attack: each.reward for each in environment.examples} == {
        "first": 1.0,  # its best
        "second": 0.9,
    }
    draws = shown(environment, 3)
    assert all(sorted(each) == ["first", "second"] for each in draws)
    again = few_shot(examples=(), shots=2, temperature=0.05)
    again.load_state_dict(environment.state_dict())
    assert shown(again, 3) == draws
    given = few_shot()
    given.observe([Graph("c", nodes)])
    assert "second" not in {each.attack for each in given.examples}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"temperature": 0}, "temperature=0"),
        (
            {"examples": [ImitationStep("", "a")]},
            "0 of 1 attacks have a reward and text; at least shots=2",
        ),
        ({"examples": "nowhere.jsonl"}, "cannot read the attacks"),
    ],
)
def test_examples_that_cannot_be_shown_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        few_shot(**options)
