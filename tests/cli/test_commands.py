"""The command line, from a configuration to a report, on tiny models."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli.running import astra_rl
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl import distribution
from astra_rl.runs.attempt_log import AttemptLog

pytestmark = pytest.mark.slow


def test_train_leaves_everything_in_the_run_folder(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "failures.jsonl",
        "evaluation_before.json",
        "evaluation_after.json",
        "learning_curve.svg",
        "report.html",
        "checkpoints",
    }
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((trained / "evaluation_after.json").read_text())["n"] == 2


def test_the_record_of_a_run_has_checksums_of_its_prompts(workplace: Path, trained: Path) -> None:
    recorded = json.loads((trained / "manifest.json").read_text())["prompts"]
    for source, name in zip(recorded, ("train.txt", "test.txt"), strict=True):
        sha256 = hashlib.sha256((workplace / name).read_bytes()).hexdigest()
        assert source == {"name": name, "sha256": sha256, "rows": 2, "repeated": 0}


def test_the_checkpoint_opens_with_transformers_and_holds_no_pickle(trained: Path) -> None:
    folder = trained / "checkpoints" / "last"
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    kept = {path.suffix or path.name for path in folder.iterdir()}
    assert kept <= {".json", ".safetensors", ".jinja", "SHA256SUMS"}


def test_the_report_shows_prompts_as_text(trained: Path) -> None:
    page = (trained / "report.html").read_text("utf-8")
    assert "<script>alert(1)</script>" not in page
    assert "a tiny test" in page


def test_the_resolved_configuration_is_kept_with_the_run(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["training"]["optimizer"] == "adamw"


def test_the_same_configuration_gives_the_same_run(workplace: Path, trained: Path) -> None:
    done = astra_rl("train", "config.yaml", "--output", "again", cwd=workplace)
    assert done.returncode == 0, done.stderr
    for name in ("evaluation_after.json", "failures.jsonl"):
        assert (workplace / "again" / name).read_text() == (trained / name).read_text()


def test_evaluate_plays_the_trained_attacker_against_another_target(
    workplace: Path, trained: Path
) -> None:
    done = astra_rl("evaluate", "run", "--target", "attacker", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert json.loads((trained / "evaluation_again.json").read_text())["n"] == 2


def test_evaluate_repeats_the_evaluation_of_the_run(workplace: Path, trained: Path) -> None:
    done = astra_rl("evaluate", "run", "--output", "elsewhere", cwd=workplace)
    assert done.returncode == 0, done.stderr
    again = json.loads((workplace / "elsewhere" / "evaluation_again.json").read_text())
    after = json.loads((trained / "evaluation_after.json").read_text())
    assert again["outcomes"] == after["outcomes"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "none.yaml"], "cannot read the configuration none.yaml"),
        (["train", "config.yaml", "--set", "training.step=3"], "Did you mean 'steps'?"),
        (["train", "config.yaml", "--set", "training.lr=-1"], "training.lr"),
        (
            ["train", "config.yaml", "--set", "target.model=nowhere"],
            "cannot load the language model 'nowhere'",
        ),
        (["train", "config.yaml", "--set", "device=tpu9"], "device='tpu9'"),
        (["evaluate", "attacker"], "is not the folder of a run"),
        (["evaluate", "."], "has no attacker to evaluate"),
        (["info", "versoins"], "Did you mean 'versions'?"),
        (["info", "preset", "demoo"], "no preset 'demoo'"),
        (["info", "scenario", "benign_twin"], "Did you mean 'benign_twins'?"),
        (["tarin"], "tarin"),
        (["demo", "--seed", "-1"], "Invalid value for '--seed'"),  # the rest is typer's wording
    ],
)
def test_an_error_that_a_user_can_mend_is_one_message_and_exit_code_2(
    workplace: Path, arguments: list[str], expected: str
) -> None:
    done = astra_rl(*arguments, cwd=workplace)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_holds_something_is_left_alone(workplace: Path, trained: Path) -> None:
    before = (trained / "report.html").stat().st_mtime_ns
    done = astra_rl("train", "config.yaml", "--output", "run", cwd=workplace)
    assert done.returncode == 2
    assert "completed run" in done.stderr
    assert (trained / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["evaluate"], ["info"]])
def test_help_says_what_a_command_does(workplace: Path, command: list[str]) -> None:
    done = astra_rl(*command, "--help", cwd=workplace)
    assert done.returncode == 0
    assert len(done.stdout) > 300


def test_info_prints_a_preset_that_train_accepts(workplace: Path) -> None:
    done = astra_rl("info", "preset", "demo", cwd=workplace)
    assert yaml.safe_load(done.stdout)["title"]


def test_info_config_lists_every_setting(workplace: Path) -> None:
    done = astra_rl("info", "config", cwd=workplace)
    assert "stop_at_success" in done.stdout
    assert "model: required" in done.stdout


def test_info_lists_the_scenarios_and_shows_one(workplace: Path) -> None:
    listed = astra_rl("info", "scenarios", cwd=workplace)
    assert "secret_keepers (100 rows): " in listed.stdout
    shown = astra_rl("info", "scenario", "secret_keepers", cwd=workplace)
    assert "moderator      secret_leak" in shown.stdout
    assert "keeper-001" in shown.stdout


def test_info_shows_a_scenario_of_the_user_s_own_as_text(workplace: Path) -> None:
    (workplace / "mine.yaml").write_text('prompts: ["\\e[31mred"]\nsplits: {shares: {test: 1.0}}\n')
    done = astra_rl("info", "scenario", "mine.yaml", cwd=workplace)
    assert done.returncode == 0
    assert "red" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("module", ["astra_rl", "astra_rl.cli.main"])
def test_the_module_runs_as_a_program(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"astra-rl {distribution.version()}\n"


def test_the_versions_of_libraries_are_shown(tmp_path: Path) -> None:
    assert "torch" in astra_rl("info", cwd=tmp_path).stdout


def test_an_adapter_is_evaluated_as_it_was_trained(workplace: Path) -> None:
    done = astra_rl(
        *("train", "config.yaml", "--output", "lora", "--set", "attacker.lora={rank: 2}"),
        *("--set", "training.lr=0.5"),
        cwd=workplace,
    )
    assert done.returncode == 0, done.stderr
    done = astra_rl("evaluate", "lora", cwd=workplace)
    assert done.returncode == 0, done.stderr
    again, after = (
        json.loads((workplace / "lora" / f"evaluation_{name}.json").read_text())
        for name in ("again", "after")
    )
    said = [
        [turn["attack"] for each in metrics["conversations"] for turn in each["turns"]]
        for metrics in (again, after)
    ]
    assert said[0] == said[1]


@pytest.mark.exhaustive
def test_training_starts_from_the_adapter_of_an_earlier_run(workplace: Path) -> None:
    lora = ("--set", "attacker.lora={rank: 2}")
    first = ("train", "config.yaml", "-o", "first", *lora, "--set", "training.lr=0.5")
    assert astra_rl(*first, cwd=workplace).returncode == 0
    trained = attacks(workplace / "first" / "evaluation_after.json")
    start = ("--set", "attacker.model=first/checkpoints/last", "--set", "training.lr=1.0e-9")
    for name, options in {"stacked": lora, "whole": ()}.items():
        done = astra_rl("train", "config.yaml", "-o", name, *start, *options, cwd=workplace)
        assert done.returncode == 0, done.stderr
        done = astra_rl("evaluate", name, cwd=workplace)
        assert done.returncode == 0, done.stderr
        for evaluation in ("before", "after", "again"):
            assert attacks(workplace / name / f"evaluation_{evaluation}.json") == trained


def attacks(path: Path) -> list[list[str]]:
    metrics = json.loads(path.read_text())
    return [[turn["attack"] for turn in each["turns"]] for each in metrics["conversations"]]


def test_a_held_out_judge_watches_the_training(workplace: Path) -> None:
    judge = "evaluation.judge={type: keyword, options: {patterns: ['[a-m]']}}"
    done = astra_rl("train", "config.yaml", "-o", "watched", "--set", judge, cwd=workplace)
    assert done.returncode == 0, done.stderr
    run = workplace / "watched"
    rows = [json.loads(line) for line in (run / "reward_watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    gap = metrics["watch/moderator"] - metrics["watch/judge"]
    assert metrics["watch/gap"] == pytest.approx(gap)
    found = json.loads((run / "evaluation_after.json").read_text())
    assert found["judge"] == found["judge_identity"]["name"] == "KeywordModerator"
    assert found["unscored_turns"] == {}


def test_what_could_not_be_scored_is_counted_by_reason_everywhere(workplace: Path) -> None:
    nothing = "moderator={type: canary}"  # no conversation here brings one
    done = astra_rl("train", "config.yaml", "-o", "unscored", "--set", nothing, cwd=workplace)
    assert done.returncode == 0, done.stderr
    run = workplace / "unscored"
    found = json.loads((run / "evaluation_after.json").read_text())
    assert found["outcomes"]["unscored"] == found["n"]
    assert found["unscored_turns"] == {"no canary known": 4}
    assert found["conversations"][0]["turns"][0]["unscored"] == "no canary known"
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["unscored/no canary known"] > 0
    assert not (run / "reward_watch.jsonl").exists()
    page = (run / "report.html").read_text("utf-8")
    assert re.search(r"no canary known</td><td class=\"number\">2</td>", page)


def test_the_manifest_says_what_a_run_was_made_of(trained: Path, workplace: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["seed"] == 0
    assert manifest["command"] == "astra-rl train config.yaml --output run"
    assert {"python", "astra-rl", "torch", "transformers"} <= manifest["versions"].keys()
    kept = (trained / "config.yaml").read_bytes()
    assert manifest["config_sha256"] == hashlib.sha256(kept).hexdigest()
    prompts = {each["name"]: each["sha256"] for each in manifest["prompts"]}
    assert prompts == {
        name: hashlib.sha256((workplace / name).read_bytes()).hexdigest()
        for name in ("train.txt", "test.txt")
    }
    assert "git_revision" in manifest  # None outside of git


@pytest.mark.parametrize("index", ["whole", "missing", "damaged"])
def test_a_run_that_goes_on_can_be_looked_at_and_its_writer_goes_on(
    trained: Path, workplace: Path, tmp_path: Path, index: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with AttemptLog(run / "attempts.jsonl", write=True) as log:
        known = list(log)
        if index == "missing":
            (run / "attempts.jsonl.index").unlink()
        elif index == "damaged":
            (run / "attempts.jsonl.index").write_bytes(b"no index")
        for command in ("report", "failures", "export --format csv", "score -m refusal"):
            name, *options = command.split()
            done = astra_rl(name, str(run), *options, cwd=workplace)
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            log.append(known[0])
            log.flush()
    with AttemptLog(run / "attempts.jsonl") as log:
        assert {each.id for each in log} == {each.id for each in known}
        assert log.health == (0, 0)
