"""PPO under constraints: multipliers that rise exactly while a bound is broken."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_rl import Graph, PPOLagrangian
from astra_rl.algorithms.lagrangian import Constraint
from astra_rl.errors import ConfigurationError
from astra_rl.testing import ToyValueProblem

nan = math.nan
SOME = {"harm": {"at_least": 0.5}}


def lagrangian(constraints=SOME, **options):
    return PPOLagrangian(ToyValueProblem(1 + len(constraints)), constraints=constraints, **options)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.01, 5), st.sampled_from([1, -1]))
def test_a_multiplier_rises_exactly_when_its_bound_is_broken(mean, limit, first, sign):
    constraint = Constraint("harm", sign, limit, math.log(first))
    constraint.update(mean, lr=0.2, most=1e9)
    broken = mean > limit if sign == 1 else mean < limit
    if abs(mean - limit) > 1e-9:
        assert (constraint.multiplier > first) == broken
        assert (constraint.multiplier < first) == (not broken)


def test_a_multiplier_by_hand():
    """u = log 2; u += 0.5 * (0.3 - 0.1) * 2."""
    constraint = Constraint.parse("nll", {"at_most": 0.1})
    constraint.log_multiplier = math.log(2)
    constraint.update(0.3, lr=0.5, most=10)
    assert constraint.log_multiplier == pytest.approx(math.log(2) + 0.2)
    constraint.update(1e9, lr=0.5, most=10)
    assert constraint.multiplier == pytest.approx(10)
    constraint.update(nan, lr=0.5, most=10)
    assert constraint.multiplier == pytest.approx(10)


def test_the_multipliers_follow_the_experience_and_are_logged(siblings, prepared):
    algorithm = lagrangian({"harm": {"at_least": 0.5}, "nll": {"at_most": 3.0}})
    prepared(algorithm, siblings(0.0, 1.0, harm=0.2, nll=2.0))
    metrics = algorithm.experience_metrics()
    assert metrics["constraint/harm/mean"] == pytest.approx(0.2)
    assert metrics["constraint/harm/multiplier"] == pytest.approx(math.exp(0.2 * 0.3))
    assert metrics["constraint/nll/multiplier"] == pytest.approx(math.exp(-0.2 * 1.0))
    assert "explained_variance" in metrics


def test_a_bounded_mean_is_that_of_the_turns_of_a_conversation(node, prepared):
    """One first turn of harm 1 with three second turns of harm 0: a half, not a quarter."""
    below = [node(word, 0.0, context="c boom", harm=0.0) for word in (" rain", " song", " tree")]
    algorithm = lagrangian()
    prepared(algorithm, Graph("c", [node(" boom", 0.0, *below, harm=1.0)]))
    assert algorithm.experience_metrics()["constraint/harm/mean"] == pytest.approx(0.5)


def normal(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation for value in values]


@pytest.mark.parametrize("multiplier", [1.0, 3.0])
def test_advantages_are_those_of_the_reward_less_those_of_the_costs(multiplier, node, prepared):
    """The bound is met exactly, so the multiplier stays; each advantage is normalised by itself."""
    rewards, harms = [1.0, 0.0, 0.0], [0.0, 1.0, 0.5]
    nodes = [
        node(word, reward, harm=harm)
        for word, reward, harm in zip((" boom", " calm", " tree"), rewards, harms, strict=True)
    ]
    steps = prepared(lagrangian(first_multiplier=multiplier), Graph("c", nodes))
    expected = [
        (reward + multiplier * harm) / (1 + multiplier)
        for reward, harm in zip(normal(rewards), normal(harms), strict=True)
    ]
    assert [step.advantages[0] for step in steps] == pytest.approx(expected, rel=2e-3)


def test_each_cost_has_a_value_function_of_its_own(node, prepared):
    algorithm = lagrangian()
    with torch.no_grad():
        algorithm.problem.estimates[0] = torch.tensor([0.25, -0.5])
    (step, other) = prepared(
        algorithm, Graph("c", [node(" boom", 1.0, harm=0.5), node(" calm", 0.0, harm=0.5)])
    )
    assert step.values == ((0.25,), (-0.5,))
    assert step.returns == ((1.0,), (-0.5,))
    assert other.returns == ((0.0,), (-0.5,))
    _, logs = algorithm.step(algorithm.collate_fn([step, other]))
    assert logs["value_loss"] == pytest.approx((0.75**2 + 0.25**2) / 4)


def test_an_attack_whose_bounded_term_is_missing_teaches_nothing(node, prepared):
    rows = [(" boom", 1.0, nan), (" calm", 0.0, 1.0), (" tree", 0.5, 0.5)]
    graph = Graph("c", [node(word, reward, harm=harm) for word, reward, harm in rows])
    algorithm = lagrangian()
    steps = prepared(algorithm, graph)
    assert [step.attack for step in steps] == [" calm", " tree"]
    metrics = algorithm.experience_metrics()
    assert metrics["constraint/harm/mean"] == 0.75
    # Nor does its reward shift those of the others: 0 and 0.5 are one deviation from their mean.
    multiplier = metrics["constraint/harm/multiplier"]
    expected = (multiplier - 1) / (multiplier + 1)
    found = [step.advantages[0] for step in steps]
    assert found == pytest.approx([expected, -expected], rel=2e-3)


def test_an_attack_without_tokens_is_left_out(node, prepared):
    graph = Graph("c", [node("", 1.0, harm=0.5), node(" calm", 0.0, harm=1.0)])
    assert [step.attack for step in prepared(lagrangian(), graph)] == [" calm"]


def test_a_term_that_the_reward_does_not_have_is_named(siblings, prepared):
    with pytest.raises(ConfigurationError, match=r"constraints\.harm: .*Did you mean 'harms'"):
        prepared(lagrangian(), siblings(0.0, 1.0, harms=0.2))


def test_multipliers_survive_a_restart(siblings, prepared):
    algorithm, twin = lagrangian(), lagrangian()
    prepared(algorithm, siblings(0.0, 1.0, harm=0.2))
    twin.load_state_dict(algorithm.state_dict())
    assert twin.estimator.constraints == algorithm.estimator.constraints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": {}}, "Without any, use PPO"),
        ({"constraints": ["harm"]}, "give at least one"),
        ({"constraints": {"harm": 0.5}}, r"constraints\.harm=0.5; give \{at_most"),
        ({"constraints": {"harm": {"least": 0.5}}}, r"constraints\.harm"),
        ({"constraints": {"harm": {"at_most": "x"}}}, "must be a number"),
        ({"constraints": {"harm": {"at_most": nan}}}, "must be a number"),
        ({"constraints": SOME, "multiplier_lr": 0.0}, "multiplier_lr=0.0"),
        ({"constraints": SOME, "first_multiplier": 11.0}, "first_multiplier=11.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PPOLagrangian(ToyValueProblem(2), **options)


def test_how_many_returns_are_estimated():
    assert PPOLagrangian.values_needed(constraints=SOME) == 2
    assert PPOLagrangian.values_needed() == 1


def broken_until_back(**options):
    """Experiences of violation until a multiplier is at 1 again, after 500 without one."""
    constraint = Constraint("harm", -1, 0.5)
    for _ in range(500):
        constraint.update(1.0, lr=0.2, most=10.0, **options)
    for count in range(5000):
        if constraint.multiplier >= 1:
            return count
        constraint.update(0.25, lr=0.2, most=10.0, **options)
    return None


def test_a_multiplier_is_soon_back_after_a_long_time_without_a_violation():
    assert broken_until_back() == 1006
    about = (1 / 0.1 - 1) / (0.2 * 0.25)
    assert broken_until_back(least=0.1) == pytest.approx(about, rel=0.02)
    assert PPOLagrangian(ToyValueProblem(2), constraints=SOME).estimator.least == 0.1


def test_momentum_is_that_of_torch_and_part_of_the_state():
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.2, momentum=0.1)
    constraint = Constraint("harm", -1, 0.5)
    for mean in (0.2, 0.9, 0.4, 0.1):
        parameter.grad = -(0.5 - mean) * parameter.detach().exp()
        optimizer.step()
        constraint.update(mean, lr=0.2, most=10.0, momentum=0.1)
        assert constraint.log_multiplier == pytest.approx(parameter.item())
    algorithm = lagrangian(multiplier_momentum=0.1)
    (each,) = algorithm.estimator.constraints
    each.update(0.0, lr=0.2, most=10.0, momentum=0.1)
    other = lagrangian(multiplier_momentum=0.1)
    other.load_state_dict(algorithm.state_dict())
    assert other.estimator.constraints == algorithm.estimator.constraints


@pytest.mark.parametrize("options", [{"min_multiplier": 2.0}, {"multiplier_momentum": 1.0}])
def test_bounds_and_momentum_are_checked(options):
    with pytest.raises(ConfigurationError):
        lagrangian(**options)
