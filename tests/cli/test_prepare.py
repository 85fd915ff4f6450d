"""``init``, ``validate``, the lists of ``info``, and short forms of sections."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.cli.running import astra_rl

from astra_rl.config.loading import parse_config
from astra_rl.config.shorthands import expanded
from astra_rl.datasets.scenario_files import read_scenario_file


def test_the_written_configuration_is_valid_and_trains_against_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\n" + "".join(f"word{n}\n" for n in range(20)))
    assert astra_rl("init", cwd=tmp_path).returncode == 0
    assert astra_rl("init", cwd=tmp_path).returncode == 2  # what is there is kept
    done = astra_rl("validate", "astra-rl.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "astra-rl.yaml is valid" in done.stdout
    assert "budget max_requests=20000" in done.stdout
    command = "init own.yaml --target own:answer --judge refusal --prompts planted_secrets"
    assert astra_rl(*command.split(), cwd=tmp_path).returncode == 0
    config = yaml.safe_load((tmp_path / "own.yaml").read_text())
    assert config["target"] == {"type": "own:answer"}
    assert config["moderator"] == {"type": "refusal"}
    assert config["prompts"] == {"scenario": "planted_secrets"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: {model: a}\nmoderator: refusl\nprompts: {scenario: planted_secrets}\n", "refusl"),
        ("target: a\nmoderator: refusal\nprompts: {file: none.csv}\n", "none.csv"),
        ("preset: ast\ntarget: a\nmoderator: secret_leak\n", "attacker.model: missing"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    done = astra_rl("validate", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_names_stand_for_sections() -> None:
    text = (
        "attacker: a\ntarget: b\nmoderator: {type: max, of: [refusal, {type: keyword}]}\n"
        "evaluation: {judge: secret_leak}\nprompts: {scenario: planted_secrets}\n"
    )
    config = parse_config(text, ["baseline=c"], source="test")
    assert config.attacker is not None
    assert (config.attacker.model, config.target.name, config.baseline) == ("a", "b", "c")
    assert [each.type for each in config.moderator.of] == ["refusal", "keyword"]
    assert config.evaluation.judge is not None
    assert config.evaluation.judge.type == "secret_leak"
    config = parse_config(text, ["moderator=refusal", "target=own:answer"], source="test")
    assert config.moderator.type == "refusal"
    assert config.target.model_dump() == {"type": "own:answer", "options": {}}
    assert expanded({"target": "bundled:smollm2-135m"}) == {
        "target": {"model": "bundled:smollm2-135m"}
    }


def test_a_scenario_names_its_moderator(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("prompts: [a, b, c]\nmoderator: refusal\njudge: secret_leak\n")
    file = read_scenario_file(tmp_path / "s.yaml")
    assert (file.moderator, file.judge) == ({"type": "refusal"}, {"type": "secret_leak"})


@pytest.mark.parametrize(
    ("topic", "name", "option"),
    [
        ("algorithms", "grpo", "clip_high: 0.2"),
        ("environments", "best_of_n", "tree_depth"),
        ("moderators", "keyword", "words"),
        ("rewards", "harm", "of: response"),
        ("targets", "openai", "model: required"),
    ],
)
def test_what_a_configuration_may_name_is_listed(
    tmp_path: Path, topic: str, name: str, option: str
) -> None:
    listed = astra_rl("info", topic, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert any(line.split()[0] == name for line in listed.stdout.splitlines() if line.strip())
    shown = astra_rl("info", topic, name, cwd=tmp_path)
    assert option in shown.stdout
    assert "problem" not in shown.stdout.split("\n", 1)[1]  # the library supplies it


def test_a_configuration_is_written_for_what_one_says(tmp_path: Path) -> None:
    said = {
        "local": "--target model --scenario planted_secrets --minutes 10",
        "endpoint": "--target http://127.0.0.1:9/v1 --model m --scenario planted_secrets",
        "application": "--target http://127.0.0.1:9/chat --application --scenario planted_secrets",
        "function": "--target own:answer --judge refusal --scenario planted_secrets",
    }
    for kind, options in said.items():
        done = astra_rl("init", f"{kind}.yaml", *options.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / f"{kind}.yaml").read_text()
        keys = [line for line in text.splitlines() if line and line[0] not in "# "]
        assert text.count("\n# ") >= len(keys)  # a comment on every section
    written = {kind: yaml.safe_load((tmp_path / f"{kind}.yaml").read_text()) for kind in said}
    assert written["local"]["target"] == {"model": "model"}
    assert written["local"]["training"] == {"max_minutes": 7.0}
    assert written["endpoint"]["target"]["options"]["model"] == "m"
    assert written["application"]["target"]["type"] == "http"
    assert [each.get("moderator") for each in written.values()].count(None) == 3
    done = astra_rl("validate", "application.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "target       http",
        "attacker     bundled:smollm2-135m, trained by grpo",
        "moderator    secret_leak",
        "endpoint calls: upper bound",
    ):
        assert line in done.stdout
    for wrong in (["--minutes", "0"], ["--prompts", "p.csv"], ["--scenario", "planted"]):
        done = astra_rl("init", "w.yaml", *said["local"].split(), *wrong, cwd=tmp_path)
        assert (done.returncode, (tmp_path / "w.yaml").exists()) == (2, False), wrong


def test_everything_that_can_be_named_is_listed_with_a_line_on_each(tmp_path: Path) -> None:
    listed = astra_rl("list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    rows = listed.stdout.splitlines()
    kinds = [row for row in rows if not row.startswith(" ")]
    assert kinds == [
        *("algorithms", "environments", "moderators", "presets", "rewards"),
        *("scenarios", "targets"),
    ]
    names = [row.split(maxsplit=1) for row in rows if row.startswith(" ")]
    assert all(len(row) == 2 and len(row[1]) > 5 for row in names)
    assert {"grpo", "tree", "refusal", "crt", "harm", "planted_secrets", "openai"} <= {
        name for name, _ in names
    }
    assert astra_rl("list", "presets", cwd=tmp_path).stdout.startswith("ast ")
    wrong = astra_rl("list", "preset", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "presets" in wrong.stderr


def test_a_name_is_shown_without_its_kind(tmp_path: Path) -> None:
    for name, shown in (
        ("grpo", "clip_high: 0.2"),
        ("crt", "# "),
        ("planted_secrets", "harm category"),
        ("tree", "tree_width"),
    ):
        done = astra_rl("info", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{name} (")
        assert shown in done.stdout
    wrong = astra_rl("info", "grop", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Did you mean 'grpo'?" in wrong.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_options_of_output_may_stand_before_or_after_a_command(tmp_path: Path, place: str) -> None:
    def said(option: str) -> tuple[str, str]:
        words = ["list", "presets"]
        words.insert(0 if place == "before" else len(words), option)
        done = astra_rl(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    assert said("--quiet") == ("", "")
    assert said("-v")[0].startswith("ast ")
    assert said("--version")[0].startswith("astra-rl ")


def test_a_shell_completes_commands_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, last, found in (
        ("astra-rl val", 1, "validate"),
        ("astra-rl test --max-co", 2, "--max-cost"),
    ):
        monkeypatch.setenv("_ASTRA_RL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(last))
        assert found in astra_rl(cwd=tmp_path).stdout.split()
