"""A call of the target that failed is the outcome of its own conversation and of no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from astra_rl import GRPO, ASTEnvironment, ASTEvaluator, Trainer, TrainingConfiguration
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import NoReply, Utterance
from astra_rl.evaluation.records.from_graphs import Labels, record_tree
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.methods.environments import (
    AttemptsEnvironment,
    BestOfNEnvironment,
    PrunedTreeEnvironment,
)
from astra_rl.methods.replay import TargetOnlyProblem, replay_attacks
from astra_rl.moderators import RefusalModerator
from astra_rl.targets import Target
from astra_rl.testing import ToyProblem


class Flaky(ToyProblem):
    """Its target fails where an attack holds a word, and a filter withholds another."""

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> list[str]:
        said = super().rollout_prompt_with_target(contexts)
        return [
            self._one(str(context), reply) for context, reply in zip(contexts, said, strict=True)
        ]

    def _one(self, context: str, reply: str) -> str:
        if context.endswith(self.words[0]):
            return NoReply("timed out", "after 60 s")
        if context.endswith(self.words[1]):
            return Utterance(finish_reason="content_filter")
        return reply


class Nosy(Moderator[Any, Any]):
    """Scores everything 0 and remembers what it was asked about."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def moderate(self, x: Sequence[Any]) -> list[float]:
        self.seen += x
        return [0.0] * len(x)


def nodes_of(environment: ASTEnvironment, count: int = 8) -> list[Any]:
    return [node for graph in environment.rollouts(range(count)) for node in graph.nodes()]


@pytest.mark.parametrize(
    "kind", [ASTEnvironment, BestOfNEnvironment, PrunedTreeEnvironment, AttemptsEnvironment]
)
def test_a_failed_call_has_no_reward_and_ends_its_conversation(kind: Any) -> None:
    judge = Nosy()
    nodes = nodes_of(kind(Flaky(judge), ["Hello"], tree_width=4, tree_depth=3))
    failed = [node for node in nodes if isinstance(node.response, NoReply)]
    blocked = [node for node in nodes if node.response == "" and node not in failed]
    others = [node for node in nodes if node not in failed and node not in blocked]
    assert failed
    assert blocked
    assert others
    for node in failed:
        assert math.isnan(node.reward)
        assert (node.reward_terms, list(node.children)) == ({}, [])
    assert all(not node.children and not math.isnan(node.reward) for node in blocked)
    assert all(not math.isnan(node.reward) for node in others)
    assert not any(isinstance(getattr(each, "response", each), NoReply) for each in judge.seen)


def test_the_other_episodes_are_as_if_nothing_had_failed() -> None:
    """What is said and paid in turns that were answered does not depend on failures beside them."""
    whole, flaky = (
        nodes_of(ASTEnvironment(problem, ["Hello"], tree_width=4, tree_depth=1))
        for problem in (ToyProblem(), Flaky())
    )
    for a, b in zip(whole, flaky, strict=True):
        assert a.attack == b.attack
        if not isinstance(b.response, NoReply) and b.response:
            assert (a.response, a.reward) == (b.response, b.reward)


def test_a_failed_call_teaches_nothing() -> None:
    class Broken(Flaky):
        def _one(self, context: str, reply: str) -> str:
            return NoReply("timed out")

    problem = Broken()
    before = problem.attacker.clone()
    config = TrainingConfiguration(lr=0.5, training_steps=2, num_episodes_per_experience=4, seed=0)
    environment = ASTEnvironment(problem, ["Hello"], tree_width=4, tree_depth=2)
    Trainer(config, environment, GRPO(problem)).train()
    assert problem.attacker.equal(before)


def test_each_attempt_has_one_typed_outcome() -> None:
    environment = ASTEnvironment(Flaky(), ["Hello"], tree_width=4, tree_depth=2)
    attempts = [
        attempt
        for graph in environment.rollouts(range(8))
        for attempt in record_tree(
            graph, Labels(), judge="j", score=lambda node: 0.0, threshold=0.5
        )
    ]
    errors = [each for each in attempts if each.outcome is Outcome.ERROR]
    assert {each.error for each in errors} == {"timed out: after 60 s"}
    assert all(each.turns[-1].unanswered for each in errors)
    assert {each.outcome for each in attempts} == {
        Outcome.ERROR,
        Outcome.BLOCKED,
        Outcome.FAILURE,
    }


def test_an_evaluation_counts_what_failed_and_asks_no_judge_about_it() -> None:
    judge = Nosy()
    environment = ASTEnvironment(Flaky(), ["Hello"], tree_depth=1)
    metrics = ASTEvaluator(environment, judge=judge).evaluate(40, progress=False)
    outcomes = metrics["outcomes"]
    assert sum(outcomes.values()) == 40
    assert outcomes["error"] > 0
    assert outcomes["blocked"] > 0
    assert metrics["unscored_turns"] == {"timed out": outcomes["error"]}
    assert len(judge.seen) == 40 - outcomes["error"]
    assert metrics["asr"]["trials"] == 40 - outcomes["error"]


def test_what_is_sent_again_stops_where_a_call_fails() -> None:
    class Counting(Target):
        def __init__(self) -> None:
            self.asked: list[str] = []

        def respond(self, conversations: Sequence[str]) -> list[str]:
            self.asked += map(str, conversations)
            return [NoReply("gone") if "bad" in each else "fine" for each in conversations]

    target = Counting()
    attacks = [["a", "bad", "c"], ["d", "e", "f"], []]
    graphs = replay_attacks(TargetOnlyProblem(target, RefusalModerator()), ["Hi "] * 3, attacks)
    assert [[str(node.response) for node in graph.nodes()] for graph in graphs] == [
        ["fine", ""],
        ["fine", "fine", "fine"],
        [],
    ]
    assert len(target.asked) == 5
