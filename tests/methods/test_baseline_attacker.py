"""The baseline of ordinary use in the attacker's place."""

import math

import pytest
import torch

from astra_rl import ASTEnvironment, Conversation
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.baseline_attacker import BaselineAttackerProblem
from astra_rl.testing import ScriptedModerator, ToyProblem, tiny_model


def test_a_brief_of_ordinary_use_stands_in_the_place_of_the_attackers():
    heard = []
    problem = ToyProblem()

    def say(contexts):
        heard.extend(contexts)
        return problem.rollout_prompt_with_attacker(contexts)

    opening = Conversation("hello", system="s", brief="attack", facts={"secret": "x"})
    for brief, told in ((None, "attack"), ("be a visitor", "be a visitor"), ("", None)):
        ordinary = BaselineAttackerProblem(problem, say, brief=brief)
        assert ordinary.with_baseline_brief(opening).brief == told
        graph = ASTEnvironment(ordinary, [opening], 1, 2).rollout(0)
        assert {context.brief for context in heard} == {told}
        assert {context.system for context in heard} == {"s"}
        # What is recorded is the opening of the scenario, so that prompts can be paired.
        assert graph.context.brief == "attack"
        assert all(math.isnan(node.reward) for node in graph.nodes())
        heard.clear()


@pytest.mark.slow
def test_the_baseline_of_a_language_model_says_what_it_gives_probabilities_to():
    """Over two turns: what it sampled has the log-probability under it that sampling saw."""
    attacker = tiny_model("llama", window=256, seed=0)
    baseline = tiny_model("llama", window=256, seed=3)
    problem = HFASTProblem(
        attacker, tiny_model("llama", window=256, seed=1), baseline, ScriptedModerator({})
    )
    ordinary = BaselineAttackerProblem(problem, problem.rollout_prompt_with_baseline, brief="visit")
    graph = ASTEnvironment(ordinary, [Conversation("hello", brief="attack")], 1, 2).rollout(0)
    nodes = list(graph.nodes())
    assert len(nodes) == 2
    scored = ordinary.get_baseline_logprobs(
        [node.context for node in nodes], [node.attack for node in nodes]
    )
    for row, node in zip(scored, nodes, strict=True):
        count = len(node.attack.token_ids)
        torch.testing.assert_close(
            row[:count], torch.tensor(node.attack.logprobs), atol=1e-4, rtol=1e-4
        )
    under_attacker = problem.get_attacker_logprobs(
        [node.context for node in nodes], [node.attack for node in nodes]
    )
    assert (under_attacker[under_attacker != 0].numel()) == (scored[scored != 0].numel())
    assert not torch.allclose(under_attacker.sum(), scored.sum())
