"""What else follows the words before a cause of failures."""

from __future__ import annotations

from astra_rl.bench import Call, NoTraining, PlantedTarget, play
from astra_rl.bench.continuations import continue_causes


def test_each_other_word_after_a_cause_is_sent_once_and_finished_by_the_attacker():
    target = PlantedTarget(10)
    search = play(target, NoTraining, calls=64)
    known = target.game.modes[0].attack
    found = continue_causes(search, [Call(0, True, known)], 40)
    topic, manner, _ = known.split()
    sent = [str(call.attack).split() for call in found]
    assert {words[0] for words in sent} == {topic}
    assert len({words[1] for words in sent} - {manner}) == 40
    assert all(call.mode == target.mode_of(str(call.attack)) for call in found)
    assert found == continue_causes(search, [Call(0, True, known)], 40)


def test_without_a_success_there_is_nothing_to_continue():
    search = play(PlantedTarget(10), NoTraining, calls=64)
    assert continue_causes(search, [Call(None, False, "topic1 manner1 request1")], 64) == []
