"""The gradient through turns of an agent is that of the enumerated expected return."""

import itertools
import math

import pytest
import torch
from tests.algorithms.test_tree_gradients import MEMBERS, ascent
from tests.algorithms.tree_games import ROOT, WORDS, Game, TableProblem, random_logits

from astra_rl.agents import Assignment, Goal, Task, World, stages
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
