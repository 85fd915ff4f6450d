"""Contract checks of moderators, problems and environments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astra_rl.core.contracts import check_length, check_logprobs
from astra_rl.core.environment import Environment
from astra_rl.core.graph import Graph
from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem
from astra_rl.errors import ContractError


def graph_signature(graph: Graph[Any, Any]) -> list[tuple[str, str, str]]:
    """Return contexts, attacks and responses of an episode, for comparison of two episodes."""
    return [(str(node.context), str(node.attack), str(node.response)) for node in graph.nodes()]


def check_moderator(moderator: Moderator[Any, Any], texts: Sequence[Any] = ("hello", "")) -> None:
    """Check that a moderator returns one score in [0, 1] or NaN per text, in order.

    A score must not depend on the other texts of the batch.

    Args:
        moderator: The moderator to check.
        texts: Texts or exchanges to score.

    Raises:
        ContractError: A check failed; the message names it.
    """
    name = type(moderator).__name__
    if list(moderator.moderate([])) != []:
        raise ContractError(f"{name}.moderate([]) must return an empty sequence.")
    scores = moderator.moderate(texts)
    check_length(scores, len(texts), source=f"{name}.moderate")
    for text, score in zip(texts, scores, strict=True):
        if not math.isnan(float(score)) and not 0 <= float(score) <= 1:
            raise ContractError(
                f"{name} scored {score} for {text!r}; scores must be in [0, 1] or NaN."
            )
        alone = float(moderator.moderate([text])[0])
        if not _same(alone, float(score)):
            raise ContractError(
                f"{name} scored {text!r} {score} in a batch and {alone} alone; a score must not "
                "depend on the other texts."
            )


def check_problem(
    problem: Problem[Any, Any],
    contexts: Sequence[Any] = ("Hello", "Good morning to all of you"),
) -> None:
    """Check a problem's rollouts, log-probabilities, rewards, state and gradients.

    Args:
        problem: The problem to check.
        contexts: Opening contexts, at least two of different lengths.

    Raises:
        ContractError: A check failed; the message names it.
    """
    attacks = problem.rollout_prompt_with_attacker(contexts)
    check_length(attacks, len(contexts), source="rollout_prompt_with_attacker")
    attacked = [context + attack for context, attack in zip(contexts, attacks, strict=True)]
    responses = problem.rollout_prompt_with_target(attacked)
    check_length(responses, len(contexts), source="rollout_prompt_with_target")
    rewards, terms = problem.reward_terms(contexts, attacks, responses)
    check_length(rewards, len(contexts), source="reward")
    check_length(terms, len(contexts), source="reward_terms")
    for context, attack, response in zip(contexts, attacks, responses, strict=True):
        if type(problem.advance(context, attack, response)) is type(None):
            raise ContractError("advance returned None; return the state after the turn.")
    _check_frozen_logprobs(problem, contexts, attacks)
    _check_attacker_logprobs(problem, contexts, attacks)


def _check_frozen_logprobs(
    problem: Problem[Any, Any], contexts: Sequence[Any], attacks: Sequence[Any]
) -> None:
    for name, score in (
        ("get_target_logprobs", problem.get_target_logprobs),
        ("get_baseline_logprobs", problem.get_baseline_logprobs),
    ):
        with torch.no_grad():
            logprobs = score(contexts, attacks)
        check_logprobs(logprobs, batch_size=len(contexts), source=name)
        _check_values(logprobs, name)


def _check_attacker_logprobs(
    problem: Problem[Any, Any], contexts: Sequence[Any], attacks: Sequence[Any]
) -> None:
    name = "get_attacker_logprobs"
    logprobs = problem.get_attacker_logprobs(contexts, attacks)
    check_logprobs(logprobs, batch_size=len(contexts), source=name)
    _check_values(logprobs, name)
    if not logprobs.requires_grad:
        raise ContractError(f"{name} returned no gradient; do not detach or use torch.no_grad.")
    parameters = [parameter for parameter in problem.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logprobs.sum(), parameters, allow_unused=True)
    if all(gradient is None or not gradient.any() for gradient in gradients):
        raise ContractError(
            f"{name} does not depend on the tensors of parameters(); training has no effect."
        )
    order = list(reversed(range(len(contexts))))
    swapped = problem.get_attacker_logprobs(
        [contexts[row] for row in order], [attacks[row] for row in order]
    )
    if not torch.allclose(swapped[order].sum(dim=1), logprobs.sum(dim=1), rtol=1e-2, atol=1e-2):
        raise ContractError(f"{name} depends on the order of the rows; keep results index-aligned.")
    for context, attack, row in zip(contexts, attacks, logprobs, strict=True):
        together = row.sum().item()
        alone = problem.get_attacker_logprobs([context], [attack]).sum().item()
        if not math.isclose(together, alone, rel_tol=1e-2, abs_tol=1e-2):
            raise ContractError(
                f"{name} scored {attack!r} {together} in a batch and {alone} alone; pad with "
                "zeros, and mask padding."
            )


def _check_values(logprobs: Tensor, name: str) -> None:
    if not torch.isfinite(logprobs).all() or (logprobs > 1e-4).any():
        raise ContractError(f"{name} returned values that are not log-probabilities: {logprobs}.")


def check_environment(environment: Environment[Any, Any]) -> None:
    """Check that an episode depends on its seed only, not on the batch; zero is a valid seed.

    Raises:
        ContractError: A check failed; the message names it.
    """
    name = type(environment).__name__
    first, second = environment.rollouts([0, 1])
    again = environment.rollout(0)
    if graph_signature(first) != graph_signature(again):
        raise ContractError(
            f"{name}: the seed 0 gave two different episodes. Sample with current_row_seeds() and "
            "choose prompts by the seed. Zero is a valid seed."
        )
    for node, other in zip(first.nodes(), again.nodes(), strict=True):
        if not _same(float(node.reward), float(other.reward)):
            raise ContractError(
                f"{name}: the same turn of seed 0 has rewards {node.reward} and {other.reward}; a "
                "reward must not depend on the other episodes of the batch."
            )
    if graph_signature(first) == graph_signature(second):
        raise ContractError(f"{name}: the seeds 0 and 1 gave the same episode.")
    for node in first.nodes():
        if not isinstance(node.reward, float):
            raise ContractError(f"{name}: a reward is a {type(node.reward).__name__}, not a float.")


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-3
