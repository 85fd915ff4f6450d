"""Without an optional package: what needs it says so before work begins; all else works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from astra_rl.config.experiment import build_problem
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.datasets import load_rows
from astra_rl.errors import MissingDependencyError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.ext.vllm import VLLMSampler
from astra_rl.infra.jsonio import json_line
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import write_run_page
from astra_rl.training.trackers import TensorBoardTracker, WandbTracker

RUN = """
attacker: {model: no such folder}
target: {model: no such folder}
moderator: {type: secret_leak}
prompts: {scenario: planted_secrets, test: 2, train: 2}
"""


@pytest.mark.parametrize(
    ("package", "extra", "setting"),
    [
        (
            "openai",
            "openai",
            "target={type: openai, options: {model: m, base_url: 'http://localhost/v1'}}",
        ),
        (
            "httpx2",
            "openai",
            "target={type: http, options: {url: 'http://localhost', body: {ask: '{message}'}, "
            "reply: text}}",
        ),
        (
            "openai",
            "openai",
            "evaluation.judge={type: llm_judge, options: {complete: {type: openai, options: "
            "{model: m, base_url: 'http://localhost/v1'}}}}",
        ),
        (
            "sentence_transformers",
            "embeddings",
            "reward={embedding_novelty: {embedder: 'sentence_transformers:x'}}",
        ),
        ("profanity_check", "profanity", "moderator={type: profanity}"),
        ("profanity_check", "profanity", "evaluation.judge={type: profanity}"),
        ("detoxify", "detoxify", "moderator={type: detoxify}"),
        ("openai", "openai", "evaluation.judge={type: openai_moderation, options: {api_key: k}}"),
    ],
)
def test_a_package_that_a_run_needs_is_missed_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str, setting: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"extra '{extra}'"):
        build_problem(resolve(parse_config(RUN, [setting], source="test")))  # no such model either


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("pyarrow", "data", lambda folder: load_rows(folder / "rows.parquet")),
        ("datasets", "data", lambda folder: load_rows("hub:owner/name")),
        ("tensorboard", "tensorboard", lambda folder: TensorBoardTracker(folder)),
        ("wandb", "wandb", lambda folder: WandbTracker()),
        ("vllm", "vllm", lambda folder: VLLMSampler()),
    ],
)
def test_what_needs_a_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, make: object
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, package, None)
    assert callable(make)
    with pytest.raises(MissingDependencyError, match=f"extra '{extra}'"):
        make(tmp_path)


def test_the_page_of_a_run_needs_no_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text(RUN)
    score = {"judge": JudgeScore(value=0.9)}
    with AttemptLog(folder.attempts, write=True) as log:
        for phase in ("before", "after"):
            log.append(
                Attempt.make(
                    run="r",
                    phase=phase,
                    opening="Hello",
                    target="t",
                    attacker="a",
                    turns=[Turn(attack="ask", response="said", scores=score)],
                    judge="judge",
                )
            )
    folder.metrics.write_text(json_line({"step": 1, "reward": 0.5, "asr": 0.5}) + "\n")
    folder.evaluation("after").write_text("{}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write_run_page(folder).read_text("utf-8")
    assert "This chart needs matplotlib" in page
    assert "needs matplotlib" in folder.learning_curve.read_text("utf-8")
