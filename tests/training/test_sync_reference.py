"""A reference that follows the attacker, against TRL's callback, and across a resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from astra_rl import (
    GRPO,
    ASTEnvironment,
    ConfigurationError,
    FunctionModerator,
    Trainer,
    TrainingConfiguration,
)
from astra_rl.config.loading import parse_config
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.models.generation import Sampling
from astra_rl.models.trainable import LoraOptions
from astra_rl.testing import ToyProblem, tiny_model
from astra_rl.training.callbacks import SyncReference
from astra_rl.training.states import load_state, save_state

ROWS = (["say one", "say two"], ["well", "so be it"])


def problem_of(**options: Any) -> HFASTProblem:
    pair = tiny_model("llama")
    sampling = Sampling(max_new_tokens=3)
    return HFASTProblem(
        pair,
        pair,
        pair,
        FunctionModerator(lambda texts: [float(len(text) % 3) / 2 for text in texts]),
        attacker_sampling=sampling,
        target_sampling=sampling,
        dtype="float32",
        **options,
    )


def shift(problem: HFASTProblem, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in problem.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    "options", [{}, {"lora": LoraOptions(rank=2)}, {"trainable_layers": 1}], ids=str
)
def test_a_copy_has_the_probabilities_of_the_attacker_at_that_time(options: Any) -> None:
    problem = problem_of(**options)
    baseline = problem.get_baseline_logprobs(*ROWS)
    torch.testing.assert_close(problem.get_reference_logprobs(*ROWS), baseline)
    shift(problem)
    problem.sync_reference(1.0)
    then = problem.get_attacker_logprobs(*ROWS).detach()
    shift(problem, seed=1)
    now = problem.get_attacker_logprobs(*ROWS).detach()
    torch.testing.assert_close(problem.get_reference_logprobs(*ROWS), then)
    # Neither the attacker nor the baseline has changed by that.
    torch.testing.assert_close(problem.get_attacker_logprobs(*ROWS).detach(), now)
    problem.forget_scores()
    torch.testing.assert_close(problem.get_baseline_logprobs(*ROWS), baseline)
    assert not torch.allclose(then, now)
    assert not torch.allclose(then, baseline)


def test_a_mixture_is_that_of_trl() -> None:
    trl = pytest.importorskip("trl.trainer.callbacks")
    problem = problem_of()
    reference = tiny_model("llama")[0]
    for seed in (0, 1):
        shift(problem, seed)
        problem.sync_reference(0.6)
        trl.SyncRefModelCallback._sync_target_model(problem.attacker, reference, 0.6)
        for ours, theirs in zip(problem.reference_state(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_mean_of_adapters_is_taken() -> None:
    with pytest.raises(ConfigurationError, match="Set it to 1"):
        problem_of(lora=LoraOptions(rank=2)).sync_reference(0.6)
    text = (
        "{attacker: {model: a, lora: {rank: 2}}, target: {model: t}, moderator: {type: refusal}, "
        "prompts: {scenario: planted_secrets}, training: {sync_ref_model: true%s}}"
    )
    with pytest.raises(ConfigurationError, match=r"ref_model_mixup_alpha: 1\.0"):
        parse_config(text % "", source="x")
    parse_config(text % ", ref_model_mixup_alpha: 1.0", source="x")


def test_a_problem_without_it_and_values_out_of_range_are_named() -> None:
    problem = ToyProblem()
    with pytest.raises(ConfigurationError, match="sync_ref_model"):
        problem.sync_reference(1.0)
    for options in ({"every": 0}, {"alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ConfigurationError):
            SyncReference(problem, **options)


def trainer_of(steps: int) -> Trainer[str, str, Any, Any]:
    problem = problem_of()
    environment = ASTEnvironment(problem, ["say one", "say two"], tree_width=2, tree_depth=1)
    config = TrainingConfiguration(
        lr=0.01, training_steps=steps, num_episodes_per_experience=2, seed=3, batch_size=4
    )
    algorithm = GRPO(problem, kl_in_loss=0.5)
    return Trainer(config, environment, algorithm, callbacks=[SyncReference(problem, every=2)])


@pytest.mark.slow
def test_a_resumed_training_has_the_same_reference(tmp_path: Any) -> None:
    whole, first, second = trainer_of(5), trainer_of(3), trainer_of(5)
    whole.train()
    first.train()
    save_state(tmp_path, 3, first.state_dict())
    found = load_state(tmp_path)
    assert found is not None
    second.load_state_dict(found[1])
    second.train()
    for a, b in zip(
        whole.algorithm.problem.parameters(), second.algorithm.problem.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    states = [each.algorithm.problem.reference_state() for each in (whole, second)]
    assert len(states[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
