"""What transformers and TRL call `report_to`, `load_best_model_at_end`, callbacks and the hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest
import torch
import transformers
import yaml
from huggingface_hub import HfApi
from tests.cli.running import astra_rl

from astra_rl import GRPO, ASTEnvironment, ConfigurationError, FunctionModerator
from astra_rl.core.evaluator import Evaluator
from astra_rl.errors import ModelError
from astra_rl.ext.transformers import (
    AttackerCard,
    HFASTConfiguration,
    HFASTProblem,
    HFASTTrainer,
    push_attacker,
)
from astra_rl.models.generation import Sampling
from astra_rl.testing import tiny_model
from astra_rl.training.trackers import HistoryTracker

pytestmark = pytest.mark.slow


class Scores(Evaluator[str, str]):
    """Gives one score after the other."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def evaluate(self, n_rollouts: Any = None, progress: bool = True) -> Any:
        return {"score": self.scores.pop(0), "conversations": []}

    def compute_metrics(self, graph: Any) -> Any:
        raise NotImplementedError

    def aggregate_metrics(self, metrics: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [tiny_model(seed=seed, window=64) for seed in (1, 2)]


def trainer(models: list[Any], folder: Path, *, scores: Any = (), **options: Any) -> HFASTTrainer:
    callbacks = options.pop("callbacks", ())
    problem = HFASTProblem(
        models[0],
        models[1],
        models[0],
        FunctionModerator(lambda texts: [len(set(text)) / 40 for text in texts]),
        attacker_sampling=Sampling(max_new_tokens=3),
        target_sampling=Sampling(max_new_tokens=2),
    )
    config = HFASTConfiguration(
        **{"lr": 1e-3, "training_steps": 4, "num_episodes_per_experience": 1, "seed": 0} | options
    )
    return HFASTTrainer(
        config,
        ASTEnvironment(problem, ["hi.", "ho."], tree_width=2, tree_depth=1),
        GRPO(problem),
        evaluator=Scores(*scores) if scores else None,
        eval_every=1 if scores else 0,
        ckpt_dir=folder,
        tracker=HistoryTracker(),
        callbacks=callbacks,
    )


def weights(trained: HFASTTrainer) -> list[torch.Tensor]:
    problem = trained.algorithm.problem
    return [each.detach().clone() for each in problem.parameters() if each.requires_grad]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_training_ends_with_its_best_attacker(models: list[Any], tmp_path: Path) -> None:
    at_second: list[list[torch.Tensor]] = []

    class Watching(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 2:
                at_second.append(weights(trained))

    options: dict[str, Any] = {"scores": (0.1, 0.9, 0.3, 0.2), "load_best_model_at_end": True}
    trained = trainer(models, tmp_path / "a", callbacks=[Watching()], **options)
    trained.train()
    assert equal(weights(trained), at_second[0])
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "last")
    best = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "best")
    assert equal(list(saved.parameters()), list(best.parameters()))


def test_a_training_resumes_from_its_newest_state(models: list[Any], tmp_path: Path) -> None:
    whole = trainer(models, tmp_path / "whole")
    whole.train()
    first = trainer(models, tmp_path / "part", training_steps=2, save_steps=1, save_total_limit=1)
    first.train()
    assert len(list((tmp_path / "part" / "states").iterdir())) == 1
    for where in (True, tmp_path / "part" / "states"):
        resumed = trainer(models, tmp_path / "part", resume_from_checkpoint=where)
        assert resumed.completed_steps == 2
    resumed.train()
    assert equal(weights(whole), weights(resumed))
    with pytest.raises(ConfigurationError, match="save_steps=25"):
        trainer(models, tmp_path / "none", resume_from_checkpoint=True)


def test_a_callback_of_transformers_gets_the_events(models: list[Any], tmp_path: Path) -> None:
    events: list[tuple[str, int]] = []

    class Recording(transformers.TrainerCallback):
        pass

    def recorder(name: str) -> Any:
        def record(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
            assert args.max_steps == 2
            assert given["model"] is recorded.algorithm.problem.attacker  # type: ignore[attr-defined]
            if name == "on_log":
                assert given["logs"]["loss"] == state.log_history[-1]["loss"]
            if name == "on_evaluate":
                assert given["metrics"] == {"eval_score": 0.5}
            events.append((name, state.global_step))

        return record

    names = ("on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_evaluate")
    for name in (*names, "on_train_end"):
        setattr(Recording, name, recorder(name))
    recorded = trainer(
        models, tmp_path, callbacks=[Recording()], scores=(0.5, 0.5), training_steps=2
    )
    recorded.train()
    step = ["on_step_begin", "on_evaluate", "on_step_end", "on_log"]
    assert [name for name, _ in events] == ["on_train_begin", *step, *step, "on_train_end"]
    assert [at for _, at in events] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_early_stopping_of_transformers_stops(models: list[Any], tmp_path: Path) -> None:
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=1)
    stopped = trainer(models, tmp_path, callbacks=[stopping], scores=(0.5, 0.4, 0.9, 0.9))
    stopped.train()
    assert stopped.completed_steps == 2


def test_what_is_reported_to_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="choose from none, mlflow"):
        HFASTConfiguration(report_to="comet")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="hub_model_id"):
        HFASTConfiguration(push_to_hub=True)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP API that an upload uses; it keeps what it is sent."""

    received: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines() if line]
        type(self).received.append((self.path, lines))
        answer: dict[str, Any] = {"url": "http://127.0.0.1/me/attacker", "name": "me/attacker"}
        if self.path.endswith("/preupload/main"):
            files = [each["path"] for each in lines[0]["files"]]
            answer = {
                "files": [
                    {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files
                ]
            }
        elif "/commit/" in self.path:
            answer = {"commitUrl": "http://127.0.0.1/me/attacker/commit/0", "commitOid": "0" * 40}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []  # the hub, for the list of programs by which it knows this one
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(
        "huggingface_hub.utils._detect_agent._load_registry",
        lambda: asked.append("programs") or {},
        raising=False,
    )
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None, raising=False)
    Hub.received.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
    server.shutdown()
    server.server_close()
    thread.join()
    assert not asked


@pytest.fixture
def checkpoint(models: list[Any], tmp_path: Path) -> Path:
    """A saved attacker; take it before `hub`, because saving asks the real hub where it may."""
    for part in models[0]:
        part.save_pretrained(tmp_path / "last")
    return tmp_path / "last"


CARD = AttackerCard(
    name="attacker",
    base_model="owner/base",
    target="<img src=x> [a](javascript:b)",
    moderator="refusal",
    algorithm="grpo",
    scenario="planted_secrets",
    results=["attack success rate: 30% (18% to 44%)"],
)


def test_an_attacker_is_pushed_with_its_card_in_one_commit(checkpoint: Path, hub: HfApi) -> None:
    folder = checkpoint
    (folder / "README.md").write_text("of another tool")
    assert push_attacker(folder, "me/attacker", CARD, api=hub) == "http://127.0.0.1/me/attacker"
    (created,) = (lines for path, lines in Hub.received if path == "/api/repos/create")
    assert created[0]["visibility"] == "private"
    (commit,) = (lines for path, lines in Hub.received if "/commit/" in path)
    files = {
        each["value"]["path"]: base64.b64decode(each["value"]["content"])
        for each in commit
        if each["key"] == "file"
    }
    assert files["config.json"] == (folder / "config.json").read_bytes()
    assert "model.safetensors" in files
    assert "SHA256SUMS" not in files
    assert files["README.md"].decode() == CARD.text()


def test_what_is_pushed_names_no_folder_of_this_machine(tmp_path: Path, hub: HfApi) -> None:
    config = {"base_model_name_or_path": "/home/me/secret-project/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    card = replace(CARD, base_model="/home/me/secret-project/base", is_adapter=True)
    card = replace(card, target="gpt at https://me:planted-pass-1@host.example/v1")
    push_attacker(tmp_path, "me/attacker", card, api=hub)
    (commit,) = (lines for path, lines in Hub.received if "/commit/" in path)
    files = {
        each["value"]["path"]: base64.b64decode(each["value"]["content"])
        for each in commit
        if each["key"] == "file"
    }
    assert json.loads(files["adapter_config.json"]) == {**config, "base_model_name_or_path": "base"}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    assert not any(b"secret-project" in each for each in files.values())
    assert b"planted-pass-1" not in files["README.md"]
    assert b"host.example" in files["README.md"]


def test_symbolic_links_are_not_pushed(tmp_path: Path, hub: HfApi) -> None:
    (tmp_path / "outside.txt").write_text("private")
    folder = tmp_path / "attacker"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "notes.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ConfigurationError, match=r"notes\.txt is a symbolic link"):
        push_attacker(folder, "me/attacker", CARD, api=hub)
    assert Hub.received == []


def test_the_card_says_what_an_attacker_is_and_is_not_for() -> None:
    text = CARD.text()
    _, about, body = text.split("---\n", 2)
    metadata = yaml.safe_load(about)
    assert metadata["base_model"] == "owner/base"
    assert "not-for-all-audiences" in metadata["tags"]
    for part in (
        "writes messages that make another language model fail",
        "## What it is for",
        "with the owner's permission",
        "## What it is not for",
        "no proof of safety",
        "30% (18% to 44%)",
        "planted_secrets",
    ):
        assert part in body
    assert "` <img src=x>" in body or "`<img src=x>" in body  # in a code span: shown as text
    local = AttackerCard("a", "/home/me/models/base", "t", "m", "grpo")
    assert "base_model" not in yaml.safe_load(local.text().split("---\n")[1])
    assert "/home/me" not in local.text()
    assert "Nothing was measured." in local.text()


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    checkpoint: Path, tmp_path: Path, hub: HfApi
) -> None:
    with pytest.raises(ConfigurationError, match="holds no attacker"):
        push_attacker(tmp_path, "me/attacker", CARD, api=hub)
    with pytest.raises(ConfigurationError, match="give OWNER/NAME"):
        push_attacker(checkpoint, "attacker", CARD, api=hub)
    (checkpoint / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    with pytest.raises(ModelError, match=r"not in its SHA256SUMS|missing"):
        push_attacker(checkpoint, "me/attacker", CARD, api=hub)
    assert Hub.received == []
    (checkpoint / "SHA256SUMS").unlink()
    gone = HfApi(endpoint="http://127.0.0.1:9", token="hf_none")
    with pytest.raises(ConfigurationError, match="kept on disk"):
        push_attacker(checkpoint, "me/attacker", CARD, api=gone)


def test_a_run_keeps_its_best_attacker_and_has_a_card(tmp_path: Path) -> None:
    for name in ("attacker", "target"):
        for part in tiny_model("llama", window=64):
            part.save_pretrained(tmp_path / name)
    (tmp_path / "p.txt").write_text("hello\nwho are you\n")
    (tmp_path / "q.txt").write_text("a colour\n")
    settings = {
        "attacker": {"model": "attacker", "max_new_tokens": 4},
        "target": {"model": "target", "max_new_tokens": 4},
        "moderator": {"type": "keyword", "options": {"patterns": ["[aeiou]"]}},
        "prompts": {"file": "p.txt", "test_file": "q.txt"},
        "environment": {"type": "single_turn", "tree_width": 2},
        "training": {"steps": 3, "episodes_per_step": 1, "save_every": 1, "lr": 0.01},
        "evaluation": {"before": False},
    }
    settings["training"] |= {"load_best_model_at_end": True}  # type: ignore[operator]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = astra_rl("train", "c.yaml", "-o", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best, last = (tmp_path / "run" / "checkpoints" / name for name in ("best", "last"))
    best_step = json.loads((best / "metrics.json").read_text())["step"]
    assert json.loads((last / "metrics.json").read_text())["step"] == best_step
    assert (last / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    shown = astra_rl("push", "run", "me/attacker", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "attack success rate on held-out prompts, trained" in shown.stdout
    assert "keyword" in shown.stdout
