"""vLLM in this process: what it samples is what the model in memory would sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from astra_rl import GRPO, Trainer, TrainingConfiguration
from astra_rl.core.text import Exchange
from astra_rl.errors import ModelError
from astra_rl.ext.transformers.evaluation_problem import HFEvaluationProblem
from astra_rl.ext.transformers.generation import generate_turns
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.transformers.target_adapters import LocalTarget
from astra_rl.ext.vllm import VLLMEngine, VLLMSampler
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.scoring import continuation_logprobs, prompt_logprobs
from astra_rl.models.trainable import LoraOptions
from astra_rl.models.versions import FullWeights
from astra_rl.moderators import FunctionModerator, WildGuardModerator
from astra_rl.moderators.completion import LocalCompleter

from .conftest import OPTIONS, Watch

STOP = frozenset({3})
PROMPTS = [[2, *range(5, 30)], [2, 9, 10, 11], [4, 5], [2, *range(30, 5, -1)]]
LONG = [2, *[5 + place % 30 for place in range(300)]]
EXACT = 1e-3
"""Largest difference from the model's log-probabilities, in nats per token, in float32."""


def moderator():
    return FunctionModerator(lambda texts: [len(text) / 100 for text in texts])


def load(folder: Path) -> ModelPair:
    model = LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return ModelPair(model, AutoTokenizer.from_pretrained(folder))


def difference(model, prompts, samples):
    """The largest, over all sampled tokens."""
    ours = continuation_logprobs(model, prompts, [each.token_ids for each in samples]).tolist()
    return max(
        abs(a - b)
        for sample, row in zip(samples, ours, strict=True)
        for a, b in zip(sample.logprobs, row, strict=False)
    )


@pytest.fixture(scope="session")
def sampler():
    return VLLMSampler(**OPTIONS)


@pytest.fixture(scope="session")
def problem(attacker_folder, sampler):
    """A LoRA attacker of rank 24, which a default engine would refuse."""
    attacker = load(attacker_folder)
    torch.manual_seed(0)
    return HFASTProblem(
        attacker, attacker, attacker, moderator(),
        lora=LoraOptions(rank=24), attacker_sampler=sampler, dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=12),
        target_sampling=Sampling(max_new_tokens=8),
    )  # fmt: skip


@pytest.fixture(scope="session")
def target_engine(target_folder):
    return VLLMEngine(str(target_folder), dtype="float32", max_model_len=512, **OPTIONS)


def change(problem, seed):
    """Move the adapter as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in problem.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_each_version_of_an_adapter_is_sampled_over_a_long_prefix(problem, sampler):
    """The prefix is cached by the engine: with the weights of another version it would be stale."""
    prompts = [[*LONG, *tail] for tail in ([7], [8, 9], [10])]
    folder, names, untrained = None, set(), None
    for version in range(5):
        samples = sampler(
            problem.attacker, prompts, Sampling(max_new_tokens=10), range(3), stop_ids=STOP
        )
        assert difference(problem.attacker, prompts, samples) < EXACT
        assert sampler.mismatch < EXACT
        served = sampler._served[problem.attacker.get_base_model()]["adapter"]
        current = served.versions.current(problem.attacker)
        names.add(current.name)
        folder = current.folder.parent
        assert len(list(folder.iterdir())) <= 2
        if version == 0:
            untrained = samples
        else:  # the change is one that would be noticed
            assert difference(problem.attacker, prompts, untrained) > 0.05
        change(problem, version)
    assert len(names) == 5
    print("mismatch of adapters:", sampler.mismatch)


def test_a_training_plays_ahead_with_the_adapter_of_the_step_before(attacker_folder):
    """From another thread, while the update changes the adapter in memory."""
    attacker, sampler = load(attacker_folder), VLLMSampler(staleness=1, **OPTIONS)
    torch.manual_seed(0)
    trained = HFASTProblem(
        attacker, attacker, attacker, FunctionModerator(lambda texts: [len(t) % 2 for t in texts]),
        lora=LoraOptions(rank=8), attacker_sampler=sampler, dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=8),
        target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    change(trained, 0)
    watch = Watch(trained)
    config = TrainingConfiguration(
        lr=0.02, batch_size=8, training_steps=4, num_episodes_per_experience=4, seed=0,
        max_staleness=1,
    )  # fmt: skip
    environment = ASTEnvironment(trained, ["hello", "what is it?"], 2, 2)
    algorithm = GRPO(trained, old_logprobs="corrected", kl_in_loss=0.1)
    Trainer(config, environment, algorithm, callbacks=[watch]).train()
    largest = max(watch.difference(step, max(0, step - 1)) for step in range(4))
    assert largest < EXACT
    # The weights of the step itself are others.
    assert max(watch.difference(step, step) for step in range(4)) > 0.01
    print("mismatch of attacks that were played ahead:", largest)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_training_of_all_weights_samples_each_step_with_its_weights(attacker_folder, staleness):
    """With a learning rate at which the weights of another step would show."""
    trained = HFASTProblem(
        *[str(attacker_folder)] * 3, FunctionModerator(lambda texts: [len(t) % 2 for t in texts]),
        attacker_sampler=VLLMSampler(staleness=staleness, **OPTIONS), dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=8),
        target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    watch = Watch(trained)
    config = TrainingConfiguration(
        lr=0.02, batch_size=8, training_steps=4, num_episodes_per_experience=4, seed=0,
        max_staleness=staleness,
    )  # fmt: skip
    environment = ASTEnvironment(trained, ["hello", "what is it?"], 2, 2)
    algorithm = GRPO(trained, old_logprobs="corrected", kl_in_loss=0.1)
    Trainer(config, environment, algorithm, callbacks=[watch]).train()
    largest = max(watch.difference(step, max(0, step - staleness)) for step in range(4))
    assert largest < EXACT
    others = [(step, step - staleness - 1) for step in range(staleness + 1, 4)]
    nearest = min(watch.difference(step, weights) for step, weights in others)
    assert nearest > 0.1
    print(f"mismatch of all weights, staleness {staleness}: {largest}; of those before: {nearest}")


def test_what_all_weights_were_loaded_into_samples_no_other_model(attacker_folder, tmp_path):
    """Nor does the engine of a frozen model get the weights of its trained copy."""
    sampler = VLLMSampler(**OPTIONS)
    trained, frozen = load(attacker_folder).model, load(attacker_folder).model
    trained.requires_grad_(True)
    sampling = Sampling(max_new_tokens=10)
    for version in range(3):
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        prompts = [[*LONG, *tail] for tail in ([7], [8, 9], [10])]
        samples = sampler(trained, prompts, sampling, range(3), stop_ids=STOP)
        assert difference(trained, prompts, samples) < EXACT
        assert difference(frozen, prompts, samples) > 0.1
        served = sampler._served[trained]["weights"]
        current = served.versions.current(trained)
        assert current.name.startswith(f"attacker-v{version + 1}-")
        assert len(list(current.folder.parent.iterdir())) <= 2
        samples = sampler(frozen, prompts, sampling, range(3), stop_ids=STOP)
        assert difference(frozen, prompts, samples) < EXACT
    with pytest.raises(ModelError, match=r"attacker-v3-.*default were asked for"):
        served.engine.sample(PROMPTS, sampling, range(4), stop_ids=STOP)
    empty = FullWeights(4, "attacker-v4-empty", tmp_path)
    with pytest.raises(ModelError, match="cannot load attacker-v4-empty"):
        served.engine.sample(PROMPTS, sampling, range(4), stop_ids=STOP, version=empty)
    samples = sampler(trained, prompts, sampling, range(3), stop_ids=STOP)  # loaded again
    assert difference(trained, prompts, samples) < EXACT


def test_a_frozen_adapter_is_what_an_evaluation_samples(problem, sampler, tmp_path):
    problem.save(tmp_path / "trained")
    frozen = HFEvaluationProblem(
        str(tmp_path / "trained"), problem.baseline.name_or_path, moderator(), dtype="float32",
        attacker_sampler=VLLMSampler(**OPTIONS), attacker_sampling=Sampling(max_new_tokens=12),
    )  # fmt: skip
    assert not any(p.requires_grad for p in frozen.attacker.parameters())
    attacks = frozen.rollout_prompt_with_attacker(["hello", "what is it?", "a"])
    ours = frozen.get_attacker_logprobs(["hello", "what is it?", "a"], attacks)
    base = frozen.get_baseline_logprobs(["hello", "what is it?", "a"], attacks)
    for row, attack in enumerate(attacks):
        count = len(attack.token_ids)
        assert ours[row, :count].tolist() == pytest.approx(attack.logprobs, abs=EXACT)
    assert (ours - base).abs().max() > 0.05
    assert frozen.attacker_sampler.mismatch < EXACT
    print("mismatch of a frozen adapter:", frozen.attacker_sampler.mismatch)


def test_one_engine_per_model(target_engine, target_folder, attacker_folder):
    """The target's texts are those of the target's weights, with its likelihood of the prompt."""
    target, attacker = load(target_folder).model, load(attacker_folder).model
    spans = [(1, 20), (1, 4), (1, 1), (3, 26)]
    samples = target_engine.sample(
        PROMPTS, Sampling(max_new_tokens=10), range(4), stop_ids=STOP, score_spans=spans
    )
    assert difference(target, PROMPTS, samples) < EXACT
    assert difference(attacker, PROMPTS, samples) > 0.1
    exact = prompt_logprobs(target, PROMPTS, spans)
    for sample, row in zip(samples, exact, strict=True):
        assert sample.prompt_logprobs == pytest.approx(row, abs=EXACT)
    print("mismatch of a target:", difference(target, PROMPTS, samples))


def test_temperature_and_truncation_are_those_of_the_log_probabilities(
    target_engine, target_folder
):
    model = load(target_folder).model
    for options in ({"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}):
        sampling = Sampling(max_new_tokens=1, **options)
        samples = target_engine.sample(PROMPTS, sampling, range(4), stop_ids=STOP)
        for prompt, sample in zip(PROMPTS, samples, strict=True):
            logits = model(torch.tensor([prompt])).logits[0, -1].float() / sampling.temperature
            if sampling.top_k:
                logits[logits < logits.topk(3).values[-1]] = -torch.inf
            if sampling.top_p < 1:
                ordered, order = logits.sort(descending=True)
                before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
                logits[order[before >= 0.7]] = -torch.inf
            exact = logits.log_softmax(0)[sample.token_ids[0]].item()
            assert sample.logprobs[0] == pytest.approx(exact, abs=EXACT)
    greedy = target_engine.sample(
        PROMPTS, Sampling(max_new_tokens=6, temperature=0), range(4), stop_ids=STOP
    )
    own = generate(
        model, PROMPTS, Sampling(max_new_tokens=6, temperature=0), range(4), stop_ids=STOP
    )
    assert [each.token_ids for each in greedy] == [each.token_ids for each in own]
    assert {value for each in greedy for value in each.logprobs} == {0.0}


def test_a_served_target_answers_and_scores_as_a_local_one(
    target_engine, target_folder, target_pair
):
    served = ServedTarget(
        str(target_folder), lambda source, window: target_engine,
        sampling=Sampling(max_new_tokens=8, temperature=0),
    )  # fmt: skip
    renderer = target_pair.renderer("target")
    local = LocalTarget(target_pair.model, renderer, Sampling(max_new_tokens=8, temperature=0))
    contexts, attacks = ["hello", "who", "it is"], ["are you", "a b c", "z"]
    asked = [context + attack for context, attack in zip(contexts, attacks, strict=True)]
    ours, theirs = local.respond(asked, generate, None), served.respond(asked)
    assert [str(each) for each in ours] == [str(each) for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert other.heard_logprobs == pytest.approx(mine.heard_logprobs, abs=EXACT)
    for score in ("attack_logprobs", "response_logprobs"):
        torch.testing.assert_close(
            getattr(served.adapter, score)(contexts, attacks),
            getattr(local, score)(contexts, attacks),
            atol=EXACT, rtol=0,
        )  # fmt: skip


def test_judges_answer_and_score_as_those_whose_weights_are_here(target_engine, target_folder):
    pair = load(target_folder)
    chats = [[{"role": "user", "content": text}] for text in ("hello", "is it a?", "b")]
    here = LocalCompleter(model=pair.model, tokenizer=pair.tokenizer, max_new_tokens=8)
    there = LocalCompleter(str(target_folder), engine=target_engine, max_new_tokens=8)
    assert there(chats) == here(chats)
    exchanges = [Exchange("", "hi", "b"), Exchange("", "what is it", "a")]
    guard = WildGuardModerator(model=pair.model, tokenizer=pair.tokenizer)
    served = WildGuardModerator(
        model_id=str(target_folder), tokenizer=pair.tokenizer, engine=target_engine
    )
    expected = guard.moderate(exchanges)
    assert served.moderate(exchanges) == pytest.approx(expected, abs=EXACT)
    assert len(set(expected)) == 2


def test_a_problem_plays_with_two_engines(problem, target_engine, target_folder):
    served = ServedTarget(
        str(target_folder), lambda source, window: target_engine,
        sampling=Sampling(max_new_tokens=8),
    )  # fmt: skip
    both = HFASTProblem(
        problem.baseline.name_or_path, served, problem.baseline.name_or_path, moderator(),
        lora=LoraOptions(rank=24), dtype="float32", attacker_sampling=Sampling(max_new_tokens=8),
    )  # fmt: skip
    both.attacker, both.attacker_sampler = problem.attacker, problem.attacker_sampler
    (graph,) = ASTEnvironment(both, ["hello"], 2, 2).rollouts([0])
    nodes = list(graph.nodes())
    assert len(nodes) == 6
    local = load(target_folder)
    asked = [node.context + node.attack for node in nodes]
    target = LocalTarget(local.model, local.renderer("target"), Sampling(max_new_tokens=8))
    exact = target.attack_logprobs(
        [node.context for node in nodes], [node.attack for node in nodes]
    )
    for row, node in enumerate(nodes):
        heard = node.response.heard_logprobs or ()
        assert exact[row, : len(heard)].tolist() == pytest.approx(heard, abs=EXACT)
    assert len(generate_turns(local.model, target.renderer, asked, target.sampling, generate, None))
