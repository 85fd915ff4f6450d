"""The real vLLM needs a GPU; a stand-in with its interface shows what is asked of it."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from astra_rl.errors import ConfigurationError, MissingDependencyError
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.generation_vllm import VLLMSampler
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions
from astra_rl.moderators import FunctionModerator
from astra_rl.testing import tiny_model

STOP = frozenset({3})
PROMPTS = [[2, 9, 10, 11], [4, 5], [30, 31, 32]]


class StandIn:
    """An engine of vLLM that samples with a model in memory and is off by a known amount."""

    def __init__(self, model, **options):
        self.model, self.options, self.calls = model, options, []
        self.off = 0.0

    def generate(self, prompts, parameters, *, lora_request, use_tqdm):
        self.calls.append((prompts, parameters, lora_request))
        outputs = []
        for prompt, wish in zip(prompts, parameters, strict=True):
            (sample,) = generate(
                self.weights,
                [prompt["prompt_token_ids"]],
                Sampling(
                    max_new_tokens=wish.max_tokens,
                    temperature=wish.temperature,
                    top_k=max(0, wish.top_k),
                    top_p=wish.top_p,
                ),
                [wish.seed],
                stop_ids=frozenset(wish.stop_token_ids),
            )
            logprobs = [
                {token: SimpleNamespace(logprob=value - self.off)}
                for token, value in zip(sample.token_ids, sample.logprobs, strict=True)
            ]
            answer = SimpleNamespace(token_ids=list(sample.token_ids), logprobs=logprobs)
            outputs.append(SimpleNamespace(outputs=[answer]))
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("request")
    package.LLM = StandIn
    package.SamplingParams = SimpleNamespace
    request.LoRARequest = lambda name, number, path: SimpleNamespace(
        name=name, number=number, path=path
    )
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.lora", lora)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)


def sampler_for(model):
    sampler = VLLMSampler("some/model", gpu_memory_utilization=0.4)
    sampler._engine.weights = model
    return sampler


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="extra 'vllm'"):
        VLLMSampler("some/model")


def test_samples_are_those_of_the_engine_and_scored_by_the_model_in_memory(vllm, llama):
    sampler = sampler_for(llama)
    sampler._engine.off = 0.05
    spans = [(1, 4), (1, 1), (2, 3)]
    options = {"stop_ids": STOP, "score_spans": spans}
    ours = sampler(llama, PROMPTS, Sampling(max_new_tokens=6), range(3), **options)
    plain = generate(llama, PROMPTS, Sampling(max_new_tokens=6), range(3), **options)
    scored = continuation_logprobs(llama, PROMPTS, [each.token_ids for each in ours])
    for row, (sample, expected) in enumerate(zip(ours, plain, strict=True)):
        assert sample.token_ids == expected.token_ids
        assert sample.finish_reason == expected.finish_reason
        assert sample.logprobs == pytest.approx(scored[row, : len(sample.token_ids)].tolist())
        assert sample.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-5)
    assert sampler.mismatch == pytest.approx(0.05, abs=1e-4)


def test_what_is_asked_of_vllm(vllm, llama):
    sampler = sampler_for(llama)
    sampler(llama, PROMPTS, Sampling(max_new_tokens=5, top_p=0.9), [1, 2, 2**64 - 1], stop_ids=STOP)
    ((prompts, parameters, adapter),) = sampler._engine.calls
    assert prompts == [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    assert [wish.seed for wish in parameters] == [1, 2, 2**63 - 1]
    assert parameters[0].top_k == -1
    assert parameters[0].stop_token_ids == [3]
    assert adapter is None
    assert sampler._engine.options == {"enable_lora": True, "gpu_memory_utilization": 0.4}
    assert math.isnan(sampler.mismatch)  # of another distribution, so not compared
    assert sampler(llama, [], Sampling(), [], stop_ids=STOP) == []


def test_a_large_mismatch_is_warned_of(vllm, llama, caplog):
    sampler = sampler_for(llama)
    sampler._engine.off = 0.5
    sampler(llama, PROMPTS, Sampling(max_new_tokens=5), range(3), stop_ids=STOP)
    assert "differ by 0.5" in caplog.text


def test_an_adapter_is_handed_over_whenever_it_has_changed(vllm):
    pair = tiny_model()
    problem = HFASTProblem(
        pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)), lora=LoraOptions()
    )
    attacker = problem.attacker
    sampler = sampler_for(attacker)

    def adapter():
        sampler(attacker, PROMPTS, Sampling(max_new_tokens=2), range(3), stop_ids=STOP)
        return sampler._engine.calls[-1][2]

    first, again = adapter(), adapter()
    assert (first.number, first.path) == (again.number, again.path)
    with torch.no_grad():
        next(iter(problem.parameters())).add_(1)
    changed = adapter()
    assert changed.number == first.number + 1
    assert changed.path != first.path


def test_an_attacker_whose_own_weights_are_trained_is_refused(vllm):
    pair = tiny_model()
    problem = HFASTProblem(pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)))
    with pytest.raises(ConfigurationError, match="lora"):
        sampler_for(pair.model)(
            problem.attacker, PROMPTS, Sampling(max_new_tokens=2), range(3), stop_ids=STOP
        )


def test_a_problem_plays_with_it(vllm):
    pair = tiny_model()
    sampler = sampler_for(pair.model)
    problem = HFASTProblem(
        pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)), lora=LoraOptions(),
        sampler=sampler, attacker_sampling=Sampling(max_new_tokens=4),
        target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    (graph,) = ASTEnvironment(problem, ["hello"], 2, 2).rollouts([0])
    assert len(list(graph.nodes())) == 6
