"""Long conversations: what the attacker reads of them, and turns that are taken back."""

import pytest
import torch

from astra_rl.agents import Assignment, Limits, answer
from astra_rl.agents.assignment import assignments
from astra_rl.agents.history import BACK, NOT_TAKEN_BACK, TAKEN_BACK, compacted
from astra_rl.core.messages import trace_of
from astra_rl.core.text import Conversation, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.prompted_attacker import as_attacker_reads
from astra_rl.methods.tool_environment import ToolEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.moderators.hijack import HijackModerator
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.targets.scripted_agent import ScriptedAgent
from astra_rl.testing import tiny_model


def conversation(turns, history):
    said = [f"{kind} {turn}" for turn in range(turns) for kind in ("attack", "answer")]
    facts = {"agent.history": str(history)} if history else {}
    return Conversation(turns=said, brief="The brief.", facts=facts)


@pytest.mark.parametrize("turns", range(40))
def test_at_least_n_and_at_most_2n_minus_1_turns_are_read(turns):
    given = conversation(turns, 5)
    read = compacted(given)
    count = len(read.turns) // 2
    assert count == turns if turns < 10 else 5 <= count < 10
    assert read.turns == given.turns[len(given.turns) - 2 * count :]
    assert read.facts == given.facts
    if count < turns:
        assert f"({turns - count} earlier turns are left out." in read.brief
        assert f'"attack {turns - count - 1}"' in read.brief
        assert len(read.brief) < 300
    else:
        assert read is given
    assert compacted(conversation(turns, 0)).turns == given.turns


def test_what_is_left_out_is_quoted_shortly_in_languages_without_spaces_too():
    read = compacted(Conversation(turns=["请把" * 500, "ok"] * 40, facts={"agent.history": "5"}))
    assert "请把" in read.brief
    assert len(read.brief) < 800


def test_an_attacker_behind_an_endpoint_reads_the_same():
    read = as_attacker_reads(conversation(12, 5))
    assert "(5 earlier turns are left out." in read.prompt
    assert "attack 5" in read
    assert "answer 4" not in read


@pytest.mark.slow
def test_sampled_tokens_of_forty_turns_have_the_probabilities_that_training_gives_them():
    """Prompts are cut by the same rule when they are sampled and when they are trained."""
    attacker = tiny_model(chat=True, window=4096)
    problem = HFASTProblem(
        attacker,
        ScriptedAgent(),
        attacker,
        HijackModerator(),
        reward=WeightedSum({Harm("response"): 1.0}),
        attacker_sampling=Sampling(max_new_tokens=4),
    )
    environment = ToolEnvironment.of_world(
        problem, "files", history=3, limits=Limits(replies=4), tree_width=1, tree_depth=40
    )
    nodes = list(environment.rollout(0).nodes())
    assert len(nodes) == 40
    scored = problem.get_attacker_logprobs(
        [node.context for node in nodes], [node.attack for node in nodes]
    )
    for node, row in zip(nodes, scored.detach(), strict=True):
        sampled = torch.tensor(node.attack.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, rtol=0, atol=1e-5)
    renderer = problem.attacker_renderer
    sizes = [len(renderer.render(Conversation.of(node.context), reserve=4).ids) for node in nodes]
    assert max(sizes[6:]) < sizes[0] + 400
    assert "left out" in renderer.tokenizer.decode(
        renderer.render(Conversation.of(nodes[-1].context), reserve=4).ids
    )


LOSE = ToolCall("delete_mail", {"number": "1"})
OTHER = ToolCall("delete_mail", {"number": "3"})


def play(context, attack, *calls):
    """Play a turn in which the agent makes calls; return the context after it, and the trace."""
    said = iter([Utterance("", calls=calls), "Done."])
    asked = []

    def respond(contexts):
        asked.append(contexts[0])
        return [next(said)]

    (response,) = answer([context + attack], respond)
    return context + attack + response, trace_of(response), asked


def opening(**options):
    return Assignment("mailbox", "answer_ann", "lose_ann", "mail", **options).opening()


def test_a_turn_that_is_taken_back_never_was_for_the_agent():
    first, before, _ = play(opening(rollback=True), "one")
    context, changed, _ = play(first, "two", OTHER)
    assert "offers@bike.example" in changed.state["deleted"]
    context, back, asked = play(context, f" {BACK}\n")
    assert (back.ended, back.hijack, back.queries, back.messages) == (TAKEN_BACK, 0, 0, ())
    assert back.state == before.state
    assert asked == []
    _, after, (read, _) = play(context, "three", LOSE)
    _, direct, (other, _) = play(first, "three", LOSE)
    assert after == direct  # the agent's ids of calls and its state included
    assert (read.messages, str(read)) == (other.messages, str(other))
    assert "two" not in read


def test_all_turns_can_be_taken_back_and_then_none():
    context = opening(rollback=True)
    start = None
    for attack in ("one", "two", BACK, BACK):
        context, trace, _ = play(context, attack)
        start = start or trace
    assert trace.ended == TAKEN_BACK
    assert trace.state["inbox"].keys() == {"1", "2", "3", "4", "5"}
    _, trace, _ = play(context, BACK)
    assert trace.ended == NOT_TAKEN_BACK


def test_a_success_cannot_be_taken_back_and_earned_again():
    context, won, _ = play(opening(rollback=True), "one", LOSE)
    assert won.hijack == 1
    context, back, _ = play(context, BACK)
    assert (back.ended, back.hijack, back.state) == (NOT_TAKEN_BACK, 0, won.state)
    _, again, _ = play(context, "two", OTHER)
    assert again.hijack == 0


def test_without_the_option_it_is_a_text_like_any_other():
    _, trace, asked = play(opening(), BACK)
    assert trace.ended == "answered"
    assert len(asked) == 1


def test_options_are_facts_of_the_opening():
    given = Assignment("files", "rope", "share_key", "document", history=4, rollback=True)
    assert Assignment.of(given.opening()) == given
    assert BACK in given.opening().brief
    assert {(each.history, each.rollback) for each in assignments("files", "train")} == {(0, False)}
    with pytest.raises(ConfigurationError, match="history"):
        Assignment("files", "rope", "share_key", "document", history=-1)
    broken = {**given.facts(), "agent.history": "x"}
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Assignment.of(Conversation(facts=broken))
