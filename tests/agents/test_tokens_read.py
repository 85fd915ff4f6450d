"""The agent's model reads what is new: tokens of each round and of each turn are counted."""

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from astra_rl.agents import Goal, Limits, Slot, State, Task, World
from astra_rl.core.messages import trace_of
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.tool_environment import ToolEnvironment
from astra_rl.models import segments
from astra_rl.models.generation import Sampling, generate
from astra_rl.moderators.hijack import HijackModerator
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.testing import tiny_model

CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
ROUNDS = 10


def look(state: State) -> str:
    """Look."""
    return state["text"]


class Room(World):
    """One tool, so that a prompt is short."""

    start: ClassVar = {"text": "A chair."}
    tools = (look,)
    slots: ClassVar = {
        "document": Slot("a text", lambda state, text: state.update(text="A chair." + text))
    }
    tasks = (Task("look", "Look.", lambda state: 0.0, ()),)
    goals = (Goal("none", "Nothing.", lambda state: 0.0, (), ()),)


def played(monkeypatch, *, width, depth, slot):
    """Play an episode; returns its graph, and the tokens that the target read, by round."""
    letters = "".join(chr(code) for code in range(32, 127))
    attacker, target = (
        tiny_model(chat=True, window=8192, seed=seed, letters=letters) for seed in (0, 1)
    )
    read, rounds = Counter(), Counter()
    original = segments.hidden_states

    def counted(model, ids, *args):
        read[rounds["target"] if model is target.model else "attacker"] += ids.numel()
        return original(model, ids, *args)

    def sampler(model, prompts, sampling, seeds, **others):
        """Read the prompts with the model, and let the target say what the test wants."""
        if model is not target.model:
            return generate(model, prompts, sampling, seeds, **others)
        rounds["target"] += 1
        said = CALL if rounds["target"] % ROUNDS else "Done."
        ids = target.tokenizer(said, add_special_tokens=False)["input_ids"]
        one = replace(sampling, max_new_tokens=1)
        return [
            replace(each, token_ids=(*ids, target.tokenizer.eos_token_id))
            for each in generate(model, prompts, one, seeds, **others)
        ]

    problem = HFASTProblem(
        attacker,
        target,
        attacker,
        HijackModerator(),
        reward=WeightedSum({Harm("response"): 1.0}),
        attacker_sampling=Sampling(max_new_tokens=5),
        target_sampling=Sampling(max_new_tokens=5),
        sampler=sampler,
    )
    environment = ToolEnvironment.of_world(
        problem,
        f"{__name__}:Room",
        slots=[slot],
        limits=Limits(replies=ROUNDS, calls=ROUNDS),
        tree_width=width,
        tree_depth=depth,
    )
    monkeypatch.setattr(segments, "hidden_states", counted)
    return environment.rollout(0), read


@pytest.mark.parametrize(("width", "slot"), [(1, "document"), (3, "user"), (3, "tool_result")])
def test_the_tenth_round_reads_what_is_new_only(monkeypatch, width, slot):
    graph, read = played(monkeypatch, width=width, depth=1, slot=slot)
    for node in graph.children:
        assert trace_of(node.response).queries == ROUNDS
    assert read[ROUNDS] <= 1.5 * read[1]
    # A round adds a call and its result, which have the same length each time.
    assert read[ROUNDS] == read[3]


def test_the_tenth_turn_reads_what_is_new_only(monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROUNDS", 2)
    _, read = played(monkeypatch, width=1, depth=10, slot="user")
    turns = [read[2 * turn + 1] + read[2 * turn + 2] for turn in range(10)]
    assert turns[-1] <= 1.5 * turns[0]
    assert turns[-1] <= 1.5 * turns[1]
