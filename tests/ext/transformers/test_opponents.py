"""Targets that take turns: one copy of shared weights, each with its own adapter, drawn by seed."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cases import cases
from tests.tiny_models import save_random_adapter, save_tiny_models
from transformers import AutoModelForCausalLM

from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.evaluation_problem import HFEvaluationProblem
from astra_rl.ext.transformers.opponents import Opponent, draw
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.trainable import LoraOptions
from astra_rl.moderators import FunctionModerator

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a base model, of two adapters on it, and of another complete model."""
    root = tmp_path_factory.mktemp("opponents")
    save_tiny_models(root, base=1, other=2)
    for seed, name in enumerate(("one", "two")):
        save_random_adapter(root / "base", root / name, seed=seed)
        load_tokenizer(root / "base").save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


TRAINING: dict[str, dict[str, Any]] = {
    "lora": {"lora": LoraOptions(rank=2)},
    "all": {},
    "layers": {"trainable_layers": 1},
}


def problem_of(folders: dict[str, Path], attacker: str = "base", **options: Any) -> HFASTProblem:
    return HFASTProblem(
        folders[attacker],
        folders["two"],
        folders[attacker],
        FunctionModerator(lambda texts: [0.5] * len(texts)),
        dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=3),
        target_sampling=Sampling(max_new_tokens=3),
        opponents=[Opponent(folders[name]) for name in ("base", "one", "two", "other")],
        **options,
    )


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device)).logits


def logits_of(folder: Path) -> Any:
    return logits(load_model(folder, dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attacker", "training"),
    cases(
        product(["base", "other"], TRAINING),
        by_default={("base", "lora"), ("other", "all"), ("base", "layers")},
    ),
)
def test_each_opponent_is_the_model_of_its_folder_whatever_the_attacker_learns(
    folders: dict[str, Path], attacker: str, training: str, tmp_path: Path
) -> None:
    problem = problem_of(folders, attacker, **TRAINING[training])
    expected = {name: logits_of(path) for name, path in folders.items()}
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.5)
    trained = [id(each) for each in problem.parameters()]
    for step in range(2):
        seen = set()
        for seed in [None, *range(20)]:
            problem.draw_opponent(seed)
            name = "two" if seed is None else Path(str(problem.opponent)).name
            with problem._as_target():
                torch.testing.assert_close(logits(problem.target), expected[name])
            seen.add(name)
        assert seen == {"base", "one", "two", "other"}
        with problem._adapters.using(problem.baseline):
            torch.testing.assert_close(logits(problem.baseline), expected[attacker])
        assert [id(each) for each in problem.parameters()] == trained
        before = logits(problem.attacker)
        loss = problem.get_attacker_logprobs(["a "], ["bcd"]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert not torch.equal(logits(problem.attacker), before), step
    learned = logits(problem.attacker)
    problem.save(tmp_path / "saved")
    torch.testing.assert_close(logits_of(tmp_path / "saved"), learned)
    assert {each.name for each in tmp_path.rglob("adapter_model.safetensors")} <= {
        "adapter_model.safetensors"
    }


@pytest.mark.slow
def test_the_weights_of_a_base_model_are_in_memory_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Counter[str]()
    original = AutoModelForCausalLM.from_pretrained

    def count(source: str, *arguments: Any, **options: Any) -> Any:
        loaded[Path(source).name] += 1
        return original(source, *arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", count)
    problem = problem_of(folders, lora=LoraOptions(rank=2))
    assert loaded == {"base": 1, "other": 1}  # attacker, baseline, target and three opponents
    assert problem.baseline is problem.target
    loaded.clear()
    evaluated = HFEvaluationProblem(
        folders["one"],
        folders["two"],
        problem.moderator,
        baseline_model_id=folders["base"],
        dtype="float32",
    )
    assert loaded == {"base": 1}
    monkeypatch.undo()
    expected = {name: logits_of(folders[name]) for name in ("base", "one", "two")}
    torch.testing.assert_close(logits(evaluated.attacker), expected["one"])
    with evaluated._adapters.using(evaluated.baseline):
        torch.testing.assert_close(logits(evaluated.baseline), expected["base"])
    with evaluated._as_target():
        torch.testing.assert_close(logits(evaluated.target), expected["two"])
    torch.testing.assert_close(logits(evaluated.attacker), expected["one"])
    assert not list(evaluated.parameters())


def test_opponents_are_drawn_by_weight_and_seed() -> None:
    opponents = [Opponent("a", 1.0), Opponent("b", 3.0)]
    drawn = [draw(opponents, seed) for seed in range(4000)]
    assert drawn == [draw(opponents, seed) for seed in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ConfigurationError, match="must be positive"):
        draw([Opponent("a", 0.0)], 1)
