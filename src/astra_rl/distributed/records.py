"""Episodes as JSON values, with everything that a training reads of them, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from astra_rl.core.graph import Graph, Node
from astra_rl.core.messages import AgentReply, Dialogue, Trace
from astra_rl.core.moderator import NotSentScore, Score
from astra_rl.core.text import Conversation, NoAttack, NoReply, NotAsked, NotSent, Utterance
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ContractError

_UTTERANCE = (
    *("token_ids", "logprobs", "finish_reason", "heard_logprobs"),
    *("asked", "reasoning", "written"),
)
_NO_REPLY = ("reason", "detail", "finish_reason", "reasoning")
_CONVERSATION = ("system", "brief", "separator")


def pack_graphs(graphs: Sequence[Graph[Any, Any]]) -> dict[str, Any]:
    """Return episodes as JSON values; each text object is stored once.

    Floats are exact, token ids and log-probabilities included. Texts that were one object are one
    object again after `unpack_graphs`.

    Raises:
        ContractError: A state, an attack or a node is of a class of the user's own.
    """
    texts = _Texts()
    return {"graphs": [_pack_graph(graph, texts) for graph in graphs], "texts": texts.packed}


def unpack_graphs(packed: dict[str, Any]) -> list[Graph[Any, Any]]:
    """Return the episodes of `pack_graphs`."""
    texts: list[str] = []
    for each in packed["texts"]:
        texts.append(_unpack_text(each, texts))
    return [_unpack_graph(graph, texts) for graph in packed["graphs"]]


def pack_texts(given: Sequence[str | int | None]) -> dict[str, Any]:
    """Return texts (of any class of `astra_rl.core.text`), numbers and None as JSON values."""
    texts = _Texts()
    rows = [{"text": texts.add(each)} if isinstance(each, str) else each for each in given]
    return {"rows": rows, "texts": texts.packed}


def unpack_texts(packed: dict[str, Any]) -> list[Any]:
    """Return what `pack_texts` was given."""
    texts: list[str] = []
    for each in packed["texts"]:
        texts.append(_unpack_text(each, texts))
    return [texts[row["text"]] if isinstance(row, dict) else row for row in packed["rows"]]


class _Texts:
    """The texts of a message, each object once, turns before the conversations they are in."""

    def __init__(self) -> None:
        self.packed: list[Any] = []
        self._places: dict[int, int] = {}
        self._kept: list[str] = []  # an id is that of one object while the object lives

    def add(self, text: Any) -> int:
        """Return the place of a text."""
        if id(text) not in self._places:
            packed = self._pack(text)
            self._places[id(text)] = len(self.packed)
            self._kept.append(text)
            self.packed.append(packed)
        return self._places[id(text)]

    def _pack(self, text: Any) -> Any:
        kind = type(text)
        if kind is str:
            return text
        if kind is Conversation:
            return {
                "class": kind.__name__,
                "prompt": text.prompt,
                "turns": [self.add(turn) for turn in text.turns],
                "facts": list(text.facts.items()),
                **{name: getattr(text, name) for name in _CONVERSATION},
            }
        if kind in (Utterance, NoAttack):
            given = {name: getattr(text, name) for name in _UTTERANCE}
            known = {name: value for name, value in given.items() if value is not None}
            if text.calls is not None:
                known["calls"] = [call.as_json() for call in text.calls]
            return {"class": kind.__name__, "said": str(text), **known}
        if kind is AgentReply:
            return {"class": kind.__name__, "said": str(text), "trace": text.trace.as_json()}
        if kind is Dialogue:
            return {"class": kind.__name__, **text.as_json()}
        if kind in (NoReply, NotSent, NotAsked):
            return {"class": kind.__name__, **{name: getattr(text, name) for name in _NO_REPLY}}
        raise _foreign(kind, "texts as str, Utterance or Conversation")


_EMPTY: dict[str, Callable[[], NoReply]] = {"NotSent": NotSent, "NotAsked": NotAsked}
_SAID: dict[str, type[Utterance]] = {"Utterance": Utterance, "NoAttack": NoAttack}


def _unpack_text(packed: Any, texts: Sequence[str]) -> str:
    if isinstance(packed, str):
        return packed
    fields = dict(packed)
    kind = fields.pop("class")
    if kind == "AgentReply":
        return AgentReply(fields["said"], Trace.from_json(fields["trace"]))
    if kind == "Dialogue":
        return Dialogue.from_json(fields)
    if kind in _SAID:
        if "calls" in fields:
            fields["calls"] = [ToolCall(**call) for call in fields["calls"]]
        return _SAID[kind](fields.pop("said"), **fields)
    if kind in _EMPTY:
        return _EMPTY[kind]()
    if kind == "NoReply":
        return NoReply(fields.pop("reason"), fields.pop("detail"), **fields)
    return Conversation(
        fields["prompt"],
        turns=[texts[turn] for turn in fields["turns"]],
        facts=dict(fields["facts"]),
        **{name: fields[name] for name in _CONVERSATION},
    )


def _pack_graph(graph: Graph[Any, Any], texts: _Texts) -> dict[str, Any]:
    if type(graph) is not Graph:
        raise _foreign(type(graph), "episodes as Graph")
    # The nodes in breadth-first order with the number of children of each describe the tree.
    return {
        "context": texts.add(graph.context),
        "roots": len(graph.children),
        "nodes": [_pack_node(node, texts) for node in _breadth_first(graph)],
    }


def _breadth_first(graph: Graph[Any, Any]) -> list[Node[Any, Any]]:
    nodes = list(graph.children)
    for node in nodes:  # the list grows while it is walked over
        nodes.extend(node.children)
    return nodes


def _pack_node(node: Node[Any, Any], texts: _Texts) -> dict[str, Any]:
    if type(node) is not Node:
        raise _foreign(type(node), "turns as Node")
    return {
        "turn": [texts.add(each) for each in (node.context, node.attack, node.response)],
        "reward": _pack_score(node.reward),
        "terms": [[name, _pack_score(value)] for name, value in node.reward_terms.items()],
        "children": len(node.children),
        "truncated": node.truncated,
        "probability": node.continuation_probability,
        "next": None if node.next_context is None else texts.add(node.next_context),
        "role": node.role,
        "unknown": node.unknown_alternatives,
    }


def _unpack_graph(packed: dict[str, Any], texts: Sequence[str]) -> Graph[Any, Any]:
    nodes = [_unpack_node(each, texts) for each in packed["nodes"]]
    following = iter(nodes)
    graph: Graph[Any, Any] = Graph(
        texts[packed["context"]], [next(following) for _ in range(packed["roots"])]
    )
    for node, each in zip(nodes, packed["nodes"], strict=True):
        node.children = [next(following) for _ in range(each["children"])]
    return graph


def _unpack_node(packed: dict[str, Any], texts: Sequence[str]) -> Node[Any, Any]:
    context, attack, response = (texts[place] for place in packed["turn"])
    return Node(
        context,
        attack,
        response,
        _unpack_score(packed["reward"]),
        [],
        reward_terms={name: _unpack_score(value) for name, value in packed["terms"]},
        truncated=packed["truncated"],
        continuation_probability=packed["probability"],
        next_context=None if packed["next"] is None else texts[packed["next"]],
        role=packed["role"],
        unknown_alternatives=packed.get("unknown", 0),  # not in states of earlier versions
    )


def _pack_score(value: float) -> Any:
    if isinstance(value, Score):
        return [float(value), value.reason, isinstance(value, NotSentScore)]
    return float(value)


def _unpack_score(packed: Any) -> float:
    if not isinstance(packed, list):
        return float(packed)
    value, reason, was_not_sent = packed
    return (NotSentScore if was_not_sent else Score)(value, reason)


def _foreign(kind: type, known: str) -> ContractError:
    return ContractError(
        f"{kind.__name__} cannot be sent to the other processes of a training, nor saved with its "
        f"state when played ahead; these know {known}. Train in one process with max_staleness=0, "
        "or use these classes."
    )
