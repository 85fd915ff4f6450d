"""The models and the world of `benchmarks/agents_learn.py`, without their training."""

import importlib
import json
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_rl.agents.worlds.calendar import Calendar
from astra_rl.core.messages import Dialogue
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.ext.transformers.problem import ModelPair
from astra_rl.models.chat_template import ChatTemplate
from astra_rl.models.dialogues import dialogue_parts
from astra_rl.models.generation import Sampling
from astra_rl.moderators.hijack import HijackModerator
from astra_rl.targets import OpenAITarget
from astra_rl.testing import tiny_model

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


@pytest.mark.slow
def test_the_server_of_the_agent_says_what_the_agent_says_here(models, tmp_path):
    """Through the API, with the server's own prompts, decoding and reading of calls."""
    pytest.importorskip("openai")
    server = importlib.import_module("agents_server")
    tokenizer = models.trained_tokenizer()
    agent = models.new_model(tokenizer, 1, 32)
    with torch.no_grad():  # it never says a control token, which each side shows in its way
        weight = agent.model.embed_tokens.weight
        weight[tokenizer.all_special_ids] = -10 * weight.mean(0)
        for matrix in agent.model.layers.parameters():
            matrix.mul_(6.0)  # so that what it says depends on what it reads
    for part in (agent, tokenizer):
        part.save_pretrained(tmp_path)
    problem = HFASTProblem(
        tiny_model(chat=True),
        ModelPair(agent.eval(), tokenizer),
        tiny_model(chat=True),
        HijackModerator(),
        target_sampling=Sampling(max_new_tokens=5, temperature=0),
    )
    dialogues = []
    for seed in range(3):
        chat = [
            replace(each, call_id="call00000" if each.role == "tool" else "")
            for each in models.agent_chat(random.Random(seed))
        ]
        dialogues += [
            Dialogue(chat[:at], Calendar().described)
            for at, message in enumerate(chat)
            if message.role == "assistant"
        ]
    serving = server.Server(tmp_path)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        target = OpenAITarget("agent", base_url=serving.url, max_tokens=5, temperature=0)
        said = [each.strip() for each in target.respond(dialogues)]
    finally:
        serving.shutdown()
        serving.server_close()
    assert said == [each.strip() for each in problem.rollout_prompt_with_target(dialogues)]
    assert len(set(said)) > 3
    call = server._call_in('{"name": "invite", "parameters": {"person": "Ann"}}')["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("invite", {"person": "Ann"})
    assert server._call_in("Done.") is None
