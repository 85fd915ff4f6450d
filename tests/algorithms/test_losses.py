"""Losses against numbers derived by hand and against plain Python over lists."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.algorithms.losses import (
    PolicyLoss,
    dpo_loss,
    ipo_loss,
    is_clipped,
    kl_estimate,
    kl_penalty,
    masked_mean,
    policy_loss,
    probability_ratio,
    reduce_tokens,
    sequence_logprob,
    value_loss,
)
from astra_rl.algorithms.weighting import normalised
from astra_rl.errors import ConfigurationError

margins = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=6)
betas = st.floats(0.01, 2)
logprob = st.floats(-8, -0.125, width=32)
advantage = st.floats(-3, 3, width=32)


def close(tensor, expected):
    torch.testing.assert_close(
        tensor.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5
    )


def test_dpo_loss_of_equal_policies_is_log_two():
    """margin 0 -> -log sigmoid(0) = log 2, whatever beta is."""
    for beta in (0.1, 5.0):
        close(dpo_loss(torch.zeros(3), beta), [math.log(2)] * 3)


def test_dpo_loss_by_hand():
    """beta * margin = 0.5 * 2 = 1 -> log(1 + e**-1) = 0.313262; margin -2 -> log(1 + e) = 1.313262.

    The derivative by the margin is -beta * sigmoid(-beta * margin): at margin 0, -0.5 / 2.
    """
    close(dpo_loss(torch.tensor([2.0, -2.0]), 0.5), [0.313262, 1.313262])
    margin = torch.zeros(1, requires_grad=True)
    dpo_loss(margin, 0.5).sum().backward()
    close(margin.grad, [-0.25])


def test_dpo_loss_of_an_extreme_margin_is_finite():
    """log(1 + e**x) tends to x: overflow of the exponential must not show."""
    close(dpo_loss(torch.tensor([-1e4, 1e4]), 1.0), [1e4, 0.0])


def test_ipo_loss_by_hand():
    """The target margin is 1 / (2 * 0.1) = 5: (5 - 5)**2 = 0, (2 - 5)**2 = 9, (0 - 5)**2 = 25."""
    close(ipo_loss(torch.tensor([5.0, 2.0, 0.0]), 0.1), [0.0, 9.0, 25.0])


def test_ipo_loss_grows_when_the_margin_is_too_large_and_dpo_loss_does_not():
    assert ipo_loss(torch.tensor(9.0), 0.1) > ipo_loss(torch.tensor(5.0), 0.1)
    assert dpo_loss(torch.tensor(9.0), 0.1) < dpo_loss(torch.tensor(5.0), 0.1)


@given(margins, betas)
def test_pairwise_losses_agree_with_plain_python(values, beta):
    close(dpo_loss(torch.tensor(values), beta), [math.log1p(math.exp(-beta * m)) for m in values])
    expected = [(m - 0.5 / beta) ** 2 for m in values]
    torch.testing.assert_close(ipo_loss(torch.tensor(values), beta), torch.tensor(expected))


def losses(new, old, advantages, mask=None, **kind):
    """Losses of the tokens of one row, as a list."""
    rows = [torch.tensor([row]) for row in (new, old, advantages)]
    mask = torch.ones(1, len(new), dtype=torch.bool) if mask is None else torch.tensor([mask])
    return policy_loss(*rows, mask, PolicyLoss(**kind))[0].tolist()


def test_the_clipped_loss_by_hand():
    """Ratio 2 = exp(log 2) and 1/2, advantages 1 and -1; the range is [0.8, 1.28].

    min(2 * 1, 1.28 * 1) = 1.28; min(2 * -1, 1.28 * -1) = -2; min(0.5 * 1, 0.8 * 1) = 0.5;
    min(0.5 * -1, 0.8 * -1) = -0.8. The loss is minus that.
    """
    two, half = math.log(2) - 3, -math.log(2) - 3
    new, old, advantages = [two, two, half, half], [-3.0] * 4, [1.0, -1.0, 1.0, -1.0]
    assert losses(new, old, advantages, clip_high=0.28) == pytest.approx([-1.28, 2.0, -0.5, 0.8])


def test_the_bounds_of_the_ratio_change_the_loss():
    assert losses([-2.0], [-3.0], [1.0], clip_high=0.1) == pytest.approx([-1.1])
    assert losses([-2.0], [-3.0], [1.0], clip_high=9.0) == pytest.approx([-math.e])
    assert losses([-4.0], [-3.0], [-1.0], clip_low=0.1) == pytest.approx([0.9])
    assert losses([-4.0], [-3.0], [-1.0], clip_low=0.9) == pytest.approx([math.exp(-1)])


def test_a_clipped_token_has_no_gradient_and_the_first_step_is_policy_gradient():
    """At ratio 1 the derivative by the log-probability is -advantage; beyond the range it is 0."""
    new = torch.tensor([[-1.0, -1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -2.0, -2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    policy_loss(new, old, torch.tensor([[2.0, 2.0, -3.0]]), mask, PolicyLoss()).sum().backward()
    close(new.grad, [[-2.0, 0.0, 3.0]])


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "reinforce"])
@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
def test_on_policy_every_loss_has_the_gradient_of_reinforce(surrogate, ratio):
    """With a ratio of whole rows, a row's loss moves each of its tokens alike.

    Two tokens of advantage -2 and one of 1: under a token's own ratio the gradient by its
    log-probability is -A. The mean log-ratio of n tokens passes 1/n of n equal losses to each
    (so again -A), and the sum passes n of them (-A * n).
    """
    new = torch.tensor([[-1.0, -1.5, 0.0], [-2.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[-2.0], [1.0]])
    kind = PolicyLoss(surrogate=surrogate, ratio=ratio)
    tokens = policy_loss(new, new.detach(), advantages, mask, kind)
    torch.where(mask, tokens, torch.zeros_like(tokens)).sum().backward()
    n = 2 if (ratio, surrogate) == ("sequence_sum", "clip") else 1
    close(new.grad, [[2.0 * n, 2.0 * n, 0.0], [-1.0, 0.0, 0.0]])


def test_the_clipped_weight_of_cispo_is_no_part_of_the_gradient():
    """Ratio e: a loss of -min(e, 2) * 3 * -1 = 6, and a gradient of -2 * 3; at 5, -e * 3."""
    for clip_high, weight in ((1.0, 2.0), (4.0, math.e)):
        new = torch.tensor([[-1.0]], requires_grad=True)
        kind = PolicyLoss(surrogate="cispo", clip_high=clip_high)
        mask = torch.ones(1, 1, dtype=torch.bool)
        loss = policy_loss(new, torch.tensor([[-2.0]]), torch.tensor([[3.0]]), mask, kind)
        loss.sum().backward()
        close(loss, [[3.0 * weight]])
        close(new.grad, [[-3.0 * weight]])


def test_the_ratio_of_a_row_is_of_its_real_tokens_only():
    """Log-ratios 0.4 and 0.2, and one of padding: their sum is 0.6 and their mean 0.3."""
    new, old = torch.tensor([[-1.0, -2.0, 7.0]]), torch.tensor([[-1.4, -2.2, math.nan]])
    mask = torch.tensor([[True, True, False]])
    for level, log_ratio in (("sequence_sum", 0.6), ("sequence_mean", 0.3)):
        close(probability_ratio(new, old, mask, level=level).log(), [[log_ratio]])


token = st.tuples(logprob, logprob, advantage)


@given(st.lists(token, min_size=1, max_size=6), st.floats(0.05, 0.9), st.floats(0.05, 3))
def test_the_losses_agree_with_plain_python(rows, low, high):
    new, old, advantages = (list(column) for column in zip(*rows, strict=True))
    mean = sum(n - o for n, o, _ in rows) / len(rows)
    ratios = {
        "token": [math.exp(n - o) for n, o, _ in rows],
        "sequence_mean": [math.exp(mean)] * len(rows),
        "sequence_sum": [math.exp(min(20.0, max(-20.0, mean * len(rows))))] * len(rows),
    }
    for level, values in ratios.items():
        clipped, cispo = [], []
        for ratio, n, a in zip(values, new, advantages, strict=True):
            clipped.append(-min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a))
            cispo.append(-min(ratio, 1 + high) * a * n)
        kind = {"ratio": level, "clip_low": low, "clip_high": high}
        assert losses(new, old, advantages, **kind) == pytest.approx(clipped, rel=1e-3, abs=1e-5)
        found = losses(new, old, advantages, surrogate="cispo", **kind)
        assert found == pytest.approx(cispo, rel=1e-3, abs=1e-5)
    found = losses(new, old, advantages, surrogate="reinforce")
    assert found == pytest.approx([-a * n for n, _, a in rows], rel=1e-4, abs=1e-5)


def test_which_tokens_are_clipped():
    """Range [0.8, 1.2]: a fall counts against a negative advantage, a rise for a positive one."""
    ratio = torch.tensor([[0.7, 0.7, 1.3, 1.3, 1.0]])
    advantages = torch.tensor([[-1.0, 1.0, 1.0, -1.0, 1.0]])
    low, high = is_clipped(ratio, advantages, PolicyLoss())
    assert low.tolist() == [[True, False, False, False, False]]
    assert high.tolist() == [[False, False, True, False, False]]
    low, high = is_clipped(ratio, advantages, PolicyLoss(surrogate="cispo"))
    assert not low.any()
    assert high.tolist() == [[False, False, True, False, False]]


def test_an_absurd_ratio_stays_finite():
    mask = torch.ones(1, 2, dtype=torch.bool)
    ratio = probability_ratio(torch.tensor([[0.0, -1e9]]), torch.tensor([[-1e9, 0.0]]), mask)
    close(ratio.log(), [[20.0, -20.0]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 0.0},
        {"clip_high": math.nan},
        {"divisor": -1.0},
        {"surrogate": "ppo"},
        {"ratio": "turn"},
        {"reduce": "mean"},
    ],
)
def test_a_loss_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=str(next(iter(wrong.values())))):
        PolicyLoss(**wrong)


def test_the_three_ways_to_reduce_by_hand():
    """Rows 1, 3 and 8, the first of weight 2. Tokens: (2 * 4 + 8) / 3; means of rows:
    (2 * 2 + 8) / 2; sums of rows over the constant 4: (2 * 4 + 8) / 2 / 4."""
    values = torch.tensor([[1.0, 3.0], [8.0, math.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    weights = torch.tensor([2.0, 1.0])
    close(reduce_tokens(values, mask, weights, reduce="token"), 16 / 3)
    close(reduce_tokens(values, mask, weights, reduce="sequence"), 6.0)
    close(reduce_tokens(values, mask, weights, reduce="sequence_sum", divisor=4), 2.0)


@pytest.mark.parametrize("reduce", ["token", "sequence", "sequence_sum"])
def test_a_row_of_twice_the_weight_counts_like_two_rows(reduce):
    values = torch.tensor([[1.0, 3.0], [8.0, 0.0], [8.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    sizes = {"token": [2.0, 1.0]}.get(reduce)
    twice = reduce_tokens(values, mask, torch.ones(3), reduce=reduce)
    weights = torch.tensor(normalised([1.0, 2.0], sizes))
    weighted = reduce_tokens(values[:2], mask[:2], weights, reduce=reduce)
    close(weighted, twice.item())


@pytest.mark.parametrize("reduce", ["token", "sequence", "sequence_sum"])
def test_a_weight_below_one_is_kept_whatever_else_is_in_the_batch(reduce):
    values, mask = torch.tensor([[4.0]]), torch.tensor([[True]])
    close(reduce_tokens(values, mask, torch.tensor([0.25]), reduce=reduce), 1.0)


@pytest.mark.parametrize("reduce", ["token", "sequence", "sequence_sum"])
def test_nothing_reduces_to_zero_with_a_zero_gradient(reduce):
    values = torch.full((2, 2), math.nan, requires_grad=True)
    mask = torch.zeros(2, 2, dtype=torch.bool)
    total = reduce_tokens(values, mask, torch.ones(2), reduce=reduce)
    total.backward()
    assert total.item() == 0
    close(values.grad, [[0.0, 0.0], [0.0, 0.0]])


def test_the_value_loss_by_hand():
    """Return 1. From 0 to 0.6 with clip 0.2: half of max(0.4**2, 0.8**2) = 0.32. From 0 to 0.1:
    0.9**2 / 2 = 0.405. From 2 to 0.5, away past the return: max(0.5**2, 0.8**2) / 2 = 0.32."""
    values, old = torch.tensor([0.6, 0.1, 0.5]), torch.tensor([0.0, 0.0, 2.0])
    found = value_loss(values, old, torch.ones(3), clip=0.2)
    close(found, [0.32, 0.405, 0.32])
    close(value_loss(values, old, torch.ones(3), clip=math.inf), [0.08, 0.405, 0.125])


def test_an_estimate_that_moved_too_far_learns_no_more():
    values = torch.tensor([0.6, 0.1], requires_grad=True)
    value_loss(values, torch.zeros(2), torch.ones(2), clip=0.2).sum().backward()
    close(values.grad, [0.0, -0.9])


def test_the_estimators_of_divergence_by_hand():
    """log ref - log pi = log 2: k1 = -log 2, k2 = log(2)**2 / 2, k3 = 2 - 1 - log 2."""
    logprobs, reference = torch.tensor([-2.0]), torch.tensor([-2.0 + math.log(2)])
    expected = {"k1": -math.log(2), "k2": math.log(2) ** 2 / 2, "k3": 1 - math.log(2)}
    for estimator, value in expected.items():
        close(kl_estimate(logprobs, reference, estimator), [value])


def test_kl_penalty_by_hand():
    """On policy, log ref - log pi = log 2: k3 = 2 - 1 - log 2 = 0.306853. Equal policies: 0."""
    logprobs = torch.tensor([[-2.0, -1.0]])
    reference = torch.tensor([[-2.0 + math.log(2), -1.0]])
    close(kl_penalty(logprobs, reference, logprobs), [[0.306853, 0.0]])


def categorical(logits):
    return torch.tensor(logits, requires_grad=True)


logits = st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4)


def divergence_of(policy, log_ref):
    log_pi = policy.log_softmax(0)
    return (log_pi.exp() * (log_pi - log_ref)).sum()


@settings(deadline=None)
@given(logits, logits, logits, st.sampled_from(["k1", "k2", "k3"]))
def test_the_expected_penalty_has_the_gradient_of_the_divergence(policy, reference, old, name):
    """Enumerating a categorical, sum_a old(a) * penalty(a) against KL = sum pi (log pi - log ref).

    For instance k3: sum old * (pi / old) * (ref / pi - 1 - log(ref / pi)) = KL, for any policy
    `old` that sampled; the gradient flows through pi only.
    """
    first, second = categorical(policy), categorical(policy)
    log_ref, log_old = (torch.tensor(each).log_softmax(0) for each in (reference, old))
    penalty = kl_penalty(first.log_softmax(0), log_ref, log_old, estimator=name)
    expected = (log_old.exp() * penalty).sum()
    divergence = divergence_of(second, log_ref)
    if name != "k2":  # which is biased, but not its gradient
        torch.testing.assert_close(expected, divergence, rtol=1e-4, atol=1e-5)
    expected.backward()
    divergence.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=2e-5)


@settings(deadline=None)
@given(logits, logits)
def test_k1_in_the_reward_has_the_gradient_of_the_divergence(policy, reference):
    """The policy gradient of the reward -k1, enumerated: sum_a pi(a) * k1(a) * d log pi(a)."""
    first, second = categorical(policy), categorical(policy)
    log_ref = torch.tensor(reference).log_softmax(0)
    log_pi = first.log_softmax(0)
    cost = kl_estimate(log_pi, log_ref, "k1").detach()
    (log_pi.exp().detach() * cost * log_pi).sum().backward()
    divergence_of(second, log_ref).backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)


def plain_gradient(policy, log_ref, estimator):
    log_pi = policy.log_softmax(0)
    penalty = kl_penalty(log_pi, log_ref, log_pi.detach(), estimator=estimator, corrected=False)
    (log_pi.exp().detach() * penalty).sum().backward()
    return policy.grad


def test_what_the_plain_estimators_have_for_a_gradient():
    """k1 none, k2 the right one, k3 that of the forward divergence, which is pi - ref."""
    logits, log_ref = [0.3, -0.2, 1.0], torch.tensor([1.0, 0.0, -1.0]).log_softmax(0)
    right = categorical(logits)
    divergence_of(right, log_ref).backward()
    pi = right.detach().softmax(0)
    close(plain_gradient(categorical(logits), log_ref, "k1"), [0.0, 0.0, 0.0])
    torch.testing.assert_close(plain_gradient(categorical(logits), log_ref, "k2"), right.grad)
    torch.testing.assert_close(
        plain_gradient(categorical(logits), log_ref, "k3"), pi - log_ref.exp()
    )


def test_masked_mean_by_hand():
    """(1 + 2 + 6) / 3 = 3; what is masked does not count even if it is NaN."""
    values = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean = masked_mean(values, mask)
    close(mean, 3.0)
    mean.backward()
    close(values.grad, [[1 / 3, 1 / 3, 0.0], [1 / 3, 0.0, 0.0]])


def test_a_mean_over_nothing_is_zero_with_a_zero_gradient():
    values = torch.full((2, 2), math.nan, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 2, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    close(values.grad, [[0.0, 0.0], [0.0, 0.0]])


ragged = st.lists(st.lists(logprob, min_size=1, max_size=4), min_size=1, max_size=4)


def padded(rows, extra=0, fill=0.0):
    width = max(map(len, rows)) + extra
    values = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return values, mask


@given(ragged, st.integers(0, 3), st.sampled_from([0.0, 7.0, math.nan]))
def test_means_and_sums_agree_with_plain_python_whatever_the_padding(rows, extra, fill):
    values, mask = padded(rows, extra, fill)
    tokens = [token for row in rows for token in row]
    close(masked_mean(values, mask), math.fsum(tokens) / len(tokens))
    close(sequence_logprob(values, mask, reduce="sum"), [math.fsum(row) for row in rows])
    close(
        sequence_logprob(values, mask, reduce="mean"), [math.fsum(row) / len(row) for row in rows]
    )


def test_a_row_without_tokens_has_log_probability_zero():
    mask = torch.zeros(1, 2, dtype=torch.bool)
    for reduce in ("sum", "mean"):
        close(sequence_logprob(torch.full((1, 2), math.nan), mask, reduce=reduce), [0.0])
