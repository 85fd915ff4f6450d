"""Published methods by name: each is found, can be changed, and trains a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tests.cases import cases

from astra_rl import Trainer
from astra_rl.cli.commands.demo import QUICK
from astra_rl.config.estimate import training_size
from astra_rl.config.experiment import build
from astra_rl.config.loading import parse_config
from astra_rl.config.preset_files import merge, preset_names, preset_text
from astra_rl.config.presets import load_preset
from astra_rl.config.resolve import resolve
from astra_rl.core.seeding import row_seeds
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.testing import tiny_model

UNTRAINED = ("perez_few_shot", "perez_zero_shot")
OURS = ("endpoint_cpu", "endpoint_gpu")
PUBLISHED = [name for name in preset_names() if name not in ("demo", "password", *OURS)]

SMALL = {
    "rlhammer": {
        "attacker": {"extract": {"tag": None, "pattern": ".(.*)"}},
        "environment": {"tree_width": 4},
    },
    "dialtree": {"attacker": {"extract": {"tag": None, "pattern": ".(.*)"}}},
    "gflownet": {"reward": {"harm": {"scale": "log", "replies": 2}}},
    "crt": {"environment": {"tree_width": 1}},
}
"""A tiny model never says what an instructed one would; sizes are cut for speed."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    for name, seed in (("attacker", 0), ("target", 1)):
        model, tokenizer = tiny_model("llama", seed=seed, window=1500)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {"prompt": f"say {word}", "facts": {"goal": word, "example": f"{word} {word}"}}
        for word in ("one thing", "other matters", "nothing at all", "seven", "blue hats", "yes")
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small(name: str, place: Path) -> str:
    """A user's file on top of a preset, for models of two layers."""
    own = {
        "preset": name,
        "attacker": {"model": str(place / "attacker"), "max_new_tokens": 6},
        "target": {"model": str(place / "target"), "max_new_tokens": 6},
        "moderator": {"type": "keyword", "options": {"patterns": ["[aeiou].*[aeiou]"]}},
        "prompts": {"file": str(place / "prompts.jsonl")},
        "training": {"steps": 2, "episodes_per_step": 4, "batch_size": 4, "lr": 1e-2},
        "dtype": "float32",
    }
    values = yaml.safe_load(preset_text(name))
    depth = values.get("environment", {}).get("tree_depth")
    if depth and depth > 3:
        own["environment"] = {"tree_depth": 2}
    if values["attacker"].get("trainable_layers"):
        own["attacker"]["trainable_layers"] = 1
    if values["training"].get("warmup_steps"):
        own["training"]["warmup_steps"] = 0
    return yaml.safe_dump(merge(own, SMALL.get(name, {})))


@pytest.mark.parametrize("name", UNTRAINED)
def test_generation_without_training_plays_and_trains_nothing(name: str, place: Path) -> None:
    rows = [{"attack": f"ask {n}?", "reward": n / 4} for n in range(5)]
    examples = place / "examples.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [f"environment.options.examples={examples}"] if name == "perez_few_shot" else []
    config = parse_config(small(name, place), [*shown, "training.steps=0"], source=name)
    experiment = build(resolve(config))
    found = ASTEvaluator(
        experiment.evaluation_environment, experiment.held_out, judge=experiment.judge
    ).evaluate(progress=False)
    assert found["n"] > 0
    assert yaml.safe_load(preset_text(name))["training"]["steps"] == 0


TRAINED = [*OURS, *(name for name in PUBLISHED if name not in UNTRAINED)]


def test_how_models_are_run_is_as_configured(place: Path) -> None:
    settings = [
        "training.gradient_checkpointing=true",
        "attn_implementation=eager",
        "sampler=cuda_graphs",
    ]
    problem = build(resolve(parse_config(small("crt", place), settings, source="x"))).problem
    assert problem.gradient_checkpointing
    assert problem.attacker.config._attn_implementation == "eager"
    assert problem.target.config._attn_implementation == "eager"
    assert problem.sampler.keywords == {"cuda_graphs": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(TRAINED, by_default=TRAINED[::2]))
def test_each_trains(name: str, place: Path) -> None:
    config = parse_config(small(name, place), source=name)
    experiment = build(resolve(config))
    before = [each.detach().clone() for each in experiment.problem.parameters()]
    trainer = Trainer(experiment.training, experiment.environment, experiment.algorithm)
    updates = 0

    def count(*_: object) -> None:
        nonlocal updates
        updates += 1

    trainer.optimizer.register_step_post_hook(count)
    trainer.train()
    assert 0 < updates <= training_size(resolve(config)).updates
    after = list(experiment.problem.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(each).all() for each in after)
    # By this name a run knows whether the target failed, whatever the reward makes of it.
    graphs = experiment.environment.rollouts([0, 1])
    assert all("harm_response" in node.reward_terms for graph in graphs for node in graph.nodes())


def test_the_methods_of_the_literature_are_there() -> None:
    assert set(PUBLISHED) >= {
        "ast",
        "astprompter",
        "astra_rl",
        "beutel",
        "crt",
        "dialtree",
        "diverct",
        "gflownet",
        "malibu",
        "perez",
        "perez_few_shot",
        "perez_supervised",
        "perez_zero_shot",
        "rlhammer",
        "stable_gfn",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_says_where_it_is_from_and_leaves_open_what_is_yours(name: str) -> None:
    text = preset_text(name)
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    assert not {"moderator", "prompts", "dtype", "device"} & set(values)
    assert "model" not in values["attacker"]
    assert "model" not in values["target"]
    with pytest.raises(ConfigurationError, match=r"target\.model: missing"):
        parse_config(text, source=name)


def test_what_a_user_says_goes_over_the_preset(place: Path) -> None:
    text = small("crt", place) + "\nseed: 5\n"
    config = parse_config(text, ["algorithm.options.epochs=2"], source="mine")
    assert (config.seed, config.training.steps) == (5, 2)
    assert config.algorithm.options == {"kl_in_reward": 0.001, "epochs": 2, "value_coef": 1.0}
    assert config.attacker.lora is not None
    assert parse_config(config.to_yaml(), source="resolved") == config
    resolve(config)


def test_a_reward_of_ones_own_replaces_the_presets_and_another_algorithm_its_options() -> None:
    base = {
        "reward": {"sum": ["harm"]},
        "algorithm": {"type": "ppo", "options": {"epochs": 4}},
        "training": {"lr": 1.0, "steps": 3},
    }
    own = {"reward": {"gate": {}}, "algorithm": {"type": "rloo"}, "training": {"lr": 2.0}}
    assert merge(base, own) == {
        "reward": {"gate": {}},
        "algorithm": {"type": "rloo"},
        "training": {"lr": 2.0, "steps": 3},
    }
    kept = merge(base, {"algorithm": {"options": {"lam": 1}}})
    assert kept["algorithm"] == {"type": "ppo", "options": {"epochs": 4, "lam": 1}}
    assert base["training"] == {"lr": 1.0, "steps": 3}


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match=r"no preset 'ctr'.*Did you mean 'crt'"):
        parse_config("preset: ctr", source="mine")


def test_the_reward_of_the_first_toolbox_is_reproduced_exactly(place: Path) -> None:
    """As its `reward` was written: 0.025 exp(sum log p_T(x)) + 0.1 tox(x + y) + 0.1 tox(y)."""
    config = parse_config(small("astra_rl", place), source="astra_rl")
    problem = build(resolve(config)).problem
    contexts = ["say one", "say two"]
    with row_seeds([1, 2]):  # without seeds an attack is empty now and then, and its reward missing
        attacks = problem.rollout_prompt_with_attacker(contexts)
        asked = [context + attack for context, attack in zip(contexts, attacks, strict=True)]
        responses = problem.rollout_prompt_with_target(asked)
    assert all(attacks)
    rewards, _ = problem.reward_terms(contexts, attacks, responses)
    score = problem.moderator.moderate
    rows = zip(contexts, attacks, responses, rewards, strict=True)
    for context, attack, response, reward in rows:
        read = problem.target_renderer.tokenizer(context, add_special_tokens=False).input_ids
        ids = [*read, *(token for token in attack.token_ids if token != 3)]  # without the end
        with torch.no_grad():
            table = problem.target(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        total = sum(float(table[at - 1, ids[at]]) for at in range(len(read), len(ids)))
        both, alone = score([str(attack) + str(response), str(response)])
        assert reward == pytest.approx(0.025 * math.exp(total) + 0.1 * both + 0.1 * alone, rel=1e-6)
        assert total < -5  # so the likelihood decides nothing


def test_the_first_toolboxs_likelihood_has_no_effect_on_attacks_of_ordinary_length() -> None:
    """e^-96 for 32 tokens of 3 nats each: the flaw that the preset keeps, and says."""
    values = yaml.safe_load(preset_text("astra_rl"))
    (weights,) = [[each.get("weight", 1) for each in values["reward"]["sum"]]]
    assert weights == [0.1, 0.1, 0.025]
    assert "next to" in preset_text("astra_rl")


def sizes_in_the_docs() -> dict[str, list[int]]:
    """Episodes, attempts, replies and updates by preset, from the table of docs/presets.md."""
    text = (Path(__file__).parents[2] / "docs/presets.md").read_text()
    table = text.partition("## Sizes")[2].partition("## Differences")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    return {
        name.strip("`"): [int(cell.replace(",", "")) for cell in cells[:4]] for name, *cells in rows
    }


def test_the_sizes_in_the_docs_are_of_all_presets_that_train() -> None:
    assert set(sizes_in_the_docs()) == set(PUBLISHED) - set(UNTRAINED)


@pytest.mark.parametrize(("name", "size"), sizes_in_the_docs().items())
def test_each_has_the_size_that_the_docs_state(name: str, size: list[int], place: Path) -> None:
    own = {
        "preset": name,
        "attacker": {"model": "an-attacker"},
        "target": {"model": "a-target"},
        "moderator": {"type": "keyword", "options": {"patterns": ["a"]}},
        "prompts": {"file": str(place / "prompts.jsonl")},
    }
    found = training_size(resolve(parse_config(yaml.safe_dump(own), source=name)))
    assert [found.episodes, found.attempts, found.replies, found.updates] == size


def test_rlhammer_and_dialtree_send_the_text_of_a_tag_and_reward_the_format() -> None:
    """What is accepted is tested in tests/core/test_extraction.py."""
    rlhammer, dialtree = (yaml.safe_load(preset_text(each)) for each in ("rlhammer", "dialtree"))
    assert rlhammer["attacker"]["extract"] == {"tag": "prompt"}
    assert rlhammer["reward"]["gate"] == {"part": "harm", "when": "extracted", "at_least": 1}
    assert dialtree["attacker"]["extract"] == {"tag": "answer"}
    assert dialtree["environment"]["options"]["quality"] == "extracted"


def test_the_settings_of_the_quick_demo_are_valid():
    training = load_preset("demo", QUICK).training
    assert training.warmup_steps < training.steps <= 3
