"""Conversations survive being written down."""

import json

from hypothesis import given
from hypothesis import strategies as st

from astra_rl import Conversation, Utterance
from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import NoAttack, context_key

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SAID = st.one_of(
    TEXT,
    st.builds(
        Utterance,
        TEXT,
        token_ids=st.lists(st.integers(0, 99), max_size=4),
        written=st.none() | TEXT,
    ),
    st.builds(NoAttack, token_ids=st.lists(st.integers(0, 99), max_size=4), written=TEXT),
)
CONVERSATIONS = st.builds(
    Conversation,
    TEXT,
    turns=st.lists(SAID, max_size=4),
    system=st.none() | TEXT,
    brief=st.none() | TEXT,
    facts=st.dictionaries(TEXT, TEXT, max_size=2),
    separator=TEXT,
)


@given(st.one_of(SAID, CONVERSATIONS))
def test_what_is_read_back_is_what_was_written(text):
    back = from_record(json.loads(json.dumps(to_record(text))))
    assert back == text
    assert type(back) is type(text)
    assert context_key(back) == context_key(text)
    assert getattr(back, "token_ids", None) == getattr(text, "token_ids", None)
    assert getattr(back, "written", None) == getattr(text, "written", None)
