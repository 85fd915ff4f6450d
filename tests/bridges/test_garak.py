"""garak runs with the trained attacker, and its report is read; the function without it."""

import json
import os
import subprocess
import sys

import pytest

from astra_rl.bridges.attacker import TrainedAttacker
from astra_rl.bridges.garak import attack
from astra_rl.core.attack_files import read_attacks


def test_the_function_returns_what_the_attacker_writes(run):
    attacker = TrainedAttacker(run)
    asked = [{"role": "user", "content": "hello"}]
    assert attack("hello", str(run), seed=2) == [attacker.next_message(asked, seed=2)]
    assert attack("", str(run), goal="g", seed=2) == [attacker.next_message([], goal="g", seed=2)]


@pytest.fixture
def garak(run, tmp_path, monkeypatch):
    """Run garak with options; return the lines of its report."""
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def started(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "garak", "--skip_unknown", "--report_prefix"]
        done = subprocess.run(
            [*command, str(tmp_path / "out"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        report = tmp_path / "out.report.jsonl"
        assert done.returncode == 0, done.stdout + done.stderr
        assert report.is_file(), done.stdout + done.stderr
        return report

    return started


@pytest.mark.bridge("garak")
@pytest.mark.slow
def test_garak_probes_the_attacker_as_a_generator(run, garak, tmp_path):
    options = {"function": {"Single": {"kwargs": {"run": str(run), "seed": 1}}}}
    (tmp_path / "options.json").write_text(json.dumps(options))
    report = garak(
        "--target_type", "function.Single", "--target_name", "astra_rl.bridges.garak#attack",
        "--generator_option_file", str(tmp_path / "options.json"),
        "--probes", "test.Test", "--generations", "1",
    )  # fmt: skip
    attempts = [
        row
        for row in map(json.loads, report.read_text().splitlines())
        if row["entry_type"] == "attempt" and row["status"] == 2
    ]
    assert attempts
    for row in attempts:
        prompt = row["prompt"]["turns"][-1]["content"]["text"]
        assert [each["text"] for each in row["outputs"]] == attack(prompt, str(run), seed=1)
    found = read_attacks(report)
    assert [str(each.attack) for each in found] == [
        row["prompt"]["turns"][-1]["content"]["text"] for row in attempts
    ]
    assert all(0 <= each.reward <= 1 for each in found)


@pytest.mark.bridge("garak")
@pytest.mark.slow
def test_the_attacker_is_the_red_team_model_of_atkgen(run, garak, tmp_path):
    settings = {
        "red_team_model_type": "function.Single",
        "red_team_model_name": "astra_rl.bridges.garak#attack",
        "red_team_model_config": {"kwargs": {"run": str(run), "seed": 1}},
        "red_team_prompt_template": "[query]",
        "red_team_postproc_rm_regex": "(?!)",
        "convs_per_generation": 1,
        "max_calls_per_conv": 2,
    }
    (tmp_path / "probe.json").write_text(json.dumps({"atkgen": settings}))
    report = garak(
        "--target_type", "test.Repeat", "--probes", "atkgen.Tox", "--generations", "1",
        "--probe_option_file", str(tmp_path / "probe.json"), "--detectors", "always.Pass",
    )  # fmt: skip
    found = read_attacks(report)
    assert found
    assert str(found[0].attack) == attack("", str(run), seed=1)[0].strip()
