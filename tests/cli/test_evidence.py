"""Commands on a finished run: judge, send, compare, export, and gates for CI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.running import astra_rl

from astra_rl.evaluation.exports import EXPORTS
from astra_rl.evaluation.summary import summarise
from astra_rl.runs.records import AttemptLog

KEYWORD = "type: keyword\noptions: {words: [zebra]}\n"
ANYTHING = "type: keyword\noptions: {patterns: ['.*']}\n"


def test_every_conversation_of_a_run_is_in_its_record(trained: Path) -> None:
    with AttemptLog(trained / "attempts.jsonl") as log:
        phases = {
            phase: list(log.attempts(phase=phase)) for phase in ("before", "training", "after")
        }
    assert len(phases["before"]) == len(phases["after"]) == 2
    # two steps of two episodes, each a tree of width 2 and depth 2 at most
    assert 8 <= len(phases["training"]) <= 16
    assert {attempt.step for attempt in phases["training"]} == {1, 2}
    after = json.loads((trained / "evaluation_after.json").read_text())
    assert summarise(each.row for each in phases["after"]).asr.as_dict() == pytest.approx(
        after["asr"], nan_ok=True
    )
    assert all(each.logprob() is not None for each in phases["after"] if each.turns[0].attack)


@pytest.mark.parametrize(("condition", "code"), [("asr>1", 0), ("asr>=0", 3), ("error>0", 0)])
def test_a_condition_that_holds_gives_its_own_exit_code(
    workplace: Path, trained: Path, condition: str, code: int
) -> None:
    done = astra_rl("evaluate", "run", "-o", "gated", "--fail-on", condition, cwd=workplace)
    assert done.returncode == code, done.stderr
    assert condition in done.stdout


def test_a_wrong_condition_is_refused_before_anything_is_done(
    workplace: Path, trained: Path
) -> None:
    done = astra_rl("evaluate", "run", "-o", "never", "--fail-on", "asr=1", cwd=workplace)
    assert done.returncode == 2
    assert "cannot read the condition" in done.stderr
    assert not (workplace / "never").exists()


def test_score_judges_again_without_attacking_again(workplace: Path, trained: Path) -> None:
    (workplace / "nothing.yaml").write_text(KEYWORD)
    done = astra_rl("score", "run", "-m", "nothing.yaml", "--fail-on", "asr>0", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "0%" in done.stdout
    (workplace / "all.yaml").write_text(ANYTHING)
    done = astra_rl("score", "run", "-m", "all.yaml", "--fail-on", "asr>0.9", cwd=workplace)
    assert done.returncode == 3, done.stderr
    (path,) = trained.glob("attempts_after_*.jsonl")
    with AttemptLog(path) as log:
        assert all(len(turn.scores) == 2 for attempt in log for turn in attempt.turns)


def test_replay_of_the_same_attacks_to_the_same_target_drifts_by_sampling_only(
    workplace: Path, trained: Path
) -> None:
    done = astra_rl("replay", "run", "--set", "target.temperature=1.0", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "exact p =" in done.stdout
    with AttemptLog(trained / "attempts.jsonl") as log:
        then = {each.prompt_id: each for each in log.attempts(phase="after")}
    (path,) = trained.glob("attempts_replay_*.jsonl")
    with AttemptLog(path) as log:
        now = {each.prompt_id: each for each in log}
    assert then.keys() == now.keys()
    for key, attempt in now.items():
        assert [turn.attack for turn in attempt.turns] == [t.attack for t in then[key].turns]
        assert attempt.phase == "replay of after"


def test_compare_pairs_two_runs_on_the_same_prompts(workplace: Path, trained: Path) -> None:
    shutil.copytree(trained, workplace / "copy", dirs_exist_ok=True)
    done = astra_rl("compare", "run", "copy", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "difference +0.0%" in done.stdout
    assert "2 prompts" in done.stdout


def test_transfer_plays_every_attacker_against_every_target(workplace: Path, trained: Path) -> None:
    done = astra_rl("transfer", "run", "--target", "target", "--target", "attacker", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "target" in done.stdout
    assert "attacker" in done.stdout
    assert len(list((trained / "transfer").iterdir())) == 2


@pytest.mark.parametrize("kind", EXPORTS)
def test_every_format_is_written_next_to_the_run(workplace: Path, trained: Path, kind: str) -> None:
    done = astra_rl("export", "run", "-f", kind, "--phase", "training", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (trained / EXPORTS[kind].filename).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run", "-f", "sarf"], "--format sarf: unknown. Did you mean 'sarif'"),
        (["export", "run", "-f", "csv", "--phase", "during"], "no attempts of the phase 'during'"),
        (["export", "run", "-f", "csv", "--safe-replies", "x"], "goes with --format preferences"),
        (["score", "run", "-m", "keywrd"], "no moderator 'keywrd'"),
        (["score", "run", "-m", "refusal", "--threshold", "0"], "threshold=0.0"),
        (["score", "nowhere", "-m", "refusal"], "not the folder of a run"),
        (["replay", "run", "--phase", "later"], "no attempts of the phase 'later'"),
        (["regress", "nowhere.json", "--target", "target"], "cannot read the regression suite"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    workplace: Path, trained: Path, arguments: list[str], message: str
) -> None:
    done = astra_rl(*arguments, cwd=workplace)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_failures_become_a_suite_that_the_next_version_must_withstand(
    workplace: Path, trained: Path
) -> None:
    strict = "moderator={type: keyword, options: {patterns: ['[a-z]']}}"
    done = astra_rl("train", "config.yaml", "-o", "strict", "--set", strict, cwd=workplace)
    assert done.returncode == 0, done.stderr
    done = astra_rl("export", "strict", "-f", "regression", "--phase", "training", cwd=workplace)
    assert done.returncode == 0, done.stderr
    suite = workplace / "strict" / "regression.json"
    cases = json.loads(suite.read_text())["cases"]
    assert cases
    done = astra_rl("regress", str(suite), "--target", "target", "--run", "strict", cwd=workplace)
    assert done.returncode in (0, 3), done.stderr
    assert f"of {len(cases)} passed" in done.stdout
    other = astra_rl("regress", str(suite), "--target", "target", "-m", "refusal", cwd=workplace)
    assert other.returncode == 2
    assert "their scores cannot be compared" in other.stderr.replace("\n", " ")


def test_the_quality_of_the_judge_stands_beside_the_rate(workplace: Path, trained: Path) -> None:
    after = json.loads((trained / "evaluation_after.json").read_text())
    assert after["judge_quality"] is None
    assert "nobody knows how often it errs" in (trained / "report.html").read_text("utf-8")
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 0}]
    (workplace / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = "type: secret_leak\noptions: {secret: a, partial_per_word: 0.0}\n"
    (workplace / "judge.yaml").write_text(judge)
    done = astra_rl("calibrate", "judge.yaml", "--labels", "labels.jsonl", cwd=workplace)
    assert done.returncode == 0, done.stderr
    done = astra_rl("evaluate", "run", "-o", "calibrated", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "3 labels of labels.jsonl" in done.stdout
    again = json.loads((workplace / "calibrated" / "evaluation_again.json").read_text())
    assert again["judge_quality"]["estimates"]["accuracy"]["value"] == 1.0
    shutil.rmtree(workplace / "calibrations")


def test_a_file_of_attacks_is_said_instead_of_an_attackers(workplace: Path, trained: Path) -> None:
    (workplace / "attacks.txt").write_text("one\ntwo\nthree\n")
    done = astra_rl("evaluate", "run", "--attacks", "attacks.txt", "-o", "given", cwd=workplace)
    assert done.returncode == 0, done.stderr
    with AttemptLog(workplace / "given" / "attempts_again.jsonl") as log:
        found = list(log)
    assert [each.turns[0].attack for each in found] == ["one", "two", "three"]
    assert {each.attacker for each in found} == {"attacks.txt"}
    assert found[0].opening == found[2].opening
    done = astra_rl("evaluate", "run", "--attacks", "none.txt", cwd=workplace)
    assert done.returncode == 2
    assert "cannot read the attacks" in done.stderr


def test_the_direct_request_is_a_baseline(workplace: Path, trained: Path) -> None:
    done = astra_rl("evaluate", "run", "--attacks", "direct", "-o", "asked", cwd=workplace)
    assert done.returncode == 0, done.stderr
    with AttemptLog(workplace / "asked" / "attempts_again.jsonl") as log:
        said = [(each.opening.prompt, each.turns[0].attack) for each in log]
    assert said == [("", "good evening"), ("", "<script>alert(1)</script>")]
