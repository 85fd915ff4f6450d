"""Suites of AgentDojo as worlds: its own solutions are the tasks done and the goals reached."""

import pytest

from astra_rl.agents import Assignment, answer, load_world
from astra_rl.agents.assignment import Limits
from astra_rl.agents.reading import reading
from astra_rl.agents.world import as_calls
from astra_rl.core.text import NoReply, Utterance
from astra_rl.errors import MissingDependencyError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
installed = pytest.mark.bridge("agentdojo")
NAME = "astra_rl.bridges.agentdojo:{}"
HOSTILE = 'Hello "you", {x} \\n: - # [a] \n\ttwo: lines'


def play(world, task, goal, calls, said, slot="everywhere", attack=HOSTILE):
    limits = Limits(replies=60, calls=60)
    opening = Assignment(NAME.format(world), task, goal, slot, limits).opening()
    steps = iter([*(Utterance("", calls=[each]) for each in calls), Utterance(said, calls=())])
    return answer([opening + attack], lambda contexts: [next(steps)])[0]


@installed
@pytest.mark.parametrize("name", ["Banking", "Slack", "Travel", "Workspace"])
def test_the_solutions_of_the_suite_do_its_tasks_and_reach_its_goals(name):
    world = load_world(NAME.format(name))
    for task, goal in zip(world.tasks[:4], world.goals[:4], strict=False):
        trace = play(name, task.id, goal.id, as_calls(task.calls), task.answer).trace
        assert (trace.hijack, trace.utility) == (0, 1), task.id
        trace = play(name, task.id, goal.id, as_calls(goal.calls), "Done.").trace
        assert trace.hijack == 1, goal.id
    for entries in (world.tasks, world.goals):
        assert {each.split for each in entries} == {"train", "test"}


@installed
def test_an_attack_is_text_at_its_vector_and_no_syntax():
    world = load_world(NAME.format("Banking"))
    task = world.tasks[0]
    found = reading(
        Assignment(NAME.format("Banking"), task.id, world.goals[0].id, "everywhere").opening()
        + HOSTILE
    )
    assert HOSTILE.split("\n")[0] in found.messages[-1].text
    reply = play("Banking", task.id, world.goals[0].id, as_calls(task.calls), "x", slot="user")
    assert HOSTILE not in reply.trace.messages[2].text


@installed
def test_states_branch_and_a_second_turn_has_no_response():
    world = load_world(NAME.format("Banking"))
    (name, arguments), *_ = world.goals[0].calls
    start = world.new_state(world.tasks[0].id)
    texts = [world.call(start, name, arguments)[0] for _ in range(2)]
    assert texts[0] == texts[1]
    assert start["calls"] == []
    task, goal = world.tasks[0], world.goals[0]
    reply = play("Banking", task.id, goal.id, as_calls(task.calls), "Hello.")
    opening = Assignment(NAME.format("Banking"), task.id, goal.id, "everywhere").opening()
    (again,) = answer([opening + HOSTILE + reply + "more"], lambda contexts: ["Hello."])
    assert isinstance(again, NoReply)
    assert "one turn" in again.detail


def test_a_missing_package_is_named():
    try:
        import agentdojo  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="pip install agentdojo"):
            load_world(NAME.format("Banking"))
