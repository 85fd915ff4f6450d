"""The entropy bonus, against the gradient of the enumerated entropy."""

import itertools
import json

import pytest
import torch

from astra_rl import GRPO, RLOO, ConfigurationError, Graph
from astra_rl.algorithms.entropy import EntropyBonus
from astra_rl.testing import ToyProblem

WORDS, LENGTH = 3, 2
TEXTS = list(itertools.product(range(WORDS), repeat=LENGTH))


class Autoregressive(torch.nn.Module):
    """Words whose distribution depends on the word before; float64."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(WORDS + 1, WORDS, generator=generator, dtype=torch.float64)
        self.table = torch.nn.Parameter(table)

    def logprobs(self, text):
        rows = self.table.log_softmax(-1)
        return torch.stack(
            [rows[before, word] for before, word in zip((WORDS, *text[:-1]), text, strict=True)]
        )


def enumerated(policy, *, whole):
    """Entropy over all texts; with states held fixed unless it is that of the whole text."""
    total = torch.zeros((), dtype=torch.float64)
    for text in TEXTS:
        steps = policy.logprobs(text)
        if whole:
            total = total - steps.sum().exp() * steps.sum()
            continue
        for at in range(LENGTH):
            # the probability of what comes before is held fixed, that of the token is not
            before, here = steps[:at].sum().exp().detach(), steps[at].exp()
            rest = steps[at + 1 :].sum().exp().detach()
            total = total - before * here * rest * steps[at]
    return total


# With ``token`` the states are those of the policy that sampled, so there it has not moved.
@pytest.mark.parametrize(
    ("gradient", "shift"), [("token", 0.0), ("sequence", 0.0), ("sequence", 0.4)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_expected_gradient_is_that_of_the_enumerated_entropy(gradient, shift, seed):
    """Over texts of two tokens; with a policy that moved since it sampled, for the whole text."""
    policy, sampler = Autoregressive(seed), Autoregressive(seed)
    with torch.no_grad():
        sampler.table += shift * torch.arange(WORDS)
    bonus = EntropyBonus(1.0, gradient=gradient)
    loss = torch.zeros((), dtype=torch.float64)
    for text in TEXTS:
        old = sampler.logprobs(text).detach()
        penalty = bonus.penalty(policy.logprobs(text)[None], old[None])
        loss = loss + old.sum().exp() * penalty.sum()
    (found,) = torch.autograd.grad(-loss, policy.table)
    (exact,) = torch.autograd.grad(enumerated(policy, whole=gradient == "sequence"), policy.table)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_where_rewards_tie_the_bonus_alone_moves_the_attacker(kind, node, prepared):
    """Towards more entropy: the derivative of the entropy along the step is positive."""
    problem = ToyProblem()
    with torch.no_grad():
        problem.attacker[2] += 2.0
    words = list(itertools.product(problem.words, repeat=2))
    chosen = torch.multinomial(
        torch.tensor(
            [
                problem.attacker.softmax(0)[[problem.words.index(w) for w in pair]].prod().item()
                for pair in words
            ]
        ),
        400,
        replacement=True,
        generator=torch.Generator().manual_seed(0),
    )
    graph = Graph("c", [node(f" {words[i][0]} {words[i][1]}", 0.0) for i in chosen.tolist()])
    algorithm = kind(problem, entropy_coef=0.1)
    algorithm.step(algorithm.collate_fn(prepared(algorithm, graph)))[0].backward()
    table = problem.attacker.detach().clone().requires_grad_()
    entropy = -(table.log_softmax(0) * table.softmax(0)).sum()
    (slope,) = torch.autograd.grad(entropy, table)
    assert torch.cosine_similarity(-problem.attacker.grad, slope, dim=0) > 0.9


def test_an_adaptive_coefficient_rises_below_its_target_and_is_bounded(siblings, prepared):
    algorithm = GRPO(ToyProblem(), entropy_coef=0.01, entropy_target=3.0, entropy_horizon=1)
    prepared(algorithm, siblings(0.0, 1.0))  # of six words the entropy is below log 6 = 1.79
    first = algorithm.experience_metrics()["entropy_coef"]
    assert first == pytest.approx(0.01 * (1 + 0.2 * 2))
    saved = json.loads(json.dumps(algorithm.state_dict()))
    again = GRPO(ToyProblem(), entropy_coef=0.01, entropy_target=3.0, entropy_horizon=1)
    again.load_state_dict(saved)
    for each in (algorithm, again):
        prepared(each, siblings(0.0, 1.0))
    assert algorithm.experience_metrics() == again.experience_metrics()
    for _ in range(100):
        prepared(algorithm, siblings(0.0, 1.0))
    assert algorithm.experience_metrics()["entropy_coef"] == pytest.approx(1.0)
    algorithm.entropy.coefficient.target = 0.1
    for _ in range(100):
        prepared(algorithm, siblings(0.0, 1.0))
    assert algorithm.experience_metrics()["entropy_coef"] == pytest.approx(0.0001)


def test_a_constant_coefficient_is_no_metric_and_old_states_are_read():
    algorithm = GRPO(ToyProblem(), entropy_coef=0.01)
    assert "entropy_coef" not in algorithm.experience_metrics()
    state = algorithm.state_dict()
    del state["entropy"]
    algorithm.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [{"entropy_coef": -1.0}, {"entropy_target": 1.0}, {"entropy_coef": 0.1, "entropy_target": 0.0}],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError):
        GRPO(ToyProblem(), **options)
