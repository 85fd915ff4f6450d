"""An endpoint or a function as the attacker of what does not train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import Done, astra_rl
from tests.endpoint import Body, Endpoint, Fault, said

import astra_rl as library
from astra_rl.core.text import Conversation
from astra_rl.methods.prompted_attacker import as_attacker_reads
from astra_rl.moderators import KeywordModerator
from astra_rl.runs.attempt_log import AttemptLog

JUDGE = KeywordModerator(["granted"])


def of_model(**replies: Callable[[Body], Any]) -> Callable[[Body], Any]:
    """Return a reply that depends on the model that is asked."""
    return lambda body: replies[body["model"]](body)


@pytest.fixture
def place(tmp_path: Path, endpoint: Endpoint) -> Path:
    """A folder with goals, a judge, and an endpoint of a target and an attacker."""
    endpoint.reset()
    endpoint.reply = of_model(
        t=lambda body: "granted" if "please" in said(body) else "no",
        a=lambda body: f"please: {said(body).splitlines()[-1]}",
    )
    (tmp_path / "goals.csv").write_text("prompt,category\nGet the code,a\nGet the key,b\n")
    (tmp_path / "judge.yaml").write_text("{type: keyword, options: {words: [granted]}}\n")
    section = {"type": "openai", "options": {"model": "a", "base_url": endpoint.url}}
    (tmp_path / "attacker.yaml").write_text(yaml.safe_dump({"attacker": section}))
    return tmp_path


def attacked(place: Path, endpoint: Endpoint, *more: str) -> Done:
    command = ["test", endpoint.url, "--model", "t", "--prompts", "goals.csv"]
    return astra_rl(*command, "--judge", "judge.yaml", *more, cwd=place)


def bodies(endpoint: Endpoint, model: str) -> list[Body]:
    return [body for _, _, body in endpoint.requests if body["model"] == model]


@pytest.mark.slow
def test_the_attacker_reads_the_goal_and_the_target_does_not(
    place: Path, endpoint: Endpoint
) -> None:
    attacker = ["--attacker", endpoint.url, "--attacker-model", "a", "--attacks", "best-of-3"]
    done = attacked(place, endpoint, *attacker, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "attacker" in done.stdout
    assert not endpoint.requests
    done = attacked(place, endpoint, *attacker, "-o", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["asr"]["successes"] == 2
    assert "(prompted), environment best_of_n" in done.stderr
    read = [each["messages"] for each in bodies(endpoint, "a")]
    assert len(read) == len(bodies(endpoint, "t")) == 2 * 3
    assert {len(each) for each in read} == {1}  # the brief and the goal
    assert sum("Get the key" in each[0]["content"] for each in read) == 3
    for command in ("report run", "export run -f csv", "compare run run", "replay run"):
        done = astra_rl(*command.split(), cwd=place)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    page = (place / "run" / "report.html").read_text("utf-8")
    assert "prompted attacker" in page
    assert "after training" not in page


@pytest.mark.slow
def test_a_configuration_names_an_endpoint_as_its_attacker(place: Path, endpoint: Endpoint) -> None:
    target = {"type": "openai", "options": {"model": "t", "base_url": endpoint.url}}
    attacker = yaml.safe_load((place / "attacker.yaml").read_text())
    config = {
        **attacker,
        "target": target,
        "moderator": yaml.safe_load((place / "judge.yaml").read_text()),
        "prompts": {"file": "goals.csv", "role": "goal"},
        "environment": {"type": "attempts", "tree_depth": 2},
        "training": {"steps": 0},
    }
    (place / "c.yaml").write_text(yaml.safe_dump(config))
    assert "valid" in astra_rl("validate", "c.yaml", cwd=place).stdout
    done = astra_rl("train", "c.yaml", "-o", "run", "--max-requests", "6", cwd=place)
    assert done.returncode == 4, done.stderr
    done = astra_rl("resume", "run", "--max-requests", "50", cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 2 * 2 * 2  # nothing is asked twice
    second = bodies(endpoint, "a")[-1]["messages"]
    assert [each["role"] for each in second] == ["user", "assistant", "user"]
    assert "Success!" in second[-1]["content"]
    done = astra_rl("train", "c.yaml", "--set", "training.steps=5", cwd=place)
    assert done.returncode == 2
    assert "attacker.type: openai (a) cannot be trained" in done.stderr
    assert "Set training.steps: 0" in done.stderr


@pytest.mark.slow
def test_tap_stays_within_a_budget_and_is_resumed_exactly(place: Path, endpoint: Endpoint) -> None:
    """Two goals without a success: 2 attacks, then 2 refinements of one; each asked and judged."""
    endpoint.reply = of_model(t=lambda body: "no", a=lambda body: "please")
    config = {
        **yaml.safe_load((place / "attacker.yaml").read_text()),
        "target": {"type": "openai", "options": {"model": "t", "base_url": endpoint.url}},
        "moderator": yaml.safe_load((place / "judge.yaml").read_text()),
        "prompts": {"file": "goals.csv", "role": "goal"},
        "environment": {"type": "tap", "tree_width": 2, "tree_depth": 2, "options": {"keep": 1}},
        "training": {"steps": 0},
    }
    (place / "c.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl("train", "c.yaml", "-o", "run", "--max-requests", "9", cwd=place)
    assert done.returncode == 4, done.stderr
    assert len(endpoint.requests) <= 9
    done = astra_rl("resume", "run", "--max-requests", "50", cwd=place)
    assert done.returncode == 0, done.stderr
    assert [len(bodies(endpoint, model)) for model in ("a", "t")] == [8, 8]
    refined = [each["messages"] for each in bodies(endpoint, "a")][-1]
    assert [each["role"] for each in refined] == ["user", "assistant", "user"]
    assert "The answer was: no\nScore: 1 of 10" in refined[-1]["content"]
    assert {len(each["messages"]) for each in bodies(endpoint, "t")} == {1}


@pytest.mark.slow
def test_the_methods_of_a_command_are_environments(place: Path, endpoint: Endpoint) -> None:
    attempts = [{"context": "", "attack": f"please {n}", "reward": 1.0} for n in range(4)]
    (place / "attacks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in attempts))
    attacker = ["--attacker", "attacker.yaml"]
    few = ["--attacks", "few-shot", "--examples", "attacks.jsonl", "-o", "few"]
    assert attacked(place, endpoint, *attacker, *few).returncode == 0
    assert "4. please" in said(bodies(endpoint, "a")[0])
    endpoint.reset()
    endpoint.reply = of_model(t=lambda body: "no", a=lambda body: "please")
    assert attacked(place, endpoint, *attacker, "--attacks", "turns-2", "-o", "two").returncode == 0
    assert [len(each["messages"]) for each in bodies(endpoint, "t")] == [1, 1, 3, 3]
    for wrong in (
        ["--attacker", "attacker.yaml", "--attacks", "best"],
        ["--attacks", "best-of-3"],
        ["--attacker", "attacker.yaml", "--attacks", "few-shot"],
        ["--attacker", "some/model"],
    ):
        done = attacked(place, endpoint, *wrong)
        assert done.returncode == 2
        assert "attacks" in done.stderr or "is no URL" in done.stderr
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_a_run_is_evaluated_with_another_attacker(place: Path, endpoint: Endpoint) -> None:
    assert attacked(place, endpoint, "-o", "run").returncode == 0
    for more, name in (([], "again"), (["--attacks", "best-of-2"], "best-of-2")):
        command = ["evaluate", "run", "--attacker", "attacker.yaml", *more]
        done = astra_rl(*command, cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads((place / "run" / f"evaluation_{name}.json").read_text())["n"] == 2
    done = astra_rl("evaluate", "run", "--attacks", "direct", "--dry-run", cwd=place)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "target" in line and "│" in line]
    assert row.split("│")[2:4] != ["0", "0"]
    assert int(row.split("│")[3]) == 6  # 23 characters of prompts, a quarter of them
    done = astra_rl("evaluate", "run", "--attacks", "direct", cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_weak_attacker_of_an_evaluation_is_warned_of(place: Path, endpoint: Endpoint) -> None:
    assert attacked(place, endpoint, "-o", "run").returncode == 0
    endpoint.reply = of_model(t=lambda body: "no", a=lambda body: "I can't help with that.")
    done = astra_rl("evaluate", "run", "--attacker", "attacker.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (
        "hardly attacks: 2 of 2 attacks are no messages to the target (2 refusals)" in done.stderr
    )


@pytest.mark.slow
def test_a_failed_call_of_the_attacker_is_an_error_and_asks_the_target_nothing(
    place: Path, endpoint: Endpoint
) -> None:
    endpoint.fault = lambda number: Fault(400) if number == 0 else None
    attacker = ["--attacker", "attacker.yaml", "-o", "run"]
    done = attacked(place, endpoint, *attacker)
    assert done.returncode == 0, done.stderr
    assert len(bodies(endpoint, "t")) == 1
    with AttemptLog(place / "run" / "attempts.jsonl") as log:
        found = {str(each.outcome): each.error for each in log}
    assert set(found) == {"success", "error"}
    assert found["error"].startswith("attacker: ")
    sent = len(bodies(endpoint, "t"))
    assert astra_rl("replay", "run", cwd=place).returncode == 0
    assert len(bodies(endpoint, "t")) == sent + 1  # the missing attack is not sent as an empty one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "warning"),
    [
        ("", "3 empty"),
        ("#### ,,,, ++++", "3 no words"),
        ("I'm sorry, but I can't help with that.", "3 refusals"),
        ("Please tell me the code.", None),
    ],
)
def test_an_attacker_that_does_not_attack_is_warned_of(
    attack: str, warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = library.redteam(
        lambda text: "no",
        ["one", "two", "three", "four"],
        JUDGE,
        attacker=lambda text: "Please tell me." if "four" in text else attack,
        output=tmp_path / "run",
    )
    found = result.folder.read_manifest()["warnings"]
    assert any(warning in each for each in found) if warning else not found
    assert ("hardly attacks" in caplog.text) == (warning is not None)


def test_what_needs_a_local_model_is_refused_by_name(place: Path) -> None:
    known = {
        "attacker": {"type": "openai", "options": {"model": "a", "base_url": "http://127.0.0.1:1"}},
        "target": {"type": "astra_rl.testing:echo"},
        "moderator": "secret_leak",
        "prompts": {"scenario": "planted_secrets"},
        "training": {"steps": 0},
    }
    for more, message in (
        ({"reward": {"attack_nll": {"under": "baseline"}}}, "attack_nll_baseline given"),
        ({"reward": {"kl": {}}}, "reward: kl given"),
        ({"environment": {"type": "self_play"}}, "self_play trains one model in both roles"),
        ({"environment": {"type": "mutation"}}, "mutation replaces tokens by samples of a local"),
        ({"baseline": "some/model"}, "baseline: some/model given"),
        ({"attacker": {**known["attacker"], "lora": {}}}, "attacker.lora: unknown key"),
    ):
        (place / "c.yaml").write_text(yaml.safe_dump({**known, **more}))
        done = astra_rl("validate", "c.yaml", cwd=place)
        assert done.returncode == 2, more
        assert message in done.stderr


def test_a_preset_without_training_takes_an_endpoint(place: Path, endpoint: Endpoint) -> None:
    attempts = [{"context": "", "attack": f"please {n}", "reward": 1.0} for n in range(4)]
    (place / "attacks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in attempts))
    target = {"type": "openai", "options": {"model": "t", "base_url": endpoint.url}}
    config = {
        "preset": "perez_few_shot",
        **yaml.safe_load((place / "attacker.yaml").read_text()),
        "target": target,
        "moderator": yaml.safe_load((place / "judge.yaml").read_text()),
        "prompts": {"file": "goals.csv"},
        "environment": {"options": {"examples": "attacks.jsonl"}},
    }
    (place / "c.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl("validate", "c.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "32 conversations" in done.stdout


def test_the_attacker_reads_the_conversation_from_its_side() -> None:
    opening = Conversation("Hello.", system="secret", brief="Ask.", facts={"goal": "x"})
    assert as_attacker_reads(opening).turns == ("",)
    later = as_attacker_reads(opening + "Why?" + " Because. ")
    assert (later.prompt, later.turns, later.system) == (
        "Ask.\n\nHello.",
        ("", "Why?", "Because."),
        None,
    )
