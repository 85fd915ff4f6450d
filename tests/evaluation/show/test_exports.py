"""Every format: right for ordinary attempts, and safe for what a model may have written."""

import csv
import json
import math
import re
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pandas
import pytest
from jsonschema import Draft4Validator
from jsonschema.exceptions import ValidationError
from tests.cases import cases
from tests.formats import FORMATS
from tests.hostile import HOSTILE

from astra_rl import Conversation
from astra_rl.core.attack_files import read_attacks
from astra_rl.core.text import NoAttack, written_text
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.evaluation.show.escaping import markdown_text
from astra_rl.evaluation.show.exports import EXPORTS
from astra_rl.evaluation.show.exports.attacks import write_attacks
from astra_rl.evaluation.show.exports.jailbreakbench import write_jailbreakbench
from astra_rl.evaluation.show.exports.junit import write_junit
from astra_rl.evaluation.show.exports.markdown import markdown_summary
from astra_rl.evaluation.show.exports.preferences import (
    SafeReplies,
    write_preference_pairs,
    write_unpaired,
)
from astra_rl.evaluation.show.exports.regression import CaseResult, RegressionSuite
from astra_rl.evaluation.show.exports.sarif import write_sarif
from astra_rl.evaluation.show.exports.table import data_frame, write_csv, write_parquet
from astra_rl.evaluation.stats.percent import between
from astra_rl.evaluation.stats.sequential import confidence_sequence
from astra_rl.infra.unicode import well_formed

SCHEMA = Path(__file__).parents[2] / "data" / "sarif" / "sarif-2.1.0-rtm.5.json"
SARIF = Draft4Validator(
    json.loads(SCHEMA.read_text("utf-8")), format_checker=Draft4Validator.FORMAT_CHECKER
)
IDS = [ascii(text)[:30] for text in HOSTILE]


SAFE = Turn(attack="ask", response="no", scores={"judge": JudgeScore(value=0.1)})


@pytest.fixture
def attempts(attempt, turn):
    return [
        attempt(turn("ask", "leak", 0.95, logprob=-8.0), opening="one"),
        attempt(
            turn("ask", "no", 0.1), turn("more", "maybe", 0.6), opening="two", category="secrets"
        ),
        attempt(turn("ask", "never", 0.0, refused=True), opening="three"),
        attempt(turn("ask", "?", None), opening="four"),
        attempt(opening="five", error="timed out"),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_attempts(name, attempts, tmp_path):
    path = tmp_path / EXPORTS[name].filename
    if name == "preferences":  # only here there must be a reply to prefer
        attempts = [*attempts, attempts[0].model_copy(update={"turns": (SAFE,)})]
    EXPORTS[name].write(attempts, path)
    assert path.stat().st_size > 50


def test_parquet_has_the_rows_of_the_csv_with_types(attempts, tmp_path):
    assert write_parquet(attempts, tmp_path / "a.parquet") == write_csv(
        attempts, tmp_path / "a.csv"
    )
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    empty = {"category": "", "error": ""}  # in a CSV, an empty text and none are the same
    as_csv = pandas.read_csv(tmp_path / "a.csv").fillna(empty)
    frame = frame.fillna(empty)
    assert list(frame.columns) == list(as_csv.columns)
    for name in frame:
        for ours, theirs in zip(frame[name], as_csv[name], strict=True):
            assert (pandas.isna(ours) and pandas.isna(theirs)) or ours == theirs, name
    pandas.testing.assert_frame_equal(
        data_frame(attempts), frame.astype(data_frame(attempts).dtypes)
    )
    assert data_frame([]).empty


def test_parquet_keeps_what_was_said_and_redacts_credentials(attempt, turn, tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "s3cret-s3cret-s3cret")
    said = "=1+1 \x1b[31m 's3cret-s3cret-s3cret'"
    write_parquet([attempt(turn(said, "x" * 40_000, 0.9))], tmp_path / "a.parquet")
    row = pandas.read_parquet(tmp_path / "a.parquet").iloc[0]
    assert row["attack"] == said.replace("s3cret-s3cret-s3cret", "(redacted)")
    assert len(row["response"]) == 40_000


@pytest.mark.parametrize(
    ("text", "name"),
    cases(
        product(HOSTILE, FORMATS),
        by_default={
            (text, name)
            for row, text in enumerate(HOSTILE)
            for column, name in enumerate(FORMATS)
            if (row + column) % 3 == 0
        },
    ),
    ids=[f"{text}-{name}" for text, name in product(IDS, FORMATS)],
)
def test_every_format_is_well_formed_whatever_was_said(name, text, attempt, turn, tmp_path):
    context = Conversation(text, system=text)
    hostile = [
        attempt(turn(text, text, 0.9), opening=context, category=text, target=text, attacker=text),
        attempt(
            turn(text, f"{text}.", 0.1),
            opening=context,
            trial=1,
            target=text,
            attacker=text,
            category=text,
            error=text,
        ),
    ]
    path = tmp_path / "out"
    EXPORTS[name].write(hostile, path)
    if name == "parquet":  # no text file: what was said stays as it was
        said = pandas.read_parquet(path)["attack"].dropna()
        assert set(said) == {well_formed(text)}
        return
    data = path.read_bytes()
    data.decode("utf-8")
    assert b"\x00" not in data
    assert b"\x1b" not in data
    if name in ("attacks", "jsonl", "preferences", "unpaired"):
        for line in data.decode().split("\n")[:-1]:
            json.loads(line)
        assert len(data.decode().splitlines()) == data.count(b"\n")
    elif name in ("harmbench", "jailbreakbench", "regression"):
        json.loads(data)
    elif name == "sarif":
        SARIF.validate(json.loads(data))
    elif name == "junit":
        root = ElementTree.fromstring(data)
        assert {each.tag for each in root.iter()} <= {
            "testsuites", "testsuite", "testcase", "failure", "error",
        }  # fmt: skip
    elif name == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
        assert {len(row) for row in rows} == {22}
        for row in rows[1:]:
            for cell in row:
                assert not re.match(r"\s*[=+@|%\uff1d\uff0b\uff0d\uff20]", cell)
                assert re.fullmatch(r"-[\d.e+-]+", cell) or not cell.startswith("-")
                assert len(cell) < 32_767
    elif name == "markdown":
        check_markdown(data.decode())


def check_markdown(text):
    """What a model wrote stands in code spans, on one line, in cells."""
    for line in text.splitlines():
        outside = re.sub(r"(`+) .*? \1(?!`)", "", line)
        assert not re.search(r"[<>\[\]`]|https?:|javascript", outside), line
        if line.startswith("|") and "attack" not in line:
            assert outside.count("|") in (3, 5)


@pytest.mark.parametrize("text", HOSTILE, ids=IDS)
def test_a_code_span_of_markdown_cannot_be_left(text):
    span = markdown_text(text)
    fence = re.match("`+", span).group()
    assert span.endswith(fence)
    inner = span[len(fence) : -len(fence)]
    assert fence not in re.findall("`+", inner)
    assert "\n" not in span
    assert "|" not in span


def test_csv_has_one_row_per_turn_and_numbers_stay_numbers(attempts, tmp_path):
    assert write_csv(attempts, tmp_path / "a.csv") == 6
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == [
        "success", "success", "success", "refused", "unscored", "error",
    ]  # fmt: skip
    assert (rows[0]["score"], rows[0]["attack_logprob"]) == ("0.95", "-8.0")
    assert (rows[4]["score"], rows[4]["missing"]) == ("", "no verdict")
    assert rows[5]["error"] == "timed out"


def test_junit_fails_where_the_target_failed_and_never_passes_what_nobody_knows(attempts, tmp_path):
    assert write_junit(attempts, tmp_path / "j.xml") == 5
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "2", "2")
    assert "judge scored 0.95, threshold 0.5" in root.find(".//failure").get("message")
    assert [each.get("message") for each in root.iter("error")] == ["no verdict", "timed out"]


def test_sarif_has_a_result_per_failure_that_points_to_its_line(attempts, tmp_path):
    assert write_sarif(attempts, tmp_path / "s.sarif") == 2
    log = json.loads((tmp_path / "s.sarif").read_text())
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    first, second = run["results"]
    assert (first["level"], second["level"]) == ("error", "warning")
    assert first["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}
    assert (
        second["ruleId"] == "secrets" == run["tool"]["driver"]["rules"][second["ruleIndex"]]["id"]
    )
    assert first["properties"]["attackLogProbability"] == -8.0
    prints = [each["partialFingerprints"]["astraAttack/v1"] for each in (first, second)]
    assert len(set(prints)) == 2


def test_the_same_failure_found_again_has_the_same_fingerprint(attempts, attempt, turn, tmp_path):
    again = attempt(turn("ask", "leaked differently", 0.7), opening="one", trial=3)
    write_sarif([attempts[0], again], tmp_path / "s.sarif")
    results = json.loads((tmp_path / "s.sarif").read_text())["runs"][0]["results"]
    assert len({each["partialFingerprints"]["astraAttack/v1"] for each in results}) == 1


def test_jsonl_holds_failures_complete_and_the_same_for_the_same_run(attempts, attempt, tmp_path):
    timed = [each.model_copy(update={"started": 5.0, "seconds": 1.0}) for each in attempts]
    for number, rows in enumerate((attempts, timed)):
        assert EXPORTS["jsonl"].write(rows, tmp_path / str(number)) == 2
    texts = [(tmp_path / str(number)).read_text() for number in range(2)]
    assert texts[0] == texts[1]
    assert [Attempt.from_json(line).id for line in texts[0].splitlines()] == [
        attempts[0].id,
        attempts[1].id,
    ]


def test_markdown_says_the_numbers_with_their_denominators(attempts):
    text = markdown_summary(attempts)
    assert "67% (2 of 3, 95% interval" in text
    assert "2 success, 0 failure, 1 refused, 0 blocked, 0 no_attack, 1 error, 1 unscored" in text
    assert "bounds, if none or all unscored attempts succeeded | 40% to 80%" in text


def test_a_jailbreakbench_artifact_has_one_entry_per_prompt_and_counts_queries(
    attempt, turn, tmp_path
):
    rows = [
        attempt(turn("a", "no", 0.1), opening="one"),
        attempt(turn("b", "no", 0.1), turn("c", "yes", 0.9), opening="one", trial=1),
        attempt(turn("d", "no", 0.1), opening="two"),
    ]
    assert write_jailbreakbench(rows, tmp_path / "j.json", method="rl") == 2
    data = json.loads((tmp_path / "j.json").read_text())
    parameters = data["parameters"]
    assert (parameters["method"], parameters["model"]) == ("rl", "t")
    assert parameters["attack_success_rate"] == 0.5
    first, second = data["jailbreaks"]
    assert (first["goal"], first["prompt"], first["response"]) == ("one", "c", "yes")
    assert (first["queries_to_jailbreak"], first["number_of_queries"]) == (3, 3)
    assert (second["jailbroken"], second["queries_to_jailbreak"]) == (False, None)


def test_a_jailbreakbench_artifact_does_not_call_unknown_outcomes_safe(attempt, turn, tmp_path):
    rows = [
        attempt(turn("a", "yes", 0.9), opening="one"),
        attempt(turn("b", "?", None), opening="one", trial=1),
        attempt(turn("c", "no", 0.1), opening="two"),
        attempt(turn("d", "?", None), opening="three"),
        attempt(turn("e", "no", 0.1), opening="three", trial=1),
    ]
    assert write_jailbreakbench(rows, tmp_path / "j.json") == 2
    data = json.loads((tmp_path / "j.json").read_text())
    assert data["parameters"]["attack_success_rate"] == 0.5  # of "one" and "two"
    assert data["parameters"]["method_parameters"] == {"prompts_left_out": 1}
    nothing = [attempt(turn("d", "?", None), opening="three")]
    write_jailbreakbench(nothing, tmp_path / "n.json")
    found = json.loads((tmp_path / "n.json").read_text())["parameters"]
    assert found["attack_success_rate"] is None


def test_markdown_of_an_evaluation_that_could_stop_early_has_its_interval(attempts):
    text = markdown_summary(attempts, sequential=True)
    assert "confidence sequence" in text
    assert between(confidence_sequence([1.0, 1.0, 0.0])) in text


def test_tables_show_the_opening_that_was_asked_with_the_attack(attempt, turn, tmp_path):
    rows = [attempt(turn("and the code?", "1234", 0.9), opening="Who are you?")]
    assert "Who are you?" in markdown_summary(rows)
    for name in ("junit", "sarif", "csv"):
        EXPORTS[name].write(rows, tmp_path / name)
        text = (tmp_path / name).read_text("utf-8")
        assert "Who are you?" in text
        assert "and the code?" in text


def test_an_artifact_of_several_targets_is_refused(attempt, tmp_path):
    with pytest.raises(ConfigurationError, match="2 pairs of attacker and target"):
        write_jailbreakbench([attempt(0.1), attempt(0.1, target="u")], tmp_path / "j.json")


def pairs(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_preference_pairs_are_what_trl_reads_and_ask_exactly_what_was_asked(
    attempt, turn, tmp_path
):
    context = Conversation("Hi.", system="Be kind.", separator=" ")
    rows = [
        attempt(turn("first", "fine", 0.1), turn("second", "BAD", 0.9), opening=context),
        attempt(turn("first", "fine", 0.1), turn("second", "good", 0.1), opening=context, trial=1),
    ]
    written = write_preference_pairs(rows, tmp_path / "p.jsonl")
    assert written == (1, 0)
    (row,) = pairs(tmp_path / "p.jsonl")
    assert row == {
        "prompt": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi. first"},
            {"role": "assistant", "content": "fine"},
            {"role": "user", "content": "second"},
        ],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "BAD"}],
    }


def test_a_safe_reply_that_was_given_is_chosen_and_failures_without_one_are_counted(
    attempt, turn, tmp_path
):
    rows = [attempt(turn("a", "BAD", 0.9)), attempt(turn("b", "BAD", 0.9), opening="other")]
    with pytest.raises(ConfigurationError, match=r"2 failures .* --safe-replies .* --trials"):
        write_preference_pairs(rows, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    with pytest.raises(ConfigurationError, match="the target failed in no judged reply"):
        write_preference_pairs([attempt(0.1)], tmp_path / "p.jsonl")
    (tmp_path / "safe.jsonl").write_text('{"attack": "a", "reply": "I cannot."}\n')
    safe = SafeReplies.load(tmp_path / "safe.jsonl")
    assert write_preference_pairs(rows, tmp_path / "p.jsonl", safe=safe) == (1, 1)
    assert pairs(tmp_path / "p.jsonl")[0]["chosen"][0]["content"] == "I cannot."
    everything = SafeReplies({}, default="No.")
    assert write_preference_pairs(rows, tmp_path / "p.jsonl", safe=everything) == (2, 0)


def test_a_bad_file_of_safe_replies_is_named_with_its_line(tmp_path):
    (tmp_path / "safe.jsonl").write_text('{"attack": "a", "reply": "b"}\n{"attack": "a"}\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        SafeReplies.load(tmp_path / "safe.jsonl")
    with pytest.raises(ConfigurationError, match="cannot read the safe replies"):
        SafeReplies.load(tmp_path / "none.jsonl")


def test_unpaired_rows_label_replies_as_good_or_bad_and_leave_unknown_ones_out(attempts, tmp_path):
    written = write_unpaired(attempts, tmp_path / "u.jsonl")
    rows = pairs(tmp_path / "u.jsonl")
    assert written.rows == len(rows) == 4
    assert {row["completion"][0]["content"]: row["label"] for row in rows} == {
        "leak": False,
        "no": True,
        "maybe": False,
        "never": True,
    }


def test_trl_trains_on_the_files(attempt, turn, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        attempt(turn("ask", "BAD", 0.9)),
        attempt(turn("ask", "good", 0.1), trial=1),
    ]
    write_preference_pairs(rows, tmp_path / "p.jsonl")
    write_unpaired(rows, tmp_path / "u.jsonl")
    from trl.data_utils import is_conversational

    for name, columns in (
        ("p", {"prompt", "chosen", "rejected"}),
        ("u", {"prompt", "completion", "label"}),
    ):
        data = datasets.Dataset.from_list(pairs(tmp_path / f"{name}.jsonl"))
        assert set(data.column_names) == columns
        assert is_conversational(data[0])


def test_attacks_are_what_a_warm_start_reads(attempts, tmp_path):
    assert EXPORTS["attacks"].write(attempts, tmp_path / "a.jsonl") == 5
    steps = read_attacks(tmp_path / "a.jsonl")
    assert [step.attack for step in steps] == ["ask", "ask", "more", "ask", "ask"]
    assert [step.reward for step in steps[:4]] == [0.95, 0.1, 0.6, 0.0]
    assert math.isnan(steps[4].reward)
    assert steps[2].context == "twoaskno"
    assert steps[2].context.attacks == ("ask",)


def test_attacks_with_private_reasoning_are_exported_with_the_output_to_be_trained(
    attempt, turn, tmp_path
):
    outputs = [f"thoughts <prompt>{word}</prompt>" for word in ("ask", "more")]
    turns = [
        turn(word, written=written) for word, written in zip(("ask", "more"), outputs, strict=True)
    ]
    write_attacks([attempt(*turns)], tmp_path / "a.jsonl")
    steps = read_attacks(tmp_path / "a.jsonl")
    assert [str(step.attack) for step in steps] == ["ask", "more"]
    assert [written_text(step.attack) for step in steps] == outputs
    # The attacker reads all of its earlier output, the target only the attack.
    (earlier,) = steps[1].context.attacks
    assert (str(earlier), written_text(earlier)) == ("ask", outputs[0])


def test_an_output_without_an_attack_is_not_exported_and_is_no_attack(attempt, turn, tmp_path):
    found = attempt(turn("", "", None, written="thoughts", finish_reason="not_asked"))
    assert write_attacks([found], tmp_path / "a.jsonl") == 0
    (exchange,) = found.exchanges()
    assert isinstance(exchange.attack, NoAttack)


# Regression suites.


def suite_of(attempts):
    return RegressionSuite.of([each for each in attempts if each.judge == "judge"])


def test_a_suite_holds_every_failure_once_up_to_the_turn_that_failed(attempts, attempt, turn):
    twice = attempt(turn("ask", "leak again", 0.8), turn("more", "x", 0.1), opening="one", trial=1)
    suite = suite_of([*attempts, twice])
    assert [case.attacks for case in suite.cases] == [("ask",), ("ask", "more")]
    assert [case.opening.prompt for case in suite.cases] == ["one", "two"]


def test_a_suite_is_read_back_as_it_was(attempts, tmp_path):
    suite = suite_of(attempts)
    suite.save(tmp_path / "s.json")
    assert RegressionSuite.load(tmp_path / "s.json") == suite
    with pytest.raises(ConfigurationError, match="cannot read the regression suite"):
        RegressionSuite.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"judge": 1}')
    with pytest.raises(ConfigurationError, match="not a regression suite"):
        RegressionSuite.load(tmp_path / "bad.json")


def test_a_case_passes_only_where_the_target_is_known_to_have_withstood_it(attempts, attempt, turn):
    suite = suite_of([*attempts, attempt(turn("x", "leak", 0.9), opening="six")])
    first, second, third = suite.cases
    results = suite.check(
        {
            first.id: attempt(turn("ask", "no", 0.1)),
            second.id: attempt(turn("ask", "no", 0.1), turn("more", "?", None)),
        }
    )
    assert [each.status for each in results] == ["passed", "undecided", "undecided"]
    assert results[2].case == third
    assert not CaseResult.all_passed(results)
    assert CaseResult.all_passed(results[:1])
    (failed,) = suite_of([attempts[0]]).check({first.id: attempt(turn("ask", "leak", 0.7))})
    assert (failed.status, failed.detail) == ("failed", "score 0.7, limit 0.5")


def test_no_case_at_all_is_not_a_pass(attempts, attempt):
    assert not CaseResult.all_passed([])
    with pytest.raises(ConfigurationError, match="none of the 2 attempts has a known outcome"):
        RegressionSuite.of([attempt(None), attempt(None, opening="other")])


def test_a_case_that_was_sent_several_times_has_a_rate(attempts, attempt, turn):
    suite = suite_of([attempts[0]])
    sent = [attempt(turn("ask", "leak", 0.7)), *[attempt(turn("ask", "no", 0.1))] * 4]
    (result,) = suite.check({suite.cases[0].id: sent})
    assert (result.status, result.rate.successes, result.rate.trials) == ("failed", 1, 5)
    assert "20% (1 of 5" in result.detail
    (result,) = suite.check({suite.cases[0].id: [*sent[1:], attempt(turn("ask", "?", None))]})
    assert (result.status, result.rate.unscored) == ("undecided", 1)


def test_failures_of_several_judges_make_no_suite(attempts, attempt):
    with pytest.raises(ConfigurationError, match="2 combinations of judge and threshold"):
        RegressionSuite.of([attempt(0.9), attempt(0.95, threshold=0.9, opening="other")])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_sarif_is_valid_against_the_schema_of_the_standard(count, attempts, tmp_path):
    write_sarif(attempts[:count], tmp_path / "results.sarif")
    log = json.loads((tmp_path / "results.sarif").read_text("utf-8"))
    SARIF.validate(log)
    log["runs"][0]["results"] = [{"message": "not an object"}]
    with pytest.raises(ValidationError):
        SARIF.validate(log)


def test_attempts_that_were_planned_and_never_made_are_errors_in_junit(attempts, tmp_path):
    assert write_junit(attempts, tmp_path / "junit.xml", planned=8) == 8
    root = ElementTree.fromstring((tmp_path / "junit.xml").read_text("utf-8"))
    assert (root.get("tests"), root.get("errors")) == ("8", "5")
    assert len(root.findall(".//error")) == 5
    assert len(root.findall(".//testcase")) == 8
