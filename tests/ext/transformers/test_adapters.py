"""Saved adapters as attacker, baseline and target: trained further, saved, reloaded, resumed.

Expected logits come from transformers and peft, and from the base weights plus B A alpha / r.
"""

import json
import shutil
from itertools import product

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.cases import cases
from transformers import AutoModelForCausalLM

from astra_rl import ConfigurationError, FunctionModerator, ModelError
from astra_rl.ext.transformers import HFASTProblem, HFEvaluationProblem, ModelPair
from astra_rl.ext.transformers.value import HFValueProblem
from astra_rl.models.adapters import merge_adapter
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.testing import tiny_model

# peft calls deprecated attributes of transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]

IDS = torch.tensor([[2, 5, 6, 11, 9, 20, 4]])
SOURCES = ["base", "adapter", "merged"]
TRAINING = {
    "lora": {"lora": LoraOptions(rank=2)},
    "layers": {"trainable_layers": 1},
    "full": {},
}


def perturb(model, seed, scale=0.1):
    """Change all trainable weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator) * scale
                weight.add_(noise.to(weight.dtype))
    return model


def save(pair, folder):
    pair.model.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model, ids=IDS):
    return model.eval()(input_ids=ids).logits.float()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture(scope="module", params=["llama"])
def folders(request, tmp_path_factory):
    """Folders of a base model, an adapter made by peft, and the same adapter merged by hand."""
    root = tmp_path_factory.mktemp(request.param)
    pair = tiny_model(request.param, seed=1)
    base = save(pair, root / "base")
    modules = ["q_proj", "up_proj"] if request.param == "llama" else ["c_attn"]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base)
    perturb(get_peft_model(model, config), 1, 0.2).save_pretrained(root / "adapter")
    pair.tokenizer.save_pretrained(root / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(base)
    weights = load_file(root / "adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        for name in {key.rsplit(".lora_", 1)[0] for key in weights}:
            update = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"] * 2
            target = merged.get_submodule(name.removeprefix("base_model.model."))
            target.weight += update if request.param == "llama" else update.T
    save(ModelPair(merged, pair.tokenizer), root / "merged")
    return {name: root / name for name in SOURCES}


@pytest.fixture(scope="module")
def expected(folders):
    """Logits of each source, by transformers and peft."""
    found = {name: logits(AutoModelForCausalLM.from_pretrained(f)) for name, f in folders.items()}
    close(found["adapter"], found["merged"])
    assert (found["base"] - found["adapter"]).abs().max() > 0.1
    return found


def problem_of(folders, attacker, baseline, target, kind=HFASTProblem, **options):
    torch.manual_seed(0)
    return kind(
        folders[attacker],
        folders[target],
        folders[baseline],
        FunctionModerator(lambda texts: [0.5] * len(texts)),
        dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=4),
        target_sampling=Sampling(max_new_tokens=4),
        **options,
    )


def frozen_logits(problem):
    """Logits of baseline and target, as the problem runs them."""
    with problem._adapters.using(problem.baseline):
        baseline = logits(problem.baseline)
    with problem._as_target():
        return [baseline, logits(problem.target)]


PRODUCT = list(product(SOURCES, SOURCES, SOURCES, TRAINING))
# An orthogonal array: each pair of values of two of the four occurs. And one folder for all three
# models, which then share their weights.
PAIRWISE = {
    (SOURCES[a], SOURCES[b], SOURCES[(a + b) % 3], list(TRAINING)[(a + 2 * b) % 3])
    for a, b in product(range(3), repeat=2)
} | {("adapter", "adapter", "adapter", training) for training in TRAINING}
CASES = [
    pytest.param(*case, marks=[] if case in PAIRWISE else pytest.mark.exhaustive)
    for case in PRODUCT
]


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["llama"], indirect=True)
@pytest.mark.parametrize(("attacker", "baseline", "target", "training"), CASES)
def test_every_model_is_the_one_that_was_named_before_and_after_training(
    folders, expected, tmp_path, attacker, baseline, target, training
):
    check_models(folders, expected, tmp_path, attacker, baseline, target, training)


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["gpt2"], indirect=True)
@pytest.mark.parametrize("training", cases(TRAINING, by_default=["lora"]))
def test_an_adapter_on_transposed_weights_is_the_one_that_was_named(
    folders, expected, tmp_path, training
):
    check_models(folders, expected, tmp_path, "adapter", "adapter", "base", training)


def check_models(folders, expected, tmp_path, attacker, baseline, target, training):
    options = TRAINING[training]
    problem = problem_of(folders, attacker, baseline, target, **options)
    close(logits(problem.attacker), expected[attacker])
    frozen = [expected[baseline], expected[target]]
    for found, wanted in zip(frozen_logits(problem), frozen, strict=True):
        close(found, wanted)

    class Parameters(torch.nn.Module):
        parameters = staticmethod(problem.parameters)

    perturb(Parameters(), 2)
    trained = logits(problem.attacker)
    assert (trained - expected[attacker]).abs().max() > 0.1
    for found, wanted in zip(frozen_logits(problem), frozen, strict=True):
        close(found, wanted)

    folder = tmp_path / "saved"
    problem.save(folder)
    close(logits(AutoModelForCausalLM.from_pretrained(folder)), trained)
    close(logits(load_model(folder, device="cpu", dtype="float32")), trained)
    # Only an adapter of an unchanged model on disk can be saved as an adapter.
    is_adapter = training == "lora" and attacker != "adapter"
    assert (folder / "adapter_config.json").exists() == is_adapter
    assert (folder / "config.json").exists() != is_adapter
    if is_adapter:
        close(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), trained)
    again = HFEvaluationProblem(
        folder, folders[target], problem.moderator, baseline_model_id=folders[baseline],
        dtype="float32",
    )  # fmt: skip
    close(logits(again.attacker), trained)
    assert not list(again.parameters())
    # Resumed: the same models, with the trained parameters of the state.
    resumed = problem_of(folders, attacker, baseline, target, **options)
    for weight, saved in zip(resumed.parameters(), problem.parameters(), strict=True):
        weight.data.copy_(saved.data)
    assert torch.equal(logits(resumed.attacker), trained)
    # The problem itself is unchanged by saving.
    assert torch.equal(logits(problem.attacker), trained)
    # The saved attacker is trained further, with a new adapter and with all weights.
    for more in ({"lora": LoraOptions(rank=1)}, {}):
        further = problem_of({**folders, "saved": folder}, "saved", "saved", target, **more)
        close(logits(further.attacker), trained)
        close(frozen_logits(further)[0], trained)


# What else an adapter may be.


def adapter_of(folder, base, seed=3, **options):
    """Save an adapter made by peft, and return the logits of its model."""
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = perturb(get_peft_model(model, LoraConfig(**options)), seed, 0.2)
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "lora_alpha": 4},
        {"use_dora": True},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}, "bias": "all"},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:.*bias")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_every_kind_of_adapter_is_read_and_merged_exactly(tmp_path, options, tied):
    pair = tiny_model("llama", seed=1)
    if tied:
        pair.model.config.tie_word_embeddings = True
        pair.model.tie_weights()
    base = save(pair, tmp_path / "base")
    wanted = adapter_of(tmp_path / "adapter", base, **options)
    model = load_model(tmp_path / "adapter", device="cpu", dtype="float32")
    close(logits(model), wanted)
    merged = merge_adapter(model)
    # A product rounds in the order of the processor: 1.6e-5 on one with AVX-512 and AMX.
    close(logits(merged), wanted, atol=2e-5)
    merged.save_pretrained(tmp_path / "merged")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    close(logits(saved), wanted, atol=2e-5)


def test_an_adapter_of_an_adapter_is_read_on_both(folders, expected, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["merged"])
    config = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
    model = perturb(get_peft_model(model, config), 5)
    model.peft_config["default"].base_model_name_or_path = str(folders["adapter"])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    close(logits(loaded), logits(model))
    assert (logits(loaded) - expected["adapter"]).abs().max() > 0.01
    assert load_tokenizer(tmp_path).get_vocab() == load_tokenizer(folders["base"]).get_vocab()


def test_an_adapter_stays_in_float32_on_a_half_precision_model(folders, tmp_path):
    torch.manual_seed(0)
    model = make_trainable(
        load_model(folders["base"], device="cpu", dtype="bfloat16"), lora=LoraOptions(rank=2)
    )
    trained = logits(perturb(model, 1))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path, device="cpu", dtype="bfloat16")), trained)


def spoil(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/nowhere/base"}, "there is no folder '/nowhere/base'"),
        ({"target_modules": ["q_proj"]}, r"does not fit its base model.*up_proj"),
        ({"target_modules": ["q_proj", "up_proj", "v_proj"]}, "missing adapter keys"),
        ({"r": 5}, "size mismatch"),
    ],
)
def test_an_adapter_that_cannot_be_read_whole_is_refused(folders, tmp_path, changes, message):
    folder = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    spoil(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(folder, device="cpu")


def test_an_adapter_of_another_model_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    spoil(folder, base_model_name_or_path=str(save(tiny_model("gpt2"), tmp_path / "gpt2")))
    with pytest.raises(ModelError, match="cannot load the language model"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("options", TRAINING.values())
def test_a_model_in_memory_with_an_adapter_is_not_trained(folders, options):
    model = load_model(folders["adapter"], device="cpu", dtype="float32")
    pair = ModelPair(model, load_tokenizer(folders["base"]))
    before = logits(model)
    with pytest.raises(ConfigurationError, match=r"has an adapter already.*merge_and_unload"):
        problem_of({**folders, "memory": pair}, "memory", "base", "base", **options)
    close(logits(model), before)
    frozen = problem_of({**folders, "memory": pair}, "base", "memory", "memory", **options)
    close(frozen_logits(frozen)[1], before)


def test_an_adapter_on_a_model_in_memory_is_saved_with_all_weights(tmp_path):
    pair = tiny_model("llama", seed=1)
    problem = problem_of({"memory": pair}, *["memory"] * 3, lora=LoraOptions(rank=2))
    trained = logits(perturb(problem.attacker, 1))
    problem.save(tmp_path / "saved")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), trained)
    assert torch.equal(logits(problem.attacker), trained)


def test_a_saved_adapter_is_found_from_another_working_directory(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders["base"].parent)
    problem = problem_of({"base": "./base"}, *["base"] * 3, lora=LoraOptions(rank=2))
    trained = logits(perturb(problem.attacker, 1))
    problem.save(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    close(logits(load_model("./saved", device="cpu", dtype="float32")), trained)


def test_a_value_head_goes_with_the_adapter(folders, tmp_path):
    problem = problem_of(folders, "adapter", "base", "base", HFValueProblem, lora=LoraOptions())
    perturb(problem.value_head, 1)
    problem.save(tmp_path / "saved")
    folders = {**folders, "saved": tmp_path / "saved"}
    again = problem_of(folders, "saved", "base", "base", HFValueProblem, lora=LoraOptions())
    asked = ["hello"], [" you there"]
    close(again.value(*asked), problem.value(*asked))
