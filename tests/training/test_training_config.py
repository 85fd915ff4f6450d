import dataclasses

import pytest
import torch

from astra_rl import GRPO, ConfigurationError, Trainer, TrainingConfiguration
from astra_rl.ext.transformers import HFASTConfiguration
from astra_rl.methods import ASTEnvironment
from astra_rl.testing import ToyProblem

OPTIMIZERS = ["adam", "adamw", "sgd", "rmsprop", "adagrad"]


def test_the_six_fields_of_the_guide_are_taken_by_keyword():
    config = TrainingConfiguration(
        lr=1e-5,
        batch_size=4,
        optimizer="adamw",
        gradient_accumulation_steps=1,
        training_steps=1000,
        num_episodes_per_experience=2,
    )
    assert (config.lr, config.batch_size, config.optimizer) == (1e-5, 4, "adamw")
    assert config.seed is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_optimizers_are_known(name):
    assert TrainingConfiguration(optimizer=name).optimizer == name


def test_a_wrong_optimizer_names_all_five_and_the_nearest():
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfiguration(optimizer="admw")
    message = str(caught.value)
    assert "optimizer='admw'" in message
    assert all(repr(name) in message for name in OPTIMIZERS)
    assert "Did you mean 'adamw'?" in message


def test_an_optimizer_of_ones_own_is_named_by_its_import_path():
    config = TrainingConfiguration(optimizer="torch.optim:NAdam", weight_decay=0.1)
    problem = ToyProblem()
    environment = ASTEnvironment(problem, ["Hello"], tree_width=2, tree_depth=1)
    trainer = Trainer(config, environment, GRPO(problem))
    assert type(trainer.optimizer) is torch.optim.NAdam
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("optimizer", ["AdamW", "", None, ["adamw"], 3, dict])
def test_what_is_no_name_of_an_optimizer_is_refused_too(optimizer):
    with pytest.raises(ConfigurationError, match="choose from"):
        TrainingConfiguration(optimizer=optimizer)


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize("field", ["lr", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1e-5, nan, inf, -inf])
def test_a_number_that_is_not_positive_and_finite_is_refused(field, value):
    with pytest.raises(
        ConfigurationError, match=rf"{field}={value}; it must be positive and finite"
    ):
        TrainingConfiguration(**{field: value})


@pytest.mark.parametrize("value", [True, "1e-5", [1e-5]])
def test_what_is_no_number_is_refused_as_a_learning_rate(value):
    with pytest.raises(ConfigurationError, match=r"lr=.*it must be a number"):
        TrainingConfiguration(lr=value)
    with pytest.raises(ConfigurationError, match="lr=None"):
        TrainingConfiguration(lr=None)


COUNTS = ["batch_size", "gradient_accumulation_steps", "num_episodes_per_experience"]


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused(field, value):
    with pytest.raises(ConfigurationError, match=f"{field}={value}; it must be at least 1"):
        TrainingConfiguration(**{field: value})


@pytest.mark.parametrize("field", [*COUNTS, "training_steps", "seed"])
@pytest.mark.parametrize("value", [True, False, 2.0, "4"])
def test_a_count_must_be_a_whole_number_and_no_flag(field, value):
    with pytest.raises(ConfigurationError, match=f"{field}=.*it must be a whole number"):
        TrainingConfiguration(**{field: value})


def test_zero_steps_and_seed_zero_are_allowed_and_negative_ones_are_not():
    assert TrainingConfiguration(training_steps=0, seed=0).seed == 0
    for field in ("training_steps", "seed"):
        with pytest.raises(ConfigurationError, match=f"{field}=-1; it must be at least 0"):
            TrainingConfiguration(**{field: -1})


def test_positions_and_unknown_names_are_refused():
    with pytest.raises(TypeError):
        TrainingConfiguration(1e-5)
    with pytest.raises(TypeError, match="learning_rate"):
        TrainingConfiguration(learning_rate=1e-5)


def test_a_subclass_may_set_attributes_of_its_own():
    class MyConfig(TrainingConfiguration):
        def __init__(self):
            super().__init__(lr=1e-4, training_steps=3)
            self.eval_every = 100
            self.ckpt_dir = "checkpoints"

    config = MyConfig()
    assert (config.lr, config.eval_every, config.ckpt_dir) == (1e-4, 100, "checkpoints")
    config.training_steps = 7
    assert config.training_steps == 7


def test_a_subclass_is_checked_as_well():
    class MyConfig(TrainingConfiguration):
        def __init__(self):
            super().__init__(lr=-1)

    with pytest.raises(ConfigurationError, match="lr=-1"):
        MyConfig()


def test_the_configuration_for_transformers_takes_arguments_and_has_defaults():
    assert HFASTConfiguration(lr=1e-4).lr == 1e-4
    assert HFASTConfiguration().training_steps == 1000
    assert HFASTConfiguration(training_steps=2, optimizer="sgd", seed=0).training_steps == 2
    names = {field.name for field in dataclasses.fields(HFASTConfiguration)}
    assert names >= {field.name for field in dataclasses.fields(TrainingConfiguration)}
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        HFASTConfiguration(batch_size=0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_options_of_adam_reach_the_optimizer(name):
    config = TrainingConfiguration(
        optimizer=name, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.1
    )
    problem = ToyProblem()
    trainer = Trainer(config, ASTEnvironment(problem, ["one"]), GRPO(problem))
    group = trainer.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_weight_decay_and_none_by_default(name):
    for options, expected in (({}, 0.0), ({"weight_decay": 0.1}, 0.1)):
        config = TrainingConfiguration(optimizer=name, **options)
        assert config.optimizer_options()["weight_decay"] == expected


@pytest.mark.parametrize("wrong", [{"adam_beta1": 1.0}, {"adam_beta2": -0.1}, {"weight_decay": -1}])
def test_options_of_the_optimizer_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=str(next(iter(wrong)))):
        TrainingConfiguration(**wrong)
