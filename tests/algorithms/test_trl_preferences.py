"""The losses of the preference family against those of TRL, on the same random log-probabilities.

TRL's own methods run on trainers that were never initialised: the log-probabilities that a model
would give are handed to them, and all else that they look at is what their configurations say.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from astra_rl import CDPO, DPO, IPO, KTO, Hinge, SimPO
from astra_rl.algorithms.dpo import DPOBatch
from astra_rl.algorithms.kto import KTOBatch
from astra_rl.testing import ToyProblem

pytestmark = pytest.mark.slow

MODULES = {
    "DPOTrainer": "trl.trainer.dpo_trainer",
    "KTOTrainer": "trl.trainer.kto_trainer",
    "CPOTrainer": "trl.experimental.cpo.cpo_trainer",
}


def trainer_of_trl(name):
    """Return a trainer class; imported late, because it takes seconds that a collection saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(MODULES[name]), name)


CHOSEN, REJECTED = [5, 1, 3, 7], [2, 6, 4, 1]
LENGTHS = torch.tensor([*CHOSEN, *REJECTED])
WIDTH = int(LENGTHS.max())
MASK = torch.arange(WIDTH) < LENGTHS[:, None]


class Given(ToyProblem):
    """A problem whose attacker gives these log-probabilities."""

    logprobs: torch.Tensor

    def get_attacker_logprobs(self, contexts, continuations):
        return self.logprobs


def draw(seed):
    """Log-probabilities of the policy and of the reference, (8, T)."""
    generator = torch.Generator().manual_seed(seed)
    rows = -torch.rand(2, len(LENGTHS), WIDTH, generator=generator) * 3 - 1e-3
    return torch.where(MASK, rows, torch.zeros_like(rows))


class Accelerator:
    device = torch.device("cpu")

    def gather(self, value):
        return value

    gather_for_metrics = gather


class Model:
    """What TRL asks of a model with a fused head: log-probabilities of shifted labels."""

    training = True

    def __init__(self, logprobs):
        self.logprobs = logprobs

    def __call__(self, **inputs):
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def inputs():
    # the first position is the prompt's; labels are shifted by one
    completion = torch.cat([torch.zeros(len(LENGTHS), 1), MASK.float()], dim=1).long()
    return {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }


def theirs_dpo(policy, reference, loss_type, beta):
    trainer = object.__new__(trainer_of_trl("DPOTrainer"))
    leaf = policy.clone().requires_grad_(True)
    given = {
        "accelerator": Accelerator(),
        "model": Model(leaf),
        "beta": beta,
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(trainer).update(given)
    totals = reference.sum(dim=1)
    references = {"ref_chosen_logps": totals[:4], "ref_rejected_logps": totals[4:]}
    loss = trainer._compute_loss(trainer.model, {**inputs(), **references}, False)
    loss.backward()
    return loss.detach(), leaf.grad, trainer._metrics["train"]


def ours(algorithm, policy, reference):
    algorithm.problem.logprobs = leaf = policy.clone().requires_grad_(True)
    counts = LENGTHS if algorithm.reduce == "mean" else torch.ones(len(LENGTHS))
    sums = reference.sum(dim=1)
    scores = torch.stack([sums, sums / counts]).unflatten(-1, (2, -1)).movedim(-1, 0).tolist()
    pairs = [tuple(map(tuple, each)) for each in scores]
    batch = DPOBatch(["c"] * 4, ["a"] * 4, ["b"] * 4, [1.0] * 4, pairs)
    loss, logs = algorithm.step(batch)
    loss.backward()
    return loss.detach(), leaf.grad, logs


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 1.5])
@pytest.mark.parametrize(("kind", "loss_type"), [(DPO, "sigmoid"), (IPO, "ipo"), (Hinge, "hinge")])
def test_losses_and_gradients_are_those_of_trl(kind, loss_type, beta, seed):
    policy, reference = draw(seed)
    loss, gradient, _ = ours(kind(Given(), beta=beta), policy, reference)
    expected_loss, expected_gradient, _ = theirs_dpo(policy, reference, loss_type, beta)
    close(loss, expected_loss)
    close(gradient, torch.where(MASK, expected_gradient, torch.zeros(())))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "loss_type"), [(DPO, "sigmoid"), (IPO, "ipo"), (Hinge, "hinge")])
def test_metrics_of_the_same_name_are_those_of_trl(kind, loss_type, seed):
    policy, reference = draw(seed)
    _, _, logs = ours(kind(Given(), beta=0.3), policy, reference)
    _, _, expected = theirs_dpo(policy, reference, loss_type, 0.3)
    for name in set(logs) - {"loss"}:
        assert logs[name] == pytest.approx(expected[name][0], abs=1e-5), name


def theirs_cpo(policy, loss_type, beta, smoothing=0.0, gamma=0.0):
    """Their contrastive losses compare whatever log-probabilities they are given."""
    trainer = object.__new__(trainer_of_trl("CPOTrainer"))
    vars(trainer).update(
        alpha=0.0,
        accelerator=Accelerator(),
        loss_type=loss_type,
        beta=beta,
        label_smoothing=smoothing,
        simpo_gamma=gamma,
    )
    return trainer.cpo_loss(policy[:4], policy[4:])[0].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (2.5, 0.0), (0.5, 1.6)])
def test_simpo_is_that_of_trl(beta, margin, seed):
    policy, reference = draw(seed)
    loss, gradient, logs = ours(SimPO(Given(), beta=beta, margin=margin), policy, reference)
    leaf = policy.clone().requires_grad_(True)
    means = leaf.sum(dim=1) / LENGTHS  # as they do for this loss, so their metrics are of means
    expected = theirs_cpo(means, "simpo", beta, gamma=margin)
    expected.backward()
    chosen, rejected = means.detach().chunk(2)
    assert logs["rewards/chosen"] == pytest.approx(beta * chosen.mean().item(), abs=1e-5)
    assert logs["logps/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-5)
    close(loss, expected.detach())
    close(gradient, torch.where(MASK, leaf.grad, torch.zeros(())))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_conservative_dpo_is_that_of_trl(smoothing, seed):
    policy, reference = draw(seed)
    algorithm = CDPO(Given(), beta=0.3, label_smoothing=smoothing)
    loss, gradient, _ = ours(algorithm, policy, reference)
    leaf = policy.clone().requires_grad_(True)
    expected = theirs_cpo((leaf - reference).sum(dim=1), "sigmoid", 0.3, smoothing)
    expected.backward()
    close(loss, expected.detach())
    close(gradient, torch.where(MASK, leaf.grad, torch.zeros(())))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.7)])
def test_kto_is_that_of_trl(weights, seed):
    policy, reference = draw(seed)
    labels = torch.tensor([True, False, False, True, False, True, False, False])
    divergence = 0.37
    trainer = object.__new__(trainer_of_trl("KTOTrainer"))
    leaf = policy.clone().requires_grad_(True)
    vars(trainer).update(
        accelerator=Accelerator(),
        model=Model(leaf),
        beta=0.2,
        loss_type="kto",
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        precompute_ref_logps=True,
        calculate_KL=True,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = lambda model, batch: torch.full((8,), divergence)
    given = {
        **inputs(),
        "label": labels,
        "ref_logps": reference.sum(dim=1),
        "ref_KL_logps": torch.zeros(8),
    }
    expected = trainer._compute_loss(trainer.model, given, False)
    expected.backward()

    algorithm = KTO(Given(), beta=0.2)
    algorithm.problem.logprobs = own = policy.clone().requires_grad_(True)
    batch = KTOBatch(
        ["c"] * 8,
        ["a"] * 8,
        labels,
        torch.where(labels, *map(torch.tensor, weights)),
        reference.sum(dim=1),
        torch.full((8,), divergence),
    )
    loss, logs = algorithm.step(batch)
    loss.backward()
    for name in set(logs) - {"loss"}:
        assert logs[name] == pytest.approx(trainer._metrics["train"][name][0], abs=1e-5), name
    close(loss.detach(), expected.detach())
    close(own.grad, torch.where(MASK, leaf.grad, torch.zeros(())))
