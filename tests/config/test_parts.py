"""Rewards and environments as a configuration file says them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from astra_rl.agents.assignment import assignments
from astra_rl.config.construct import bind_section, build_reward_part
from astra_rl.config.loading import parse_config
from astra_rl.config.parts import PartResolver
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import EnvironmentConfig
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.methods.environments import ENVIRONMENTS, PrunedTreeEnvironment
from astra_rl.models.settings import Loading
from astra_rl.rewards import (
    REWARDS,
    Constrained,
    EmbeddingNovelty,
    FunctionTerm,
    Gate,
    Gibberish,
    Harm,
    NovelFailureReward,
    Product,
    RewardPart,
    SelfBLEU,
    WeightedSum,
)
from astra_rl.rewards.base import walk
from astra_rl.testing import ToyProblem, check_environment

MINIMAL = """
attacker: {model: a}
target: {model: b}
moderator: {type: secret_leak}
prompts: {scenario: planted_secrets}
"""


def make(text: str) -> RewardPart:
    return build_reward_part("reward", yaml.safe_load(text), PartResolver(Loading()))


def test_a_name_alone_is_a_part() -> None:
    assert isinstance(make("harm"), Harm)


def test_a_sum_is_a_list_of_parts_with_weights() -> None:
    reward = make("""
        sum:
          - harm: {of: exchange, replies: 2}
          - self_bleu: {orders: [2, 3], window: null}
            weight: 0.5
          - kl
    """)
    assert isinstance(reward, WeightedSum)
    (harm, bleu, _), weights = reward.parts, list(reward.weights.values())
    assert weights == [1.0, 0.5, 1.0]
    assert isinstance(harm, Harm)
    assert isinstance(bleu, SelfBLEU)
    assert (harm.of, harm.replies, bleu.orders, bleu.window) == ("exchange", 2, [2, 3], None)


def test_parts_stand_in_parts() -> None:
    reward = make("""
        constraint:
          part:
            product:
              - embedding_novelty: {nearest: 4, embedder: hashing}
              - gate: {part: harm, when: {min_k: {k: 3}}, at_least: -10}
          limits:
            - {part: {gibberish: {moderator: profanity}}, at_most: 0.1}
          lr: 0.1
    """)
    assert isinstance(reward, Constrained)
    kinds = [type(part) for part in walk(reward)]
    assert kinds[:4] == [Constrained, Product, EmbeddingNovelty, Gate]
    assert isinstance(reward.limits[0].part, Gibberish)
    assert (reward.limits[0].at_most, reward.lr) == (0.1, 0.1)


def test_a_part_may_be_given_another_name() -> None:
    reward = make("product: [{harm: {}, name: mine}, {harm: {}}]")
    assert [part.name for part in reward.parts] == ["mine", "harm_response"]


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_part_can_be_made_from_a_file(name: str) -> None:
    needed = {
        "sum": [{"harm": {}}],
        "product": ["harm"],
        "gate": {"part": "harm", "when": "kl", "at_least": 0},
        "constraint": {"part": "kl", "limits": [{"part": "harm", "at_least": 0.5}]},
        **{
            each: {"part": "harm"}
            for each in ("rank", "standardized", "threshold", "sigmoid", "clip", "affine")
        },
        "general_sum_game": {"role": "defender", "refusal": "profanity"},
        "several_targets": {
            "others": [
                "a-model",
                {"model": "another", "max_new_tokens": 4},
                {"type": "astra_rl.testing:echo"},
            ],
            "moderator": "profanity",
        },
        "gibberish": {"moderator": {"type": "profanity"}},
        "format": {"pattern": "a"},
        "response_likelihood": {"text": "yes"},
    }
    assert isinstance(make(yaml.safe_dump({name: needed.get(name, {})})), RewardPart)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("harmm", r"reward.harmm: no reward 'harmm'. Did you mean 'harm'\? Choose from affine, "),
        ("harm: {scal: log}", r"reward.harm.scal: unknown key. Did you mean 'scale'\?"),
        ("harm: {of: prompt}", r"reward.harm.of: 'prompt' given; it must be one of 'response', "),
        ("harm: {replies: many}", r"reward.harm.replies: 'many' given; it must be a whole number"),
        ("harm: {replies: 0}", r"reward.harm: replies=0; it must be at least 1"),
        (
            "sum: [{harm: {}, weight: much}]",
            r"reward.sum\[0\].weight: 'much' given; it must be a number",
        ),
        ("sum: {harm: 1}", r"reward.sum.harm: unknown key"),
        ("sum: [{harm: {}, kl: {}}]", r"\['harm', 'kl'\] given; name one part"),
        ("sum: [{1.5: {}, kl: {}}]", r"\['1.5', 'kl'\] given; name one part"),
        ("sum: [{weight: 1}]", r"reward.sum\[0\]: nothing given; name one part"),
        ("product: harm", r"reward.product: 'harm' given; write names and values"),
        ("product: {factors: harm}", r"reward.product.factors: 'harm' given; write a list"),
        ("{harm: {}, weight: 2}", "weight is for the parts of a sum"),
        ("gate: {part: harm}", r"reward.gate.when: missing; it must be given"),
        ("gate: {part: harm, when: kl}", "reward.gate: a gate needs a bound"),
        ("rank: {part: {harm: {om: 1}}}", r"reward.rank.part.harm.om: unknown key"),
        ("novel_failure: {nll: {product: [kl]}}", "is not a RewardTerm"),
        ("embedding_novelty: {embedder: hashin}", "Did you mean 'hashing'"),
        ("3", "3 given; write names and values"),
        ("[harm]", r"\['harm'\] given; write names"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(text)


def test_a_part_of_one_s_own_needs_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def brevity(limit: int = 100) -> FunctionTerm:
        return FunctionTerm(lambda turns: [1 - len(t.attack) / limit for t in turns], "brevity")

    class Bare(Harm):
        def __init__(self, anything=None) -> None:  # type: ignore[no-untyped-def]
            super().__init__()
            self.anything = anything

    monkeypatch.setitem(REWARDS, "my_brevity", brevity)
    monkeypatch.setitem(REWARDS, "bare", Bare)
    assert make("my_brevity: {limit: 50}").name == "brevity"
    bare = make("bare: {anything: [1, x]}")
    assert isinstance(bare, Bare)
    assert bare.anything == [1, "x"]


# In a whole configuration, before any model is loaded.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward=harmm", "reward.harmm: no reward 'harmm'"),
        ("reward.sum=[{harm: {of: x}}]", r"reward.sum\[0\].harm.of"),
        (
            "reward={gibberish: {moderator: {type: profane}}}",
            "moderator.type: no moderator 'profane'. Did you mean",
        ),
        (
            "reward={gibberish: {moderator: {type: secret_leak, options: {secrt: a}}}}",
            "moderator.options.secrt: unknown key. Did you mean 'secret'",
        ),
        ("environment.type=tre", "environment.type: no environment 'tre'. Did you mean 'tree'"),
        ("environment.options={keep: 3}", "environment.options.keep: unknown key"),
        (
            "environment={type: pruned_tree, options: {keeep: 3}}",
            "environment.options.keeep: unknown key. Did you mean 'keep'",
        ),
        ("environment={type: pruned_tree, options: {keep: 0}}", "keep=0; it must be at least 1"),
        ("environment={type: single_turn, tree_depth: 2}", "environment.tree_depth: unknown key"),
        (
            "environment={type: self_play, options: {defender_reward: {harm: {scal: 1}}}}",
            "environment.options.defender_reward.harm.scal: unknown key",
        ),
        ("environment={type: attempts, options: {feedback: f}}", "a function cannot be given"),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_model_is_loaded(
    override: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(parse_config(MINIMAL, [override], source="test"))


def test_checking_a_reward_does_not_make_its_moderators() -> None:
    model = "{type: hf_classifier, options: {model_id: /no/such/model, label: x}}"
    config = parse_config(MINIMAL, [f"reward={{gibberish: {{moderator: {model}}}}}"], source="test")
    resolve(config)


def test_the_resolved_configuration_keeps_the_reward() -> None:
    config = parse_config(MINIMAL, ["reward.product=[harm, {rank: {part: self_bleu}}]"], source="t")
    assert parse_config(config.to_yaml(), source="test") == config


def test_the_demo_is_paid_for_novel_failures() -> None:
    reward = make("""
        novel_failure:
          novelty_share: 0.6
          novelty: {word_novelty: {nearest: 7, kind: 0.5}}
          nll_weight: 0.05
          free_nll: 3.0
          nll: {attack_nll: {under: baseline}}
    """)
    assert isinstance(reward, NovelFailureReward)
    assert (reward.novelty_share, reward.nll_weight, reward.free_nll) == (0.6, 0.05, 3.0)
    assert vars(reward.novelty) == {"nearest": 7, "kind": 0.5}
    assert reward.nll.name == "attack_nll_baseline"


def built(config: EnvironmentConfig, openings: Sequence[str]) -> ASTEnvironment:
    bound = bind_section("environment", config, PartResolver(), supplied=2)
    environment: ASTEnvironment = bound(ToyProblem(), openings)
    return environment


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_environment_can_be_made_from_a_file(name: str, tmp_path: Path) -> None:
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"attack": "boom", "reward": 1}\n' * 4)
    needed = {"few_shot": {"examples": str(examples)}}
    config = EnvironmentConfig(type=name, tree_width=3, options=needed.get(name, {}))
    agents = [each.opening() for each in assignments("files", "test")[:2]]
    environment = built(config, agents if name == "tools" else ["one", "two"])
    assert type(environment) is ENVIRONMENTS[name]
    assert environment.tree_width == 3
    check_environment(environment)


def test_options_of_an_environment_may_be_parts_of_rewards() -> None:
    config = EnvironmentConfig(
        type="pruned_tree", options={"keep": 2, "quality": {"format": {"pattern": "a"}}}
    )
    environment = built(config, ["one"])
    assert isinstance(environment, PrunedTreeEnvironment)
    assert environment.quality is not None
    assert environment.quality.name == "format"
