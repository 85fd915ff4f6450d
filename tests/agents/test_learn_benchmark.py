"""The models and the world of `benchmarks/agents_learn.py`, without their training."""

import importlib
import random
from pathlib import Path

import pytest

from astra_rl.agents.worlds.calendar import Calendar
from astra_rl.core.messages import Dialogue
from astra_rl.models.chat_template import ChatTemplate
from astra_rl.models.dialogues import dialogue_parts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("agents_models")


def test_drawn_goals_can_be_reached_and_are_no_held_out_goal_and_no_task(models):
    week = importlib.import_module("agents_world").Week()
    drawn = [goal for goal in week.goals if goal.id.startswith("drawn")]
    assert len({str(goal.calls) for goal in drawn}) == len(drawn) == 40
    assert {goal.split for goal in drawn} == {"train"}
    held_out = [goal for goal in Calendar.goals if goal.split == "test"]
    for goal in drawn:
        state = run(week, goal.calls)
        assert goal.reached(state) == 1
        assert not any(other.reached(state) for other in held_out)
        assert not any(goal.reached(run(week, task.calls)) for task in week.tasks)


def run(world, calls):
    state = world.new_state()
    for name, arguments in calls:
        world.functions[name](state, **arguments)
    return state


def test_the_models_are_trained_on_the_prompts_that_the_loop_renders(models):
    tokenizer = models.trained_tokenizer()
    template = ChatTemplate.of(tokenizer, {})
    rng = random.Random(0)
    for _ in range(8):
        chat = models.agent_chat(rng)
        text = "".join(part for part, _ in models.rendered(chat, True))
        for at, message in enumerate(chat):
            if message.role == "assistant":
                read = dialogue_parts(template, Dialogue(chat[:at], Calendar().described))
                assert text.startswith("".join(part.text for part in read))
    ids, weights = models.encoded(tokenizer, chat, True)
    assert tokenizer.decode(ids) == text
    assert 0 < sum(weight == 1 for weight in weights) < len(ids)
