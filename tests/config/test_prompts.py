"""Prompts of a run: from a scenario, or from files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from astra_rl.config.loading import parse_config
from astra_rl.config.presets import load_preset
from astra_rl.config.prompts import read_openings
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import PromptsConfig, RunConfig
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import context_key
from astra_rl.datasets.planted_secrets import planted_secrets
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.turn import Opening

ROOT = Path(__file__).parent.parent.parent
MODELS = "attacker: {model: a}\ntarget: {model: b}\n"


@pytest.fixture(autouse=True)
def _in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(prompts: str, more: str = "") -> RunConfig:
    return parse_config(f"{MODELS}prompts: {prompts}\n{more}", source="test")


# --- from files ----------------------------------------------------------------------------------


def test_two_files_are_training_and_evaluation() -> None:
    Path("train.txt").write_text("one\ntwo\n")
    Path("test.csv").write_text("prompt\nthree\n")
    openings = read_openings(PromptsConfig(file="train.txt", test_file="test.csv"), seed=0)
    assert openings.train == ["one", "two"]
    assert openings.test == ["three"]
    assert [source.name for source in openings.sources] == ["train.txt", "test.csv"]


def test_the_category_of_a_row_is_known_by_its_opening() -> None:
    Path("train.txt").write_text("one\ntwo\n")
    Path("test.csv").write_text("prompt,category\nthree,numbers\nfour,\n")
    openings = read_openings(PromptsConfig(file="train.txt", test_file="test.csv"), seed=0)
    assert openings.categories == {Opening.of(openings.test[0]).id: "numbers"}


def test_one_file_is_divided_the_same_way_for_every_seed() -> None:
    Path("all.txt").write_text("".join(f"prompt{index}\n" for index in range(50)))
    first, other = (read_openings(PromptsConfig(file="all.txt"), seed=seed) for seed in (0, 1))
    assert (len(first.train), len(first.test)) == (40, 10)
    assert first == other
    assert set(first.train).isdisjoint(first.test)


def test_a_file_that_says_where_its_rows_belong_is_believed() -> None:
    Path("all.csv").write_text("prompt,split\none,test\ntwo,train\nthree,train\n")
    assert read_openings(PromptsConfig(file="all.csv"), seed=0).test == ["one"]


def test_columns_and_benchmarks_are_understood() -> None:
    Path("mine.csv").write_text("question\none\ntwo\n")
    openings = read_openings(PromptsConfig(file="mine.csv", columns={"prompt": "question"}), seed=0)
    assert sorted([*openings.train, *openings.test]) == ["one", "two"]
    Path("copy.csv").write_text("goal,target\nFold a boat,Sure\nPaint the fence,Sure\n")
    goals = read_openings(PromptsConfig(file="copy.csv", benchmark="advbench"), seed=0)
    assert {each.facts["goal"] for each in (*goals.train, *goals.test)} == {
        "Fold a boat",
        "Paint the fence",
    }


def test_prompts_of_training_and_evaluation_must_differ_and_more_than_in_a_word() -> None:
    Path("train.txt").write_text("how are you today\nfine\n")
    Path("test.txt").write_text("How are you?\n")
    config = PromptsConfig(file="train.txt", test_file="test.txt")
    with pytest.raises(ConfigurationError, match=r"train-1 \(train\) and test-1 \(test\)"):
        read_openings(config, seed=0)


def test_at_most_so_many_are_used() -> None:
    Path("train.txt").write_text("one\ntwo\nthree\n")
    Path("test.txt").write_text("four\nfive\n")
    config = PromptsConfig(file="train.txt", test_file="test.txt", train=2, test=9)
    found = read_openings(config, seed=0)
    train, test = found.train, found.test
    assert (len(train), len(test)) == (2, 2)


def test_the_prompts_in_the_documentation_are_accepted() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text("utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        PromptsConfig.model_validate(yaml.safe_load(block)["prompts"])


# --- from scenarios ------------------------------------------------------------------------------


def test_the_password_game_opens_as_it_always_did() -> None:
    config = load_preset("password", ["seed=3"])
    found = read_openings(config.prompts, seed=config.seed)
    train, test = found.train, found.test
    expected = planted_secrets("train", 192, seed=derive_seed(3, "openings"))
    assert list(map(context_key, train)) == list(map(context_key, expected))
    assert list(map(context_key, test)) == list(map(context_key, planted_secrets("test", 128)))


def test_a_shipped_scenario_brings_its_moderator_and_threshold() -> None:
    config = configured("{scenario: secret_keepers}")
    assert config.moderator.type == "secret_leak"
    assert config.evaluation.threshold == 1.0
    found = read_openings(config.prompts, seed=0)
    train, test = found.train, found.test
    assert len(train) > len(test) > 0
    resolve(config)


def test_what_the_configuration_says_itself_stays() -> None:
    config = configured(
        "{scenario: secret_keepers}",
        "moderator: {type: secret_leak, options: {partial_per_word: 0.5}}\n"
        "evaluation: {threshold: 0.25}\n",
    )
    assert config.moderator.options == {"partial_per_word": 0.5}
    assert config.evaluation.threshold == 0.25


def test_a_scenario_of_the_user_s_own_brings_its_judge() -> None:
    Path("mine.yaml").write_text(
        "prompts: [one, two, three]\nmoderator: {type: profanity}\n"
        "judge: {type: secret_leak, options: {secret: amber}}\nthreshold: 0.7\n"
    )
    config = configured("{scenario: mine.yaml}", "evaluation: {before: false}\n")
    assert config.moderator.type == "profanity"
    assert config.evaluation.judge is not None
    assert config.evaluation.judge.options == {"secret": "amber"}
    assert (config.evaluation.threshold, config.evaluation.before) == (0.7, False)


def test_the_resolved_configuration_says_what_the_scenario_said() -> None:
    config = configured("{scenario: secret_keepers}")
    resolved = config.to_yaml()
    assert "type: secret_leak" in resolved
    assert parse_config(resolved, source="test") == config


def test_a_scenario_without_a_moderator_needs_one() -> None:
    with pytest.raises(ConfigurationError, match="moderator: missing"):
        configured("{scenario: neutral_openers}")


def test_bad_rows_are_found_before_any_model_is_loaded() -> None:
    Path("rows.jsonl").write_text('{"prompt": "fine"}\n{"prompt": ""}\n')
    Path("mine.yaml").write_text("prompts: rows.jsonl\nmoderator: {type: profanity}\n")
    with pytest.raises(ConfigurationError, match="line 2: no text in 'prompt'"):
        resolve(configured("{scenario: mine.yaml}"))
