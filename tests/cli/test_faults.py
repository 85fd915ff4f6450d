"""Faults inside a run: each is counted where it can be seen, or an error with a name."""

from __future__ import annotations

import json
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.cases import also
from tests.cli.running import Done, astra_rl
from tests.formats import FORMATS

from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow


class Judge:
    """A function of texts that can be told when to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails: Any = lambda call: False
        self.error: Exception = OSError("connection refused")
        self.instead: Any = None

    def __call__(self, texts: list[str]) -> list[float]:
        self.calls += 1
        if self.fails(self.calls):
            if self.instead is not None:
                return self.instead(texts)
            raise self.error
        return [0.9 if "a" in text else 0.1 for text in texts]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    module = types.ModuleType("judge_of_the_test")
    module.score = Judge()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judge_of_the_test", module)
    return module.score


def run(workplace: Path, folder: Path, **changes: Any) -> Done:
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            config[name] = config[name] | value
        else:
            config[name] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return astra_rl("train", str(folder / "config.yaml"), "-o", str(folder / "run"), cwd=workplace)


BY_FUNCTION = {
    "moderator": {
        "type": "function",
        "options": {"function": "judge_of_the_test:score"},
        "time_limit": 60,
    },
    "reward": "harm",
}


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_judge_that_fails_for_a_while_is_counted_and_the_run_goes_on(
    workplace: Path, tmp_path: Path, judge: Judge
) -> None:
    judge.fails = lambda call: 4 <= call <= 9
    done = run(workplace, tmp_path, **BY_FUNCTION, training={"steps": 6})
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path)
    counted = [row.get("unscored/the moderator raised OSError", 0.0) for row in rows]
    assert sum(counted) > 0
    assert counted[-1] == 0
    with AttemptLog(tmp_path / "run" / "attempts.jsonl") as log:
        unscored = list(log.attempts(outcome="unscored"))
        assert unscored
        assert all(attempt.outcome is Outcome.UNSCORED for attempt in unscored)
        reasons = {
            score.reason
            for attempt in unscored
            for turn in attempt.turns
            for score in turn.scores.values()
            if score.value is None
        }
    assert reasons == {"the moderator raised OSError"}


@pytest.mark.parametrize(
    ("instead", "time_limit", "reason"),
    [
        (lambda texts: time.sleep(5) or [0.5] * len(texts), 2.5, "took too long"),
        (lambda texts: [float("nan")] * len(texts), 60, "not finite"),
        (lambda texts: [1.5] * len(texts), 60, "the moderator raised ContractError"),
        (lambda texts: [0.5] * (len(texts) - 1), 60, "the moderator raised ContractError"),
    ],
    ids=["hangs", "nan", "out of range", "too few"],
)
def test_whatever_else_a_judge_does_is_counted_by_its_reason_and_never_taken_for_safe(
    workplace: Path, tmp_path: Path, judge: Judge, instead: Any, time_limit: float, reason: str
) -> None:
    judge.fails = lambda call: 4 <= call <= 6
    judge.instead = instead
    moderator = {**BY_FUNCTION["moderator"], "time_limit": time_limit}
    changes = {**BY_FUNCTION, "moderator": moderator}
    done = run(workplace, tmp_path, **changes, training={"steps": 3})
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path)
    assert sum(row.get(f"unscored/{reason}", 0.0) for row in rows) > 0
    with AttemptLog(tmp_path / "run" / "attempts.jsonl") as log:
        scores = [
            (turn.reward, score)
            for attempt in log
            for turn in attempt.turns
            for score in turn.scores.values()
        ]
    missing = [(reward, score) for reward, score in scores if score.value is None]
    assert {score.reason for _, score in missing} == {reason}
    assert {reward for reward, _ in missing} == {None}
    assert all(score.value in (0.9, 0.1) for _, score in scores if score.value is not None)


def test_a_judge_that_stays_down_ends_the_run_with_its_name_and_the_run_goes_on_when_it_is_back(
    workplace: Path, tmp_path: Path, judge: Judge
) -> None:
    judge.fails = lambda call: call > 4
    training = {"steps": 8, "max_unscored_steps": 3, "save_every": 0}
    done = run(workplace, tmp_path, **BY_FUNCTION, training=training)
    assert done.returncode == 2
    assert "no valid reward in 3 consecutive training steps" in done.stderr
    assert "Traceback" not in done.stderr
    steps = len(metrics_of(tmp_path))
    assert 3 <= steps < 8
    judge.fails = lambda call: False
    done = astra_rl("resume", str(tmp_path / "run"), cwd=workplace)
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["rewards/missing"] == 0 for row in rows[steps:])


def test_a_judge_that_never_works_ends_the_run_at_once(
    workplace: Path, tmp_path: Path, judge: Judge
) -> None:
    judge.fails = lambda call: True
    done = run(workplace, tmp_path, **BY_FUNCTION)
    assert done.returncode == 2
    assert (
        "FunctionModerator has never returned a score: OSError: connection refused" in done.stderr
    )


def save_biased(folder: Path, letter: str) -> None:
    """Save a model that says this letter, whatever it reads."""
    model, tokenizer = tiny_model("gpt2", letters="abcdefghij \x00", window=WINDOW)
    token = tokenizer.convert_tokens_to_ids(letter)
    with torch.no_grad():
        # The last hidden state is the same everywhere, and only this token's row points to it.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight[token] = 4.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


WINDOW = 64


@pytest.mark.parametrize(
    "algorithm",
    [
        "grpo",
        "ppo",
        "trajectory_balance",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("dpo", "kto", "expert_iteration")
        ),
    ],
)
def test_an_attacker_that_only_says_the_end_teaches_nothing_wrong(
    workplace: Path, tmp_path: Path, algorithm: str
) -> None:
    save_biased(tmp_path / "mute", "<|end|>")
    speaker = {"model": str(tmp_path / "mute")}
    done = run(
        workplace,
        tmp_path,
        attacker=speaker,
        algorithm={"type": algorithm},
        training={"steps": 1, "episodes_per_step": 3},
        evaluation={"before": False},
    )
    assert done.returncode == 0, done.stderr
    with AttemptLog(tmp_path / "run" / "attempts.jsonl") as log:
        turns = [turn for attempt in log for turn in attempt.turns]
    assert turns
    assert all(turn.attack == "" and turn.attack_tokens == 1 for turn in turns)
    assert metrics_of(tmp_path)[-1]["empty_attacks"] == 1.0


@pytest.mark.parametrize(
    "algorithm",
    [
        also("ppo"),  # with values at every position
        also("dpo"),
        also("trajectory_balance"),
    ],
)
def test_contexts_at_the_edge_of_the_window_and_hostile_ones_are_played(
    workplace: Path, tmp_path: Path, algorithm: str
) -> None:
    """Openings that leave room for any number of tokens or for none, and speakers who say NUL."""
    save_biased(tmp_path / "model", "\x00")
    speaker = {"model": str(tmp_path / "model"), "max_new_tokens": 4}
    openings = ["a" * length for length in range(WINDOW - 12, WINDOW + 3)]
    openings += ["bc" * 49_000, "=1+1", "\x1b[2J", "\u202e", "<script>"]
    for name, texts in (("train", ["b" + each for each in openings]), ("test", openings)):
        rows = "".join(json.dumps({"prompt": each}) + "\n" for each in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    done = run(
        workplace,
        tmp_path,
        attacker=speaker,
        target=speaker,
        algorithm={"type": algorithm},
        prompts={"file": f"{tmp_path}/train.jsonl", "test_file": f"{tmp_path}/test.jsonl"},
        training={"steps": 1, "episodes_per_step": 24},
        evaluation={"before": False},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    with AttemptLog(tmp_path / "run" / "attempts.jsonl") as log:
        played = list(log.attempts(phase="after"))
    assert len({attempt.opening.prompt for attempt in played}) == len(openings)
    assert any("\x00" in turn.attack for attempt in played for turn in attempt.turns)
    assert 0 <= metrics_of(tmp_path)[-1]["overflows"] <= 1
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "\x00" not in report
    for name in FORMATS:
        out = tmp_path / f"out.{name}"
        done = astra_rl(
            "export", str(tmp_path / "run"), "--format", name, "-o", str(out), cwd=workplace
        )
        if name == "preferences":  # the target never failed, so there is no pair
            assert done.returncode == 2, done.stderr
            assert "no pair of replies to write" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        if name != "parquet":  # which is no text, and keeps what was said
            assert "\x00" not in out.read_text(encoding="utf-8")


def test_prompts_that_no_model_can_read_are_refused_by_their_lines(
    workplace: Path, tmp_path: Path
) -> None:
    openings = ["fine", "", "\x00", "a\ud800", "x" * 1_000_000]
    rows = "".join(json.dumps({"prompt": each}) + "\n" for each in openings)
    (tmp_path / "openings.jsonl").write_text(rows)
    file = str(tmp_path / "openings.jsonl")
    done = run(workplace, tmp_path, prompts={"file": file, "test_file": file})
    assert done.returncode == 2
    for line in (2, 3, 4, 5):
        assert f"line {line}: " in done.stderr
    assert "line 1: " not in done.stderr


def test_a_model_with_weights_that_are_not_finite_is_refused_when_it_is_loaded(
    workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "target", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 1] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    done = run(workplace, tmp_path, target={"model": str(tmp_path / "broken")})
    assert done.returncode == 2
    assert f"1 of its weights is not finite: {name}" in done.stderr
