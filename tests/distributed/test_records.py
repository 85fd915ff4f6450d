"""Episodes and errors survive the way to another process."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.core.graph import Graph, Node
from astra_rl.core.moderator import NotSentScore, Score
from astra_rl.core.text import (
    Conversation,
    Exchange,
    NoAttack,
    NoReply,
    NotAsked,
    NotSent,
    Utterance,
)
from astra_rl.distributed.ranks import pack_error, unpack_error
from astra_rl.distributed.records import pack_graphs, pack_texts, unpack_graphs, unpack_texts
from astra_rl.errors import (
    BudgetSpentError,
    ContractError,
    EndpointError,
    NonFiniteLossError,
    ProcessFailedError,
)

TEXT = st.text(st.characters(), max_size=5)  # lone surrogates included
FLOATS = st.floats(width=32)
KNOWN = st.sampled_from(["stop", "length", "context_overflow"])


def utterances(kind: type[Utterance]) -> st.SearchStrategy[Any]:
    rows = st.lists(FLOATS, max_size=3)
    return st.builds(
        kind,
        TEXT,
        token_ids=st.none() | st.lists(st.integers(0, 9), max_size=3),
        logprobs=st.none() | rows,
        finish_reason=st.none() | KNOWN,
        heard_logprobs=st.none() | rows,
        asked=st.none() | TEXT,
        reasoning=st.none() | TEXT,
        written=st.none() | TEXT,
    )


SAID = st.one_of(
    TEXT,
    utterances(Utterance),
    utterances(NoAttack),
    st.builds(NoReply, TEXT, TEXT, finish_reason=KNOWN, reasoning=st.none() | TEXT),
    st.builds(NotSent),
    st.builds(NotAsked),
)
CONTEXT = TEXT | st.builds(
    Conversation,
    TEXT,
    turns=st.lists(SAID, max_size=3),
    system=st.none() | TEXT,
    brief=st.none() | TEXT,
    facts=st.dictionaries(TEXT, TEXT, max_size=2),
    separator=st.sampled_from(["", "\n"]),
)
SCORE = st.one_of(
    FLOATS, TEXT.map(Score.missing), TEXT.map(NotSentScore.missing), FLOATS.map(Score)
)


@st.composite
def trees(draw: Any, depth: int = 2) -> Node[Any, Any]:
    children = draw(st.lists(trees(depth - 1), max_size=2)) if depth else []
    return Node(
        draw(CONTEXT),
        draw(SAID),
        draw(SAID),
        draw(FLOATS),
        children,
        reward_terms=draw(st.dictionaries(TEXT, SCORE, max_size=2)),
        truncated=draw(st.booleans()),
        continuation_probability=draw(st.none() | st.floats(0.1, 1)),
        next_context=draw(st.none() | CONTEXT),
        role=draw(st.sampled_from(["attacker", "defender"])),
        unknown_alternatives=draw(st.integers(0, 3)),
    )


GRAPHS = st.lists(st.builds(Graph, CONTEXT, st.lists(trees(), max_size=2)), max_size=3)


def parts(value: Any) -> Any:
    """Return all that a value consists of, in a form in which NaN equals NaN."""
    if isinstance(value, str) and type(value) is not str:
        return type(value), str.__str__(value), {k: parts(v) for k, v in vars(value).items()}
    if isinstance(value, Graph | Node):
        return type(value), {k: parts(v) for k, v in vars(value).items()}
    if isinstance(value, list | tuple):
        return [parts(each) for each in value]
    if isinstance(value, dict):
        return {k: parts(v) for k, v in value.items()}
    if isinstance(value, float):
        return type(value), float(value).hex(), getattr(value, "reason", None)
    return value


def sent(packed: Any) -> Any:
    return json.loads(json.dumps(packed).encode())


@pytest.mark.slow
@settings(max_examples=30)
@given(GRAPHS)
def test_episodes_arrive_as_they_were(graphs: list[Graph[Any, Any]]) -> None:
    assert parts(unpack_graphs(sent(pack_graphs(graphs)))) == parts(graphs)


@given(st.lists(CONTEXT | SAID | st.integers() | st.none(), max_size=4))
def test_openings_and_replies_arrive_as_they_were(texts: list[Any]) -> None:
    assert parts(unpack_texts(sent(pack_texts(texts)))) == parts(texts)


def test_every_field_of_a_node_arrives() -> None:
    """A field that is added to the class and forgotten here would be lost on the way."""
    said = Utterance("r", token_ids=[1], logprobs=[-0.5])
    other: dict[str, Any] = {
        "context": "c",
        "attack": "a",
        "response": said,
        "reward": 0.5,
        "children": [Node("c", "a", "r", 1.0)],
        "reward_terms": {"harm": 0.25},
        "truncated": True,
        "continuation_probability": 0.5,
        "next_context": "n",
        "role": "defender",
        "unknown_alternatives": 2,
    }
    assert set(other) == {each.name for each in dataclasses.fields(Node)}
    graph: Graph[Any, Any] = Graph("c", [Node(**other)])
    assert parts(unpack_graphs(sent(pack_graphs([graph])))) == parts([graph])


def test_a_state_of_an_earlier_version_has_no_unknown_alternatives() -> None:
    packed = sent(pack_graphs([Graph("c", [Node("c", "a", "r", 1.0)])]))
    del packed["graphs"][0]["nodes"][0]["unknown"]
    (graph,) = unpack_graphs(packed)
    assert graph.children[0].unknown_alternatives == 0


def test_what_was_one_object_is_one_object() -> None:
    context = Conversation("hello", turns=[Utterance("a", token_ids=[1])])
    siblings = [Node(context, attack, "r", 0.0, []) for attack in ("x", "y")]
    (graph,) = unpack_graphs(sent(pack_graphs([Graph(context, siblings)])))
    first, second = graph.children
    assert graph.context is first.context is second.context


class Mine(Node[Any, Any]):
    """A node of the user's."""


@pytest.mark.parametrize(
    ("graph", "named"),
    [
        (Graph("c", [Mine("c", "a", "r", 0.0)]), "Mine"),
        (Graph(Exchange("c", "a", "r"), []), "Exchange"),
        (Graph(("a", "tuple"), []), "tuple"),
    ],
)
def test_classes_that_cannot_be_sent_are_named(graph: Any, named: str) -> None:
    with pytest.raises(ContractError, match=f"{named} cannot be sent to the other processes"):
        pack_graphs([graph])


def noted(error: Exception) -> Exception:
    error.add_note("kept")
    return error


@pytest.mark.parametrize(
    "error",
    [
        noted(BudgetSpentError("max_requests", 20, 19, 2, 3)),
        EndpointError("the key is refused"),
        NonFiniteLossError("no finite loss", 7),
    ],
)
def test_errors_of_the_library_arrive_as_they_were(error: Exception) -> None:
    found = unpack_error(sent(pack_error(error)), 1)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_of_any_other_error_the_text_arrives() -> None:
    found = unpack_error(sent(pack_error(KeyError("x"))), 3)
    assert isinstance(found, ProcessFailedError)
    assert str(found) == "process 3 failed: KeyError: 'x'"


def test_missing_numbers_are_missing_afterwards() -> None:
    graph: Graph[Any, Any] = Graph("c", [Node("c", "a", "r", math.nan, [])])
    (found,) = unpack_graphs(sent(pack_graphs([graph])))
    assert math.isnan(found.children[0].reward)
