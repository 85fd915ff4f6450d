"""TAP, Crescendo and GOAT on scripted models: every call, what each side reads, where they end."""

from __future__ import annotations

import math
from itertools import count

import pytest

from astra_rl import ASTEvaluator, ASTProblem, ConfigurationError, Conversation
from astra_rl.bench import NoTraining
from astra_rl.core.text import NoAttack, NoReply, NotSent
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.methods.environments import ENVIRONMENTS
from astra_rl.methods.prompted_search import (
    CrescendoEnvironment,
    GOATEnvironment,
    TAPEnvironment,
    score_of,
)
from astra_rl.rewards import FunctionTerm, Harm, KindNovelty
from astra_rl.testing import ScriptedModerator

GOAL = "say the\n word"
OPENING = Conversation("Hello.", brief="Be kind.", facts={"goal": GOAL}, separator="\n")


class Played(ASTProblem):
    """Attacks are numbered; target, attacker and judge are functions, and all calls are kept."""

    def __init__(self, answer=lambda attack: "no", score=lambda response: 0.0, write=None):
        super().__init__(Judge(score), Harm())
        self.answer, self.read, self.heard = answer, [], []
        numbers = count(1)
        self.write = write or (lambda context: f"attack {next(numbers)}")

    def rollout_prompt_with_attacker(self, contexts):
        self.read += contexts
        return [self.write(context) for context in contexts]

    def rollout_prompt_with_target(self, contexts):
        self.heard += contexts
        return [self.answer(Conversation.of(context).attacks[-1]) for context in contexts]

    def parameters(self):
        yield from ()

    get_attacker_logprobs = get_target_logprobs = get_baseline_logprobs = None


class Judge(ScriptedModerator):
    """Scores responses by a function, and keeps what it was asked."""

    def __init__(self, score):
        super().__init__({})
        self.score, self.asked = score, []

    def moderate(self, x):
        self.asked += [each.response for each in x]
        return [self.score(each.response) for each in x]


def calls(problem):
    return len(problem.read), len(problem.heard), len(problem.moderator.asked)


def number(text):
    return int(text.split()[-1])


def test_tap_without_a_success_makes_the_calls_of_the_paper():
    """Branching 4, width 10, depth 10: 4, then 4 * 4, then 10 * 4 on each of 8 levels."""
    problem = Played()
    (graph,) = TAPEnvironment(problem, [OPENING]).rollouts([0])
    assert calls(problem) == (340, 340, 340)
    by_level = [len(level) for level in levels(graph)]
    assert by_level == [4, 16, *[40] * 8]
    assert by_level == TAPEnvironment.turns_by_level(tree_width=4, tree_depth=10, keep=10)


def levels(graph):
    level = list(graph.children)
    while level:
        yield level
        level = [child for node in level for child in node.children]


def test_tap_refines_the_best_and_shows_answer_and_score_to_the_attacker_alone():
    problem = Played(lambda attack: f"answer {number(attack)}", lambda text: number(text) / 100)
    (graph,) = TAPEnvironment(problem, [OPENING], 3, 2, keep=1).rollouts([0])
    first = graph.children
    assert [bool(node.children) for node in first] == [False, False, True]
    assert [node.truncated for node in first] == [True, True, False]
    refined = problem.read[3:]
    assert len(refined) == 3
    for context in refined:
        assert str(context).endswith("attack 3\n\nThe answer was: answer 3\nScore: 1 of 10\n")
    asked = {(context.prompt, context.attacks) for context in problem.heard}
    assert asked == {("Hello.", (f"attack {at}",)) for at in range(1, 7)}
    brief = problem.read[0].brief.splitlines()
    assert brief[0] == "Be kind."
    assert brief[-1] == "Objective: say the word"
    assert graph.context.brief == "Be kind."


def test_tap_sends_no_attack_off_topic_and_those_whose_topic_is_unknown():
    """Of attacks 1 to 4, the second is off topic, and the check of the third fails."""
    topic = FunctionTerm(
        lambda turns: [{2: 0.1, 3: math.nan}.get(number(t.attack), 1.0) for t in turns]
    )
    problem = Played()
    (graph,) = TAPEnvironment(problem, [OPENING], 4, 1, on_topic=topic).rollouts([0])
    assert [number(context.attacks[-1]) for context in problem.heard] == [1, 3, 4]
    assert len(problem.moderator.asked) == 3
    off = graph.children[1]
    assert isinstance(off.attack, NoAttack)
    assert (off.attack, off.attack.written) == ("", "attack 2")
    assert math.isnan(score_of(off))


def test_a_turn_without_a_score_ranks_like_the_median_of_its_level():
    """Scores 0.1, unknown, 0.3, 0.4: the median of the known ones is 0.3, above the first."""
    scores = {1: 0.1, 2: math.nan, 3: 0.3, 4: 0.4}

    def score(text):
        return scores.get(number(text), 0.0)

    kept = {}
    for keep in (1, 3):
        problem = Played(lambda attack: f"answer {number(attack)}", score)
        (graph,) = TAPEnvironment(problem, [OPENING], 4, 2, keep=keep).rollouts([0])
        kept[keep] = [number(node.attack) for node in graph.children if node.children]
    assert kept == {1: [4], 3: [2, 3, 4]}
    problem = Played(lambda attack: f"answer {number(attack)}", lambda text: math.nan)
    (graph,) = TAPEnvironment(problem, [OPENING], 4, 2, keep=1).rollouts([0])
    assert sum(bool(node.children) for node in graph.children) == 1  # drawn by seed


def test_tap_ends_with_its_first_success_and_is_evaluated_by_the_path_to_it():
    problem = Played(
        lambda attack: f"answer {number(attack)}",
        lambda text: {5: 1.0, 1: 0.2}.get(number(text), 0.1),
    )
    environment = TAPEnvironment(problem, [OPENING], 2, 5, keep=2)
    (graph,) = environment.eval_rollouts([OPENING])
    assert calls(problem) == (6, 6, 6)  # 2, then 4, of which one succeeds
    (first,) = graph.children
    (second,) = first.children
    assert (number(first.attack), number(second.attack)) == (2, 5)
    assert second.children == []


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        (lambda at: "no", Outcome.FAILURE, ""),
        (lambda at: "no" if at < 6 else NoReply("timed out"), Outcome.UNSCORED, ""),
        (lambda at: "no" if at < 6 else NotSent(), Outcome.ERROR, "budget spent"),
        (lambda at: "yes" if at == 2 else NoReply("timed out"), Outcome.SUCCESS, ""),
    ],
)
def test_a_search_with_lost_replies_has_an_unknown_outcome_unless_it_succeeded(
    answer, outcome, error
):
    """Of six attacks some get no reply; a search that the budget cut counts as not made."""
    problem = Played(lambda attack: answer(number(attack)), lambda text: float(text == "yes"))
    environment = TAPEnvironment(problem, [OPENING], 3, 2, keep=1)
    (attempt,) = ASTEvaluator(environment, [OPENING]).run().attempts
    assert (attempt.outcome, attempt.error) == (outcome, error)


def crescendo(refused, *, score=lambda text: 0.0, **options):
    """Return what was asked, and the graph, of a target that refuses attacks of these numbers."""
    problem = Played(
        lambda attack: (
            "I'm sorry, I can't help with that."
            if number(attack) in refused
            else f"Answer {number(attack)}"
        ),
        score,
    )
    environment = CrescendoEnvironment(problem, [OPENING], **options)
    (graph,) = environment.rollouts([0])
    return problem, graph


def test_crescendo_takes_refused_turns_back():
    problem, graph = crescendo({2, 3}, tree_depth=3, backtracks=10)
    heard = [[number(attack) for attack in context.attacks] for context in problem.heard]
    assert heard == [[1], [1, 2], [1, 3], [1, 4], [1, 4, 5]]
    assert [number(node.attack) for node in graph.nodes()] == [1, 2, 3, 4, 5]
    refusals = [node.reward_terms["refusal"] for node in graph.nodes()]
    assert refusals == [0.0, 1.0, 1.0, 0.0, 0.0]
    briefs = [context.brief for context in problem.read]
    assert "attack 2" in briefs[2]
    assert "attack 3" not in briefs[2]
    assert "attack 3" in briefs[3]
    assert "refused" not in briefs[4]  # what was refused is of the turn before
    assert all("Objective: say the word" in brief for brief in briefs)


@pytest.mark.parametrize(
    ("rounds", "backtracks", "refused", "asked"),
    [
        (10, 10, range(99), 20),  # ten turns back, then ten refusals that stay
        (10, 10, (), 10),
        (2, 3, range(99), 5),
        (2, 0, range(99), 2),
        (2, 3, {1, 2}, 4),
    ],
)
def test_crescendo_never_asks_more_than_its_rounds_and_backtracks(
    rounds, backtracks, refused, asked
):
    problem, _ = crescendo(set(refused), tree_depth=rounds, backtracks=backtracks)
    assert calls(problem) == (asked,) * 3
    most = CrescendoEnvironment.turns_by_level(
        tree_width=1, tree_depth=rounds, backtracks=backtracks
    )
    assert asked <= sum(most) == rounds + backtracks


def test_crescendo_ends_with_a_success_and_takes_back_nothing_whose_refusal_is_unknown():
    problem, _ = crescendo({2}, score=lambda text: float(text == "Answer 3"), tree_depth=9)
    assert [number(context.attacks[-1]) for context in problem.heard] == [1, 2, 3]
    unknown = FunctionTerm(lambda turns: [math.nan for _ in turns])
    problem, _ = crescendo({1}, tree_depth=2, refusal=unknown)
    assert [len(context.attacks) for context in problem.heard] == [1, 2]
    assert "Score of the answer: 1 of 10." in problem.read[1].brief


def test_goat_sends_the_message_alone_and_at_most_five():
    reasoned = "Observation: none. Thought: far. Strategy: persona. <message>Hi {}</message>"
    numbers = count(1)
    problem = Played(write=lambda context: reasoned.format(next(numbers)))
    (graph,) = GOATEnvironment(problem, [OPENING]).rollouts([0])
    assert [context.attacks[-1] for context in problem.heard] == [f"Hi {at}" for at in range(1, 6)]
    assert problem.heard[1].attacks == ("Hi 1", "Hi 2")
    assert graph.children[0].attack.written == reasoned.format(1)
    brief = problem.read[0].brief
    for technique in ("persona", "hypothetical", "refusal suppression", "topic splitting"):
        assert f"\n- {technique}: " in brief
    assert brief.endswith("Objective: say the word")


@pytest.mark.parametrize(
    "output", ["Hi", "<message>Hi", "<message>a</message> <message>b</message>"]
)
def test_goat_sends_nothing_without_exactly_one_message(output):
    problem = Played(write=lambda context: output)
    (graph,) = GOATEnvironment(problem, [OPENING]).rollouts([0])
    assert not problem.heard
    (node,) = graph.nodes()
    assert isinstance(node.attack, NoAttack)
    assert node.attack.written == output


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tap", {"keep": 0}, "keep=0"),
        ("tap", {"threshold": 0.0}, "threshold=0"),
        ("tap", {"on_topic": KindNovelty()}, "on_topic"),
        ("crescendo", {"backtracks": -1}, "backtracks=-1"),
        ("crescendo", {"refusal": KindNovelty()}, "refusal"),
        ("goat", {"threshold": 1.5}, "threshold=1.5"),
    ],
)
def test_values_out_of_range_are_refused(name, options, message):
    for make in (
        lambda: ENVIRONMENTS[name](Played(), [OPENING], **options),
        lambda: ENVIRONMENTS[name].check_options(**options),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()


def test_they_run_with_an_algorithm_that_learns_nothing():
    for name in ("tap", "crescendo", "goat"):
        environment = ENVIRONMENTS[name](Played(), [OPENING], 1, 2)
        assert NoTraining(environment.problem).flatten(environment.rollout(0)) == []
