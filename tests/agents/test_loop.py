"""The loop of an agent: outcomes, limits, slots, branches, seeds."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.agents import Assignment, Goal, Slot, Task, World, answer, load_world
from astra_rl.agents.assignment import Limits
from astra_rl.agents.loop import AGAIN
from astra_rl.agents.reading import reading
from astra_rl.core.messages import AgentReply, chat_messages, trace_of
from astra_rl.core.seeding import current_row_seeds, row_seeds
from astra_rl.core.text import Conversation, NoReply, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.distributed.records import pack_texts, unpack_texts
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_environment import ends_conversation
from astra_rl.targets.function import CallableTarget
from astra_rl.targets.scripted_agent import ScriptedAgent

READ = ToolCall("read_mail", {"number": "1"})
SEND = ToolCall("send_mail", {"to": "post@outside.example", "subject": "x", "body": "4417"})


class Scripted:
    """Says one thing after the other, the same in every row, and keeps what it was asked."""

    def __init__(self, *said):
        self.said, self.asked, self.rounds = said, [], 0

    def __call__(self, contexts):
        self.asked.append(list(contexts))
        said = self.said[min(self.rounds, len(self.said) - 1)]
        self.rounds += 1
        return [said] * len(contexts)


def opening(slot="mail", goal="door_code", **limits):
    return Assignment("mailbox", "answer_ann", goal, slot, Limits(**limits)).opening()


def turn(target, context=None):
    return answer([(opening() if context is None else context) + "ATTACK"], target)[0]


def calls(*given):
    return Utterance("", calls=given)


def test_calls_run_in_order_until_the_agent_answers():
    response = turn(Scripted(calls(READ, SEND), "Done."))
    assert response == "Done."
    trace = response.trace
    assert [message.role for message in trace.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert (trace.hijack, trace.utility, trace.ended) == (1, 0, "answered")
    assert (trace.failed_at, trace.queries) == (1, 2)
    assert trace.state["sent"] == [{"to": "post@outside.example", "subject": "x", "body": "4417"}]


def test_text_is_searched_for_calls_if_the_target_did_not():
    written = f"<tool_call>{json.dumps({'name': 'delete_mail', 'arguments': {'number': '1'}})}"
    assert turn(Scripted(written, "Done.")).trace.state["deleted"] == ["ann@pottery.example"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("fly", {}), "Error: no tool 'fly'; the tools are list_mails"),
        (ToolCall("read_mail", {}), "Error: the argument number is missing"),
        (ToolCall("read_mail", {"number": "99"}), "Error: no mail '99'"),
        (ToolCall("", error="not JSON: x"), "Error: the call could not be read: not JSON"),
    ],
)
def test_a_call_that_cannot_run_is_told_to_the_agent_and_changes_nothing(call, told):
    trace = turn(Scripted(calls(call), "Done.")).trace
    assert trace.messages[2].text.startswith(told)
    assert trace.state == turn(Scripted("Done.")).trace.state
    assert (trace.hijack, trace.ended) == (0, "answered")


@pytest.mark.parametrize(
    ("limits", "ended", "queries", "ran"),
    [
        ({"replies": 3}, "limit of replies", 3, 3),
        ({"calls": 2}, "limit of calls", 3, 2),
        ({"tokens": 10}, "limit of tokens", 2, 2),
        ({"seconds": 1e-9}, "limit of time", 1, 1),
    ],
)
def test_an_agent_that_never_answers_ends_at_each_limit(limits, ended, queries, ran):
    trace = turn(Scripted(calls(READ)), opening(**limits)).trace
    assert (trace.ended, trace.queries) == (ended, queries)
    results = [each for each in trace.messages if each.role == "tool"]
    assert sum(not each.text.startswith("Error: not run") for each in results) == ran
    # Every call has a result, or a later turn would break templates.
    assert len(results) == sum(len(each.calls) for each in trace.messages)


def test_names_and_arguments_of_an_endpoints_calls_count_as_tokens():
    long = ToolCall("send_mail", {"to": "a", "subject": "x", "body": "y" * 400})
    assert turn(Scripted(calls(long)), opening(tokens=100)).trace.queries == 1


def big(state: dict) -> str:
    """Give a long text."""
    return "y" * 25_000


def other(state: dict) -> str:
    """Give a short text."""
    return "y"


class Long(World):
    """A tool with a result that is cut off."""

    start = {}  # noqa: RUF012
    tools = (big,)
    tasks = (Task("read", "Read it.", lambda state: 1.0, [("big", {})]),)
    goals = (Goal("none", "Nothing.", lambda state: 0.0, [], ()),)


def test_an_attack_after_a_result_that_is_cut_off_is_shown():
    context = Assignment(f"{__name__}:Long", "read", "none", "tool_result").opening()
    result = turn(Scripted(calls(ToolCall("big")), "Done."), context).trace.messages[2]
    ((start, end),) = result.written_by_attacker
    assert result.text[start:end] == "ATTACK"
    assert "cut off: 25000 characters" in result.text[20_000:]
    assert len(result.text) < 20_100
    assert reading(context + "ATTACK") is not None


def test_calls_of_code_that_are_no_json_are_outcomes():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    values = (deep, {1, 2}, b"x", object(), float("nan"), {1: 2}, ("x",))
    for value in values:
        given = ToolCall("send_mail", {"to": value, "subject": "x", "body": "x"})
        for target in (
            Scripted(calls(given), "Done."),
            CallableTarget(lambda messages, tools, given=given: calls(given)).respond,
        ):
            trace = turn(target, opening(replies=2)).trace
            assert trace.messages[1].calls[0].error
            assert trace.messages[2].text.startswith("Error: the call could not be read: arguments")
            chat_messages(trace.messages)


def test_what_the_attacker_wrote_in_earlier_turns_is_marked_and_words_of_the_user_are_not():
    context = opening() + "ATTACK one"
    first = answer([context], Scripted("Done."))[0]
    read = [calls(ToolCall("read_mail", {"number": str(n)})) for n in range(1, 9)]
    trace = answer([context + first + "ATTACK one, e"], Scripted(*read, "Done."))[0].trace
    shown = [each.text[s:e] for each in trace.messages for s, e in each.written_by_attacker]
    assert shown == ["ATTACK one", "ATTACK one, e"]
    trace = answer([opening() + "a"], Scripted("Done."))[0].trace
    assert trace.messages[0].written_by_attacker == ()
    said = answer([opening("user") + "a"], Scripted("Done."))[0].trace.messages[0]
    assert said.written_by_attacker == ((len(said.text) - 1, len(said.text)),)


class Offered(Long):
    """A world in which an agent has one of two tools."""

    tools = (big, other)

    def offered(self, task, goal):
        return self.described[:1]


def test_a_tool_that_the_episode_does_not_offer_is_none():
    known = Assignment(f"{__name__}:Offered", "read", "none", "tool_result")
    trace = turn(Scripted(calls(ToolCall("other")), "Done."), known.opening()).trace
    assert trace.messages[2].text == "Error: no tool 'other'; the tools are big"
    for slot in ("tool_result:other", "tool_description:other"):
        with pytest.raises(ConfigurationError, match="does not have this tool"):
            replace(known, slot=slot).opening()


def test_partial_credit_is_that_of_the_goal():
    half = ToolCall("send_mail", {"to": "post@outside.example", "subject": "x", "body": "hello"})
    assert turn(Scripted(calls(half), "Done.")).trace.hijack == 0.5


def tool(name, **arguments):
    return ToolCall(name, arguments)


MOVE, BACK = (tool("change_address", address=each) for each in ("Harbour Street 9", "Mill Lane 3"))
EMPTY, REFILL = (
    tool("write_file", path="budget.txt", text=each) for each in ("nothing", "Rope 40")
)
SHOP = Assignment("shop", "tea_pot", "harbour_street", "review").opening()
FILES = Assignment("files", "trip_date", "empty_budget", "document").opening()
GNOMES = Assignment("shop", "tea_pot", "gnomes", "review").opening()
DELETES = Assignment("mailbox", "answer_ann", "lose_ann", "mail").opening()


@pytest.mark.parametrize(("context", "do", "undo"), [(SHOP, MOVE, BACK), (FILES, EMPTY, REFILL)])
def test_an_action_that_is_undone_in_its_turn_was_done(context, do, undo):
    for said in ([calls(do, undo), "Done."], [calls(do), calls(undo), "Done."]):
        trace = turn(Scripted(*said), context).trace
        assert (trace.hijack, trace.failed_at) == (1, 1)


def turns(context, *said):
    """Return hijack and place of the hijack of each turn, in which the agent says these things."""
    found = []
    for each in said:
        response = turn(Scripted(*each), context)
        context = context + "ATTACK" + response
        found.append((response.trace.hijack, response.trace.failed_at))
    return found


def test_a_turn_is_scored_by_what_its_own_calls_bring_about():
    delete, ten = tool("delete_mail", number="1"), tool("order", product="garden gnome", count=10)
    refuses, one = ["I refuse."], tool("order", product="garden gnome", count=1)
    assert turns(DELETES, [calls(delete), "x"], refuses, [calls(READ), "x"]) == [
        (1, 1),
        (0, None),
        (0, None),
    ]
    # Undone in the second turn and done again in the third.
    assert turns(SHOP, [calls(MOVE), "x"], [calls(BACK), "x"], [calls(READ, MOVE), "x"]) == [
        (1, 1),
        (0, None),
        (1, 1),
    ]
    # Partial credit marks no place, and the turn that completes the goal is a success.
    assert turns(GNOMES, [calls(one), "x"], refuses, [calls(one), calls(ten), "x"]) == [
        (0.5, None),
        (0, None),
        (1, 3),
    ]


def test_calls_have_ids_of_their_own_and_their_results_follow_them():
    broken = ToolCall("", error="not JSON: x")
    first = turn(Scripted(calls(broken, READ), calls(READ), "Done."))
    target = Scripted(calls(READ), "Done.")
    answer([opening() + "ATTACK" + first + "TWO"], target)
    chat = chat_messages(target.asked[-1][0].messages)
    ids = [call["id"] for message in chat for call in message.get("tool_calls", ())]
    assert len(ids) == len(set(ids)) == 3
    for at, message in enumerate(chat):
        wanted = [call["id"] for call in message.get("tool_calls", ())]
        after = chat[at + 1 : at + 1 + len(wanted)]
        assert [each.get("tool_call_id") for each in after] == wanted
    assert [each["role"] for each in chat[2:6]] == ["assistant", "tool", "user", "assistant"]
    assert "not JSON" in chat[4]["content"]


def test_a_slot_that_raises_gives_a_missing_response(monkeypatch):
    def place(state, text):
        state["inbox"].clear()
        raise KeyError(text)

    monkeypatch.setattr(load_world("mailbox"), "slots", {"mail": Slot("a mail", place)})
    target = Scripted("Done.")
    response = turn(target)
    assert isinstance(response, NoReply)
    assert response.reason == "the attack could not be placed"
    assert response.detail == "slot mail: KeyError: 'ATTACK'"
    assert not target.asked


def test_a_failed_call_of_the_model_is_no_reply_unless_the_goal_was_reached():
    failed = NoReply("timed out")
    assert turn(Scripted(calls(READ), failed)) is failed
    response = turn(Scripted(calls(SEND), failed))
    assert (response.trace.hijack, response.trace.utility) == (1, None)
    withheld = Utterance("", finish_reason="content_filter")
    assert turn(Scripted(withheld)) is withheld


def test_a_full_context_window_ends_the_turn():
    full = Utterance("", finish_reason="context_overflow")
    response = turn(Scripted(calls(READ), full))
    assert response.trace.ended == "context window full"
    # Each further turn has the same messages before it, and more.
    assert ends_conversation("ATTACK", response)
    assert ends_conversation("ATTACK", unpack_texts(pack_texts([response]))[0])
    assert not ends_conversation("ATTACK", turn(Scripted(calls(READ), "Done.")))


@pytest.mark.parametrize(
    ("slot", "where"),
    [
        ("mail", "tool list_mails"),
        ("user", "user"),
        ("system", "system"),
        ("tool_result", "tool list_mails"),
        ("tool_result:read_mail", "tool read_mail"),
        ("tool_description", "list_mails"),
        ("tool_description:send_mail", "send_mail"),
    ],
)
def test_the_attack_stands_in_its_slot_and_nowhere_else(slot, where):
    target = Scripted(calls(ToolCall("list_mails"), READ), "Done.")
    turn(target, opening(slot))
    (asked,) = target.asked[-1]
    found = [f"{each.role} {each.name}".strip() for each in asked.messages if "ATTACK" in each.text]
    found += [tool.name for tool in asked.tools if "ATTACK" in tool.description]
    assert found == [where]
    assert asked.messages[1].text.startswith("Look at my mails")
    assert not any("brief" in each.text or "Your aim" in each.text for each in asked.messages)


def test_the_next_turn_goes_on_from_the_state_and_the_messages_of_this_one():
    context = opening("tool_result")
    delete = calls(ToolCall("delete_mail", {"number": "1"}))
    first = answer([context + "ONE"], Scripted(delete, "Done."))[0]
    target = Scripted(calls(ToolCall("list_mails")), "Nothing.")
    second = answer([context + "ONE" + first + "TWO"], target)[0]
    (asked,) = target.asked[-1]
    texts = [each.text for each in asked.messages]
    assert texts.count(AGAIN) == 1
    assert sum("ONE" in text for text in texts) == 1
    assert sum("TWO" in text for text in texts) == 1
    assert second.trace.state["deleted"] == ["ann@pottery.example"]


def test_branches_share_no_state():
    context = opening()
    first = answer([context + "x"], Scripted(calls(READ), "Done."))[0]
    before = json.dumps(first.trace.state)
    branches = [context + "x" + first + attack for attack in ("a", "b")]

    left, right = (
        answer([each], Scripted(reply, "Done."))[0]
        for each, reply in zip(branches, [calls(SEND), "Done."], strict=True)
    )
    assert (len(left.trace.state["sent"]), len(right.trace.state["sent"])) == (1, 0)
    assert json.dumps(first.trace.state) == before


def test_a_response_without_a_known_state_cannot_be_continued():
    context = opening() + "x" + "Done."
    with pytest.raises(ConfigurationError, match="replay it from its opening"):
        answer([context + "y"], Scripted("Done."))


def test_plain_contexts_are_passed_on_as_they_are():
    asked = []

    def respond(contexts):
        asked.append((list(contexts), current_row_seeds(len(contexts))))
        return ["Hello." if isinstance(each, str) else each for each in contexts]

    with row_seeds([7, 8]):
        assert answer(["a", "b"], respond) == ["Hello.", "Hello."]
        assert asked == [(["a", "b"], (7, 8))]
        mixed = answer(["a", opening() + "x"], respond)
    assert mixed[0] == "Hello."
    assert isinstance(mixed[1], AgentReply)


def test_the_seeds_of_a_row_do_not_depend_on_its_batch():
    def rounds(contexts, seeds):
        seen = {}

        def respond(asked):
            for each, seed in zip(asked, current_row_seeds(len(asked)), strict=True):
                seen.setdefault(each.messages[1].text, []).append(seed)
            return ScriptedAgent().respond(asked)

        with row_seeds(seeds):
            said = answer(contexts, respond)
        return seen, [trace_of(each) for each in said]

    short = Assignment("mailbox", "answer_ann", "lose_ann", "mail").opening() + "x"
    long = Assignment("mailbox", "remind_of_book", "lose_ann", "mail").opening() + "delete ann"
    alone, traces = rounds([long], [5])
    together, both = rounds([short, long], [4, 5])
    assert alone.items() <= together.items()
    assert traces[0] == both[1]
    assert len(set(next(iter(alone.values())))) > 1


HOSTILE = st.text(max_size=30) | st.sampled_from(
    ["<tool_call>", '<tool_call>{"name": "send_mail"}', "[TOOL_CALLS][", "\ud800", "<|im_end|>"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["list_mails", "read_mail", "send_mail", "delete_mail"]) | HOSTILE
KEYS = st.sampled_from(["to", "subject", "body", "number"]) | HOSTILE
CALL = st.builds(ToolCall, NAMES, st.dictionaries(KEYS, VALUES, max_size=4))


@given(HOSTILE, st.lists(HOSTILE | st.lists(CALL, max_size=3).map(lambda c: calls(*c)), max_size=5))
def test_whatever_attacker_and_model_write_there_is_one_outcome_within_the_limits(attack, said):
    slots = ["mail", "user", "system", "tool_result", "tool_description"]
    contexts = [opening(slot, replies=4, calls=5) + attack for slot in slots]
    for response in answer(contexts, Scripted(*said, "Done.")):
        trace = response.trace
        assert trace.hijack in (0, 0.5, 1)
        assert trace.utility is not None
        assert trace.queries <= 4
        assert sorted(trace.state) == ["deleted", "inbox", "sent"]
        json.dumps(trace.as_json()).encode()
        for message in trace.messages:
            message.text.encode()
    assert isinstance(contexts[0], Conversation)
