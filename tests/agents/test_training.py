"""Training against agents: a small local model in each role."""

from dataclasses import replace

import pytest
import torch

from astra_rl.agents import Limits
from astra_rl.algorithms import GRPO
from astra_rl.core.messages import trace_of
from astra_rl.core.text import Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods import ASTEnvironment
from astra_rl.methods.tool_environment import ToolEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.moderators.hijack import HijackModerator
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import Harm
from astra_rl.targets.scripted_agent import ScriptedAgent
from astra_rl.testing import tiny_model


def problem(target):
    attacker = tiny_model(chat=True)
    return HFASTProblem(
        attacker,
        target,
        attacker,
        HijackModerator(),
        reward=WeightedSum({Harm("response"): 1.0}),
        attacker_sampling=Sampling(max_new_tokens=5),
        target_sampling=Sampling(max_new_tokens=5),
    )


def environment(target, **options):
    return ToolEnvironment.of_world(problem(target), "files", limits=Limits(replies=3), **options)


def test_only_tokens_that_the_attacker_wrote_train():
    played = environment(ScriptedAgent(), tree_width=2, tree_depth=2)
    graphs = played.rollouts([0, 1])
    algorithm = GRPO(played.problem)
    # Rewards of an untrained attacker are all zero, and nothing would train.
    for graph in graphs:
        for number, node in enumerate(graph.nodes()):
            node.reward = number % 3
    steps = algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])
    batch = algorithm.collate_fn(steps)
    assert list(batch.token_counts) == [len(attack.token_ids) for attack in batch.attacks]
    renderer = played.problem.attacker_renderer
    for context in map(Conversation.of, batch.contexts):
        read = renderer.tokenizer.decode(renderer.render(context, reserve=8).ids)
        assert "Meeting of 3 May" not in read  # a result that the agent read
        assert all(attack.strip() in read for attack in context.attacks)
    # Whatever agent and tools wrote beside the answer, the gradient is the same.
    others = replace(batch, contexts=list(map(without_traces, batch.contexts)))
    first, second = (gradient_of(played.problem, algorithm, each) for each in (batch, others))
    assert any(each.abs().sum() > 0 for each in first)
    assert all(map(torch.equal, first, second))


def gradient_of(problem, algorithm, batch):
    parameters = [each for each in problem.parameters() if each.requires_grad]
    loss, _ = algorithm.step(batch)
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def without_traces(context):
    turns = [str(turn) if trace_of(turn) else turn for turn in context.turns]
    return Conversation(
        context.prompt,
        turns=turns,
        system=context.system,
        brief=context.brief,
        facts=context.facts,
        separator=context.separator,
    )


def test_a_local_model_with_a_chat_template_is_an_agent():
    played = environment(tiny_model(chat=True, seed=1), tree_width=1)
    graph = played.rollout(0)
    trace = trace_of(next(graph.nodes()).response)
    assert trace.queries >= 1
    assert trace.hijack == 0
    assert played.rollout(0) == graph


def test_episodes_are_the_same_alone_and_together_and_again():
    together = environment(tiny_model(chat=True, seed=1)).rollouts([3, 4])
    alone = environment(tiny_model(chat=True, seed=1)).rollout(4)
    assert [node.response for node in together[1].nodes()] == [
        node.response for node in alone.nodes()
    ]
    traces = [[trace_of(node.response) for node in each.nodes()] for each in (together[1], alone)]
    assert traces[0] == traces[1]


def test_openings_of_no_agent_are_refused_and_other_environments_run_the_loop_too():
    with pytest.raises(ConfigurationError, match="prompt 0 is of no agent"):
        ToolEnvironment(problem(ScriptedAgent()), ["Hello"])
    openings = environment(ScriptedAgent()).prompts
    graph = ASTEnvironment(problem(ScriptedAgent()), openings, 1, 1).rollout(0)
    assert trace_of(next(graph.nodes()).response).utility == 1
