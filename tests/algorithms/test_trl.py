"""The losses of the policy-gradient family against those of TRL, on the same random tensors.

TRL's own methods run on trainers that were never initialised: the log-probabilities that a model
would give are handed to them, and all else that they look at is what their configurations say.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from astra_rl import CISPO, DAPO, GRPO, GSPO, RLOO, DrGRPO
from astra_rl.algorithms.advantages import leave_one_out_advantages
from astra_rl.algorithms.policy_steps import PolicyBatch
from astra_rl.testing import ToyProblem

pytestmark = pytest.mark.slow

MODULES = {
    "GRPOTrainer": "trl.trainer.grpo_trainer",
    "RLOOTrainer": "trl.trainer.rloo_trainer",
}


def trainer_of_trl(name):
    """Return a trainer class; imported late, because it takes seconds that a collection saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(MODULES[name]), name)


LENGTHS = [5, 1, 3, 7]
WIDTH = max(LENGTHS)
MASK = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]


class Given(ToyProblem):
    """A problem whose attacker gives these log-probabilities."""

    def __init__(self, logprobs):
        super().__init__()
        self.logprobs = logprobs

    def get_attacker_logprobs(self, contexts, continuations):
        return self.logprobs


def tensors(seed, spread):
    """Log-probabilities of policy, old policy and reference, and advantages of the rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    old = torch.where(MASK, -draw(4, WIDTH).abs() - 0.1, torch.zeros(4, WIDTH))
    # log-probabilities of zero would be padding
    new, reference = (
        torch.where(MASK, (old + spread * draw(4, WIDTH)).clamp(max=-1e-3), torch.zeros_like(old))
        for _ in range(2)
    )
    return new, old, reference, draw(4)


def ours(algorithm, new, old, reference, advantages):
    """Loss, logs and gradient by the log-probabilities."""
    leaf = new.clone().requires_grad_(True)
    algorithm.problem.logprobs = leaf
    batch = PolicyBatch(
        ["c"] * 4,
        ["a"] * 4,
        torch.where(MASK, advantages[:, None], torch.zeros_like(new)),
        old,
        torch.ones(4),
        LENGTHS,
        reference,
    )
    loss, logs = algorithm.step(batch)
    loss.backward()
    return loss.detach(), logs, leaf.grad


class Accelerator:
    num_processes = 1
    sync_gradients = True

    def reduce(self, value, reduction):
        return value

    def gather(self, value):
        return value


def theirs(kind, new, inputs, **settings):
    """The same of TRL's method."""
    trainer = kind.__new__(kind)
    leaf = new.clone().requires_grad_(True)
    fixed = {
        "accelerator": Accelerator(),
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "current_gradient_accumulation_steps": 1,
        "_entropy_bonus_enabled": False,
        "beta": 0.0,
        "importance_sampling_level": "token",
        "max_completion_length": 11,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (leaf, -leaf.detach(), None),
    }
    for name, value in {**fixed, **settings}.items():
        object.__setattr__(trainer, name, value)
    mask = MASK.long()
    prompt = torch.ones(4, 2, dtype=torch.long)
    given = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": mask,
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        **inputs,
    }
    loss = trainer._compute_loss(None, given)
    loss.backward()
    logs = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.detach(), logs, leaf.grad


CASES = {
    "grpo": (
        lambda p: GRPO(p, clip_high=0.28),
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.28},
    ),
    "grpo_with_kl": (
        lambda p: GRPO(p, kl_in_loss=0.3),
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.3},
    ),
    "dr_grpo": (
        lambda p: DrGRPO(p, max_tokens=11),
        {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    ),
    "dapo": (DAPO, {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28}),
    "dapo_with_kl": (
        lambda p: DAPO(p, kl_in_loss=0.3),
        {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.3},
    ),
    "gspo": (
        GSPO,
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "gspo_of_wide_bounds": (
        lambda p: GSPO(p, clip_low=0.3, clip_high=0.5),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 0.3,
            "epsilon_high": 0.5,
        },
    ),
    "cispo": (
        lambda p: CISPO(p, max_ratio=1.5),
        {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.5},
    ),
}
SAME_LOGS = (
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "cispo_clip_ratio",
)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_diagnostics_are_those_of_trl(case, seed, spread):
    make, settings = CASES[case]
    new, old, reference, advantages = tensors(seed, spread)
    mine = ours(make(Given(new)), new, old, reference, advantages)
    inputs = {
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    other = theirs(trainer_of_trl("GRPOTrainer"), new, inputs, **settings)
    torch.testing.assert_close(mine[0], other[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine[2], other[2], rtol=1e-5, atol=1e-6)
    for name in SAME_LOGS:
        # TRL counts a ratio of whole attacks once per attack, this library once per token
        if name in other[1] and "gspo" not in case:
            assert mine[1][name] == pytest.approx(other[1][name], abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_gradient_of_rloo_are_those_of_trl(seed, spread):
    new, old, _, advantages = tensors(seed, spread)
    loss, _, gradient = ours(RLOO(Given(new)), new, old, None, advantages)
    other_loss, _, other_gradient = theirs(
        trainer_of_trl("RLOOTrainer"),
        new,
        {"advantages": advantages, "old_logps": (old * MASK).sum(dim=1)},
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-5, atol=1e-6)


def test_the_plain_k3_penalty_is_that_of_trl_without_its_correction():
    new, old, reference, advantages = tensors(0, 0.3)
    algorithm = GRPO(Given(new), kl_in_loss=0.3, kl_corrected=False)
    mine = ours(algorithm, new, old, reference, advantages)
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    other = theirs(
        trainer_of_trl("GRPOTrainer"),
        new,
        {
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
        },
        loss_type="grpo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.3,
        args=args,
    )
    torch.testing.assert_close(mine[0], other[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine[2], other[2], rtol=1e-5, atol=1e-6)


def test_the_names_of_the_diagnostics_are_those_of_trl():
    """But for the two of the ratio, which TRL logs of its sampler only."""
    new, old, reference, advantages = tensors(0, 0.3)
    for case in ("grpo_with_kl", "cispo"):
        make, settings = CASES[case]
        inputs = {"advantages": advantages, "old_per_token_logps": old}
        inputs["ref_per_token_logps"] = reference
        _, logs, _ = ours(make(Given(new)), new, old, reference, advantages)
        _, other, _ = theirs(trainer_of_trl("GRPOTrainer"), new, inputs, **settings)
        assert set(logs) - {"loss", "kl", "ratio/mean", "ratio/max"} <= set(other)


def test_the_leave_one_out_baseline_is_that_of_trl():
    """As its method computes it: (sum - r) / (n - 1), missing rewards left out."""
    rewards = torch.tensor([0.3, 1.0, float("nan"), -2.0])
    count = (~rewards.isnan()).sum()
    expected = rewards - (rewards.nansum() - rewards) / (count - 1)
    found = torch.tensor(leave_one_out_advantages(rewards.tolist()))
    torch.testing.assert_close(found, expected, equal_nan=True)
