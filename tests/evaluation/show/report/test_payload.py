"""Conversations packed into a page."""

import base64
import gzip
import json

import pytest
from tests.evaluation.show.report.making import attempt, tree, turn
from tests.hostile import HOSTILE

from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.evaluation.show.report import payload
from astra_rl.evaluation.show.report.payload import LONGEST, pack_conversations


def unpack(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def packed(attempts, kinds=None):
    found = pack_conversations(attempts, kinds or {}, {"after": "after training"})
    return unpack(found.index), [each for chunk in found.chunks for each in unpack(chunk)]


def test_conversations_of_a_tree_share_their_turns_and_keep_their_places():
    _, (episode,) = packed(tree(width=3))
    assert len(episode["nodes"]) == 3 + 9
    assert [node["parent"] for node in episode["nodes"]].count(-1) == 3
    for leaf, made in zip(episode["leaves"], tree(width=3), strict=True):
        said, node = [], leaf["node"]
        while node >= 0:
            said.insert(0, episode["nodes"][node]["attack"])
            node = episode["nodes"][node]["parent"]
        assert said == [turn.attack for turn in made.turns]
        assert leaf["id"] == made.id


def test_trees_of_other_steps_prompts_and_trials_are_other_trees():
    attempts = [
        *tree(step=1),
        *tree(step=2),
        *tree(trial=1),
        *tree("elsewhere"),
        attempt(turn("a")),
    ]
    index, episodes = packed(attempts)
    assert len(episodes) == 5
    assert index["columns"]["episode"] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4]


def test_the_index_says_what_a_list_needs():
    made = attempt(
        turn("first", "a", 0.1, nll=3.0, reward=-1.0),
        turn("second\nline", "b", 0.9, nll=5.0, reward=2.0),
        opening="hello", category="secrets",
    )  # fmt: skip
    index, _ = packed([made], {made.id: 4})
    (row,) = zip(*index["columns"].values(), strict=True)
    assert dict(zip(index["columns"], row, strict=True)) == {
        "id": made.id, "phase": "after training", "outcome": "success", "score": 0.9, "nll": 8,
        "trial": 0, "reward": 2, "turns": 2, "first": 2, "kind": 4, "category": "secrets",
        "step": None, "prompt": made.prompt_id, "target": "target", "preview": "second line",
        "episode": 0, "leaf": 0, "slot": None, "tools": None,
    }  # fmt: skip


def test_a_missing_score_is_none_with_its_reason_and_never_zero():
    index, (episode,) = packed([attempt(turn("a", "b", None))])
    assert index["columns"]["score"] == [None]
    assert episode["nodes"][0]["scores"] == {"judge": None}
    assert episode["nodes"][0]["unscored"] == {"judge": "no verdict"}


def test_a_conversation_in_which_nothing_was_said_is_there_too():
    index, (episode,) = packed([attempt(error="timed out")])
    assert index["columns"]["outcome"] == ["error"]
    assert episode["nodes"] == []
    assert episode["leaves"][0] | {"id": ""} == {
        "id": "", "node": -1, "outcome": "error", "error": "timed out", "trial": 0,
    }  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
def test_hostile_text_is_made_visible_bounded_and_cannot_end_its_block(text):
    found = pack_conversations([attempt(turn(text, text, 0.9))], {}, {})
    assert all(set(each).isdisjoint("<>&\"'") for each in (found.index, *found.chunks))
    made = turn(text, text, 0.9, reasoning=text, attack_reasoning=text)
    _, (episode,) = packed([attempt(made)])
    for name in ("attack", "response", "reasoning", "attack_reasoning"):
        said = episode["nodes"][0].get(name, "")
        assert said == visible_text(said)
        assert len(said) < LONGEST + 100
        if len(text) <= LONGEST and text.isascii():
            assert said == visible_text(text)


def test_texts_are_unpacked_in_parts_that_the_index_finds(monkeypatch):
    monkeypatch.setattr(payload, "CHUNK", 1000)
    attempts = [attempt(turn("a" * 300), opening=f"{number}") for number in range(20)]
    found = pack_conversations(attempts, {}, {})
    starts = unpack(found.index)["chunks"]
    chunks = [unpack(chunk) for chunk in found.chunks]
    assert len(chunks) > 3
    assert found.conversations == 20
    sizes = [len(chunk) for chunk in chunks]
    assert starts == [sum(sizes[:number]) for number in range(len(sizes))]


def test_nothing_to_pack_is_an_empty_index():
    index, episodes = packed([])
    assert index["columns"]["id"] == []
    assert episodes == []
