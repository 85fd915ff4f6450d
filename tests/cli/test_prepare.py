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
