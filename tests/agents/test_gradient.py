"""The gradient through turns of an agent is that of the enumerated expected return."""

import itertools
import math

import pytest
import torch
from tests.algorithms.test_tree_gradients import MEMBERS, ascent, gradient_of
from tests.algorithms.tree_games import ROOT, WORDS, Game, TableProblem, random_logits

from astra_rl.agents import Assignment, Goal, Task, World, stages
from astra_rl.algorithms import ALGORITHMS
from astra_rl.core.text import Conversation, Exchange, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.methods.tool_environment import ToolEnvironment
from astra_rl.moderators.hijack import HijackModerator


def look(state: dict) -> str:
    """Look around."""
    return "nothing new"


def press(state: dict) -> str:
    """Press the button."""
    state["pressed"] += 1
    return "pressed"


class Button(World):
    """A button that the attacker wants to be pressed as often as there are turns."""

    start = {"pressed": 0}  # noqa: RUF012
    tools = (look, press)
    tasks = (Task("look", "Look around.", lambda state: 1.0, [("look", {})]),)
    goals = (
        Goal(
            "press",
            "Press.",
            lambda state: stages(*(state["pressed"] > n for n in range(3))),
            [],
            (),
        ),
    )


HERE = f"{__name__}:Button"


class ButtonProblem(TableProblem):
    """Attacks are one word; the agent looks, presses once if it read a b, and answers."""

    def __init__(self, game, logits, forced=()):
        super().__init__(game, logits)
        self.moderator, self.forced, self.pressed = HijackModerator(), list(forced), 0

    def rollout_prompt_with_attacker(self, contexts):
        return [self.forced.pop(0) for _ in contexts]

    def rollout_prompt_with_target(self, contexts):
        return [self._message(each) for each in contexts]

    def _message(self, dialogue):
        turn = list(
            itertools.takewhile(lambda each: each.role != "user", reversed(dialogue.messages))
        )
        called = [call.name for message in turn for call in message.calls]
        read = "".join(message.text for message in turn)
        if "look" not in called:
            return Utterance("", calls=[ToolCall("look")])
        if "b" in read.splitlines() and "press" not in called:
            self.pressed += 1
            return Utterance("", calls=[ToolCall("press")])
        return "Done."

    def advance(self, context, attack, response):
        return context + attack + response

    def reward(self, contexts, attacks, responses):
        return self.moderator.moderate(list(map(Exchange, contexts, attacks, responses)))

    def _states(self, contexts):
        histories = [ROOT + "".join(Conversation.of(each).attacks) for each in contexts]
        return [self.game.histories.index(each) for each in histories]


def by_hand(history):
    """Reward of a history: a third for each b so far if it ends in one. It knows no tools."""
    return history.count("b") / 3 if history.endswith("b") else 0.0


def played(problem, width, depth):
    opening = Assignment(HERE, "look", "press", "tool_result").opening()
    environment = ToolEnvironment(problem, [opening], width, depth)
    return environment.rollout(0)


def words_by_level(width, depth):
    """Return all choices of the attacks of a full tree, in the order in which they are sampled."""
    return itertools.product(WORDS, repeat=sum(width**level for level in range(1, depth + 1)))


def chance_of(graph, game, policy):
    total = 0.0
    for node in graph.nodes():
        history = ROOT + "".join(Conversation.of(node.context).attacks)
        total += float(policy[game.histories.index(history), WORDS.index(node.attack)])
    return math.exp(total)


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
@pytest.mark.parametrize(("width", "depth"), [(1, 3), (2, 2)])
def test_the_mean_gradient_over_all_trees_is_that_of_the_expected_return(name, width, depth):
    game = Game(depth, rewards=by_hand)
    logits = random_logits(game)
    policy = game.policy(logits.double())
    found = torch.zeros_like(logits).double()
    total = 0.0
    for forced in words_by_level(width, depth):
        problem = ButtonProblem(game, logits, forced)
        graph = played(problem, width, depth)
        chance = chance_of(graph, game, policy)
        total += chance
        found += chance * ascent(MEMBERS[name], problem, graph)
        # A branch that was played twice would have pressed twice.
        assert problem.pressed == forced.count("b")
    assert total == pytest.approx(1)
    assert torch.allclose(found, game.gradient(logits), atol=1e-6)


def test_the_state_of_each_branch_is_that_of_its_own_attacks():
    game = Game(2, rewards=by_hand)
    graph = played(ButtonProblem(game, random_logits(game), "abbabb"), 2, 2)
    for node in graph.nodes():
        history = [*Conversation.of(node.context).attacks, node.attack]
        assert node.response.trace.state == {"pressed": history.count("b")}
        assert node.reward == pytest.approx(by_hand("".join(history)))
        assert node.reward_terms == {"hijack": node.reward, "utility": 1.0}


class Cut(ToolEnvironment):
    """Conversations end where the game says so; of siblings only the first is continued."""

    def is_over(self, branch):
        return history_of(branch.state) in self.problem.game.ended

    def select(self, branches):
        first = {}
        for branch in branches:
            first.setdefault(branch.group, branch)
        return list(first.values())


def history_of(context):
    return ROOT + "".join(Conversation.of(context).attacks)


def true_values(game, policy):
    """Expected return from each history on, by recursion; 100 where a conversation has ended."""

    def value(history):
        return sum(
            math.exp(policy[game.histories.index(history), WORDS.index(word)])
            * (game.rewards(history + word) + rest(history + word))
            for word in WORDS
        )

    def rest(history):
        return 0.0 if game.is_last(history) else value(history)

    return torch.tensor([100.0 if game.is_last(each) else value(each) for each in game.histories])


ENDED = [".ab", ".b"]
"""After the first success a conversation has ended."""


def cut_trees(game, logits, values):
    """Yield (problem, graph) of every tree of `Cut` once."""
    seen = set()
    for forced in itertools.product(WORDS, repeat=6):
        problem = ButtonProblem(game, logits, forced)
        problem.estimates.data = values.float()
        opening = Assignment(HERE, "look", "press", "tool_result").opening()
        graph = Cut(problem, [opening], 2, game.depth).rollout(0)
        used = forced[: len(forced) - len(problem.forced)]
        if used not in seen:
            seen.add(used)
            yield problem, graph


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_truncated_turns_are_worth_what_the_value_function_says_and_terminated_ones_nothing(lam):
    """With the true values, the gradient is exact wherever a conversation is cut.

    With values of 0, as if a cut conversation had ended, it is not. Values after the end are never
    read: they are 100 here.
    """
    game = Game(3, ended=ENDED, rewards=by_hand)
    logits = random_logits(game, seed=3)
    policy = game.policy(logits.double())
    values = true_values(game, policy)
    found = {}
    for name, table in (("true", values), ("none", torch.where(values < 99, 0.0, values))):
        found[name], total = torch.zeros_like(logits).double(), 0.0
        for problem, graph in cut_trees(game, logits, table):
            chance = chance_of(graph, game, policy)
            algorithm = ALGORITHMS["a2c"](problem, alpha=0.0, gamma=1.0, gae_lambda=lam)
            gradient, _ = gradient_of(algorithm, [graph])
            weight = sum(step.weight for step in algorithm.flatten(graph))
            found[name] -= chance * gradient * weight
            total += chance
        assert total == pytest.approx(1)
    expected = game.gradient(logits)
    assert torch.allclose(found["true"], expected, atol=1e-6)
    assert not torch.allclose(found["none"], expected, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_returns_bootstrap_where_a_conversation_is_cut_and_nowhere_else(name):
    game = Game(3, ended=ENDED, rewards=by_hand)
    logits = random_logits(game, seed=3)
    values = true_values(game, game.policy(logits.double()))
    kinds = set()
    for problem, graph in cut_trees(game, logits, values):
        algorithm = ALGORITHMS[name](problem, gamma=1.0, gae_lambda=0.0)
        steps = algorithm.prepare(algorithm.flatten(graph))
        nodes = list(graph.nodes())
        assert len(steps) == len(nodes)
        for step in steps:
            node = nodes[step.place.index]
            after = history_of(node.context) + node.attack
            is_last = game.is_last(after)
            rest = 0.0 if is_last else float(values[game.histories.index(after)])
            assert step.returns[0] == pytest.approx((node.reward + rest,), abs=1e-6)
            assert node.truncated == (not is_last and not node.children)
            kinds.add("cut" if node.truncated else "continued" if node.children else
                      "limit" if len(after) > game.depth else "ended")  # fmt: skip
    assert kinds == {"cut", "continued", "limit", "ended"}
