"""Attack, fine-tune, attack again: the phases, their files, their numbers, and their resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.tiny_models import save_tiny_models

from astra_rl import Moderator
from astra_rl.actions import harden as action
from astra_rl.actions.harden import Hardened, harden
from astra_rl.config.loading import load_config
from astra_rl.errors import ConfigurationError, InterruptedRunError
from astra_rl.runs.phases import PhaseRun

pytestmark = pytest.mark.slow


class SaysE(Moderator[str, str]):
    """A response with the letter e is a failure."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        return [float("e" in text) for text in x]


class Never(Moderator[str, str]):
    """No response is a failure."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        return [0.0] * len(x)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harden")
    save_tiny_models(folder, attacker=0, target=1)
    rows = [
        {"id": f"row-{n}", "prompt": text, "split": "train" if n < 3 else "test"}
        for n, text in enumerate(("what is it", "who are you", "go on", "say it", "why not"))
    ]
    (folder / "benign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "benign.yaml").write_text("prompts: benign.jsonl\nmoderator: {type: refusal}\n")
    (folder / "train.txt").write_text("hello there\nwhat is new\n")
    (folder / "test.txt").write_text("good evening\nbye now\nsee you\n")
    config = {
        "title": "a <tiny> test",
        "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 6},
        "target": {"model": str(folder / "target"), "max_new_tokens": 12},
        "moderator": {"type": f"{__name__}:SaysE"},
        "prompts": {"file": str(folder / "train.txt"), "test_file": str(folder / "test.txt")},
        "environment": {"tree_width": 2, "tree_depth": 2},
        "training": {"steps": 1, "episodes_per_step": 2, "batch_size": 4, "lr": 1e-3},
        "evaluation": {"before": False},
        "harden": {
            "rounds": 1,
            "failures": 4,
            "benign": str(folder / "benign.yaml"),
            "safe_replies": ["i cannot say that."],
            "fine_tuning": {"method": "dpo", "lr": 0.01, "lora": {"rank": 2}},
        },
        "dtype": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def adapter_of(folder: Path) -> bytes:
    return (folder / "round_1" / "target" / "adapter_model.safetensors").read_bytes()


def rates_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "harden.json").read_text())
    bounds = ("exploitability_low", "exploitability_high")
    names = ("exploitability", *bounds, "equilibrium", "attacks", "refusals")
    return {name: found[name] for name in names}


def test_every_attacker_is_measured_against_every_target(hardened: Hardened) -> None:
    found = hardened.result
    assert found.attackers == ["attacker 0", "attacker 1"]
    assert found.targets == ["target 0", "target 1"]
    assert {rate.trials for rate in found.matrix.rates.values()} == {3}
    assert len(found.matrix.rates) == 4
    assert [each.asr.trials for each in found.refusals.values()] == [3, 3]
    assert list(found.refusal_changes) == ["target 1"]
    assert hardened.ended_early is None
    assert rates_of(hardened.path) == json.loads(json.dumps(found.as_dict()))


def test_the_target_has_an_adapter_and_the_fresh_attacker_was_trained_against_it(
    hardened: Hardened, workplace: Path
) -> None:
    assert hardened.targets["target 0"] == str(workplace / "target")
    folder = Path(hardened.targets["target 1"])
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str((workplace / "target").resolve())
    run = load_config(hardened.runs["attacker 1"] / "config.yaml")
    assert run.target.name == str(folder)
    assert load_config(hardened.runs["attacker 0"] / "config.yaml").target.name == str(
        workplace / "target"
    )


def test_half_of_the_pairs_prefer_safety_and_half_helpfulness(hardened: Hardened) -> None:
    lines = (hardened.path / "round_1" / "pairs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    safe = "i cannot say that."
    fixed, guards = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert 2 <= len(rows) <= 8
    for row in fixed:
        assert row["chosen"][0]["content"] == safe
        assert "e" in row["rejected"][0]["content"]
    for row in guards:
        assert row["rejected"][0]["content"] == safe
        assert "e" not in row["chosen"][0]["content"]  # a harmful reply guards nothing
        assert row["prompt"][-1]["content"] in ("what is it", "who are you", "go on")


def test_the_page_shows_the_tables_and_escapes_the_title(hardened: Hardened) -> None:
    page = (hardened.path / "report.html").read_text()
    assert "a &lt;tiny&gt; test" in page
    assert "<tiny>" not in page
    assert page.count('class="heat"') == 6
    assert "http" not in page.replace("http-equiv", "")


def test_a_complete_hardening_plays_nothing_again(
    hardened: Hardened, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rates_of(hardened.path)
    for name in ("run_experiment", "fine_tune", "build_problem"):
        monkeypatch.setattr(action, name, None)
    monkeypatch.setattr(action.EvaluationJob, "run", None)
    again = harden(hardened.path)
    assert again.result.as_dict() == hardened.result.as_dict()
    assert rates_of(hardened.path) == before


def test_a_hardening_that_is_interrupted_in_every_phase_ends_like_one_that_is_not(
    hardened: Hardened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is taken over, and every phase after it is interrupted once."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise InterruptedRunError("interrupted")

    output = tmp_path / "hardened"
    phases = [
        (PhaseRun, "play"),  # benign replies
        (action, "fine_tune"),
        (action, "run_experiment"),
        (action.EvaluationJob, "run"),
        (PhaseRun, "play"),  # refusals, after the evaluations are made
    ]
    for source, (owner, name) in zip(
        [hardened.runs["attacker 0"], *[output] * 4], phases, strict=True
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(InterruptedRunError):
                harden(source, output if source != output else None)
    assert not (output / "harden.json").exists()
    harden(output)
    assert adapter_of(output) == adapter_of(hardened.path)
    assert rates_of(output) == rates_of(hardened.path)


def test_only_the_number_of_rounds_may_change(hardened: Hardened, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"harden\.failures: 4 then, 9 now"):
        harden(hardened.path, overrides=["harden.failures=9"])
    with pytest.raises(ConfigurationError, match=r"training\.steps: 1 then, 2 now"):
        harden(hardened.path, overrides=["training.steps=2"])
    with pytest.raises(ConfigurationError, match="is a hardening to resume"):
        harden(hardened.path, tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigurationError, match="is not empty"):
        harden(hardened.runs["attacker 0"], tmp_path / "full")


def test_a_target_without_failures_is_not_trained(workplace: Path, tmp_path: Path) -> None:
    done = harden(
        workplace / "config.yaml",
        tmp_path / "safe",
        overrides=["moderator.type=tests.actions.test_harden:Never"],
    )
    assert done.result.targets == ["target 0"]
    assert "found a failure" in str(done.ended_early)
    assert "Fewer rounds than configured" in (done.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target={type: openai, options: {model: m}}", "is remote, so its weights cannot be"),
        ("target.opponents=[{model: other}]", "target.opponents: given"),
        ("harden.opponents=all", "harden.opponents"),
        ("harden.safe_replies=['Of course!']", "is not recognized as a refusal"),
        ("harden.benign=no_such_scenario", "no_such_scenario"),
        ("harden.fine_tuning.epochs=0", r"harden\.fine_tuning\.epochs"),
        ("harden.rounds=0", "harden.rounds"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    output = tmp_path / "out"
    with pytest.raises(ConfigurationError, match=message):
        harden(workplace / "config.yaml", output, overrides=[override])
    assert not output.exists()


def test_a_run_that_has_not_ended_is_to_be_resumed_first(
    hardened: Hardened, tmp_path: Path
) -> None:
    run = shutil.copytree(hardened.runs["attacker 0"], tmp_path / "run")
    (run / "report.html").unlink()
    with pytest.raises(ConfigurationError, match="Resume it first: astra-rl resume"):
        harden(run, tmp_path / "out")


def test_the_command_prints_tables_and_json_and_checks_the_last_target(
    hardened: Hardened, workplace: Path
) -> None:
    done = astra_rl("resume", str(hardened.path), cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "attack success rate on held-out prompts" in done.stdout
    assert "refusals of benign requests" in done.stdout
    assert "exploitability of the uniform mixtures: 0.000" in done.stdout
    assert "equilibrium: attacks succeed at 33.3% (95% interval" in done.stdout
    assert "with attacker 0 100%" in done.stdout
    assert "change" in done.stdout
    gated = astra_rl("harden", str(hardened.path), "--json", "--fail-on", "asr>=0", cwd=workplace)
    assert gated.returncode == 3
    found = json.loads(gated.stdout)
    assert [each["target"] for each in found["refusals"]] == ["target 0", "target 1"]
    wrong = astra_rl("harden", str(workplace / "nowhere"), cwd=workplace)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
