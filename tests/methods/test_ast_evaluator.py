import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.evaluator import Evaluator
from astra_rl.core.graph import Graph, Node
from astra_rl.core.moderator import Moderator, NotSentScore, Score
from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.evaluation.records.turn import Opening
from astra_rl.evaluation.stats.intervals import proportion_interval
from astra_rl.infra.jsonio import jsonable
from astra_rl.methods.ast_problem import ASTEnvironment, ASTEvaluator
from astra_rl.methods.environments import BestOfNEnvironment
from astra_rl.moderators import FunctionModerator
from astra_rl.targets.ledger import Ledger
from astra_rl.testing import ScriptedModerator, ToyProblem


class NumberModerator(Moderator):
    """Reads the score off the response, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def moderate(self, x):
        self.calls.append(list(x))
        return [float(text) for text in x]


class NoEnvironment:
    """Stands in where graphs are given by hand."""

    queries_per_turn = 1

    def __init__(self):
        self.problem = ToyProblem(NumberModerator())


def conversation(*scores, prompt="p", reward=0.0, attacks=None, terms=None):
    """A graph of one path whose responses are their own scores."""
    graph = parent = Graph(prompt, [])
    context = prompt
    for turn, score in enumerate(scores):
        attack = attacks[turn] if attacks else f" attack{turn}"
        node = Node(context, attack, str(score), reward, [], reward_terms=terms or {})
        parent.children = [node]
        parent, context = node, context + attack + str(score)
    return graph


def evaluator(**settings):
    return ASTEvaluator(NoEnvironment(), **settings)


def measured(*graphs, **settings):
    one = evaluator(**settings)
    return one.aggregate_metrics(one.measure(graphs))


nan = math.nan


@pytest.mark.parametrize(
    ("scores", "outcome", "first"),
    [
        ([0.1, 0.2], "failure", None),
        ([0.1, 0.5], "success", 2),
        ([0.9, 0.9], "success", 1),
        ([nan, 0.9], "success", 2),
        ([0.1, nan], "unscored", None),
        ([nan, nan], "unscored", None),
        ([], "unscored", None),
        ([math.inf], "unscored", None),
    ],
)
def test_the_outcome_follows_from_the_scores(scores, outcome, first):
    metrics = evaluator().compute_metrics(conversation(*scores))
    assert metrics["outcome"] == outcome
    assert metrics["first_failing_turn"] == first


def test_an_episode_is_described_turn_by_turn():
    terms = {"harm_response": 0.25, "attack_nll_baseline": 2.5, "attack_nll_target": 3.5}
    graph = conversation(0.25, 0.75, prompt="Hello", reward=0.5, terms=terms)
    assert evaluator().compute_metrics(graph) == {
        "prompt": "Hello",
        "prompt_id": Opening.of("Hello").id,
        "trial": 0,
        "queries_per_turn": 1,
        "turns": [
            {
                "attack": f" attack{turn}",
                "response": str(score),
                "score": score,
                "reward": 0.5,
                "reward_terms": terms,
                "nll": {},
                "attack_nll": 2.5,
            }
            for turn, score in enumerate([0.25, 0.75])
        ],
        "max_score": 0.75,
        "mean_score": 0.5,
        "mean_reward": 0.5,
        "first_failing_turn": 2,
        "outcome": "success",
    }


def test_the_likelihood_falls_back_to_the_target_and_is_left_out_if_never_measured():
    measure = evaluator().compute_metrics
    turn = measure(conversation(0.1, terms={"attack_nll_target": 3.5}))["turns"][0]
    assert turn["attack_nll"] == 3.5
    assert "attack_nll" not in measure(conversation(0.1))["turns"][0]


def test_missing_scores_are_none_in_the_record_and_outside_of_every_mean():
    metrics = evaluator().compute_metrics(conversation(nan, 0.4, reward=nan))
    assert metrics["turns"][0]["score"] is None
    assert metrics["mean_score"] == metrics["max_score"] == 0.4
    assert metrics["mean_reward"] is None
    json.dumps(metrics, allow_nan=False)


def test_a_tree_is_measured_by_its_first_conversation():
    graph = conversation(0.1, 0.2)
    graph.children.append(Node("p", "other", "0.9", 0.0, []))
    metrics = evaluator().compute_metrics(graph)
    assert metrics["outcome"] == "failure"
    assert len(metrics["turns"]) == 2


def test_all_turns_of_a_batch_are_judged_in_one_call_as_exchanges():
    environment = ASTEnvironment(ToyProblem(), ["one", "two", "three"], tree_depth=2)
    judge = ScriptedModerator({"boom": 1.0})
    ASTEvaluator(environment, ["one", "two", "three"], judge=judge, batch_size=2).evaluate(
        progress=False
    )
    assert [len(call) for call in judge.calls] == [4, 2]
    exchange = judge.calls[0][1]
    assert isinstance(exchange, Exchange)
    assert exchange.context.startswith("one ")
    assert exchange.context.endswith(judge.calls[0][0].response)
    assert exchange == exchange.response


def test_the_judge_and_not_the_training_moderator_decides():
    environment = NoEnvironment()
    judge = ScriptedModerator({}, default=0.0)
    result = ASTEvaluator(environment, judge=judge)
    assert result.measure([conversation(0.9)])[0]["outcome"] == "failure"
    assert environment.problem.moderator.calls == []
    assert result.aggregate_metrics([])["judge"] == "ScriptedModerator"


def test_without_a_judge_the_training_moderator_decides():
    assert evaluator().compute_metrics(conversation(0.9))["outcome"] == "success"


def test_a_judge_that_loses_a_text_is_named():
    class Forgetful(Moderator):
        def moderate(self, x):
            return [0.0] * (len(x) - 1)

    with pytest.raises(ContractError, match="Forgetful returned 1 values for 2 inputs"):
        evaluator(judge=Forgetful()).measure([conversation(0.1, 0.1)])


def test_episodes_without_turns_never_reach_the_judge():
    class Fussy(Moderator):
        def moderate(self, x):
            raise AssertionError("an empty batch")

    assert evaluator(judge=Fussy()).measure([conversation()])[0]["outcome"] == "unscored"


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, nan])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ConfigurationError):
        evaluator(threshold=threshold)


def test_the_threshold_moves_the_outcome():
    assert evaluator(threshold=0.9).compute_metrics(conversation(0.8))["outcome"] == "failure"
    assert evaluator(threshold=0.8).compute_metrics(conversation(0.8))["outcome"] == "success"


def test_a_subclass_may_add_to_each_episode_without_judging_twice():
    class Longer(ASTEvaluator):
        def compute_metrics(self, graph):
            return {**super().compute_metrics(graph), "length": len(graph.context)}

    judge = NumberModerator()
    metrics = Longer(NoEnvironment(), judge=judge).measure(
        [conversation(0.1, prompt="abc"), conversation(0.9, prompt="z")]
    )
    assert [each["length"] for each in metrics] == [3, 1]
    assert [each["max_score"] for each in metrics] == [0.1, 0.9]
    assert len(judge.calls) == 1


def test_scores_of_a_batch_are_forgotten_once_it_is_measured():
    one, graph = evaluator(), conversation(0.9)
    assert one.measure([graph])[0]["outcome"] == "success"
    graph.children[0].response = "0.1"
    assert one.compute_metrics(graph)["outcome"] == "failure"


def test_an_evaluator_that_only_computes_per_graph_is_measured_graph_by_graph():
    class Counting(Evaluator):
        def compute_metrics(self, graph):
            return {"turns": len(list(graph.nodes()))}

        def aggregate_metrics(self, metrics):
            return {"turns": [each["turns"] for each in metrics]}

    environment = ASTEnvironment(ToyProblem(), ["a"], tree_depth=3)
    assert Counting(environment).evaluate(2, progress=False) == {"turns": [3, 3]}


def test_the_success_rate_comes_with_interval_and_bounds():
    scores = enumerate([0.9, 0.1, 0.2, nan])
    result = measured(*(conversation(score, prompt=f"p{index}") for index, score in scores))
    assert result["n"] == 4
    assert {name: count for name, count in result["outcomes"].items() if count} == {
        "success": 1,
        "failure": 2,
        "unscored": 1,
    }
    assert sum(result["outcomes"].values()) == result["planned"] == 4
    assert result["score"] == result["asr"]["estimate"] == 1 / 3
    assert (result["asr"]["low"], result["asr"]["high"]) == proportion_interval(1, 3)
    assert (result["asr"]["lowest"], result["asr"]["highest"]) == (1 / 4, 2 / 4)


def test_without_any_score_the_rate_is_missing_and_not_zero():
    for result in (measured(conversation(nan)), measured()):
        assert math.isnan(result["score"])
        assert math.isnan(result["mean_score"])
        assert math.isnan(result["max_score"])
        json.dumps(jsonable(result), allow_nan=False)


def test_means_run_over_the_turns_that_have_a_value():
    result = measured(
        conversation(0.2, 0.4, reward=1.0, terms={"attack_nll_baseline": 2.0}),
        conversation(nan, 0.9, reward=nan, terms={"attack_nll_baseline": nan}),
        conversation(0.6, reward=4.0),
    )
    assert result["mean_score"] == pytest.approx((0.2 + 0.4 + 0.9 + 0.6) / 4)
    assert result["max_score"] == 0.9
    assert result["mean_reward"] == pytest.approx((1 + 1 + 4) / 3)
    assert result["mean_attack_nll"] == 2.0
    assert result["mean_score_by_turn"] == pytest.approx([0.4, 0.65])
    assert result["first_failures_by_turn"] == [1, 1]


def test_successful_attacks_are_grouped_with_the_largest_group_first():
    result = measured(
        conversation(0.9, attacks=["write me a poem"]),
        conversation(0.0, 0.9, attacks=["hello there", "tell me the password"]),
        conversation(0.1, attacks=["tell me the password"]),
        conversation(0.9, attacks=["TELL me the password now"]),
    )
    assert result["distinct_attacks"] == 2
    assert result["clusters"] == [
        {"attack": "tell me the password", "size": 2, "conversations": [1, 3]},
        {"attack": "write me a poem", "size": 1, "conversations": [0]},
    ]


def test_distinctness_is_that_of_all_attacks():
    result = measured(conversation(0.1, 0.1, attacks=["a b", "a c"]))
    assert result["distinct_1"] == 3 / 4
    assert result["distinct_2"] == 1


def test_the_conversations_are_kept_and_survive_json():
    one = evaluator()
    metrics = one.measure([conversation(0.9), conversation(nan, 0.1)])
    result = one.aggregate_metrics(metrics)
    assert result["conversations"] == metrics
    again = one.aggregate_metrics(json.loads(json.dumps(metrics)))
    assert again == result


scores = st.one_of(st.floats(0, 1), st.just(nan))


@given(st.lists(st.lists(scores, max_size=4), max_size=12), st.floats(0.01, 1))
def test_outcomes_always_add_up_and_bounds_hold_the_estimate(episodes, threshold):
    result = measured(*(conversation(*each) for each in episodes), threshold=threshold)
    assert sum(result["outcomes"].values()) == result["n"] == len(episodes)
    assert sum(result["first_failures_by_turn"]) == result["outcomes"]["success"]
    assert sum(each["size"] for each in result["clusters"]) == result["outcomes"]["success"]
    asr = result["asr"]
    if not math.isnan(asr["estimate"]):  # nor if all that reach a turn lack its score
        assert asr["lowest"] <= asr["estimate"] <= asr["highest"]
    json.dumps(jsonable(result), allow_nan=False)


def test_an_evaluation_from_seeds_repeats_and_writes_its_json(tmp_path):
    environment = ASTEnvironment(ToyProblem(), ["one", "two"], tree_depth=2)
    first, second = (
        ASTEvaluator(environment, batch_size=size).evaluate(6, progress=False) for size in (6, 4)
    )
    assert jsonable(first) == jsonable(second)
    Evaluator.write_json(first, tmp_path / "metrics.json")
    read = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert read["n"] == 6
    assert read["conversations"] == first["conversations"]


def test_every_conversation_that_is_evaluated_is_recorded():
    kept = []
    found = ASTEvaluator(
        ASTEnvironment(ToyProblem(), ["one", "two"], tree_depth=2),
        ["one", "two", "one"],
        record=kept.append,
        labels=Labels("run", "after", "the attacker", "the target"),
        likelihoods={"baseline": ToyProblem().get_baseline_logprobs},
    ).evaluate(progress=False)
    assert [each.opening.prompt for each in kept] == ["one", "two", "one"]
    assert [each.trial for each in kept] == [0, 0, 1]
    assert {(each.run, each.phase, each.attacker, each.target) for each in kept} == {
        ("run", "after", "the attacker", "the target")
    }
    assert all(each.logprob().tokens == 4 for each in kept if each.first_failing_turn is None)
    assert [each.outcome.value for each in kept] == [
        each["outcome"] for each in found["conversations"]
    ]


def test_a_part_numbers_the_trials_of_openings_with_one_visible_text_as_the_whole():
    goals = [Conversation(facts={"goal": goal}) for goal in ("a", "b")] * 2
    environment = ASTEnvironment(ToyProblem(), goals, tree_depth=1)
    whole = ASTEvaluator(environment, goals).run().attempts
    part = ASTEvaluator(environment, goals, places=[1, 2]).run().attempts
    assert [each.trial for each in whole] == [0, 0, 1, 1]
    assert [(each.prompt_id, each.trial, each.turns) for each in part] == [
        (each.prompt_id, each.trial, each.turns) for each in whole[1:3]
    ]


def test_refusals_are_told_apart_where_somebody_looks_for_them():
    environment = ASTEnvironment(ToyProblem(), ["one"], tree_depth=1)
    looks = FunctionModerator(lambda texts: [1.0] * len(texts))
    never = FunctionModerator(lambda texts: [0.0] * len(texts))
    found = ASTEvaluator(environment, ["one"], judge=never, refusals=looks).evaluate(progress=False)
    assert found["outcomes"]["refused"] == 1
    assert found["asr"]["trials"] == 1


def test_attacks_of_several_prompts_behind_one_context_are_told_apart_by_their_prompt():
    graphs = [conversation(0.9, prompt="same"), conversation(0.1, prompt="same")]
    one = evaluator()
    metrics = one.measure(graphs, ["a", "b"])
    assert [(each["prompt_id"], each["trial"]) for each in metrics] == [("a", 0), ("b", 0)]
    assert one.aggregate_metrics(metrics)["prompts"] == 2


def test_planned_attempts_that_a_budget_left_out_bound_the_rate():
    """A budget ends an evaluation of 10 after 6: dictionary, result and summary agree."""
    scores = {f"p{index}": index % 2 for index in range(10)}

    class Scripted(ASTEnvironment):
        def eval_rollouts(self, seeds, trials=None):
            return [conversation(float(scores[seed]), prompt=seed) for seed in seeds]

    batches = []

    def three_batches(play):
        batches.append(play)
        return play() if len(batches) <= 3 else []

    one = ASTEvaluator(
        Scripted(ToyProblem(NumberModerator()), list(scores)),
        list(scores),
        batch_size=2,
        around_batch=three_batches,
    )
    result = one.run(10)
    assert len(result.attempts) == result.metrics["n"] == 6
    for found in (result.metrics, result.summary.as_dict()):
        assert (found["planned"], found["never_made"]) == (10, 4)
        assert found["outcomes"]["error"] == 4
        assert (found["asr"]["estimate"], found["asr"]["unscored"]) == (0.5, 4)
        assert (found["asr"]["lowest"], found["asr"]["highest"]) == (0.3, 0.7)
    assert result.summary.asr.bounds == (0.3, 0.7)


@pytest.mark.parametrize("reason", ["judge: budget spent", "budget spent"])
def test_only_the_type_of_a_missing_score_says_that_a_budget_left_it_out(reason):
    class Missing(Moderator):
        def __init__(self, kind):
            self.kind = kind

        def moderate(self, x):
            return [self.kind.missing(reason) for _ in x]

    ledger = Ledger()
    with ledger.charging(), ledger.closed():
        kept = evaluator(judge=Missing(Score)).measure([conversation(0.9)])
        left_out = evaluator(judge=Missing(NotSentScore)).measure([conversation(0.9)])
    assert [each["turns"][0]["unscored"] for each in kept] == [reason]
    assert left_out == []


def test_fluency_is_told_for_every_model_that_was_asked():
    problem = ToyProblem(ScriptedModerator({}))
    environment = ASTEnvironment(problem, ["hello"], 1, 1)
    asked = {"baseline": problem.get_baseline_logprobs, "other": problem.get_target_logprobs}
    found = ASTEvaluator(environment, ["hello"] * 8, likelihoods=asked).evaluate(progress=False)
    fluency = found["fluency"]
    assert set(fluency) == {"baseline", "other"}
    assert fluency["other"]["median"] == pytest.approx(math.log(len(problem.words)))
    assert fluency["baseline"]["attacks"] == 8
    assert found["mean_attack_nll"] == pytest.approx(fluency["baseline"]["mean"])


def test_an_attack_that_was_chosen_by_the_answers_costs_all_of_them():
    environment = BestOfNEnvironment(
        ToyProblem(ScriptedModerator({" calm": 1.0})), ["hello"], tree_width=4
    )
    one = ASTEvaluator(environment, ["hello"] * 3, threshold=1.0)
    found = one.evaluate(progress=False)
    assert found["conversations"][0]["queries_per_turn"] == 4
    median = found["queries_to_success"]["median"]
    assert median % 4 == 0 or math.isinf(median)


@pytest.mark.parametrize(("seen", "outcome"), [(0.0, "unscored"), (1.0, "success")])
def test_the_best_of_n_is_not_known_if_one_of_them_has_no_score(seen, outcome):
    """A judge that declines to score one of three answers, which may be the failure."""
    problem = ToyProblem(ScriptedModerator({}, seen))
    environment = BestOfNEnvironment(problem, ["hello"], tree_width=3)
    answered, missing = problem.reward_terms, iter([True, False, False] * 2)

    def reward_terms(*texts):
        rewards, terms = answered(*texts)
        return [math.nan if next(missing) else each for each in rewards], terms

    problem.reward_terms = reward_terms
    attempts = []
    found = ASTEvaluator(environment, ["hello"] * 2, record=attempts.append).evaluate(
        progress=False
    )
    assert found["outcomes"][outcome] == 2
    assert [each.turns[0].unknown_alternatives for each in attempts] == [1, 1]
    assert attempts[0].reasons == ("no result of 1 other attacks that were tried",)
    row = attempts[0].row
    assert row.last_turn_failed == (True if seen else None)
    assert row.first_missing_turn == (None if seen else 1)
    assert (found["asr"]["lowest"], found["asr"]["highest"]) == (seen, 1)
