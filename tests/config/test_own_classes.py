"""Runs from YAML with classes of one's own, and what a run constructs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import wraps
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_rl.config import prompts, resolve
from astra_rl.config.estimate import estimate
from astra_rl.config.loading import load_config, parse_config
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.infra import registry
from astra_rl.infra.registry import Registry
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.rewards import Harm, WeightedSum
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.report import write_run_page
from astra_rl.runs.runner import run_experiment
from astra_rl.testing import tiny_model

MODULE = '''
from astra_rl.algorithms import GRPO
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.rewards import RewardTerm


class ReadsTokenizer(GRPO):
    """Reads its problem in the constructor, and has an option of its own."""

    def __init__(self, problem, *, bonus: float = 0.0, **options):
        self.vocabulary = problem.tokenizer.vocab_size
        self.bonus = bonus
        super().__init__(problem, **options)


class Questions(RewardTerm):
    name = "questions"

    def __init__(self, mark: str = "?"):
        self.mark = mark

    def __call__(self, models, exchanges):
        return [float(self.mark in each.attack) for each in exchanges]


def politeness(exchanges):
    return [float("please" in each.attack) for each in exchanges]


def made(mark: str) -> RewardTerm:
    return Questions(mark)


class TwoTurns(ASTEnvironment):
    def __init__(self, problem, openings, width: int = 2):
        super().__init__(problem, openings, width, 2)
        self.seen = problem.tokenizer

    @classmethod
    def turns_by_level(cls, *, straight=False, width=2, **options):
        return super().turns_by_level(straight=straight, tree_width=width, tree_depth=2)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of one's own, two models and prompts."""
    (tmp_path / "my_own_classes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for seed, role in enumerate(("attacker", "target")):
        model, tokenizer = tiny_model("llama", window=256, seed=seed)
        model.save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    (tmp_path / "train.txt").write_text("hello there\nwhat is new\n")
    (tmp_path / "test.txt").write_text("good evening\n")
    yield tmp_path
    sys.modules.pop("my_own_classes", None)


def configured(folder: Path, **changes: Any) -> RunConfig:
    values = {
        "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 6},
        "target": {"model": str(folder / "target"), "max_new_tokens": 6},
        "moderator": {"type": "keyword", "options": {"words": ["e"]}},
        "prompts": {"file": str(folder / "train.txt"), "test_file": str(folder / "test.txt")},
        "training": {"steps": 2, "episodes_per_step": 2, "batch_size": 8},
        "evaluation": {"before": False},
        "dtype": "float32",
        "device": "cpu",
        **changes,
    }
    return parse_config(yaml.safe_dump(values), source="test")


OWN: dict[str, Any] = {
    "algorithm": {
        "type": "my_own_classes:ReadsTokenizer",
        "options": {"bonus": 0.5, "kl_in_reward": 0.01},
    },
    "reward": {
        "sum": [
            "harm",
            {"my_own_classes:Questions": {"mark": "!"}, "weight": 0.5},
            {"my_own_classes:politeness": {}, "name": "polite", "weight": 0.1},
        ],
    },
    "environment": {"type": "my_own_classes:TwoTurns", "options": {"width": 3}},
}


@pytest.mark.slow
def test_classes_of_ones_own_train_resume_and_report_from_yaml(folder: Path) -> None:
    run = RunFolder(folder / "run")
    result = run_experiment(resolve.resolve(configured(folder, **OWN)), run)
    assert result.training_steps == 2
    metrics = run.metrics.read_text("utf-8")
    assert "rewards/questions/mean" in metrics
    assert "rewards/polite/mean" in metrics
    assert run.report.is_file()
    sys.modules.pop("my_own_classes")
    write_run_page(run)
    assert "my_own_classes" not in sys.modules  # showing a run imports nothing that it names
    longer = load_config(run.config, ["training.steps=3"])
    assert longer.algorithm.type == "my_own_classes:ReadsTokenizer"
    assert run_experiment(resolve.resolve(longer), run, force=True).training_steps == 3


def test_options_of_ones_own_classes_are_checked_before_they_are_constructed(folder: Path) -> None:
    for section, key, message in (
        ("algorithm", "bonis", "Did you mean 'bonus'"),
        ("environment", "widht", "Did you mean 'width'"),
    ):
        wrong = {**OWN, section: {"type": OWN[section]["type"], "options": {key: 1}}}
        with pytest.raises(ConfigurationError, match=message):
            resolve.resolve(configured(folder, **wrong))
    wrong = {**OWN, "reward": {"my_own_classes:Questions": {"mark": 3}}}
    with pytest.raises(ConfigurationError, match=r"Questions\.mark: 3 given; it must be text"):
        resolve.resolve(configured(folder, **wrong))
    wrong = {**OWN, "reward": "my_own_classes:made"}  # a function that constructs a term
    with pytest.raises(ConfigurationError, match=r"made\.mark: missing"):
        resolve.resolve(configured(folder, **wrong))
    with pytest.raises(ConfigurationError, match="must be a subclass of Algorithm"):
        resolve.resolve(configured(folder, algorithm={"type": "my_own_classes:Questions"}))


def test_calls_of_ones_own_environment_are_estimated_without_constructing_it(folder: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    target = {"type": "openai", "options": {"model": "m", "base_url": url}}
    plan = resolve.resolve(configured(folder, **OWN, target=target))
    resolve.check_training(plan)
    (row,) = estimate(plan)
    assert row.requests == 2 * 2 * (3 + 9) + 2  # two steps of two trees, and one evaluation


@pytest.mark.slow
def test_a_run_resolves_and_constructs_each_object_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(resolve, "read_openings", counted("prompts", prompts.read_openings))
    for kind, name in (
        (Harm, "term"),
        (WeightedSum, "reward"),
        (ASTEnvironment, "environment"),
    ):
        monkeypatch.setattr(kind, "__init__", counted(name, kind.__init__))
    config = configured(folder, reward={"sum": ["harm"]}, training={"steps": 1})
    run_experiment(resolve.resolve(config), RunFolder(folder / "run"))
    # The environment: one for training, one for evaluation.
    assert counts == {"prompts": 1, "term": 1, "reward": 1, "environment": 2}


def test_an_installed_package_adds_entries_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = EntryPoint("mine", "fractions:Fraction", "astra_rl.tests")
    monkeypatch.setattr(registry, "entry_points", lambda group: [declared])
    known: Registry[Any] = Registry("thing", "astra_rl.tests", {"own": "decimal:Decimal"})
    assert list(known) == ["own", "mine"]
    assert known["mine"].__name__ == "Fraction"
    assert known.load("collections:OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(ConfigurationError, match="no thing 'mne'"):
        known.load("mne")
    with pytest.raises(KeyError):
        known["collections:OrderedDict"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_corrected": "no"}, "kl_corrected: 'no' given; it must be true or false"),
        ({"kl_horizon": "abc"}, "kl_horizon: 'abc' given; it must be a number"),
        ({"epochs": 1.5}, "epochs: 1.5 given; it must be a whole number"),
        ({"group": "brothers"}, "group: 'brothers' given; it must be one of "),
    ],
)
def test_options_of_an_algorithm_have_types(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    config = configured(folder, algorithm={"type": "grpo", "options": options})
    with pytest.raises(ConfigurationError, match=f"algorithm.options.{message}"):
        resolve.resolve(config)


def test_numbers_with_an_exponent_are_numbers(folder: Path) -> None:
    config = configured(folder)
    text = config.to_yaml().replace("options: {}", "options: {kl_in_loss: 1e-3}", 1)
    assert "kl_in_loss" not in config.to_yaml()
    known = parse_config(text, ["training.lr=1e-4"], source="test")
    assert known.training.lr == 1e-4


def test_the_layers_of_an_adapter_can_be_given(folder: Path) -> None:
    lora = {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
    attacker = {"model": str(folder / "attacker"), "lora": lora}
    config = configured(folder, attacker=attacker)
    assert config.attacker.lora is not None
    assert config.attacker.lora.target_modules == ("q_proj", "v_proj")
    assert parse_config(config.to_yaml(), source="test") == config
    lora["ranc"] = 3
    with pytest.raises(ConfigurationError, match=r"attacker.lora.ranc: unknown key.*'rank'"):
        configured(folder, attacker=attacker)


FAULTY = """
import functools

from astra_rl.algorithms import GRPO
from astra_rl.core.moderator import Moderator
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.rewards import RewardTerm

number = 5


class Passing(GRPO):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class PassingEnvironment(ASTEnvironment):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Keyworded(Moderator):
    def __init__(self, **words):
        self.words = words

    def moderate(self, x):
        return [0.0 for _ in x]


class Term(RewardTerm):
    name = "term"

    def __call__(self, models, exchanges):
        return [0.0 for _ in exchanges]


class Raising(Term):
    def __init__(self, size: float = 1.0):
        raise RuntimeError("it does not work")


class Positional(Term):
    def __init__(self, size, /):
        pass
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_faulty.py").write_text(FAULTY)
    (tmp_path / "my_raising_module.py").write_text("raise RuntimeError('at import')")
    (tmp_path / "my_unfinished.py").write_text("def f(:")
    (tmp_path / "train.txt").write_text("hello there\nwhat is new\n")
    (tmp_path / "test.txt").write_text("good evening\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_faulty", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"type": "my_raising_module:A"}}, "algorithm.type: .*RuntimeError: at imp"),
        ({"moderator": {"type": "my_unfinished:A"}}, "moderator.type: .*SyntaxError"),
        ({"environment": {"type": "my_faulty:number"}}, "environment.type: .*of type int"),
        ({"algorithm": {"type": "my_faulty:Term"}}, "'my_faulty:Term' given; it must be a sub"),
        ({"reward": "my_faulty:Raising"}, r"RuntimeError: it does not work \(.*my_faulty.py, line"),
        ({"reward": "my_faulty:Positional"}, "size is a positional-only parameter"),
        ({"reward": {"my_faulty:Raising": {"size": date(2026, 1, 1)}}}, "size: 2026-01-01 given"),
        ({"reward": {"my_faulty:Raising": {"size": float("nan")}}}, "size: nan given"),
        ({"reward": {"my_faulty:Term": {"size": 1}}}, "It takes no options"),
        ({"training": {"lr": float("inf")}}, "training.lr: inf given; it must be a finite"),
        ({"moderator": {"type": "keyword", "options": {"words": ["a", False]}}},
         r"words\[1\]: false given; it must be text. YAML reads yes, no"),
    ],
)  # fmt: skip
def test_a_fault_in_code_of_ones_own_is_named_by_its_place(
    faulty: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve.resolve(configured(faulty, **changes))


def test_classes_that_pass_everything_on_take_the_options_of_their_base(faulty: Path) -> None:
    plan = resolve.resolve(
        configured(
            faulty,
            algorithm={"type": "my_faulty:Passing", "options": {"clip_low": 0.1}},
            environment={"type": "my_faulty:PassingEnvironment", "tree_width": 3},
            moderator={"type": "my_faulty:Keyworded", "options": {"any": "word"}},
        )
    )
    assert plan.moderator.load().moderate(["a"]) == [0.0]
    with pytest.raises(ConfigurationError, match=r"clip_lo: unknown key\. Did you mean 'clip_low'"):
        resolve.resolve(
            configured(faulty, algorithm={"type": "my_faulty:Passing", "options": {"clip_lo": 0.1}})
        )
