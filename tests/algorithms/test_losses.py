"""Losses against numbers derived by hand and against plain Python over lists."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.algorithms.losses import (
    clipped_policy_loss,
    dpo_loss,
    ipo_loss,
    kl_penalty,
    masked_mean,
    probability_ratio,
    sequence_logprob,
)

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


def clipped(new, old, a, low=0.2, high=0.28):
    loss = clipped_policy_loss(
        torch.tensor([[new]]),
        torch.tensor([[old]]),
        torch.tensor([[a]]),
        clip_low=low,
        clip_high=high,
    )
    return float(loss)


def test_clipped_policy_loss_by_hand():
    """Ratio 2 = exp(log 2) and 1/2, advantages 1 and -1; the range is [0.8, 1.28].

    min(2 * 1, 1.28 * 1) = 1.28; min(2 * -1, 1.28 * -1) = -2; min(0.5 * 1, 0.8 * 1) = 0.5;
    min(0.5 * -1, 0.8 * -1) = -0.8. The loss is minus that.
    """
    two, half = math.log(2), -math.log(2)
    assert clipped(two - 3, -3.0, 1.0) == pytest.approx(-1.28)
    assert clipped(two - 3, -3.0, -1.0) == pytest.approx(2.0)
    assert clipped(half - 3, -3.0, 1.0) == pytest.approx(-0.5)
    assert clipped(half - 3, -3.0, -1.0) == pytest.approx(0.8)


def test_the_clip_range_changes_the_loss():
    assert clipped(-2.0, -3.0, 1.0, high=0.1) != clipped(-2.0, -3.0, 1.0, high=0.9)
    assert clipped(-4.0, -3.0, -1.0, low=0.1) != clipped(-4.0, -3.0, -1.0, low=0.5)


def test_a_clipped_token_has_no_gradient_and_the_first_step_is_policy_gradient():
    """At ratio 1 the derivative by the log-probability is -advantage; beyond the range it is 0."""
    new = torch.tensor([[-1.0, -1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -2.0, -2.0]])
    clipped_policy_loss(
        new, old, torch.tensor([[2.0, 2.0, -3.0]]), clip_low=0.2, clip_high=0.2
    ).sum().backward()
    close(new.grad, [[-2.0, 0.0, 3.0]])


def test_advantages_of_whole_rows_count_for_each_token():
    new, old = (
        torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]),
        torch.tensor([[-1.5, -2.0], [-3.0, -1.5]]),
    )
    options = {"clip_low": 0.2, "clip_high": 0.2}
    rows = clipped_policy_loss(new, old, torch.tensor([[1.0], [-1.0]]), **options)
    tokens = clipped_policy_loss(new, old, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), **options)
    assert torch.equal(rows, tokens)


@given(st.lists(st.tuples(logprob, logprob, advantage), min_size=1, max_size=6))
def test_clipped_policy_loss_agrees_with_plain_python(tokens):
    new, old, advantages = (torch.tensor([list(column)]) for column in zip(*tokens, strict=True))
    expected = []
    for n, o, a in tokens:
        ratio = math.exp(n - o)
        kept = min(max(ratio, 1 - 0.2), 1 + 0.28)
        expected.append(-min(ratio * a, kept * a))
    close(clipped_policy_loss(new, old, advantages, clip_low=0.2, clip_high=0.28), [expected])


def test_an_absurd_ratio_stays_finite():
    ratio = probability_ratio(torch.tensor([0.0, -1e9]), torch.tensor([-1e9, 0.0]))
    close(ratio.log(), [20.0, -20.0])


def test_kl_penalty_by_hand():
    """On policy, log ref - log pi = log 2: k3 = 2 - 1 - log 2 = 0.306853. Equal policies: 0."""
    logprobs = torch.tensor([[-2.0, -1.0]])
    reference = torch.tensor([[-2.0 + math.log(2), -1.0]])
    close(kl_penalty(logprobs, reference, logprobs), [[0.306853, 0.0]])


def categorical(logits):
    return torch.tensor(logits, requires_grad=True)


logits = st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4)


@settings(deadline=None)
@given(logits, logits, logits)
def test_the_expected_kl_penalty_has_value_and_gradient_of_the_divergence(policy, reference, old):
    """Enumerating a categorical: sum_a old(a) * penalty(a) against KL = sum pi (log pi - log ref).

    sum old * (pi / old) * (ref / pi - 1 - log(ref / pi)) = sum ref - sum pi + KL = KL, for any
    policy `old` that sampled; the gradient flows through pi only.
    """
    first, second = categorical(policy), categorical(policy)
    log_ref, log_old = (torch.tensor(each).log_softmax(0) for each in (reference, old))
    log_pi = first.log_softmax(0)
    expected = (log_old.exp() * kl_penalty(log_pi, log_ref, log_old)).sum()
    log_pi = second.log_softmax(0)
    divergence = (log_pi.exp() * (log_pi - log_ref)).sum()
    torch.testing.assert_close(expected, divergence, rtol=1e-4, atol=1e-5)
    expected.backward()
    divergence.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-5)


def test_without_the_ratio_k3_would_have_the_gradient_of_the_forward_divergence():
    """Why the ratio is there: d/d logits of E_pi[k3] through k3 alone is pi - ref."""
    policy = categorical([0.3, -0.2, 1.0])
    log_ref = torch.tensor([1.0, 0.0, -1.0]).log_softmax(0)
    log_pi = policy.log_softmax(0)
    difference = log_ref - log_pi
    (log_pi.exp().detach() * (difference.exp() - 1 - difference)).sum().backward()
    torch.testing.assert_close(policy.grad, (log_pi.exp() - log_ref.exp()).detach())


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
