import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.text import Conversation, Exchange, Utterance, context_key
from astra_rl.infra.unicode import well_formed


def full_conversation():
    return Conversation(
        "Hi.",
        turns=(Utterance(" a", token_ids=[1], logprobs=[-0.5]), Utterance(" b")),
        system="be kind",
        brief="attack",
        facts={"secret": "x"},
        separator="|",
    )


def test_text_is_a_string_like_any_other():
    utterance = Utterance("hello", token_ids=[1, 2])
    assert utterance == "hello"
    assert {utterance: 1}["hello"] == 1
    assert f"{utterance}!" == "hello!"


def test_an_utterance_keeps_what_it_was_sampled_as():
    utterance = Utterance("a", token_ids=[1], logprobs=[-1.0], finish_reason="stop")
    assert utterance.token_ids == (1,)
    assert utterance.logprobs == (-1.0,)
    assert utterance.finish_reason == "stop"
    assert utterance.heard_logprobs is None
    assert Utterance("a").token_ids is None


def test_no_tokens_and_unknown_tokens_are_different():
    assert Utterance("", token_ids=[]).token_ids == ()
    assert Utterance("").token_ids is None


def test_adding_says_the_next_turn_and_keeps_the_rest():
    conversation = full_conversation() + Utterance(" c", token_ids=[7])
    assert conversation == "Hi.| a| b| c"
    assert conversation.turns[-1].token_ids == (7,)
    assert conversation.system == "be kind"
    assert conversation.brief == "attack"
    assert conversation.facts == {"secret": "x"}
    assert conversation.attacks == (" a", " c")
    assert conversation.responses == (" b",)
    assert conversation.awaits_response
    assert not full_conversation().awaits_response


def test_adding_changes_nothing_of_the_conversation_added_to():
    before = full_conversation()
    _ = before + " c"
    assert before.turns == (" a", " b")


def test_what_a_reader_sees_hides_system_brief_and_facts():
    assert full_conversation() == "Hi.| a| b"


def test_empty_parts_leave_no_separator():
    assert Conversation("", turns=["a", "", "b"], separator="\n") == "a\nb"


def test_a_plain_string_becomes_an_opening_and_a_conversation_stays_itself():
    opened = Conversation.of("Hi")
    assert opened.prompt == "Hi"
    assert opened.turns == ()
    assert Conversation.of(opened) is opened


def test_a_conversation_as_a_prompt_counts_as_its_text():
    assert type(Conversation(full_conversation()).prompt) is str


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles_keep_everything(duplicate):
    conversation = full_conversation()
    exchange = Exchange(conversation, Utterance("a", token_ids=[1]), "r", text="a r")
    utterance = Utterance("a", token_ids=[1], logprobs=[-1.0], heard_logprobs=[-2.0])
    for original in (conversation, exchange, utterance):
        twin = duplicate(original)
        assert type(twin) is type(original)
        assert twin == original
        assert vars(twin) == vars(original)
    assert duplicate(exchange).context.system == "be kind"
    assert duplicate(exchange).attack.token_ids == (1,)


def test_an_exchange_reads_as_the_response_unless_told_otherwise():
    assert Exchange("c", "a", "r") == "r"
    assert Exchange("c", "a", "r", text="a+r") == "a+r"
    assert Exchange("c", "a", "r", text="") == ""


def test_contexts_of_one_key_are_the_same_in_all_that_anyone_is_given():
    assert context_key("Hi") == "Hi"
    assert context_key(full_conversation()) == context_key(full_conversation())
    other = Conversation("Hi.", turns=(" a", " b"), separator="|")
    assert other == full_conversation()
    assert context_key(other) != context_key(full_conversation())


def test_lone_surrogates_are_replaced_and_pairs_are_kept():
    assert well_formed("a\ud800b") == "a\N{REPLACEMENT CHARACTER}b"
    assert well_formed("\N{PILE OF POO}") == "\N{PILE OF POO}"


@given(st.text(st.characters()))
def test_any_text_can_be_made_well_formed_and_then_stays_as_it_is(text):
    once = well_formed(text)
    assert once.encode().decode() == once
    assert well_formed(once) == once


@given(st.text())
def test_well_formed_text_is_not_changed(text):
    assert well_formed(text) == text


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "Hello."},
        {"turns": (" a", " b")},
        {"turns": (Utterance(" a", token_ids=[2]), " b")},
        {"system": None},
        {"brief": "defend"},
        {"facts": {"secret": "y"}},
        {"separator": ""},
    ],
)
def test_each_part_of_a_conversation_makes_another_context(other):
    parts = {**vars(full_conversation()), **other}
    assert context_key(Conversation(**parts)) != context_key(full_conversation())
    assert hash(context_key(Conversation(**parts))) is not None
