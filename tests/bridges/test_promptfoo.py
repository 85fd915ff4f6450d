"""promptfoo calls the trained attacker, and its results are read; the protocol without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from astra_rl.bridges import promptfoo
from astra_rl.bridges.attacker import TrainedAttacker
from astra_rl.core.attack_files import read_attacks

COMMAND = os.environ.get("PROMPTFOO") or shutil.which("promptfoo")
"""Its command, or the path of its main.js after that of a node."""


def test_the_provider_returns_the_next_message_of_the_user(run):
    options = {"config": {"run": str(run), "seed": 3}}
    attacker = TrainedAttacker(run)
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]
    for prompt, messages in (
        ("hello", [{"role": "user", "content": "hello"}]),
        (json.dumps(chat), chat),
        ("[1]", [{"role": "user", "content": "[1]"}]),
        ("[" * 5000, [{"role": "user", "content": "[" * 5000}]),
    ):
        found = promptfoo.call_api(prompt, options, {"vars": {"goal": "g"}})
        assert found == {"output": attacker.next_message(messages, goal="g", seed=3)}


def test_what_fails_is_an_error_of_the_protocol(run, tmp_path):
    assert "give the folder of a run" in promptfoo.call_api("p", {}, {})["error"]
    options = {"config": {"run": str(tmp_path)}}
    assert "is not the folder of a run" in promptfoo.call_api("p", options, {})["error"]
    options = {"config": {"run": str(run)}}
    chat = json.dumps([{"role": "tool", "content": "a"}])
    assert "has the role 'tool'" in promptfoo.call_api(chat, options, {})["error"]


@pytest.mark.slow
@pytest.mark.skipif(COMMAND is None, reason="promptfoo is not installed: make bridges")
def test_promptfoo_evaluates_with_the_attacker(run, tmp_path):
    config = {
        "prompts": ["{{opening}}"],
        "providers": [
            {"id": f"file://{promptfoo.__file__}", "config": {"run": str(run), "seed": 1}}
        ],
        "tests": [
            {"vars": {"opening": "good evening"}, "assert": [{"type": "contains", "value": "~~"}]},
            {"vars": {"opening": "hello"}, "assert": [{"type": "javascript", "value": "true"}]},
        ],
    }
    (tmp_path / "promptfooconfig.yaml").write_text(yaml.safe_dump(config))
    arguments = ["eval", "--no-cache", "--no-progress-bar", "--output", "out.json"]
    environment = {
        **os.environ,
        "PROMPTFOO_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PROMPTFOO_CONFIG_DIR": str(tmp_path / "promptfoo"),
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_DISABLE_REMOTE_GENERATION": "1",
    }
    done = subprocess.run(
        [*COMMAND.split(os.pathsep), *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode in (0, 100), done.stdout + done.stderr  # 100: an assertion failed
    results = json.loads(Path(tmp_path / "out.json").read_text())["results"]["results"]
    expected = {
        prompt: TrainedAttacker(run).next_message([{"role": "user", "content": prompt}], seed=1)
        for prompt in ("good evening", "hello")
    }
    assert {each["vars"]["opening"]: each["response"]["output"] for each in results} == expected
    found = {str(each.attack): each.reward for each in read_attacks(tmp_path / "out.json")}
    assert found == {"good evening": 1.0, "hello": 0.0}
