"""Lines of a log of attempts as a crash, another program or an attacker may leave them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from astra_rl.core.text import Conversation
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.trace import CallRecord, MessageRecord, TraceRecord
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Opening, Turn

_TRACE = TraceRecord(
    messages=(
        MessageRecord(role="tool", text="x", name="t", call_id="1", written_by_attacker=((0, 1),)),
        MessageRecord(role="assistant", calls=(CallRecord(name="say"),)),
    ),
    hijack=0.5,
    utility=1.0,
    failed_at=1,
)
LINE = Attempt.make(
    run="run",
    opening=Opening.of(Conversation("p", turns=("a", "b"), system="s", facts={"goal": "g"})),
    target="target",
    attacker="attacker",
    judge="judge",
    branch=(1, 2),
    category="c",
    seed=5,
    started=1.5,
    step=3,
    turns=(
        Turn(
            attack="hi",
            response="yes",
            scores={"judge": JudgeScore(value=0.25), "other": JudgeScore(value=None, reason="r")},
            reward=0.5,
            reward_terms={"harm": 1.0, "none": None},
            logprobs={"baseline": LogProb(total=-3.5, tokens=2)},
            attack_tokens=3,
            finish_reason="stop",
            refused=False,
            trace=_TRACE,
        ),
    ),
).to_json()
"""A record with a value in most fields."""

_TEXTS = [
    *(rf'"{text}"' for text in (r"\u0000", r"\ud800", r"\ud83d\ude00", r"\ude00\ud83d", r"\/")),
    *(rf'"{text}"' for text in (r"\x41", r"\u12", r"\"\\\"", "\u2028", "\x85", "a\nb", "\ufeff")),
    *('"a', "'a'", '"NaN"', '"1"', '"yes"', '"success"', '"judge"', '"[[{{"', '"tool"'),
]
_NUMBERS = [
    *("0", "-0", "-0.0", "1", "1.0", "1e0", "1e400", "-1e400", "1e-400", "5e-324", "0e999"),
    *("2.4703282292062328e-324", "1.7976931348623158e308", "1.7976931348623159e308"),
    *(str(2**53 + step) for step in (-1, 0, 1)),
    *(str(each) for each in (2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1)),
    *("9" * digits for digits in (299, 300, 301, 400)),
    *("NaN", "Infinity", "-Infinity", "-NaN", "nan", "inf", "+1", "01", "1.", ".5", "0x1", "1_0"),
]
_OTHERS = [
    *("true", "false", "null", "None", "[]", "{}", "[1]", "[[0, 1]]", "[1.0]", "[1,]", "[null]"),
    *('{"judge": {"value": 0.9}, "judge": {"value": 0.1}}', '{"judge": {"value": 1, "value": 0}}'),
    *('{"a": "b", "a": "c"}', r'{"a": "b", "\u0061": "c"}', '{"\x00": "x"}', '{"": ""}'),
    *("/**/1", "\t1 \r", "\x0b1", "\xa01", "1\x00", "{}{}", "[" * 101 + "]" * 101),
    *('{"value": 1, "not_sent": "on"}', '{"value": 1, "not_sent": 1.0}'),
    *('{"total": 0, "tokens": 1}', '{"total": -0.0, "tokens": 1}'),
]  # fmt: skip
_RAW = st.one_of(
    st.sampled_from(_TEXTS),
    st.sampled_from(_NUMBERS),
    st.sampled_from(_OTHERS),
    st.floats().map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.text(st.characters(exclude_categories=()), max_size=8).map(json.dumps),
)
_MARK = "(replaced)"


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, each in items:
        yield (*place, name)
        if isinstance(each, dict | list):
            yield from _places(each, (*place, name))


_PLACES = list(_places(json.loads(LINE)))


@st.composite
def changed_lines(draw: st.DrawFn) -> str:
    """A record whose values, keys, spaces or end are others."""
    data = json.loads(LINE)
    *parents, last = draw(st.sampled_from(_PLACES))
    part = data
    for name in parents:
        part = part[name]
    part[last] = _MARK
    separators = draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " :\r\n")]))
    line = json.dumps(data, ensure_ascii=draw(st.booleans()), separators=separators)
    line = line.replace(json.dumps(_MARK), draw(_RAW), 1)
    if draw(st.booleans()):  # a key that is there twice
        name = draw(st.sampled_from(list(data)))
        line = f'{line[:-1]}, "{name}": {draw(_RAW)}}}'
    return line


@st.composite
def damaged_lines(draw: st.DrawFn) -> str | bytes:
    """The same, as text or bytes, perhaps cut off, in another encoding, or with other bytes."""
    line = draw(changed_lines())
    if draw(st.booleans()):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(line))] * 2)))
        line = (
            line[:at] + draw(st.sampled_from(["", " ", "\x00", '"', "\\", "}", "]"])) + line[end:]
        )
    line = draw(st.sampled_from(["", " ", "\ufeff", "\n"])) + line
    if draw(st.booleans()):
        return line
    encoding = draw(st.sampled_from(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-32"]))
    data = line.encode(encoding, "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + 1 :]
    return data
