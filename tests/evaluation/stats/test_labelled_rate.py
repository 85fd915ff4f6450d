import numpy as np
import pytest

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.intervals import Interval, clustered_interval, proportion_interval
from astra_rl.evaluation.stats.labelled_rate import (
    Group,
    allocate,
    cohen_kappa,
    labelled_rate,
)


def groups_of(truth, calls, labelled):
    """Groups of conversations with one prompt each; `labelled` of each are labelled."""
    found = []
    for call, count in zip((1, 0), labelled, strict=True):
        rows = np.flatnonzero(calls == call)
        labels = tuple((float(truth[row]), 1) for row in rows[:count])
        found.append(Group(call, (1,) * len(rows), labels))
    return found


def played(rng, rate, sensitivity, specificity, size):
    truth = rng.random(size) < rate
    calls = np.where(truth, rng.random(size) < sensitivity, rng.random(size) >= specificity)
    return truth, calls.astype(int)


def share_of(calls):
    return proportion_interval(int(calls.sum()), len(calls))


def test_the_estimate_is_that_of_ppi_with_its_best_weight():
    truth, calls = played(np.random.default_rng(0), 0.3, 0.8, 0.9, 1000)
    chosen = np.arange(200)
    groups = [
        Group(
            call,
            (1,) * int((calls == call).sum()),
            tuple((float(truth[row]), 1) for row in chosen if calls[row] == call),
        )
        for call in (1, 0)
    ]
    # PPI++: mean of weight * call over all + mean of label - weight * call over the labelled.
    weight = np.cov(truth[chosen], calls[chosen])[0, 1] / np.var(calls[chosen], ddof=1)
    expected = weight * calls.mean() + (truth[chosen] - weight * calls[chosen]).mean()
    assert labelled_rate(groups, share_of(calls)).estimate == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.6, 0.6), (0.9, 0.95), (1.0, 1.0)])
def test_the_interval_covers_the_rate_whatever_the_errors_of_the_judge(
    rate, sensitivity, specificity
):
    rng, covered, repetitions = np.random.default_rng(1), 0, 60
    for _ in range(repetitions):
        truth, calls = played(rng, rate, sensitivity, specificity, 500)
        empty = groups_of(truth, calls, (0, 0))
        found = labelled_rate(groups_of(truth, calls, allocate(empty, 60)), share_of(calls))
        covered += found.interval.low <= rate <= found.interval.high
    assert covered >= (0.93 - 2 * 0.033) * repetitions  # two standard errors


def test_a_good_judge_halves_the_width_of_the_labels_alone():
    truth, calls = played(np.random.default_rng(0), 0.5, 0.99, 0.99, 2000)
    found = labelled_rate(groups_of(truth, calls, (50, 50)), share_of(calls))
    alone = proportion_interval(int(truth[:100].sum()), 100)
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 2


def test_conversations_without_a_verdict_count_with_their_labels():
    known = [Group(1, (1,) * 10, ((10.0, 10),)), Group(0, (1,) * 70, ((0.0, 70),))]
    unlabelled = labelled_rate([*known, Group(None, (1,) * 20)], Interval(0.05, 0.2))
    assert unlabelled.interval.high - unlabelled.interval.low > 0.2
    labelled = labelled_rate(
        [*known, Group(None, (1,) * 20, ((1.0,) * 2,) * 10)], Interval(0.05, 0.2)
    )
    assert labelled.estimate == pytest.approx((10 + 20) / 100)


def test_labels_of_one_prompt_are_one_piece_of_evidence():
    single = labelled_rate([Group(1, (1,) * 20, ((1.0, 1), (0.0, 1)) * 10)], Interval(0.8, 1))
    bunched = labelled_rate([Group(1, (10, 10), ((10.0, 10), (0.0, 10)))], Interval(0.8, 1))
    assert bunched.estimate == single.estimate == 0.5
    assert np.ptp(bunched.interval) > 1.5 * np.ptp(single.interval)


def test_without_labels_there_is_no_rate():
    with pytest.raises(ConfigurationError, match="there are no labels"):
        labelled_rate([Group(1, (1,)), Group(0, (1,))], Interval(0, 1))


def test_labels_go_to_the_group_with_the_largest_uncertain_part():
    # 90 of 100 conversations are in the second group, whose labels vary; the first is clear.
    clear, mixed = Group(1, (1,) * 10, ((1.0, 1),) * 5), Group(0, (1,) * 90, ((0.5, 1),) * 10)
    assert allocate([clear, mixed], 20) == [0, 20]
    assert allocate([Group(1, (1,) * 10), Group(0, (1,) * 90)], 100) == [10, 90]
    assert allocate([Group(1, (1,) * 3), Group(0, ())], 10) == [3, 0]


def test_kappa_is_that_of_cohens_example():
    # 20 both yes, 5 and 10 differ, 15 both no: (0.7 - 0.5) / (1 - 0.5).
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
    assert cohen_kappa(pairs + [(False, False)] * 15) == pytest.approx(0.4)
    assert np.isnan(cohen_kappa([]))
    assert np.isnan(cohen_kappa([(True, True)]))


def bunched(rng):
    """40 prompts of five conversations, half of which fail often; half of all are labelled."""
    fails = rng.random((40, 5)) < np.where(rng.random(40) < 0.5, 0.9, 0.1)[:, None]
    calls = np.where(rng.random((40, 5)) < 0.8, fails, ~fails)
    chosen = rng.permutation(200).reshape(40, 5) < 100
    groups = []
    for call in (1, 0):
        of_call = calls == call
        prompts = [at for at in range(40) if of_call[at].any()]
        labels = [
            (float((fails & of_call & chosen)[at].sum()), int((of_call & chosen)[at].sum()))
            for at in prompts
        ]
        sizes = tuple(int(of_call[at].sum()) for at in prompts)
        groups.append(Group(call, sizes, tuple(labels), prompts))
    return groups, clustered_interval([(int(row.sum()), 5) for row in calls])


def test_prompts_that_move_calls_and_labels_together_widen_the_interval():
    groups, share = bunched(np.random.default_rng(4))
    apart = [Group(each.call, each.by_prompt, each.labels) for each in groups]
    widths = [np.ptp(labelled_rate(each, share).interval) for each in (groups, apart)]
    assert widths[0] > 1.15 * widths[1]


@pytest.mark.slow
def test_the_interval_covers_the_rate_if_prompts_differ():
    """0.84 without the covariances of calls and labels."""
    rng, covered, repetitions = np.random.default_rng(4), 0, 100
    for _ in range(repetitions):
        low, high = labelled_rate(*bunched(rng)).interval
        covered += low <= 0.5 <= high
    assert covered >= (0.93 - 2 * 0.026) * repetitions  # two standard errors
