"""The record of an attempt: complete, decided by one rule, readable again."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile import HOSTILE
from tests.hostile_lines import damaged_lines

from astra_rl import Conversation
from astra_rl.core.moderator import Score
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt, SchemaTooNewError, attempt_id
from astra_rl.evaluation.records.outcome import Outcome, decide_outcome
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Opening, Turn
from astra_rl.infra.jsonio import json_line

NONE = None


@pytest.mark.parametrize(
    ("scores", "fields", "error", "expected"),
    [
        ([0.1, 0.9], [{}, {}], "", "success"),
        ([0.5], [{}], "", "success"),
        ([0.49], [{}], "", "failure"),
        ([0.1, NONE], [{}, {}], "", "unscored"),
        ([0.9, NONE], [{}, {}], "", "success"),
        ([0.1, 0.2], [{"refused": True}] * 2, "", "refused"),
        ([0.1, 0.2], [{"refused": True}, {"refused": False}], "", "failure"),
        ([0.1, NONE], [{}, {"finish_reason": "content_filter"}], "", "blocked"),
        ([0.1], [{}], "timed out", "error"),
        ([0.9], [{}], "timed out", "success"),
        ([], [], "", "unscored"),
        ([], [], "no connection", "error"),
    ],
)
def test_an_outcome_is_never_safer_than_what_was_seen(scores, fields, error, expected, turn):
    turns = [turn(score=score, **each) for score, each in zip(scores, fields, strict=True)]
    assert decide_outcome(turns, "judge", 0.5, error=error) == expected


SCORES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=4)


@given(SCORES, st.floats(0.01, 1))
def test_every_conversation_has_the_outcome_of_the_definition(scores, threshold):
    turns = [
        Turn(attack="a", scores={"judge": JudgeScore(value=score, reason=None)}) for score in scores
    ]
    outcome = decide_outcome(turns, "judge", threshold)
    if any(score is not None and score >= threshold for score in scores):
        assert outcome is Outcome.SUCCESS
    elif not scores or None in scores:
        assert outcome is Outcome.UNSCORED
    else:
        assert outcome is Outcome.FAILURE


def test_a_missing_score_keeps_its_reason(attempt):
    score = JudgeScore.of(Score.missing("unparsable verdict"))
    assert (score.value, score.reason) == (None, "unparsable verdict")
    assert JudgeScore.of(math.nan).reason == "no reason given"
    made = attempt(Turn(attack="a", scores={"judge": score}))
    assert made.outcome is Outcome.UNSCORED
    assert made.reasons == ("unparsable verdict",)


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:30] for text in HOSTILE])
def test_it_is_read_back_as_it_was_whatever_was_said(text, attempt, turn):
    made = attempt(
        turn(attack=text, response=text, score=0.9),
        opening=Conversation(text, system=text, brief=text, facts={"secret": text}),
        category=text,
    )
    line = made.to_json()
    assert "\n" not in line
    line.encode("utf-8")
    assert Attempt.from_json(line) == made
    assert Attempt.from_json(line.encode()) == made


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:30] for text in HOSTILE])
def test_a_record_has_json_values_only_whatever_it_was_made_of(text, attempt):
    number = np.float32(0.75)
    said = Turn(
        attack=text,
        response=text,
        scores={f"judge {text}": JudgeScore(value=number), "judge": JudgeScore(value=math.nan)},
        reward=math.inf,
        reward_terms={text: np.float64(number)},
        logprobs={text: LogProb(total=-0.0, tokens=np.int64(3))},
    )
    made = attempt(said, opening=Conversation(text, facts={text: text}), error=text, seed=2**64 - 1)
    again = made.judged(text or "other", [Score.missing(text)], threshold=0.5)
    for each in (made, again):
        assert each.to_json() == json_line(each.model_dump(mode="json"))


def test_an_attempt_and_its_row_have_the_same_course(attempt, turn):
    lost, won, blocked = turn(score=None), turn(score=0.9), turn(finish_reason="content_filter")
    for turns in ([], [lost], [won], [blocked], [turn(score=0.1), won], [won, lost], [lost, won]):
        for error in ("", "timed out"):
            made = attempt(*turns, error=error)
            assert made.course == made.row.course


def test_an_opening_gives_the_same_conversation_again():
    context = Conversation("hi", turns=("a", "b"), system="s", brief="b", facts={"x": "y"})
    opening = Opening.of(context)
    again = opening.conversation()
    assert (again, again.system, again.brief, again.facts) == (
        context,
        context.system,
        context.brief,
        context.facts,
    )
    assert opening.id == Opening.of(again).id
    assert opening.id != Opening.of(Conversation("hi")).id


def test_an_id_says_what_the_attempt_is_and_nothing_of_what_came_of_it(attempt):
    assert attempt(0.9).id == attempt(0.1).id
    different = [attempt(0.9, **each) for each in ({"trial": 1}, {"opening": "b"}, {"target": "u"})]
    assert len({attempt(0.9).id, *(each.id for each in different)}) == 4
    key = attempt_id("run", "evaluation", "a", "t", Opening.of("hello").id, 0)
    assert attempt(0.9).id == key


def test_likelihood_counts_the_attacks_up_to_the_first_failure(attempt, turn):
    turns = [
        turn(score=0.1, logprob=-3.0, tokens=2),
        turn(score=0.9, logprob=-4.0, tokens=3),
        turn(score=0.1, logprob=-9.0, tokens=9),
    ]
    assert attempt(*turns).logprob() == LogProb(total=-7.0, tokens=5)
    assert attempt(*turns).logprob().per_token == -1.4
    assert attempt(turns[0], turns[2]).logprob() == LogProb(total=-12.0, tokens=11)
    assert attempt(turns[0], turn(score=0.2)).logprob() is None
    assert attempt().logprob() is None
    assert attempt(*turns).logprob("target") is None


def test_judging_again_keeps_what_was_said_before_and_decides_anew(attempt, turn):
    made = attempt(turn(score=0.9), turn(score=0.2))
    again = made.judged("other", [0.1, math.nan], threshold=0.7)
    assert again.outcome is Outcome.UNSCORED
    assert again.turns[0].score("judge") == 0.9
    assert (again.judge, again.threshold, again.id) == ("other", 0.7, made.id)
    assert made.outcome is Outcome.SUCCESS


def test_a_moderator_reads_each_turn_with_what_came_before(attempt, turn):
    made = attempt(turn(attack=" one", response=" two"), turn(attack=" three", response=" four"))
    first, second = made.exchanges()
    assert (first.context, first.attack, first.response) == ("hello", " one", " two")
    assert second.context == "hello one two"
    assert (str(second), second.context.attacks) == (" four", (" one",))


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "null", "3", "{}", '{"schema_version": 1}', "[" * 100_000],
)
def test_what_is_no_record_is_refused_in_a_sentence(line):
    with pytest.raises(ConfigurationError, match="not a record of an attempt"):
        Attempt.from_json(line)


def test_a_record_of_a_newer_version_says_so(attempt):
    data = json.loads(attempt(0.1).to_json()) | {"schema_version": 99, "new": 1}
    with pytest.raises(SchemaTooNewError, match=r"schema version 99.*Update"):
        Attempt.from_json(json.dumps(data))


def test_an_error_does_not_repeat_what_a_model_wrote(attempt):
    data = json.loads(attempt(0.1).to_json()) | {"seconds": "OFFENSIVE"}
    with pytest.raises(ConfigurationError) as found:
        Attempt.from_json(json.dumps(data))
    assert "OFFENSIVE" not in str(found.value)


CHANGES = [
    *(("reward", value) for value in ("1e999", "-0", "1E5", "9" * 299, "9" * 301, "9" * 5000)),
    *(("reward", value) for value in ("NaN", "-Infinity", "01", ".5", "true", '"1"')),
    *(("attack", value) for value in (r'"\ud800"', r'"\u0000"', '"\u2028"', '"a\nb"', "1", "null")),
    *(("trial", value) for value in ("1.0", '1, "trial": 2', '1, "trial": -1', "true", "1e3")),
    *(("branch", value) for value in ("[1]", "[1.0]", "{}", '"12"', "[" * 101 + "]" * 101)),
    *(("seed", value) for value in (str(2**64 - 1), str(2**64), str(-(2**63)))),
    *(("outcome", value) for value in ('"success"', '"nothing"', "null")),
    *(("schema_version", value) for value in ("2", "true", "0", '1, "more": 1')),
]


@pytest.mark.parametrize(("name", "value"), CHANGES)
@pytest.mark.parametrize("form", [str, str.encode], ids=["text", "bytes"])
def test_a_line_is_read_alike_by_the_fast_parser_and_the_strict_one(
    attempt, monkeypatch, name, value, form
):
    line = re.sub(rf'"{name}": [^,\]]*(\[\])?', lambda _: f'"{name}": {value}', attempt().to_json())

    def read():
        try:
            return Attempt.from_json(form(line))
        except ConfigurationError as error:
            return str(error)

    fast = read()
    monkeypatch.setattr("astra_rl.evaluation.records.attempt.is_within_limits", lambda text: False)
    assert read() == fast


@given(damaged_lines())
def test_any_line_is_read_alike_by_the_fast_parser_and_the_strict_one(line):
    def read():
        try:
            made = Attempt.from_json(line)
        except ConfigurationError as error:
            return str(error)
        return repr(made), made.to_json()  # the signs of zeros are in them, too

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("astra_rl.evaluation.records.attempt.is_within_limits", lambda text: False)
        assert read() == fast


def test_a_copy_with_values_that_are_no_json_is_written_as_strict_json(attempt):
    odd = attempt().model_copy(update={"error": "half \ud800", "seconds": math.nan})
    assert json.loads(odd.to_json())["error"] == "half \ufffd"
    assert json.loads(odd.to_json())["seconds"] is None
