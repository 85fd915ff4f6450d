"""What a configuration file may say."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import GRPO
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.config.loading import load_config, parse_config
from astra_rl.config.parts import build_moderator
from astra_rl.config.presets import load_preset
from astra_rl.config.resolve import check_training, resolve
from astra_rl.config.schema import RunConfig
from astra_rl.config.signatures import parameters_of
from astra_rl.core.moderator import reason_of
from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.moderators import CachedModerator
from astra_rl.moderators.identity import identity_of
from astra_rl.testing import ToyProblem

MINIMAL = """
attacker: {model: a}
target: {model: b}
moderator: {type: secret_leak}
prompts: {scenario: planted_secrets}
"""


def check_all(config: RunConfig) -> None:
    """Check what only training needs, too."""
    check_training(resolve(config))


def test_a_minimal_file_gets_defaults() -> None:
    config = parse_config(MINIMAL, source="test")
    assert config.algorithm.type == "grpo"
    assert config.seed == 0


def test_the_resolved_configuration_loads_to_the_same() -> None:
    config = load_preset("demo", ["seed=3"])
    assert parse_config(config.to_yaml(), source="test") == config


def test_overrides_change_values_and_are_yaml() -> None:
    config = parse_config(
        MINIMAL, ["training.steps=7", "attacker.lora={rank: 4}", "seed=2"], source="test"
    )
    assert config.training.steps == 7
    assert config.attacker.lora is not None
    assert config.attacker.lora.rank == 4
    assert config.seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.step=7", r"training.step: unknown key. Did you mean 'steps'\?"),
        ("trainin.steps=7", r"trainin: unknown key. Did you mean 'training'\?"),
        ("training.steps=-1", r"training.steps: -1 given; it must be at least 0\."),
        ("training.steps=many", "training.steps: 'many' given; it must be a whole number"),
        ("training.optimizer=adamx", "optimizer='adamx'; choose from .* Did you mean 'adam'"),
        (
            "algorithm.type=ppo2",
            r"algorithm.type: no algorithm 'ppo2'. Did you mean 'ppo'\? Choose from a2c, ",
        ),
        ("algorithm.type=[ppo]", r"algorithm.type: \['ppo'\] given; it must be text"),
        (
            "training.max_nonfinite_losses=0",
            "max_nonfinite_losses: 0 given; it must be at least 1",
        ),
        ("training", "write it as key.subkey=value"),
        ("seed.x=1", "seed: .* given; it must be a whole number"),
        ("attacker.lora={rank: 0}", "attacker.lora.rank: 0 given; it must be at least 1"),
        ("prompts.file=x.txt", "give either scenario or file"),
        (
            "prompts.benchmark=advbench",
            "columns, separator, benchmark and role need file",
        ),
        ("prompts.scenario=planted_secret", "Did you mean 'planted_secrets'"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_and_says_what_is_allowed(override: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse_config(MINIMAL, [override], source="test")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigurationError, match="moderator: missing"):
        parse_config("attacker: {model: a}\ntarget: {model: b}\n", source="test")


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "just text", "a: [", "a: !!python/object:os.system"]
)
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_config(text, source="test")


@given(st.text(max_size=80))
def test_any_text_is_a_configuration_or_a_named_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        parse_config(text, source="test")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the configuration .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_options_of_a_moderator_are_checked_before_any_model_is_loaded() -> None:
    config = parse_config(MINIMAL, ["moderator.options={partial_per_wrd: 0.1}"], source="test")
    with pytest.raises(ConfigurationError, match="Did you mean 'partial_per_word'"):
        resolve(config)


def test_options_of_an_algorithm_are_checked_before_any_model_is_loaded() -> None:
    config = parse_config(MINIMAL, ["algorithm.options={clip_hi: 0.1}"], source="test")
    with pytest.raises(ConfigurationError, match="Did you mean 'clip_high'"):
        resolve(config)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("grpo", "kl_in_reward", 0.5),  # of the family
        ("grpo", "credit", "leaf"),  # of those that compare
        ("ppo", "value_coef", 0.5),  # of those with a value function
        ("ppo_lagrangian", "multiplier_lr", 0.5),
        ("dpo", "beta", 0.5),
        ("simpo", "min_gap", 0.5),  # of those that learn from pairs
    ],
)
def test_options_of_every_base_of_an_algorithm_are_known(
    name: str, option: str, value: object
) -> None:
    more = {"constraints": {"harm_response": {"at_least": 0.5}}} if "lagr" in name else {}
    wrong = option[:-1] + "x"
    right_config, wrong_config = (
        parse_config(
            MINIMAL,
            ["algorithm=" + yaml.safe_dump({"type": name, "options": {each: value, **more}})],
            source="test",
        )
        for each in (option, wrong)
    )
    resolve(right_config)
    with pytest.raises(ConfigurationError, match=f"{wrong}: .* Did you mean '{option}'"):
        resolve(wrong_config)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"beta": 0}, r"algorithm.options.beta: 0 given; it must be above 0"),
        ("cdpo", {"label_smoothing": 0.5}, r"label_smoothing: 0.5 given; it must be below 0.5"),
        ("ipo", {"reduce": "max"}, "reduce: 'max' given; it must be one of 'sum' or 'mean'"),
        ("margin_ipo", {"min_gap": -1}, "min_gap: -1 given; it must be at least 0"),
        ("hinge", {"pairs": "alle"}, "Did you mean 'all'"),
        ("hinge", {"pairs": 3}, "pairs: 3 given; it must be text"),
        ("simpo", {"beta": "high"}, "beta: 'high' given; it must be a number"),
        ("simpo", {"margin": -1}, "margin: -1 given; it must be at least 0"),
        ("kto", {"threshold": True}, "threshold: true given; it must be a number"),
        ("grpo", {"clip_low": 0}, "clip_low: 0 given; it must be above 0"),
        ("ppo", {"epochs": 0}, "epochs: 0 given; it must be at least 1"),
    ],
)
def test_values_of_options_are_checked_before_any_model_is_loaded(
    name: str, options: dict[str, object], message: str
) -> None:
    algorithm = yaml.safe_dump({"type": name, "options": options})
    config = parse_config(MINIMAL, ["algorithm=" + algorithm], source="test")
    with pytest.raises(ConfigurationError, match=message):
        check_all(config)


def test_an_attacker_that_samples_otherwise_is_refused_before_any_model_is_loaded() -> None:
    config = parse_config(MINIMAL, ["attacker.temperature=0.7"], source="test")
    with pytest.raises(
        ConfigurationError, match="GRPO needs attacks sampled from the distribution"
    ):
        check_all(config)
    check_all(
        parse_config(MINIMAL, ["attacker.temperature=0.7", "algorithm.type=dpo"], source="test")
    )
    resolve(config)  # for it may still be evaluated so


def test_an_option_that_must_be_given_is_asked_for_before_any_model_is_loaded() -> None:
    config = parse_config(MINIMAL, ["algorithm.type=ppo_lagrangian"], source="test")
    with pytest.raises(ConfigurationError, match=r"algorithm\.options\.constraints: missing"):
        resolve(config)


def test_a_bound_on_what_the_reward_lacks_is_refused_before_any_model_is_loaded() -> None:
    def bounding(term: str) -> RunConfig:
        bound = f"algorithm.options.constraints={{{term}: {{at_least: 0.5}}}}"
        return parse_config(MINIMAL, ["algorithm.type=ppo_lagrangian", bound], source="test")

    check_all(bounding("harm_response"))
    with pytest.raises(ConfigurationError, match=r"constraints\.harm: the reward has no such"):
        check_all(bounding("harm"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_option_of_an_algorithm_is_an_object(name: str) -> None:
    """What a YAML file cannot say must not be among the names that it may give."""
    assert not {"problem", "loss", "estimator", "compare", "self"} & set(
        parameters_of(ALGORITHMS[name], supplied=1)
    )


def test_the_password_game_learns_as_it_always_did() -> None:
    """Its settings are those that its figures were made with, whatever the defaults become."""
    algorithm = resolve(load_preset("password")).algorithm(ToyProblem())
    assert isinstance(algorithm, GRPO)
    assert algorithm.loss == PolicyLoss(clip_low=0.2, clip_high=0.28, reduce="token")
    assert algorithm.kl.coefficient.value == 0.03
    assert algorithm.kl.in_loss == 0
    assert algorithm.estimator.scale == "batch"


def test_the_demo_is_a_configuration_like_any_other() -> None:
    config = load_preset("demo")
    assert isinstance(config, RunConfig)
    resolve(config)


def moderator(text: str) -> RunConfig:
    return parse_config(MINIMAL.replace("{type: secret_leak}", text), source="test")


NESTED = """
  type: majority
  options: {threshold: 0.5}
  of:
    - {type: secret_leak}
    - {type: inverse, of: [{type: refusal}]}
    - {type: weighted, options: {weights: [2, 1]}, of: [{type: refusal}, {type: secret_leak}]}
"""


def test_moderators_are_composed_in_yaml() -> None:
    config = moderator(NESTED)
    resolve(config)
    assert parse_config(config.to_yaml(), source="test") == config
    judge = build_moderator(config.moderator)
    # no leak (missing: no secret known), complied, and the weights need both: nothing is decided
    assert reason_of(judge.moderate(["Sure."])[0]) is not None
    told = Exchange(Conversation(facts={"secret": "amber falcon"}), "", "Amber falcon.")
    assert judge.moderate([told]) == [1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{type: detoxfy}", r"moderator.type: no moderator 'detoxfy'. Did you mean 'detoxify'\?"),
        ("{type: max}", "max combines other moderators; list them under 'of'"),
        ("{type: refusal, of: [{type: refusal}]}", "refusal does not combine other moderators"),
        ("{type: max, of: [{type: refusel}]}", r"moderator.of.0.type: .*Did you mean 'refusal'"),
        ("{type: max, of: [{tipe: refusal}]}", r"moderator.of.0.tipe: unknown key. Did you mean"),
    ],
)
def test_a_wrong_moderator_is_refused_by_where_it_stands(text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        moderator(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{type: hf_classifier}", r"moderator.options.label: missing"),
        (
            "{type: max, of: [{type: keyword, options: {word: [a]}}]}",
            r"moderator.of.0.options.word: unknown key. Did you mean 'words'",
        ),
        ("{type: 'no_module:X'}", "cannot import 'no_module:X'"),
    ],
)
def test_wrong_options_are_refused_by_where_they_stand(text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        resolve(moderator(text))


def test_a_class_and_a_function_of_ones_own_are_named_by_where_they_are() -> None:
    config = moderator(
        "{type: max, of: [{type: 'astra_rl.testing:ScriptedModerator', "
        "options: {scores: {boom: 0.7}}}]}"
    )
    resolve(config)
    assert build_moderator(config.moderator).moderate(["boom", ""]) == [0.7, 0.0]


def test_a_built_moderator_never_judges_the_same_text_twice() -> None:
    judge = build_moderator(moderator("{type: refusal}").moderator)
    assert isinstance(judge, CachedModerator)
    assert identity_of(judge).name == "RefusalModerator"
