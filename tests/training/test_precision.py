import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from astra_rl.training.config import OPTIMIZERS
from astra_rl.training.precision import MasterWeightOptimizer, build_optimizer


def half(*values):
    return Parameter(torch.tensor(values, dtype=torch.bfloat16))


def sgd(parameters, lr):
    return build_optimizer(torch.optim.SGD, parameters, lr)


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_tiny_updates_of_half_precision_weights_add_up():
    """bfloat16 near 1 has steps of 1/128; a hundred updates of 1/1000 make 0.1."""
    weight = half(1.0)
    optimizer = sgd([weight], lr=1e-3)
    assert isinstance(optimizer, MasterWeightOptimizer)
    for _ in range(100):
        update(optimizer, weight.sum())
    assert weight.item() == pytest.approx(0.9, abs=1 / 256)
    lost = half(1.0)
    for _ in range(100):
        update(torch.optim.SGD([lost], lr=1e-3), lost.sum())
    assert lost.item() == 1.0


def test_gradients_are_accumulated_in_float32():
    """256 + 1 is 256 in bfloat16; in float32 a hundred ones are kept."""
    weight = half(0.0)
    optimizer = sgd([weight], lr=1.0)
    (256 * weight).sum().backward()
    for _ in range(100):
        weight.sum().backward()
    (gradient,) = (p.grad for group in optimizer.param_groups for p in group["params"])
    assert gradient.dtype == torch.float32
    assert gradient.item() == 356
    assert weight.grad is None
    optimizer.zero_grad()
    assert optimizer.param_groups[0]["params"][0].grad is None


def test_clipping_sees_the_float32_gradients():
    weight = half(3.0, 4.0)
    optimizer = sgd([weight], lr=1.0)
    (weight**2).sum().backward()
    parameters = optimizer.param_groups[0]["params"]
    assert torch.nn.utils.clip_grad_norm_(parameters, 1.0) == pytest.approx(10)
    optimizer.step()
    torch.testing.assert_close(weight.float(), torch.tensor([2.4, 3.2]), atol=0.01, rtol=0)


def test_a_schedule_works_on_it():
    weight = half(1.0)
    optimizer = sgd([weight], lr=0.5)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        update(optimizer, weight.sum())
        scheduler.step()
    assert rates == [0.5, 0.25, 0.125]
    assert weight.item() == pytest.approx(1 - 0.875)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_as_the_original_would(name):
    def make():
        weight = half(1.0, -2.0)
        return weight, build_optimizer(OPTIMIZERS[name], [weight], 0.01)

    weight, optimizer = make()
    for _ in range(3):
        update(optimizer, (weight**2).sum())
    state = optimizer.state_dict()
    state = torch.load(_saved(state), weights_only=True)
    twin_weight, twin = make()
    twin.load_state_dict(state)
    assert torch.equal(twin_weight, weight)
    for _ in range(3):
        update(optimizer, (weight**2).sum())
        update(twin, (twin_weight**2).sum())
    assert torch.equal(twin_weight, weight)
    masters = [each.param_groups[0]["params"][0] for each in (optimizer, twin)]
    assert torch.equal(*masters)


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_a_schedule_goes_on_after_a_restart():
    weight = half(1.0)
    optimizer = sgd([weight], lr=0.5)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    update(optimizer, weight.sum())
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.25


def test_weights_of_mixed_precision_are_trained_together():
    weights = [half(1.0), Parameter(torch.ones(1)), Parameter(torch.ones(1, dtype=torch.float16))]
    optimizer = sgd(weights, lr=0.25)
    update(optimizer, sum(weight.float().sum() for weight in weights))
    assert [weight.item() for weight in weights] == [0.75] * 3
    assert [weight.dtype for weight in weights] == [torch.bfloat16, torch.float32, torch.float16]


def test_full_precision_weights_need_no_copies():
    assert type(sgd([Parameter(torch.ones(1))], lr=0.1)) is torch.optim.SGD


def test_frozen_parameters_are_left_out():
    frozen = Parameter(torch.ones(1), requires_grad=False)
    optimizer = sgd([Parameter(torch.ones(1)), frozen], lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 1


def test_a_tied_weight_is_moved_once_per_backward_pass():
    layer = nn.Linear(2, 2, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    optimizer = sgd(layer.parameters(), lr=1.0)
    layer(layer(torch.ones(1, 2, dtype=torch.bfloat16))).sum().backward()
    (master,) = optimizer.param_groups[0]["params"]
    # y = W W x: the derivative of sum(y) by each entry is 2 from each of both uses
    assert master.grad.tolist() == [[4.0, 4.0], [4.0, 4.0]]


def test_a_second_optimizer_of_the_weights_trains_them():
    """As that of a second training of the model; the first got all gradients, without an error."""
    weight = half(1.0)
    first, second = sgd([weight], lr=0.5), sgd([weight], lr=0.25)
    weight.sum().backward()
    second.step()
    assert weight.item() == 0.75
    update(first, weight.sum())  # its copy is still 1
    assert weight.item() == 0.5
    update(second, weight.sum())
    assert weight.item() == 0.5


def test_weights_do_not_keep_an_optimizer_and_its_copies_alive():
    weight = half(1.0)
    optimizer = weakref.ref(sgd([weight], lr=1.0))
    gc.collect()
    assert optimizer() is None
    weight.sum().backward()
    assert weight.grad.item() == 1.0


def test_an_optimizer_without_copies_trains_weights_that_had_one_with_copies():
    """As a training in replicas after one in shards, whose copies are those of any weights."""
    weight = Parameter(torch.ones(1))
    first = MasterWeightOptimizer([weight], lambda copies: torch.optim.SGD(copies, lr=0.5))
    second = sgd([weight], lr=0.25)
    update(second, weight.sum())
    assert weight.item() == 0.75
    assert first.masters[0].grad is None


def test_adam_updates_a_tensor_in_one_pass_unless_told_otherwise():
    weights = {}
    for fused in (True, False):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 1001))
        options = {} if fused else {"fused": False}
        optimizer = build_optimizer(torch.optim.AdamW, [weight], 1e-2, **options)
        assert optimizer.param_groups[0]["fused"] is fused
        for power in (1, 2, 3):
            weight.grad = weight.detach() ** power
            optimizer.step()
        weights[fused] = weight.detach()
    torch.testing.assert_close(weights[True], weights[False], atol=1e-6, rtol=0)
    for other in (torch.optim.SGD, torch.optim.Adagrad):  # torch has no such kernel for shards
        weight = torch.nn.Parameter(torch.ones(3))
        assert not build_optimizer(other, [weight], 1e-2).param_groups[0]["fused"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", [lambda whole: whole.t(), lambda whole: whole[:, ::2]])
def test_adam_updates_a_weight_that_is_a_view_and_nothing_beside_it(view, dtype):
    """The kernel of the CPU would pair the weights with the gradients of others."""
    found = []
    for fused in ({}, {"fused": False}):
        whole = torch.linspace(-1, 1, 42, dtype=dtype).view(6, 7)
        weight = Parameter(view(whole))
        optimizer = build_optimizer(torch.optim.AdamW, [weight], 1e-2, **fused)
        (updated,) = optimizer.param_groups[0]["params"]
        updated.grad = torch.linspace(-3, 2, updated.numel()).view(updated.shape)  # contiguous
        optimizer.step()
        found.append(whole)
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
