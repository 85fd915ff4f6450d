"""Nothing that is read as data is run as code: no pickle, no template, no code of a model."""

from __future__ import annotations

import ast
import json
import pickle
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import astra_rl
from astra_rl.config.loading import load_config, load_moderator
from astra_rl.config.record import ConfigRecord
from astra_rl.config.schema import RunConfig
from astra_rl.core.attack_files import read_attacks
from astra_rl.datasets import load_scenario
from astra_rl.datasets.files import load_rows
from astra_rl.errors import AstraError, ModelError, TrainingError
from astra_rl.evaluation.judges.labels import read_labels
from astra_rl.evaluation.show.exports.regression import RegressionSuite
from astra_rl.models.loading import load_classifier, load_model, load_tokenizer
from astra_rl.models.value_head import ValueHead
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.provenance import manifest
from astra_rl.testing import tiny_model
from astra_rl.training.states import load_state, save_state

SOURCES = sorted(Path(astra_rl.__file__).parent.rglob("*.py"))
TEMPLATES = sorted(Path(astra_rl.__file__).parent.rglob("*.j2"))


class Planted:
    """Makes a folder when it is unpickled, as a stand-in for anything worse."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


@pytest.fixture
def planted(mark: Path) -> bytes:
    """A pickle that leaves a mark when somebody reads it."""
    found = pickle.dumps(Planted(mark))
    pickle.loads(found)
    assert mark.is_dir()  # it works: the tests see what they should
    mark.rmdir()
    return found


@pytest.fixture
def planted_zip(mark: Path, tmp_path: Path) -> bytes:
    """The same in the format of torch.save."""
    torch.save({"weight": Planted(mark)}, tmp_path / "planted.pt")
    return (tmp_path / "planted.pt").read_bytes()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


PICKLED = (
    *("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("training_args.bin", "model.pt", "model.pkl", "tokenizer.pkl", "vocab.pkl", "model.joblib"),
)


@pytest.mark.parametrize("loader", [load_model, load_classifier, load_tokenizer])
@pytest.mark.parametrize("kind", ["planted", "planted_zip"])
@pytest.mark.parametrize("has_weights", [True, False])
def test_pickles_in_the_folder_of_a_model_are_never_read(
    model_folder: Path,
    mark: Path,
    loader: Any,
    kind: str,
    has_weights: bool,
    request: pytest.FixtureRequest,
) -> None:
    for name in PICKLED:
        (model_folder / name).write_bytes(request.getfixturevalue(kind))
    if not has_weights:
        (model_folder / "model.safetensors").unlink()
    works = loader is load_tokenizer or (loader is load_model and has_weights)
    if works:
        loader(model_folder)
    else:
        with pytest.raises(ModelError):
            loader(model_folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_pickle_that_calls_itself_safetensors_is_refused(
    model_folder: Path, mark: Path, planted: bytes, name: str
) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(planted)
    with pytest.raises(ModelError):
        load_model(model_folder)
    assert not mark.exists()


def test_the_pickle_of_an_adapter_is_never_read(
    model_folder: Path, mark: Path, planted_zip: bytes, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(model_folder),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.bin").write_bytes(planted_zip)
    with pytest.raises(ModelError):
        load_model(adapter)
    assert not mark.exists()


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Any:
    """Writes an adapter of the model with the given settings, and returns its folder."""

    def write(**changes: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(model_folder),
        }
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        save_file({"weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
        return folder

    return write


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"megatron_config": {"a": 1}, "megatron_core": "named_by_an_adapter"},
            "sets megatron_config, which names Python modules",
        ),
        (
            {"auto_mapping": {"base_model_class": "A", "parent_library": "named_by_an_adapter"}},
            None,
        ),
    ],
    ids=["megatron_core", "parent_library"],
)
def test_an_adapter_names_no_module_to_import(
    adapter: Any,
    mark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    message: str | None,
) -> None:
    """peft before 0.20 imports ``megatron_core``, whatever it is."""
    (tmp_path / "named_by_an_adapter.py").write_text(f"import os; os.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = adapter(r=2, target_modules=["q_proj"], **settings)
    load_tokenizer(folder)
    with pytest.raises(ModelError, match=message):
        load_model(folder)
    assert not mark.exists()
    assert "named_by_an_adapter" not in sys.modules


def test_an_adapter_that_consists_of_others_is_refused(adapter: Any, tmp_path: Path) -> None:
    """X-LoRA would load them from where it says: any folder, or the hub."""
    folder = adapter(peft_type="XLORA", hidden_size=32, adapters={"0": str(tmp_path / "else")})
    with pytest.raises(ModelError, match="sets adapters, which names other adapters"):
        load_model(folder)


def test_the_pickle_of_a_value_head_is_never_read(
    mark: Path, planted: bytes, tmp_path: Path
) -> None:
    head = ValueHead(8)
    head.save(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(planted)
    with pytest.raises(Exception, match=r".") as caught:
        head.load(tmp_path)
    assert not isinstance(caught.value, AttributeError)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_the_pickle_of_a_state_makes_it_damaged(
    mark: Path, planted: bytes, tmp_path: Path, name: str
) -> None:
    place = save_state(tmp_path / "states", 1, {"weight": torch.zeros(2)})
    (place / name).write_bytes(planted)
    (place / "optimizer.pt").write_bytes(planted)
    with pytest.raises(TrainingError, match="is whole"):
        load_state(tmp_path / "states")
    assert not mark.exists()


def test_a_pickle_as_the_index_of_a_log_is_thrown_away(
    mark: Path, planted: bytes, tmp_path: Path
) -> None:
    with AttemptLog(tmp_path / "attempts.jsonl", write=True):
        pass
    (tmp_path / "attempts.jsonl").write_bytes(planted + b"\n")
    (tmp_path / "attempts.jsonl.index").write_bytes(planted)
    with AttemptLog(tmp_path / "attempts.jsonl") as log:
        assert (len(log), log.health.unreadable >= 1) == (0, True)
    assert not mark.exists()


@pytest.mark.parametrize(
    "suffix", ["txt", "csv", "tsv", "jsonl", "json", "parquet", "pkl", "joblib", "pt", "arrow"]
)
def test_a_pickle_as_a_file_of_prompts_is_refused(
    mark: Path, planted: bytes, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_bytes(planted)
    with pytest.raises(AstraError):
        load_rows(str(path))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        (load_config, "config.yaml"),
        (lambda path: load_moderator(str(path)), "judge.yaml"),
        (load_scenario, "scenario.yaml"),
        (load_scenario, "scenario.json"),
        (RegressionSuite.load, "suite.json"),
        (read_attacks, "attacks.jsonl"),
        (lambda path: read_labels(path), "labels.csv"),
        (lambda path: read_labels(path), "labels.jsonl"),
    ],
)
def test_neither_pickles_nor_tags_of_yaml_make_objects(
    mark: Path, planted: bytes, tmp_path: Path, reader: Any, name: str
) -> None:
    tag = f"!!python/object/apply:os.mkdir ['{mark}']\n".encode()
    for content in (planted, tag, b"a: " + tag):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AstraError):
            reader(tmp_path / name)
    assert not mark.exists()


def test_a_folder_of_a_data_set_cannot_bring_code(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "prompts.py").write_text(f"import os; os.mkdir({str(mark)!r})\n")
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(AstraError):
        load_rows(str(folder))
    assert not mark.exists()


@pytest.fixture
def with_code(model_folder: Path, mark: Path) -> Path:
    """The folder of a model that brings code for its configuration, its model and its tokenizer."""
    (model_folder / "theirs.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).mkdir(exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class TheirConfig(LlamaConfig):\n    model_type = 'theirs'\n"
        "class TheirModel(LlamaForCausalLM):\n    config_class = TheirConfig\n"
        "class TheirTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    path = model_folder / "config.json"
    names = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    config = {**json.loads(path.read_text()), "model_type": "theirs", "auto_map": names}
    path.write_text(json.dumps(config))
    path = model_folder / "tokenizer_config.json"
    names = {"AutoTokenizer": [None, "theirs.TheirTokenizer"]}
    config = {**json.loads(path.read_text()), "auto_map": names}
    config["tokenizer_class"] = "TheirTokenizer"
    path.write_text(json.dumps(config))
    return model_folder


@pytest.mark.parametrize("loader", [load_model, load_classifier, load_tokenizer])
def test_code_that_comes_with_a_model_is_not_run(with_code: Path, mark: Path, loader: Any) -> None:
    with pytest.raises(ModelError):
        loader(with_code)
    assert not mark.exists()


def test_code_is_run_by_its_flag_with_a_loud_warning(
    with_code: Path,
    mark: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    load_model(with_code, trust_remote_code=True)
    assert mark.is_dir()
    (record,) = [each for each in caplog.records if each.name == "astra_rl"]
    assert record.levelname == "WARNING"
    assert "trust_remote_code: Python code in the repository of" in record.getMessage()


def test_the_record_of_a_run_says_whether_code_was_trusted() -> None:
    settings = {
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
    }
    for trusted in (True, False):
        config = RunConfig.model_validate({**settings, "trust_remote_code": trusted})
        assert (
            manifest(ConfigRecord.of(config), "", datetime.now(UTC))["trust_remote_code"] is trusted
        )


def test_a_chat_template_that_reaches_for_python_is_refused(model_folder: Path, mark: Path) -> None:
    """Templates of a model are rendered by transformers, in its sandbox."""
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(mark) + "') }}"
    (model_folder / "chat_template.jinja").write_text(reach)
    tokenizer = load_tokenizer(model_folder)
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert not mark.exists()


FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("subprocess", "pty", "code", "codeop", "torch.serialization"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.save", "np.load", "numpy.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.dump"),
    *("os.system", "os.popen", "os.execv", "os.spawnv", "Template", "jinja2.Template"),
    *("shutil.unpack_archive", "torch.hub.load"),
}
FORBIDDEN_METHODS = {"from_string", "read_pickle", "to_pickle", "extractall"}


def forbidden(tree: ast.AST) -> list[str]:
    """Name what could run data as code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
                found.append(name)
            for keyword in node.keywords:
                given = f"{keyword.arg}={ast.unparse(keyword.value)}"
                if given in (
                    *("shell=True", "weights_only=False", "trust_remote_code=True"),
                    *("allow_pickle=True", "autoescape=False"),
                ):
                    found.append(given)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_library_has_nothing_that_runs_data_as_code(path: Path) -> None:
    assert forbidden(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_no_template_turns_escaping_off() -> None:
    assert TEMPLATES
    for path in TEMPLATES:
        text = path.read_text(encoding="utf-8")
        assert "autoescape" not in text, path
        assert "| safe" not in text, path
        assert "|safe" not in text, path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(x)",
        "yaml.load(x, Loader=L)",
        "run(x, shell=True)",
        "os.system(x)",
        "environment.from_string(x)",
        "load(x, trust_remote_code=True)",
    ],
)
def test_the_test_sees_what_it_should(code: str) -> None:
    assert forbidden(ast.parse(code))


def test_what_is_harmless_is_not_forbidden() -> None:
    assert forbidden(ast.parse("model.eval()\nyaml.safe_load(x)\nre.compile(x)")) == []
