"""A problem whose target only answers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from astra_rl import GRPO, ASTEnvironment
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.ext.transformers import HFASTProblem, HFEvaluationProblem
from astra_rl.models.generation import Sampling
from astra_rl.targets import CallableTarget, Target
from astra_rl.testing import ScriptedModerator, check_problem, learn, tiny_model


def problem(target: Any = None, **options: Any) -> HFASTProblem:
    pair = tiny_model("llama", window=256)
    return HFASTProblem(
        pair,
        CallableTarget(lambda text: f"{len(text)} letters") if target is None else target,
        pair,
        ScriptedModerator({"e": 1.0}),
        attacker_sampling=Sampling(max_new_tokens=4),
        **options,
    )


def test_it_is_a_problem_like_any_other() -> None:
    check_problem(problem())


def test_its_likelihood_of_an_attack_is_the_baseline_s_and_it_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = problem()
    contexts, attacks = ["hello", "good day"], [" you", " there"]
    with caplog.at_level(logging.WARNING, "astra_rl"):
        found = [made.get_target_logprobs(contexts, attacks) for _ in range(3)]
    assert all(each.equal(made.get_baseline_logprobs(contexts, attacks)) for each in found)
    assert [record.message.count("are used instead") for record in caplog.records] == [1]


def test_what_cannot_be_read_is_refused() -> None:
    made = problem()
    with pytest.raises(ConfigurationError, match="gives no log-probabilities of responses"):
        made.get_response_logprobs(["hello"], ["yes"])
    with pytest.raises(ConfigurationError, match="gives no hidden states"):
        made.embed(["hello"], "target")
    assert made.embed(["hello"], "baseline").shape[0] == 1


def test_it_is_asked_with_the_whole_conversation() -> None:
    heard: list[Any] = []

    def listen(messages: list[dict[str, str]]) -> str:
        heard.append(messages)
        return "yes"

    made = problem(CallableTarget(listen))
    replies = made.rollout_prompt_with_target([Conversation("Hi", system="S") + "a" + "b" + "c"])
    assert replies == ["yes"]
    assert [each["role"] for each in heard[0]] == ["system", "user", "assistant", "user"]


def test_a_target_that_loses_replies_is_named() -> None:
    class Short(Target):
        def respond(self, conversations: Any) -> list[str]:
            return ["one"]

    with pytest.raises(ContractError, match=r"Short.respond returned 1 values for 2 inputs"):
        problem(Short()).rollout_prompt_with_target(["a", "b"])


def test_evaluating_against_it_needs_a_baseline() -> None:
    target = CallableTarget(lambda text: text)
    with pytest.raises(ConfigurationError, match="give a baseline_model_id"):
        HFEvaluationProblem(tiny_model("llama"), target, ScriptedModerator({}))


@pytest.mark.slow
def test_an_attacker_learns_against_it_with_its_adapter_as_ever() -> None:
    made = problem()
    weights = [p.detach().clone() for p in made.parameters()]
    environment = ASTEnvironment(made, ["say: "], tree_width=4, tree_depth=2)
    curve = learn(GRPO, environment, steps=1)
    assert len(curve.rewards) == 1
    moved = [not a.equal(b) for a, b in zip(weights, made.parameters(), strict=True)]
    assert any(moved)
    assert torch.isfinite(torch.tensor(curve.rewards)).all()
