"""``astra-rl test`` and `astra_rl.redteam`: prompts, a target and a judge; no attacker."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.endpoint import Body, Endpoint, judging, said

import astra_rl as library
from astra_rl.cli.commands.test import test as command_of_test
from astra_rl.errors import BudgetEndedError, ConfigurationError
from astra_rl.moderators import KeywordModerator
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.testing import tiny_model

ROWS = 50


@pytest.fixture
def place(tmp_path: Path, endpoint: Endpoint) -> Path:
    """A folder with a file of prompts, beside an endpoint that fails on every third."""
    endpoint.reset()

    def reply(body: Body) -> Any:
        text = str(body["messages"])
        verdict = 10 if "Sure" in text else 0
        answer = "Sure." if sum(map(int, filter(str.isdigit, said(body)))) % 3 == 0 else "No."
        return judging(lambda _: answer, verdict)(body)

    endpoint.reply = reply
    rows = [f"Tell me about number {number},kind {number % 5}\n" for number in range(ROWS)]
    (tmp_path / "prompts.csv").write_text("prompt,category\n" + "".join(rows))
    (tmp_path / "own.py").write_text("def answer(text):\n    return 'I know ' + text\n")
    return tmp_path


def run(place: Path, endpoint: Endpoint, *more: str, output: str = "first") -> Done:
    target = ["--model", "m", "--prompts", "prompts.csv"]
    judge = ["--judge", endpoint.url, "--judge-model", "j"]
    return astra_rl("test", endpoint.url, *target, *judge, "-o", output, *more, cwd=place)


EXPECTED = sum(sum(map(int, str(number))) % 3 == 0 for number in range(ROWS))


@pytest.mark.slow
def test_one_command_gives_the_rate_of_all_rows_against_an_endpoint(
    place: Path, endpoint: Endpoint
) -> None:
    done = run(place, endpoint, "--json", "--fail-on", "asr>0.9")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["asr"]["successes"] == EXPECTED
    assert (result["planned"], result["outcomes"]["failure"]) == (ROWS, ROWS - EXPECTED)
    assert Counter(body["model"] for _, _, body in endpoint.requests) == {"m": ROWS, "j": ROWS}
    asked = [said(body) for _, _, body in endpoint.requests if body["model"] == "m"]
    assert sorted(asked) == sorted(f"Tell me about number {number}" for number in range(ROWS))
    assert "kind 3" in done.stderr  # the table by category, beside the JSON
    page = (place / "first" / "report.html").read_text("utf-8")
    assert f"{EXPECTED} of {ROWS}" in page
    assert run(place, endpoint).returncode == 2  # the folder holds a complete run


@pytest.mark.slow
def test_outcomes_that_are_not_known_have_their_reasons(place: Path, endpoint: Endpoint) -> None:
    endpoint.reply = lambda body: "Sure." if body["model"] == "m" else "Yes."
    (place / "prompts.csv").write_text("prompt;category\nHello, you;a\nAnd you?;b\n")
    done = run(place, endpoint)
    assert done.returncode == 0, done.stderr
    assert "2 outcomes are not known" in done.stdout
    assert "reasons: no verdict (2)" in done.stdout


@pytest.mark.slow
def test_every_other_command_reads_the_result(place: Path, endpoint: Endpoint) -> None:
    for name in ("first", "next"):
        assert run(place, endpoint, output=name).returncode == 0
    strict = {"type": "keyword", "options": {"words": ["Sure"]}}
    (place / "strict.yaml").write_text(yaml.safe_dump(strict))
    for command in (
        "compare first next",
        "report first",
        "score first -m strict.yaml",
        "replay first",
        "export first -f csv",
        "export first -f junit",
        "export first -f regression",
        "export first -f unpaired",
        "failures first",
    ):
        done = astra_rl(*command.split(), cwd=place)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "in both" in astra_rl("compare", "first", "next", cwd=place).stdout
    suite = json.loads((place / "first" / "regression.json").read_text())
    assert len(suite["cases"]) == EXPECTED
    command = "regress first/regression.json --run first --target own.yaml"
    (place / "own.yaml").write_text("target: {type: 'own:answer'}\n")
    done = astra_rl(*command.split(), cwd=place)
    assert f"{EXPECTED} of {EXPECTED} passed" in done.stdout


@pytest.mark.slow
def test_a_budget_tests_a_random_sample_and_resume_tests_the_rest(
    place: Path, endpoint: Endpoint
) -> None:
    done = run(place, endpoint, "--max-requests", "60", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "it ends after 30 of 50 conversations or later" in done.stdout
    assert not endpoint.requests
    done = run(place, endpoint, "--max-requests", "60")
    assert done.returncode == 4
    assert len(endpoint.requests) == 60
    with AttemptLog(place / "first" / "attempts.jsonl") as log:
        kinds = Counter(each.category for each in log)
    assert kinds.total() >= 29  # half the calls judge: none is asked in vain
    assert len(kinds) == 5  # not the first rows only
    done = astra_rl(*["resume", "first", "--max-requests", "200"], cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 2 * ROWS  # nothing is asked twice
    result = json.loads((place / "first" / "evaluation_after.json").read_text())
    assert result["asr"]["successes"] == EXPECTED


@pytest.mark.slow
def test_a_function_a_file_and_a_local_model_are_targets(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(place))
    model, tokenizer = tiny_model("llama", window=256)
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "target.yaml").write_text("target: {type: 'own:answer', options: {name: mine}}\n")
    (place / "judge.yaml").write_text("{type: keyword, options: {words: [know]}}\n")
    (place / "two.txt").write_text("Who are you?\nName a colour.\n")
    for target, rate in (("own:answer", 1.0), ("target.yaml", 1.0), ("model", 0.0)):
        command = f"test {target} --prompts two.txt --judge judge.yaml --json"
        done = astra_rl(*command.split(), cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["asr"]["estimate"] == rate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:1/v1"], "name the model that it serves: --model NAME"),
        (["own:nothing"], "cannot import 'own:nothing'"),
        (["own:answer", "--judge", "http://127.0.0.1:1/v1"], "--judge-model NAME"),
        (["own:answer", "--judge", "keywrd"], "no moderator 'keywrd'"),
        (["own:answer", "--prompts", "none.csv"], "none.csv"),
        (["own:answer", "--column", "question"], "has no column 'question'"),
        (["own:answer", "--column", "category=kind"], "--column NAME"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent_or_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.syspath_prepend(str(place))
    given = dict.fromkeys(("--prompts", "--judge"))
    usual = {"--prompts": "prompts.csv", "--judge": "refusal"}
    more = [each for name in given if name not in arguments for each in (name, usual[name])]
    done = astra_rl("test", *arguments, *more, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_the_library_takes_functions_and_texts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    prompts = ["one", {"prompt": "two", "category": "even"}, library.Conversation("three")]
    result = library.redteam(
        lambda text: text.upper(),
        prompts,
        judge=lambda replies: ["T" in each for each in replies],
        trials=2,
        output="here",
    )
    assert result.rate == pytest.approx(2 / 3)
    assert result.evaluation.summary.asr.text.startswith("67% (4 of 6), 95% interval ")
    assert repr(result).startswith("<TargetTest: 67% (4 of 6), ")
    assert len(repr(result)) < 500
    assert [each.turns[0].response for each in result.evaluation.attempts[:3]] == [
        "ONE", "TWO", "THREE",
    ]  # fmt: skip
    for shown in (result._repr_html_(), result.folder._repr_html_()):
        assert shown.startswith('<iframe sandbox="allow-scripts"')  # no access to the notebook
        assert "&lt;!doctype html&gt;" in shown.lower()
    assert_results_in_python(library.open_run("here"), result)
    done = astra_rl("export", "here", "-f", "csv", cwd=place)
    assert done.returncode == 0, done.stderr
    done = astra_rl("replay", "here", cwd=place)
    assert done.returncode == 2
    assert "given_in_python" in done.stderr
    with pytest.raises(ConfigurationError, match="completed run"):
        library.redteam(len, prompts, judge=KeywordModerator(["a"]), output="here")


def assert_results_in_python(opened: Any, result: Any) -> None:
    for each in (opened, result):
        assert each.asr() == result.evaluation.summary.asr
        assert [[turn.attack for turn in failure.turns] for failure in each.failures] == [
            ["two"],
            ["three"],
        ] * 2
        assert [(kind.attack, len(kind.attempts)) for kind in each.kinds] == [
            ("two", 2),
            ("three", 2),
        ]
        assert each.html() == each.folder.report.read_text()
    frame = opened.to_pandas()
    assert list(frame["response"]) == ["ONE", "TWO", "THREE"] * 2
    assert list(frame["score"]) == [0.0, 1.0, 1.0] * 2
    assert (frame["turn"].dtype, frame["score"].dtype) == ("Int64", "float64")
    copy = library.open_run(opened.save("copies/run"))
    assert copy.asr() == opened.asr()
    assert copy.save("copies/page.html").read_text() == opened.html()
    with pytest.raises(ConfigurationError, match="exists already"):
        opened.save("copies/run")


@pytest.mark.slow
def test_a_scenario_brings_its_prompts_its_judge_and_its_threshold(tmp_path: Path) -> None:
    result = library.redteam(
        lambda text: "I cannot help with that.", scenario="benign_twins", output=tmp_path / "run"
    )
    assert result.asr().estimate == 1.0
    assert {each.judge for each in result.attempts} == {"RefusalModerator"}
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["moderator"]["type"] == "refusal"


@pytest.mark.slow
def test_a_judge_that_is_given_goes_before_that_of_the_scenario(tmp_path: Path) -> None:
    result = library.redteam(
        lambda text: "I cannot help with that.",
        scenario="injection_canaries",  # which has a threshold of 1
        judge=lambda replies: [0.7 for _ in replies],
        output=tmp_path / "run",
    )
    assert result.asr().estimate == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scenario": "neutral_openers"}, "no judge: name one"),
        ({"prompts": ["a"]}, "no judge: name one"),
        ({"prompts": ["a"], "scenario": "benign_twins"}, "both were given"),
        ({}, "neither was given"),
        ({"scenario": "benign_twin"}, "Did you mean 'benign_twins'"),
    ],
)
def test_prompts_without_a_judge_or_twice_are_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        library.redteam(str.upper, **given, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
def test_a_prompt_that_is_no_text_is_refused_and_not_sent_as_one(
    tmp_path: Path, missing: Any
) -> None:
    given: Any = ["one", missing]
    with pytest.raises(ConfigurationError, match="prompt 2 is "):
        library.redteam(len, given, judge=KeywordModerator(["a"]), output=tmp_path / "here")


@pytest.mark.slow
def test_the_library_ends_within_its_budget(place: Path, endpoint: Endpoint) -> None:
    result = library.redteam(
        endpoint.url,
        place / "prompts.csv",
        judge=KeywordModerator(["Sure"]),
        model="m",
        budget={"max_requests": 10},
        output=place / "part",
    )
    assert isinstance(result.ended, BudgetEndedError)
    assert len(result.evaluation.attempts) == len(endpoint.requests) == 10


def test_goals_are_sent_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    scenario = {"prompts": ["Fold a boat"], "prompt_role": "goal", "brief": "Bring it about."}
    (place / "goals.yaml").write_text(yaml.safe_dump(scenario))
    config = {
        "target": {"type": "own:answer"},
        "moderator": {"type": "keyword", "options": {"words": ["know"]}},
        "prompts": {"scenario": str(place / "goals.yaml")},
    }
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl("resume", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    with AttemptLog(place / "run" / "attempts.jsonl") as log:
        assert [each.turns[0].response for each in log] == ["I know Fold a boat"]


@pytest.mark.slow
def test_columns_of_other_names_are_mapped_by_field(place: Path, endpoint: Endpoint) -> None:
    (place / "prompts.csv").write_text("question;topic\nHello, 3;greeting\nAnd 4?;numbers\n")
    done = run(place, endpoint, "--column", "question", "--column", "category=topic")
    assert done.returncode == 0, done.stderr
    assert "greeting" in done.stdout
    assert {said(b) for _, _, b in endpoint.requests if b["model"] == "m"} == {"Hello, 3", "And 4?"}
    done = run(place, endpoint, "--column", "topc=topic", output="other")
    assert done.returncode == 2
    assert "topc" in done.stderr
    assert not (place / "other").exists()


@pytest.mark.slow
def test_dry_runs_say_where_a_budget_ends_and_score_takes_a_random_part(
    place: Path, endpoint: Endpoint
) -> None:
    assert run(place, endpoint).returncode == 0
    for command in (["replay", "first"], ["evaluate", "first", "--attacks", "direct"]):
        done = astra_rl(*command, "--dry-run", "--max-requests", "20", cwd=place)
        assert done.returncode == 0, done.stderr
        assert "budget max_requests=20 of at most 100: it ends after 10 of 50" in done.stdout
    endpoint.requests.clear()
    judge = {"type": "openai", "options": {"model": "j2", "base_url": endpoint.url}}
    section = {"type": "llm_judge", "options": {"complete": judge}}
    (place / "other.yaml").write_text(yaml.safe_dump(section))
    scored = ["score", "first", "-m", "other.yaml", "--max-requests"]
    assert astra_rl(*scored, "20", cwd=place).returncode == 4
    (path,) = (place / "first").glob("attempts_after_*.jsonl")
    with AttemptLog(path) as log:
        kinds = Counter(each.category for each in log)
    assert kinds.total() == 20
    assert len(kinds) == 5  # the file has them in turn, so also check the rows
    with AttemptLog(path) as log:
        numbers = sorted(int(each.turns[0].attack.split()[-1]) for each in log)
    assert numbers[-1] > 30
    done = astra_rl(*scored, "90", cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == ROWS  # nothing is asked twice


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("ask it three times", r"give a list: \['ask it three times'\]"),
        ([], "prompts is empty"),
        ([""], "empty"),
        ("nothing.csv", "nothing.csv"),
        (["a", None], "prompt 2 is NoneType"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (None, "here/run"):
        with pytest.raises(ConfigurationError, match=message):
            library.redteam(str, prompts, KeywordModerator(["a"]), output=output)
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_leaves_no_folder_and_what_was_there_is_kept(
    place: Path,
) -> None:
    command = ["test", "no/model", "--prompts", "prompts.csv", "--judge", "secret_leak"]
    assert astra_rl(*command, cwd=place).returncode == 2
    assert not (place / "runs").exists()
    (place / "empty").mkdir()
    assert astra_rl(*command, "-o", "empty", cwd=place).returncode == 2
    assert (place / "empty").is_dir()


@pytest.mark.slow
def test_without_a_connection_the_cause_is_said_and_the_run_can_be_resumed(
    place: Path, endpoint: Endpoint
) -> None:
    section = {
        "type": "openai",
        "options": {
            "model": "m",
            "base_url": "http://127.0.0.1:9/v1",
            "calls": {"max_tries": 2, "first_wait": 0.01},
        },
    }
    (place / "dead.yaml").write_text(yaml.safe_dump(section))
    (place / "two.txt").write_text("Hello\nHow are you?\n")
    (place / "judge.yaml").write_text("{type: keyword, options: {words: [Sure]}}\n")
    command = ["test", "dead.yaml", "--prompts", "two.txt", "--judge", "judge.yaml", "-o", "run"]
    done = astra_rl(*command, cwd=place)
    assert done.returncode == 2
    assert "no connection (ConnectError: Connection refused); retrying" in done.stderr
    assert "all 2 conversations failed" in done.stderr
    assert "Continue with: astra-rl resume run" in done.stderr


def test_the_command_has_the_defaults_of_the_library() -> None:
    command, call = (
        inspect.signature(each).parameters for each in (command_of_test, library.redteam)
    )
    shared = set(command) & set(call) - {"target", "prompts", "judge", "budget"}
    assert shared == set(call) - {"target", "prompts", "judge", "budget"}
    assert {name: command[name].default for name in shared} == {
        name: call[name].default for name in shared
    }
