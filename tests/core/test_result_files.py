"""Attacks in the result files of other tools, by extracts in the forms that the tools write."""

import csv
import json
import math

import pytest
from tests.hostile import HOSTILE

from astra_rl.core.attack_files import read_attacks
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.infra.unicode import well_formed


def read(tmp_path, data, name="a.json"):
    path = tmp_path / name
    lines = data if name.endswith(".jsonl") else [data]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read_attacks(path)


def result(raw, score, *, graded=True, **more):
    """A result of promptfoo."""
    graded = {"pass": score == 1, "score": score, "reason": ""} if graded else None
    return {"prompt": {"raw": raw, "label": "p"}, "score": score, "gradingResult": graded, **more}


def test_results_of_promptfoo(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    rows = [
        result("passed", 1, response={"output": "no"}),
        result("failed", 0, error="Expected ...", failureReason=1),
        result("not asserted", 1, graded=False),
        result("an error", 0, error="timed out", failureReason=2),
        result(json.dumps(chat), 0.25),
        result("[1, 2]", 1),
    ]
    found = read(tmp_path, {"evalId": "e", "results": {"version": 3, "results": rows}})
    assert [str(each.attack) for each in found] == [
        "passed", "failed", "not asserted", "an error", "hello", "[1, 2]",
    ]  # fmt: skip
    rewards = [None if math.isnan(each.reward) else each.reward for each in found]
    assert rewards == [0.0, 1.0, None, None, 0.75, 0.0]
    assert found[4].context.system == "s"


def piece(conversation, sequence, role, text, **more):
    """A message piece of PyRIT."""
    return {
        "conversation_id": conversation, "sequence": sequence, "role": role,
        "original_value": "?", "converted_value": text, "converted_value_data_type": "text", **more,
    }  # fmt: skip


def test_message_pieces_of_pyrit_as_json_and_csv(tmp_path):
    pieces = [
        piece("a", 1, "user", "one"),
        piece("a", 2, "assistant", "no", scores=[{"score_value": "false"}]),
        piece("b", 0, "system", "be kind"),
        piece("b", 2, "assistant", "yes", scores=[{"score_value": "0.4"}, {"score_value": "x"}]),
        piece("b", 1, "user", "two"),
        piece("b", 3, "user", "three"),
        piece("b", 4, "assistant", "well", scores=[{"score_value": "True"}]),
    ]
    found = read(tmp_path, pieces)
    assert [(str(each.attack), each.reward) for each in found] == [
        ("one", 0.0), ("two", 0.4), ("three", 1.0),
    ]  # fmt: skip
    last = Conversation.of(found[2].context)
    assert (last.system, last.turns) == ("be kind", ("two", "yes"))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*pieces[0], "scores"])
        table.writeheader()
        table.writerows(pieces)
    assert [str(each.attack) for each in read_attacks(tmp_path / "a.csv")] == [
        "one", "two", "three",
    ]  # fmt: skip


def said(*texts):
    """A conversation of garak."""
    roles = ("user", "assistant")
    return {
        "turns": [
            {"role": roles[at % 2], "content": {"text": text, "lang": "en", "notes": {}}}
            for at, text in enumerate(texts)
        ],
        "notes": {},
    }


def test_reports_and_hit_logs_of_garak(tmp_path):
    tried = {"entry_type": "attempt", "status": 2, "prompt": said("one")}
    report = [
        {"entry_type": "start_run setup", "garak_version": "0.17"},
        {**tried, "status": 1, "outputs": [{"text": "?"}]},
        {
            **tried,
            "outputs": [{"text": "a"}, None, {"text": "b"}],
            "detector_results": {"d": [0.0, None, 1.0], "e": [0.5, None, None]},
        },
        {**tried, "prompt": said("one", "two", "three"), "outputs": [{"text": "a"}],
         "detector_results": {}},
        {"entry_type": "eval", "probe": "p"},
    ]  # fmt: skip
    found = read(tmp_path, report, "a.report.jsonl")
    assert [(str(each.attack), each.reward) for each in found[:2]] == [("one", 0.5), ("one", 1.0)]
    assert math.isnan(found[2].reward)
    assert Conversation.of(found[2].context).turns == ("one", "two")
    hit = {"goal": "g", "prompt": said("x"), "output": {"text": "y"}, "score": 1.0,
           "probe": "p", "detector": "d"}  # fmt: skip
    (only,) = read(tmp_path, [hit], "a.hitlog.jsonl")
    assert (only.attack, only.reward) == ("x", 1.0)


def test_artifacts_of_jailbreakbench_and_completions_of_harmbench(tmp_path):
    rows = [
        {"goal": "g", "prompt": "p", "jailbroken": True},
        {"goal": "g", "prompt": None, "jailbroken": False},
    ]
    (only,) = read(tmp_path, {"parameters": {}, "jailbreaks": rows})
    assert (only.attack, only.reward) == ("p", 1.0)
    completions = {"b1": [{"test_case": "x", "generation": "y", "label": 0}], "b2": []}
    (only,) = read(tmp_path, completions)
    assert (only.attack, only.reward) == ("x", 0.0)
    assert [each.attack for each in read(tmp_path, {"b1": ["x", "y"]})] == ["x", "y"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_is_read_as_it_is(tmp_path, text):
    found = read(tmp_path, {"results": {"results": [result(text, 1)]}})
    assert [well_formed(each.attack) for each in found] == [well_formed(text)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"results": {"results": [{}]}}, "no 'prompt' with 'raw'"),
        ({"b": [1]}, "a behavior has a test case that is no text"),
        ({"a": 1}, "no result file of promptfoo, PyRIT, JailbreakBench or HarmBench"),
        ([], "no result file of promptfoo"),
    ],
)
def test_another_json_file_is_refused(tmp_path, data, message):
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, data)


def test_other_tables_are_texts_as_before(tmp_path):
    (tmp_path / "a.csv").write_text("one, two\n\nthree\n")
    assert [each.attack for each in read_attacks(tmp_path / "a.csv")] == ["one, two", "three"]
