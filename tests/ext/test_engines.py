"""Engines without vLLM: a stand-in of its interface, which samples with a model in memory.

tests/ext/vllm does the same with the real one.
"""

import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from astra_rl import GRPO, Harness
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import check_training, resolve
from astra_rl.errors import ConfigurationError, MissingDependencyError, ModelError
from astra_rl.ext.transformers.evaluation_problem import HFEvaluationProblem
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.vllm import VLLMEngine, VLLMSampler
from astra_rl.ext.vllm.engine import lora_rank
from astra_rl.ext.vllm.weights import weights_folder
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.adapter_versions import Adapter, AdapterVersions
from astra_rl.models.adapters import load_adapter, quiet_peft
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import load_model
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions
from astra_rl.models.versions import FullWeights, WeightVersions, digest_of_weights
from astra_rl.moderators import FunctionModerator
from astra_rl.testing import tiny_model

STOP = frozenset({3})
PROMPTS = [[2, 9, 10, 11], [4, 5], [30, 31, 32]]
STARTED = []


class StandIn:
    """An engine of vLLM that loads what it is given, and is off by a known amount.

    Attributes:
        cached: Folder of the weights that the cached prefixes are of; others than those that it
            has, as in vLLM, until the cache is reset.
        resets: Whether its prefix cache can be reset.
        names: Whether it names the weights of a sample.
    """

    off, resets, names = 0.0, True, True

    def __init__(self, model, **options):
        self.folder, self.options, self.calls = model, options, []
        STARTED.append(self)
        self.asleep = 0
        self.label, self.cached, self.loaded = "default", model, []

    def weights(self, adapter):
        model = load_model(self.folder, device="cpu", dtype=self.options["dtype"])
        if adapter is None:
            return model
        return load_adapter(model, adapter.path).eval()

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        assert not self.asleep
        if not Path(kwargs["weights_path"], "model.safetensors").exists():
            raise ValueError("Repo id must be in the form 'repo_name'")
        self.folder = kwargs["weights_path"]
        self.loaded.append(self.folder)
        self.files = sorted(each.name for each in Path(self.folder).parent.iterdir())

    def reset_prefix_cache(self):
        self.cached = self.folder if self.resets else self.cached
        return self.resets

    def update_weight_version(self, name):
        self.label = name

    def generate(self, prompts, parameters, *, lora_request, use_tqdm):
        self.calls.append((prompts, parameters, lora_request))
        assert self.cached == self.folder
        model, outputs = self.weights(lora_request), []
        for prompt, wish in zip(prompts, parameters, strict=True):
            ids = prompt["prompt_token_ids"]
            sampling = Sampling(
                max_new_tokens=wish.max_tokens,
                temperature=wish.temperature,
                top_k=max(0, wish.top_k),
                top_p=wish.top_p,
            )
            (sample,) = generate(
                model, [ids], sampling, [wish.seed], stop_ids=frozenset(wish.stop_token_ids)
            )
            logprobs = [
                {token: SimpleNamespace(logprob=value - self.off)}
                for token, value in zip(sample.token_ids, sample.logprobs, strict=True)
            ]
            scored = None
            if wish.prompt_logprobs is not None:
                with torch.no_grad():
                    row = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                scored = [None] + [
                    {token: SimpleNamespace(logprob=row[place, token].item())}
                    for place, token in enumerate(ids[1:])
                ]
            span = SimpleNamespace(version=self.label, start=0, end=len(logprobs))
            answer = SimpleNamespace(
                token_ids=list(sample.token_ids),
                logprobs=logprobs,
                weight_versions=[span] if self.names else [],
            )
            outputs.append(
                SimpleNamespace(outputs=[answer], prompt_logprobs=scored, prompt_token_ids=ids)
            )
        return outputs

    def sleep(self, level):
        self.asleep += 1

    def wake_up(self):
        self.asleep -= 1


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
    monkeypatch.setattr(StandIn, "off", 0.0)
    STARTED.clear()


@pytest.fixture
def pair():
    """With weights large enough that another model's log-probabilities are far off."""
    made = tiny_model()
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return ModelPair(made.model.requires_grad_(False), made.tokenizer)


def moderator():
    return FunctionModerator(lambda texts: [0.5] * len(texts))


def adapted(pair, rank=4):
    torch.manual_seed(0)
    return HFASTProblem(pair, pair, pair, moderator(), lora=LoraOptions(rank=rank))


def change(problem, by=0.1):
    with torch.no_grad():
        for parameter in problem.parameters():
            parameter.add_(by * torch.randn(parameter.shape))


def sample(sampler, model, **options):
    options = {"stop_ids": STOP, **options}
    return sampler(model, PROMPTS, Sampling(max_new_tokens=6), range(3), **options)


def assert_sampled_from(model, samples):
    scored = continuation_logprobs(model, PROMPTS, [each.token_ids for each in samples])
    for row, each in enumerate(samples):
        assert each.logprobs == pytest.approx(scored[row, : len(each.token_ids)].tolist(), abs=1e-4)


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for make in (VLLMSampler, lambda: VLLMEngine("some/model")):
        with pytest.raises(MissingDependencyError, match="extra 'vllm'"):
            make()


def test_samples_and_log_probabilities_are_those_of_the_engine(vllm, pair):
    StandIn.off = 0.05
    sampler = VLLMSampler()
    spans = [(1, 4), (1, 1), (2, 3)]
    ours = sample(sampler, pair.model, score_spans=spans)
    plain = sample(generate, pair.model, score_spans=spans)
    for each, expected in zip(ours, plain, strict=True):
        assert each.token_ids == expected.token_ids
        assert each.finish_reason == expected.finish_reason
        shifted = [value - 0.05 for value in expected.logprobs]
        assert each.logprobs == pytest.approx(shifted, abs=1e-5)
        assert each.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-5)
    assert sampler.mismatch == pytest.approx(0.05, abs=1e-4)


def test_what_is_asked_of_vllm(vllm, pair):
    sampler = VLLMSampler(gpu_memory_utilization=0.4)
    sampling = Sampling(max_new_tokens=5, top_p=0.9)
    sampler(pair.model, PROMPTS, sampling, [1, 2, 2**64 - 1], stop_ids=STOP)
    (engine,) = STARTED
    ((prompts, parameters, adapter),) = engine.calls
    assert prompts == [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    assert [wish.seed for wish in parameters] == [1, 2, 2**63 - 1]
    assert [wish.prompt_logprobs for wish in parameters] == [None] * 3
    assert (parameters[0].top_k, parameters[0].stop_token_ids) == (-1, [3])
    assert adapter is None
    assert engine.options["gpu_memory_utilization"] == 0.4
    assert (engine.options["dtype"], engine.options["max_model_len"]) == ("float32", 128)
    assert engine.options["logprobs_mode"] == "processed_logprobs"
    assert "enable_lora" not in engine.options
    assert math.isnan(sampler.mismatch)  # of another distribution, so not compared
    assert sampler(pair.model, [], Sampling(), [], stop_ids=STOP) == []


def test_each_model_has_an_engine_with_its_own_weights(vllm, pair):
    other = tiny_model(seed=1)
    other.model.requires_grad_(False)
    sampler = VLLMSampler()
    for model in (pair.model, other.model, pair.model):
        assert_sampled_from(model, sample(sampler, model))
    assert len({engine.folder for engine in STARTED}) == 2
    assert len(STARTED) == 2


def test_the_engine_gets_the_weights_in_memory_and_not_those_of_the_name(vllm, pair, tmp_path):
    """A model that was changed after it was loaded is not what its folder has."""
    pair.model.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert weights_folder(model) == str(tmp_path / "model")
    with torch.no_grad():
        model.model.embed_tokens.weight[4].add_(1)  # as after the training of one token
    assert weights_folder(model) != str(tmp_path / "model")
    assert_sampled_from(model, sample(VLLMSampler(), model))


def test_an_engine_of_other_weights_is_refused(vllm, pair, monkeypatch):
    other = tiny_model(seed=1)
    other.model.save_pretrained(folder := weights_folder(other.model))
    monkeypatch.setattr("astra_rl.ext.vllm.engine.weights_folder", lambda model: folder)
    sampler = VLLMSampler()
    for _ in range(2):  # also after the error, as in a notebook
        with pytest.raises(ModelError, match="runs other weights or another adapter"):
            sample(sampler, pair.model)


def test_a_large_mismatch_is_warned_of(vllm, pair, caplog):
    StandIn.off = 0.2
    sample(VLLMSampler(), pair.model)
    assert "differ by 0.2" in caplog.text


@pytest.mark.slow
def test_an_adapter_is_handed_over_whenever_it_has_changed_and_old_ones_are_deleted(vllm, pair):
    problem = adapted(pair, rank=24)
    sampler, names = VLLMSampler(), []
    for _ in range(5):
        assert_sampled_from(problem.attacker, sample(sampler, problem.attacker))
        sample(sampler, problem.attacker)  # unchanged: the same version
        (engine,) = STARTED
        first, again = (call[2] for call in engine.calls[-2:])
        assert (first.name, first.path) == (again.name, again.path)
        names.append(first.name)
        change(problem)
    assert [name.rpartition("-")[0] for name in names] == [f"attacker-v{n}" for n in range(1, 6)]
    assert len(list(Path(first.path).parent.iterdir())) == 2
    assert (engine.options["max_lora_rank"], engine.options["max_cpu_loras"]) == (32, 2)


def test_a_change_past_autograd_is_noticed(vllm, pair):
    """Writing to `.data` does not count a parameter's version up."""
    problem, sampler = adapted(pair), VLLMSampler()
    sample(sampler, problem.attacker)
    for parameter in problem.parameters():
        parameter.data += 0.2
    assert_sampled_from(problem.attacker, sample(sampler, problem.attacker))


def test_a_frozen_adapter_is_sampled(vllm, pair, tmp_path):
    pair.model.save_pretrained(tmp_path / "base")
    pair.tokenizer.save_pretrained(tmp_path / "base")
    problem = HFASTProblem(
        *[str(tmp_path / "base")] * 3, moderator(), lora=LoraOptions(rank=4), dtype="float32"
    )
    change(problem)
    problem.save(tmp_path / "trained")
    sampler = VLLMSampler()
    frozen = HFEvaluationProblem(
        str(tmp_path / "trained"), str(tmp_path / "base"), moderator(), dtype="float32",
        attacker_sampler=sampler, attacker_sampling=Sampling(max_new_tokens=6),
    )  # fmt: skip
    contexts = ["hello", "a"]
    attacks = frozen.rollout_prompt_with_attacker(contexts)
    ours = frozen.get_attacker_logprobs(contexts, attacks)
    base = frozen.get_baseline_logprobs(contexts, attacks)
    for row, attack in enumerate(attacks):
        count = len(attack.token_ids)
        assert ours[row, :count].tolist() == pytest.approx(attack.logprobs, abs=1e-4)
    assert (ours - base).abs().max() > 0.05
    assert STARTED[0].folder == str(tmp_path / "base")


def test_attacker_baseline_and_target_of_one_base_are_told_apart(vllm, pair):
    problem = HFASTProblem(
        pair, pair, pair, moderator(), lora=LoraOptions(rank=4), sampler=VLLMSampler(),
        attacker_sampling=Sampling(max_new_tokens=4), target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    change(problem)
    (graph,) = ASTEnvironment(problem, ["hello"], 2, 2).rollouts([0])
    nodes = list(graph.nodes())
    assert len(nodes) == 6
    contexts, attacks = [node.context for node in nodes], [node.attack for node in nodes]
    exact = problem.get_attacker_logprobs(contexts, attacks)
    heard = problem.get_target_logprobs(contexts, attacks)
    for row, node in enumerate(nodes):
        known = node.attack.logprobs
        assert exact[row, : len(known)].tolist() == pytest.approx(known, abs=1e-4)
        said = node.response.heard_logprobs
        assert heard[row, : len(said)].tolist() == pytest.approx(said, abs=1e-4)
    assert sorted(engine.options.get("enable_lora", False) for engine in STARTED) == [False, True]


def test_all_weights_are_handed_over_whenever_they_have_changed_and_old_ones_deleted(vllm, pair):
    problem, sampler = HFASTProblem(pair, pair, pair, moderator()), VLLMSampler()
    for version in range(1, 5):
        assert_sampled_from(problem.attacker, sample(sampler, problem.attacker))
        sample(sampler, problem.attacker)  # unchanged: nothing is loaded
        (engine,) = STARTED
        assert len(engine.loaded) == version
        assert engine.label.startswith(f"attacker-v{version}-")
        assert len(list(Path(engine.folder).parent.iterdir())) == min(version, 2)
        for parameter in problem.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)  # past autograd
    assert "enable_lora" not in engine.options


def test_the_smallest_change_of_any_weight_is_a_new_version(pair):
    versions = WeightVersions(2, lambda version: None)
    names = [versions.current(pair.model).name]
    for parameter in pair.model.parameters():
        for place in (0, -1):
            bits = parameter.data.reshape(-1).view(torch.int32)
            bits[place] += 1
            names.append(versions.current(pair.model).name)
    assert len(set(names)) == len(names)


def rows_swapped(weight):
    weight[[1, 2]] = weight[[2, 1]]


def columns_swapped(weight):
    weight.copy_(weight.roll(weight.shape[-1] // 2, -1))


def places_in_a_row_swapped(weight):
    weight[3, [0, 4]] = weight[3, [4, 0]]


def signs_flipped(weight):
    weight[3, [3, 7]] *= -1


def all_signs_flipped(weight):
    weight.neg_()


def one_up_and_one_down(weight):
    bits = weight.view(torch.int32 if weight.itemsize == 4 else torch.int16)
    bits[3, 0] += 1
    bits[3, 4] -= 1


def zero_negated(weight):
    weight[3, 0] = -weight[3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "alter",
    [
        rows_swapped,
        columns_swapped,
        places_in_a_row_swapped,
        signs_flipped,
        all_signs_flipped,
        one_up_and_one_down,
        zero_negated,
    ],
)
def test_changes_that_cancel_out_in_a_sum_are_a_new_version(alter, dtype):
    """A version that is taken for another one would be sampled with in silence."""
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3, 0] = 0.0 if alter is zero_negated else weight[3, 0]
    model = torch.nn.Linear(32, 16, bias=False, dtype=dtype)
    model.weight.data = weight
    before = digest_of_weights(model)
    model.weight.data = weight.clone()
    assert digest_of_weights(model) == before
    alter(model.weight.data)
    assert digest_of_weights(model) != before


@pytest.mark.parametrize(
    "shape", [(), (0, 4), (3, 5), (3, 1), (2, 3, 7), (300_000, 3), (2, 200_000)]
)
def test_each_value_of_a_parameter_of_any_shape_counts(shape):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    found = {digest_of_weights(model)}
    flat = model.weight.data.reshape(-1)
    places = sorted({0, len(flat) // 3, len(flat) - 1}) if len(flat) else []
    for place in places:
        flat[place] = 1.0
        found.add(digest_of_weights(model))
        flat[place] = 0.0
    assert len(found) == 1 + len(places)


def test_the_engine_of_trained_weights_runs_no_other_model(vllm, pair):
    """A frozen model, of the same base or the baseline, gets an engine of its own."""
    problem, sampler = HFASTProblem(pair, pair, pair, moderator()), VLLMSampler()
    change(problem)
    for model in (problem.attacker, problem.baseline, problem.attacker):
        assert_sampled_from(model, sample(sampler, model))
    trained, frozen = STARTED
    assert (trained.label[:12], frozen.label) == ("attacker-v1-", "default")
    problem.attacker.requires_grad_(False)  # its training is over
    assert_sampled_from(problem.attacker, sample(sampler, problem.attacker))
    assert len(STARTED) == 2


def test_weights_that_were_not_asked_for_are_refused(vllm, pair, tmp_path):
    pair.model.save_pretrained(tmp_path / "model")
    engine = VLLMEngine(str(tmp_path / "model"), dtype="float32")
    weights = FullWeights(1, "attacker-v1-12345678", tmp_path / "model")
    asked = (PROMPTS, Sampling(max_new_tokens=2), range(3))
    assert len(engine.sample(*asked, stop_ids=STOP, version=weights)) == 3
    with pytest.raises(ModelError, match="attacker-v1-12345678, and default were asked for"):
        engine.sample(*asked, stop_ids=STOP)
    adapter = Adapter(1, "attacker-v1-87654321", tmp_path / "model", 0)
    with pytest.raises(ModelError, match="Give each model an engine of its own"):
        engine.sample(*asked, stop_ids=STOP, version=adapter)
    STARTED[0].update_weight_version("attacker-v9-of-another")
    with pytest.raises(ModelError, match="has the weights attacker-v9-of-another"):
        engine.sample(*asked, stop_ids=STOP, version=weights)
    STARTED[0].names = False
    with pytest.raises(ModelError, match="has the weights unknown"):
        engine.sample(*asked, stop_ids=STOP, version=weights)


def test_after_weights_that_could_not_be_loaded_the_engine_loads_before_it_samples(
    vllm, pair, tmp_path, monkeypatch
):
    pair.model.save_pretrained(tmp_path / "model")
    engine = VLLMEngine(str(tmp_path / "model"), dtype="float32")
    asked = (PROMPTS, Sampling(max_new_tokens=2), range(3))
    here = FullWeights(1, "attacker-v1-12345678", tmp_path / "model")
    gone = FullWeights(2, "attacker-v2-12345678", tmp_path / "gone")
    engine.sample(*asked, stop_ids=STOP, version=here)
    with pytest.raises(ModelError, match="cannot load attacker-v2-12345678"):
        engine.sample(*asked, stop_ids=STOP, version=gone)
    with pytest.raises(ModelError, match="has the weights loading"):
        engine.sample(*asked, stop_ids=STOP)
    assert len(engine.sample(*asked, stop_ids=STOP, version=here)) == 3
    assert len(STARTED[0].loaded) == 2
    monkeypatch.setattr(StandIn, "resets", False)
    again = FullWeights(3, "attacker-v3-12345678", tmp_path / "model")
    with pytest.raises(ModelError, match="cannot reset its prefix cache"):
        engine.sample(*asked, stop_ids=STOP, version=again)


def test_an_adapter_and_weights_below_it_are_not_trained_together(vllm, pair):
    problem = adapted(pair)
    problem.attacker.get_base_model().model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match="an engine gets one of the two"):
        sample(VLLMSampler(), problem.attacker)


def test_an_adapter_that_is_not_plain_lora_is_refused(vllm, pair):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    with quiet_peft():
        model = get_peft_model(pair.model, config)
    with pytest.raises(ConfigurationError, match="they run plain LoRA"):
        sample(VLLMSampler(), model)


def test_vllm_sends_no_statistics_and_runs_in_one_process_only(vllm, monkeypatch):
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    VLLMEngine("some/model")
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="Start servers"):
        VLLMEngine("some/model")


def test_ranks_are_rounded_up_to_those_of_vllm():
    assert [lora_rank(rank) for rank in (1, 8, 9, 16, 17, 64, 300, 512)] == [
        8, 8, 16, 16, 32, 64, 512, 512,
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="up to 512"):
        lora_rank(513)


def test_a_sleeping_engine_wakes_up_when_it_is_asked(vllm, pair):
    sampler = VLLMSampler(sleep=True)
    problem = HFASTProblem(
        pair, pair, pair, moderator(), lora=LoraOptions(rank=4), attacker_sampler=sampler,
        attacker_sampling=Sampling(max_new_tokens=2), target_sampling=Sampling(max_new_tokens=2),
    )  # fmt: skip
    harness = Harness(ASTEnvironment(problem, ["hello"], 2, 1), GRPO(problem), 2)
    for seed in range(2):
        harness.experience(seed)
        (engine,) = STARTED
        assert engine.options["enable_sleep_mode"]
        assert engine.asleep == 1
    sample(sampler, problem.attacker)
    assert engine.asleep == 0


def test_a_frozen_version_is_sampled_while_the_adapter_changes(vllm, pair):
    problem, sampler = adapted(pair), VLLMSampler(staleness=1)
    problem.attacker_sampler = sampler
    opened, before = problem.frozen_attacker(), sample(generate, problem.attacker)
    change(problem, 0.3)
    after = sample(generate, problem.attacker)
    with opened():
        found = sample(sampler, problem.attacker)
    assert [each.token_ids for each in found] == [each.token_ids for each in before]
    assert math.isnan(sampler.mismatch)  # the model has other weights by now
    (engine,) = STARTED
    assert engine.calls[-1][2].name.startswith("attacker-v1-")
    assert len(list(Path(engine.calls[-1][2].path).parent.iterdir())) == 1
    found = sample(sampler, problem.attacker)
    assert [each.token_ids for each in found] == [each.token_ids for each in after]
    with opened():
        sample(sampler, problem.attacker)
    assert engine.calls[-1][2].name.startswith("attacker-v1-")


def test_frozen_weights_are_sampled_while_they_change_and_each_call_has_one_version(vllm, pair):
    problem, sampler = HFASTProblem(pair, pair, pair, moderator()), VLLMSampler(staleness=1)
    problem.attacker_sampler = sampler
    opened, before = problem.frozen_attacker(), sample(generate, problem.attacker)
    change(problem, 0.3)
    after = sample(generate, problem.attacker)
    for _ in range(2):  # the engine has one version at a time, so the other one is loaded again
        with opened():
            found = sample(sampler, problem.attacker)
        assert [each.token_ids for each in found] == [each.token_ids for each in before]
        found = sample(sampler, problem.attacker)
        assert [each.token_ids for each in found] == [each.token_ids for each in after]
    (engine,) = STARTED
    assert [Path(each).name for each in engine.loaded] == ["1", "2", "1", "2"]
    assert engine.files == ["1", "2"]


def test_versions_before_the_staleness_allows_are_deleted(vllm, pair):
    problem, sampler = adapted(pair), VLLMSampler(staleness=2)
    problem.attacker_sampler = sampler
    for _ in range(6):
        opened = problem.frozen_attacker()
        with opened():
            sample(sampler, problem.attacker)
        change(problem)
    (engine,) = STARTED
    kept = Path(engine.calls[-1][2].path).parent
    assert sorted(each.name for each in kept.iterdir()) == ["3", "4", "5", "6"]
    assert engine.options["max_cpu_loras"] == 4


def test_adapters_of_the_same_weights_and_another_scale_are_two_versions():
    """A server that keeps one would answer for the other."""
    versions, found = AdapterVersions(2, lambda adapter: None), []
    for alpha in (8, 8, 16):
        torch.manual_seed(0)
        made = tiny_model()
        pair = ModelPair(made.model.requires_grad_(False), made.tokenizer)
        lora = LoraOptions(rank=4, alpha=alpha)
        problem = HFASTProblem(pair, pair, pair, moderator(), lora=lora)
        found.append(versions.current(problem.attacker))
    assert found[0] is found[1]
    assert found[0].name != found[2].name


def test_runs_that_start_with_the_same_weights_share_no_version(pair, monkeypatch):
    """At the same servers, one of them would delete what the other one samples with."""

    def names():
        return {WeightVersions(2, lambda version: None).current(pair.model).name for _ in range(3)}

    assert len(names()) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")  # processes that were started together do
    assert len(names()) == 1


def test_an_engine_that_sleeps_cannot_sample_during_updates(vllm):
    with pytest.raises(ConfigurationError, match="sleep with staleness=1"):
        VLLMSampler(sleep=True, staleness=1)


RUN = """
attacker: {model: a, lora: {rank: 4}}
target: {model: t}
moderator: {type: secret_leak}
prompts: {scenario: planted_secrets, test: 2, train: 2}
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.attacker=vllm", "sampler=transformers"], "rollout needs sampler: own"),
        (["rollout.attacker=sglang"], "rollout.attacker"),
        (["rollout.judge=sglang"], "rollout.judge"),
        (["rollout.judge={vllm: {sleep: true}}"], "a judge does not sleep"),
        (["rollout.target={servers: []}"], "rollout.target"),
        (["rollout.target=vllm", "target={model: t, opponents: [{model: o}]}"], "opponents"),
        (["rollout.target=vllm", "environment.type=self_play"], "self_play"),
        (
            ["rollout.target=vllm", "target={type: openai, options: {model: m}}"],
            "a target with a type is called at its own URL",
        ),
        (["training.max_staleness=-1"], "max_staleness"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_config(RUN, settings, source="test")


CORRECTED = "algorithm={type: grpo, options: {old_logprobs: corrected}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([CORRECTED], "needs rollout.attacker: vllm, or servers"),
        ([CORRECTED, "rollout.attacker={vllm: {sleep: true}}"], "sleep: true in rollout.attacker"),
        (
            [CORRECTED, "rollout.attacker=vllm", "rollout.target={vllm: {sleep: true}}"],
            "sleep: true in rollout.target",
        ),
        (
            [CORRECTED, "rollout.attacker=vllm", "target={model: t, opponents: [{model: o}]}"],
            "with target.opponents",
        ),
        (["rollout.attacker=vllm", "algorithm={type: grpo}"], "old_logprobs: corrected"),
        (["rollout.attacker=vllm", "algorithm={type: ppo}"], "old_logprobs: corrected"),
    ],
)
def test_a_training_that_cannot_play_ahead_is_refused_before_models_are_loaded(settings, message):
    config = parse_config(RUN, ["training.max_staleness=1", *settings], source="test")
    plan = resolve(config)  # an evaluation of the run may use another engine
    with pytest.raises(ConfigurationError, match=f"training.max_staleness: 1.*{message}"):
        check_training(plan)


@pytest.mark.parametrize(
    "algorithm", [CORRECTED, "algorithm={type: dpo}", "algorithm={type: trajectory_balance}"]
)
def test_algorithms_that_are_corrected_or_learn_from_any_attacks_may_play_ahead(algorithm):
    settings = ["training.max_staleness=1", "rollout.attacker=vllm", algorithm]
    check_training(resolve(parse_config(RUN, settings, source="test")))
