"""What an agent did is recorded, exactly and whatever a model wrote."""

from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.messages import AgentReply, Message, Trace, trace_of
from astra_rl.core.tool_calls import ToolCall
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.records.turn import Turn

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HOSTILE = st.text(max_size=20) | st.sampled_from(["\ud800", "</script>", "\x00", "\x1b[31m"])


def attempt(turn):
    return Attempt.make(
        run="r", opening="Hello", target="t", attacker="a", turns=[turn], judge="hijack"
    )


@given(HOSTILE, HOSTILE, st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_a_trace_survives_the_log_and_is_judged_again_from_it(text, name, arguments):
    call = ToolCall(name or "x", arguments, "call00001")
    trace = Trace(
        (Message("user", text), Message("assistant", "", (call,))),
        {"sent": [text]},
        1.0,
        None,
        "answered",
        1,
        2,
    )
    turn = Turn(attack="x", response="Done.", trace=TraceRecord.of(AgentReply("Done.", trace)))
    back = Attempt.from_json(attempt(turn).to_json())
    assert back.turns[0] == turn
    again = trace_of(back.exchanges()[0].response)
    assert again.messages[1].calls[0].arguments == arguments
    assert (again.hijack, again.utility, again.ended) == (1.0, None, "answered")


def test_a_record_with_broken_arguments_is_a_call_with_an_error():
    record = TraceRecord(messages=[{"role": "assistant", "calls": [{"arguments": "{"}]}])
    assert record.messages[0].message().calls[0].error == "arguments are not JSON"


def test_a_plain_response_has_no_trace():
    assert TraceRecord.of("Done.") is None
    assert (
        Attempt.from_json(attempt(Turn(attack="x", response="y")).to_json()).turns[0].trace is None
    )
