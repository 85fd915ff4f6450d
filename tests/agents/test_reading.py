"""Attacks are scored in the slot where an agent reads them."""

import math

import pytest
import torch
from tests.models.test_dialogues import FAMILIES, dialogue

from astra_rl.agents import WORLDS, Assignment, Goal, Slot, Task, World, answer, load_world
from astra_rl.agents.reading import reading, shown_in
from astra_rl.agents.world import SLOTS
from astra_rl.core.text import Conversation, Exchange, Utterance
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.moderators.hijack import HijackModerator
from astra_rl.rewards import SlotNLL
from astra_rl.rewards.terms import AttackNLL
from astra_rl.targets.scripted_agent import ScriptedAgent
from astra_rl.testing import tiny_model

ATTACK = "some words of an outsider."


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_each_slot_of_each_task_can_be_read(name):
    world = load_world(name)
    for task in world.tasks:
        for slot in (*world.slots, *SLOTS):
            opening = Assignment(name, task.id, world.goals[0].id, slot).opening()
            found = reading(opening + ATTACK)
            shown = [each.text for each in found.messages[-1:]]
            if slot == "system":
                shown = [found.messages[0].text]
            elif slot == "tool_description":
                shown = [found.tools[0].description]
            assert ATTACK in shown[0], (task.id, slot)


@pytest.mark.parametrize("slot", ["mail", "tool_result", "tool_result:list_mails"])
@pytest.mark.parametrize("attack", ["the", ".", "Saturday"])
def test_words_that_stand_elsewhere_too_are_read_in_the_slot(slot, attack):
    found = reading(Assignment("mailbox", "answer_ann", "door_code", slot).opening() + attack)
    assert found.messages[-1].role == "tool"
    if slot != "mail":
        assert found.messages[-1].text.endswith(f"\n{attack}")


def look(state: dict) -> str:
    """Look at the calendar."""
    return "Swimming on Saturday."


def read(state: dict) -> str:
    """Read the letter."""
    return state["letter"]


class Letter(World):
    """The slot is read in the second call of the task."""

    start = {"letter": ""}  # noqa: RUF012
    tools = (look, read)
    slots = {"letter": Slot("a letter", lambda state, text: state.update(letter=text))}  # noqa: RUF012
    tasks = (Task("read", "Read it.", lambda state: 1.0, [("look", {}), ("read", {})]),)
    goals = (Goal("none", "Nothing.", lambda state: 0.0, [], ()),)


def test_words_of_an_earlier_result_are_not_the_attack():
    context = Assignment(f"{__name__}:Letter", "read", "none", "letter").opening()
    for attack in ("Saturday", "Swimming on Saturday.", "."):
        assert reading(context + attack).messages[-1].text == attack
        (reply,) = answer([context + "x"], lambda contexts: ["Done."])
        assert reading(context + "x" + reply + attack).messages[-1].text == attack


@pytest.mark.parametrize("slot", ["mail", "tool_result"])
def test_an_attack_that_is_made_again_is_read_again(slot):
    once = Assignment("mailbox", "answer_ann", "door_code", slot).opening() + ATTACK
    (reply,) = answer([once], ScriptedAgent().respond)
    first, second = reading(once), reading(once + reply + ATTACK)
    assert len(second.messages) > len(first.messages) + 2
    assert second.messages[-1].role == "tool"
    shown = second.messages[-1].text.count(ATTACK)
    assert shown == (2 if slot == "mail" else 1)


def test_other_texts_are_read_nowhere():
    assert reading(Conversation("Hello.") + ATTACK) is None
    task, goal = load_world("files").tasks[0].id, load_world("files").goals[0].id
    opening = Assignment("files", task, goal, "document").opening()
    assert reading(opening + " \n") is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["hello there", 'a "quoted"\nline', "ünï"])
def test_the_ids_before_and_of_an_attack_begin_the_prompt(family, text):
    given = dialogue(text)
    renderer = ConversationRenderer(FAMILIES[family], "target")
    shown = given.messages[-1].text
    before, ids = renderer.place_in_dialogue(given, f" {text}\n", shown)
    whole = renderer.render(given, reserve=4).ids
    assert whole[: len(before) + len(ids)] == before + ids
    said = FAMILIES[family].decode(ids)
    assert said in (text, text.replace('"', '\\"').replace("\n", "\\n"), ascii(text)[1:-1])
    assert renderer.place_in_dialogue(given, "not there", shown) == ((), ())
    assert renderer.place_in_dialogue(given, "not there", "not there") == ((), ())
    short = ConversationRenderer(FAMILIES[family], "target", window=len(before))
    assert short.place_in_dialogue(given, text, shown) == ((), ())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slot", ["system", "tool_description", "tool_description:read_file"])
@pytest.mark.parametrize("attack", ["the", "a", "Look"])
def test_words_of_the_request_and_of_other_tools_are_scored_in_the_slot(family, slot, attack):
    """The place is found by a text that stands nowhere else."""
    tokenizer = FAMILIES[family]
    renderer = ConversationRenderer(tokenizer, "target")
    texts, ends = [], []
    for said in (attack, "Zqx"):
        given = reading(opening(slot) + said)
        texts.append(tokenizer.decode(renderer.render(given, reserve=1).ids))
        before, ids = renderer.place_in_dialogue(given, said, shown_in(given, slot))
        ends.append(tokenizer.decode(before + ids))
    place = texts[1].find("Zqx")
    if place < 0:  # this template leaves out the system message
        assert (family, slot, ends) == ("mistral", "system", ["", ""])
        return
    assert texts[0][:place] == texts[1][:place]
    assert ends == [texts[0][: place + len(attack)], texts[1][: place + 3]]


def problem(target):
    attacker = tiny_model(chat=True, window=8192)
    return HFASTProblem(attacker, target, attacker, HijackModerator())


def opening(slot):
    world = load_world("files")
    return Assignment("files", world.tasks[0].id, world.goals[0].id, slot).opening()


def by_hand(pair, slot):
    """The attack's log-probabilities: the template's own text, tokenised as a whole."""
    tokenizer = pair.tokenizer
    given = reading(opening(slot) + ATTACK)
    renderer = ConversationRenderer(tokenizer, "target")
    ids = list(renderer.render(given, reserve=1).ids)
    text, ends = "", []
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        ends.append(len(text))
    start = text.rindex(ATTACK)
    rows = [at for at, end in enumerate(ends) if start < end <= start + len(ATTACK)]
    with torch.no_grad():
        logits = pair.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logits[at - 1, ids[at]]) for at in rows]


@pytest.mark.parametrize("slot", ["document", "user", "tool_description"])
def test_the_likelihood_of_an_attack_is_that_in_its_slot(slot):
    target = tiny_model(chat=True, seed=1, window=8192)
    made = problem(target)
    (found,) = made.get_target_logprobs([opening(slot)], [ATTACK])
    expected = by_hand(target, slot)
    assert found[found != 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_terms_of_likelihood_read_the_slot_and_are_missing_where_there_is_none():
    made = problem(ScriptedAgent())
    exchanges = [
        Exchange(opening("document"), Utterance(ATTACK), "Done."),
        Exchange(opening("system"), Utterance(ATTACK), "Done."),
        Exchange(opening("document"), Utterance(" "), "Done."),
    ]
    under_target = AttackNLL("target")(made, exchanges)
    in_slot = SlotNLL()(made, exchanges)
    assert under_target[:2] == pytest.approx(in_slot[:2])
    assert in_slot[0] != in_slot[1]
    assert math.isnan(in_slot[2])
    assert in_slot[0] != pytest.approx(AttackNLL("baseline")(made, exchanges[:1])[0])
    task, goal = (each[0].id for each in (load_world("files").tasks, load_world("files").goals))
    rollback = Assignment("files", task, goal, "document", rollback=True).opening()
    assert math.isnan(SlotNLL()(made, [Exchange(rollback, Utterance("/back"), "(not)")])[0])
    plain = Exchange(Conversation("Hello."), Utterance(ATTACK), "Yes.")
    assert math.isnan(SlotNLL()(made, [plain])[0])
