"""A sampler whose policy is not the one that is trained, and the correction of its gradient."""

import itertools
import math

import pytest
import torch

from astra_rl import Graph, PolicyGradient, PolicyStep, Utterance
from astra_rl.algorithms import ALGORITHMS
from astra_rl.algorithms.credit import Credit
from astra_rl.algorithms.estimators import MonteCarloReturn
from astra_rl.algorithms.losses import PolicyLoss
from astra_rl.algorithms.mismatch import MismatchCorrection, mismatch_ratios, mismatch_weights
from astra_rl.errors import ConfigurationError
from astra_rl.testing import ToyProblem

RATIO = "sampling/importance_sampling_ratio"
LENGTH = 3
TEXTS = torch.tensor(list(itertools.product(range(3), repeat=LENGTH)))
REWARDS = [float((row * torch.tensor([1, 2, 3])).sum() % 4) for row in TEXTS]


def table(seed, scale=1.0):
    """Logits of each token given the tokens before it, one row per prefix."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn((3**LENGTH - 1) // 2, 3, generator=generator)


def logprobs_of(logits):
    """Of all 27 texts, (27, 3)."""
    known = logits.log_softmax(dim=-1)
    columns, prefix, first = [], torch.zeros(len(TEXTS), dtype=torch.long), 0
    for position in range(LENGTH):
        columns.append(known[first + prefix, TEXTS[:, position]])
        prefix, first = 3 * prefix + TEXTS[:, position], first + 3**position
    return torch.stack(columns, dim=1)


class Enumerated(ToyProblem):
    """An attacker over all texts, which are named by their number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits.clone().requires_grad_(True)

    def get_attacker_logprobs(self, contexts, continuations):
        rows = logprobs_of(self.logits)
        return rows[[int(each) for each in continuations]] if continuations else rows[:0]


def ascent(sampler, policy, *, surrogate="clip", reduce="sequence_sum", **options):
    """The expected gradient of the algorithm, enumerated: each text weighs mu; and its metrics."""
    problem = Enumerated(policy)
    loss = PolicyLoss(surrogate=surrogate, reduce=reduce)
    algorithm = PolicyGradient(problem, MonteCarloReturn(Credit("turn")), loss, **options)
    sampled = logprobs_of(sampler)
    steps = [
        PolicyStep(
            "c",
            Utterance(str(row), token_ids=TEXTS[row].tolist(), logprobs=sampled[row].tolist()),
            REWARDS[row],
            weight=float(sampled[row].sum().exp()),
        )
        for row in range(len(TEXTS))
    ]
    batch = algorithm.collate_fn(algorithm.prepare(steps))
    algorithm.step(batch)[0].backward()
    return -problem.logits.grad, algorithm.experience_metrics()


def expected(policy, weights):
    """Sum over the texts and tokens of weight * reward * d log pi."""
    logits = policy.clone().requires_grad_(True)
    (weights * torch.tensor(REWARDS)[:, None] * logprobs_of(logits)).sum().backward()
    return logits.grad


def gradient_of_return(policy):
    logits = policy.clone().requires_grad_(True)
    (logprobs_of(logits).sum(dim=1).exp() * torch.tensor(REWARDS)).sum().backward()
    return logits.grad


POLICY = table(0)
SAMPLER = POLICY + table(1, 0.25)
MU, PI = (logprobs_of(each).sum(dim=1).exp()[:, None] for each in (SAMPLER, POLICY))


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "reinforce"])
def test_the_corrected_gradient_is_that_of_the_expected_return(surrogate):
    exact = gradient_of_return(POLICY)
    found, _ = ascent(
        SAMPLER, POLICY, surrogate=surrogate, old_logprobs="corrected", correction_cap=100.0
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    biased, _ = ascent(SAMPLER, POLICY, surrogate=surrogate, old_logprobs="scored")
    assert (biased - exact).abs().max() > 0.02  # what the sampler's bias costs


def test_attacks_above_the_cap_are_left_out_and_nothing_else_changes():
    ratios = PI / MU
    cap = float(ratios.flatten().sort().values[-4])  # three are above it
    kept = torch.where(ratios > cap, 0.0, ratios)
    found, metrics = ascent(SAMPLER, POLICY, old_logprobs="corrected", correction_cap=cap + 1e-4)
    torch.testing.assert_close(found, expected(POLICY, MU * kept), rtol=1e-4, atol=1e-5)
    assert metrics[f"{RATIO}/masked"] == pytest.approx(3 / 27)
    assert metrics[f"{RATIO}/max"] == pytest.approx(float(ratios.max()), rel=1e-4)
    assert metrics[f"{RATIO}/min"] == pytest.approx(float(ratios.min()), rel=1e-4)
    assert metrics[f"{RATIO}/mean"] == pytest.approx(float(ratios.mean()), rel=1e-4)
    size = float(kept.sum() ** 2 / (27 * (kept**2).sum()))
    assert metrics[f"{RATIO}/ess"] == pytest.approx(size, rel=1e-4)


def test_truncation_weights_each_token_by_its_own_ratio():
    ratios = (logprobs_of(POLICY) - logprobs_of(SAMPLER)).exp()
    found, metrics = ascent(
        SAMPLER, POLICY, old_logprobs="corrected", correction="token_truncation", correction_cap=1.1
    )
    wanted = expected(POLICY, MU * ratios.clamp(max=1.1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert metrics[f"{RATIO}/masked"] == pytest.approx(float((ratios > 1.1).float().mean()))


def test_an_exact_sampler_needs_no_correction():
    plain, _ = ascent(POLICY, POLICY, old_logprobs="scored")
    for kind in ("sequence_mask", "token_truncation"):
        found, metrics = ascent(POLICY, POLICY, old_logprobs="corrected", correction=kind)
        torch.testing.assert_close(found, plain)
        assert metrics[f"{RATIO}/ess"] == pytest.approx(1)
        assert metrics[f"{RATIO}/masked"] == 0
        assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_not_weighted(node, prepared):
    """All attacks are masked: what is left is the gradient of the penalty."""
    grads = []
    for options in ({"old_logprobs": "scored"}, {"old_logprobs": "corrected"}):
        problem = ToyProblem()
        with torch.no_grad():
            problem.attacker += torch.arange(6.0) / 3
        problem.attacker.grad = None
        exact = problem.get_attacker_logprobs(["c"], [" boom"])[0].tolist()
        attack = Utterance(" boom", token_ids=[1], logprobs=[exact[0] - 2.0])
        algorithm = PolicyGradient(
            problem, MonteCarloReturn(Credit()), PolicyLoss(), kl_in_loss=0.5, **options
        )
        reward = 0.0 if options["old_logprobs"] == "scored" else 7.0
        steps = prepared(algorithm, Graph("c", [node(attack, reward)]))
        algorithm.step(algorithm.collate_fn(steps))[0].backward()
        grads.append(problem.attacker.grad.clone())
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0


def test_attacks_that_were_not_sampled_weigh_as_they_are(node, prepared):
    """A text without log-probabilities, and one whose log-probability is missing."""
    attacks = [" boom", Utterance(" calm", token_ids=[1], logprobs=[math.nan])]
    algorithm = PolicyGradient(
        ToyProblem(), MonteCarloReturn(Credit()), PolicyLoss(), old_logprobs="corrected"
    )
    steps = prepared(algorithm, Graph("c", [node(each, 1.0) for each in attacks]))
    assert [step.corrections for step in steps] == [(1.0,), (1.0,)]
    assert not [name for name in algorithm.experience_metrics() if name.startswith(RATIO)]


def test_weights_by_hand():
    scored = torch.tensor([[-1.0, -1.0], [-1.0, -9.0]])
    sampled = torch.tensor([[-1.5, -1.2], [-3.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    whole = mismatch_ratios(scored, sampled, mask, by_token=False)
    torch.testing.assert_close(whole, torch.tensor([[math.exp(0.7)], [math.exp(2.0)]]))
    masked = mismatch_weights(whole, MismatchCorrection())  # the cap is 3
    torch.testing.assert_close(masked, torch.tensor([[math.exp(0.7)], [0.0]]))
    each = mismatch_ratios(scored, sampled, mask, by_token=True)
    truncated = mismatch_weights(each, MismatchCorrection(kind="token_truncation"))
    torch.testing.assert_close(
        truncated, torch.tensor([[math.exp(0.5), math.exp(0.2)], [2.0, 1.0]])
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grpo", {"old_logprobs": "corrected", "correction": "clip"}, "correction='clip'"),
        ("grpo", {"old_logprobs": "corrected", "correction_cap": 0.0}, "correction_cap=0.0"),
        ("grpo", {"correction_cap": 2.0}, "need old_logprobs='corrected'"),
        ("grpo", {"correction": "token_truncation"}, "need old_logprobs='corrected'"),
        (
            "rloo",
            {"old_logprobs": "corrected", "correction": "token_truncation"},
            "whole attacks. Use 'sequence_mask'",
        ),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        ALGORITHMS[name](ToyProblem(), **options)
