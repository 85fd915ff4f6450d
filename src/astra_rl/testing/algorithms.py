"""Contract check of algorithms: loss, gradients, and invariance to batching and padding."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from astra_rl.core.algorithm import Algorithm
from astra_rl.core.contracts import check_loss
from astra_rl.core.graph import Graph
from astra_rl.core.problem import Problem, ValueFunctionProblem
from astra_rl.errors import ContractError


def check_algorithm(
    algorithm: Algorithm[Any, Any, Any, Any],
    graphs: Sequence[Graph[Any, Any]],
    *,
    tolerance: float = 1e-5,
) -> None:
    """Check an algorithm on given episodes.

    Checked: the loss is a scalar with a non-zero gradient; ``step`` does not modify its batch; only
    the parameters of `problem.parameters` receive gradients; and loss and gradients do not depend
    on micro-batch size, row order or padding.

    Args:
        algorithm: The algorithm to check.
        graphs: Episodes, for example from `ASTEnvironment.rollouts`, with at least two steps and
            rewards that differ.
        tolerance: Maximum absolute and relative difference.

    Raises:
        ContractError: A check failed; the message names it.
    """
    name = type(algorithm).__name__
    flat = [step for graph in graphs for step in algorithm.flatten(graph)]
    steps = list(algorithm.prepare(flat))
    if len(steps) < 2:
        raise ContractError(
            f"{name} made {len(steps)} steps of these graphs; pass graphs with at least 2 steps."
        )
    batch = algorithm.collate_fn(steps)
    before = copy.deepcopy(batch)
    loss, logs = algorithm.step(batch)
    check_loss(loss, source=f"{name}.step")
    if not _equal(batch, before):
        raise ContractError(f"{name}.step modified its batch; work on copies.")
    for key, value in logs.items():
        if not isinstance(value, float):
            raise ContractError(f"{name}.step logged {key} as {type(value).__name__}, not a float.")
    _check_no_stray_gradients(algorithm, loss)
    whole = _loss_and_gradients(algorithm, [steps])
    if not any(gradient.any() for gradient in whole[1:]):
        raise ContractError(
            f"{name}: the gradient of the loss is zero for all trainable parameters. Compute the "
            "loss from get_attacker_logprobs without detaching it."
        )
    with _more_padding(algorithm.problem):
        padded = _loss_and_gradients(algorithm, [steps])
    variants = {
        "padding": padded,
        "row order": _loss_and_gradients(algorithm, [steps[::-1]]),
        "micro-batch size": _loss_and_gradients(algorithm, [[step] for step in steps]),
    }
    for variant, other in variants.items():
        if not all(
            torch.allclose(a, b, rtol=tolerance, atol=tolerance)
            for a, b in zip(whole, other, strict=True)
        ):
            raise ContractError(
                f"{name}: loss or gradients depend on {variant}. Exclude padding from every mean, "
                "and return the number of averaged elements from weight()."
            )


def _loss_and_gradients(
    algorithm: Algorithm[Any, Any, Any, Any], parts: Sequence[Sequence[Any]]
) -> list[Tensor]:
    parameters = [p for p in algorithm.problem.parameters() if p.requires_grad]
    batches = [algorithm.collate_fn(part) for part in parts]
    weights = [algorithm.weight(batch) for batch in batches]
    total = torch.zeros(())
    gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    for batch, weight in zip(batches, weights, strict=True):
        loss = algorithm.step(batch)[0] * (weight / math.fsum(weights))
        total = total + loss.detach().float().cpu()
        for sum_, gradient in zip(
            gradients, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                sum_ += gradient.float()
    return [total, *gradients]


@contextlib.contextmanager
def _more_padding(problem: Problem[Any, Any]) -> Iterator[None]:
    """Context in which per-token results of a problem have three more columns of padding."""

    def padded(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(score)
        def call(*arguments: Any, **named: Any) -> Tensor:
            rows = score(*arguments, **named)  # (B, T), or (B, T, K) of several values
            return torch.cat([rows, rows.new_zeros(len(rows), 3, *rows.shape[2:])], dim=1)

        return call

    names = ["get_attacker_logprobs", "get_target_logprobs", "get_baseline_logprobs"]
    names += ["values"] if isinstance(problem, ValueFunctionProblem) else []
    before = dict(vars(problem))
    for name in names:
        setattr(problem, name, padded(getattr(problem, name)))
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(problem, name, before[name])
            else:
                delattr(problem, name)


def _equal(a: Any, b: Any) -> bool:
    """Compare values recursively, including tensors and objects; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str | bytes | int) or not hasattr(a, "__dict__"):
        return bool(a == b) or (a != a and b != b)
    return _equal(vars(a), vars(b))


def _check_no_stray_gradients(algorithm: Algorithm[Any, Any, Any, Any], loss: Tensor) -> None:
    problem = algorithm.problem
    trained = {id(parameter) for parameter in problem.parameters()}
    others = [
        (name, parameter)
        for name, value in vars(problem).items()
        for parameter in _parameters_in(value)
        if id(parameter) not in trained and parameter.requires_grad
    ]
    if not others:
        return
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in others], allow_unused=True)
    for (name, _), gradient in zip(others, gradients, strict=True):
        if gradient is not None:
            raise ContractError(
                f"{type(algorithm).__name__}: problem.{name} is not in problem.parameters() but "
                "received a gradient. Score frozen models with grad=False."
            )


def _parameters_in(value: Any) -> Iterator[Parameter]:
    if isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, Parameter):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parameters_in(item)
    elif isinstance(value, Mapping):
        yield from _parameters_in(list(value.values()))
