"""A model of sentence-transformers is data: its folder names code, and none of it is run."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_rl.rewards.embedding import SentenceTransformerEmbedder
from astra_rl.testing import tiny_model

pytest.importorskip("sentence_transformers", reason="the extra embeddings is not installed")

TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING = "sentence_transformers.models.Pooling"


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


@pytest.fixture
def folder(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose folder has ``theirs.py``; nothing names it yet."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "model"
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "theirs.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).mkdir(exist_ok=True)\n"
        "import torch\nfrom transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast\n"
        "class TheirConfig(LlamaConfig):\n    model_type = 'theirs'\n"
        "class TheirModel(LlamaModel):\n    config_class = TheirConfig\n"
        "class TheirTokenizer(PreTrainedTokenizerFast): pass\n"
        "class TheirModule(torch.nn.Identity):\n"
        "    @classmethod\n    def load(cls, *args, **kwargs): return cls()\n"
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": model.config.hidden_size})
    )
    parts(folder, TRANSFORMER, POOLING)
    return folder


def parts(folder: Path, *types: str) -> None:
    """Write the list of modules; the first is in the folder itself, as transformers has it."""
    paths = ["", "1_Pooling", "2_More"]
    found = [
        {"idx": at, "name": str(at), "path": paths[at], "type": each}
        for at, each in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(found))


def change(path: Path, **changes: Any) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**before, **changes}))


def a_module_of_the_folder(folder: Path) -> None:
    parts(folder, TRANSFORMER, "theirs.TheirModule")


def the_first_module_of_the_folder(folder: Path) -> None:
    parts(folder, "theirs.TheirModule", POOLING)


def a_route_of_the_folder(folder: Path) -> None:
    parts(folder, TRANSFORMER, POOLING, "sentence_transformers.models.Router")
    change(
        folder / "2_More" / "router_config.json",
        types={"a": "theirs.TheirModule"},
        structure={"query": ["a"], "document": ["a"]},
        parameters={},
    )


def an_activation_of_the_folder(folder: Path) -> None:
    parts(folder, TRANSFORMER, POOLING, "sentence_transformers.models.Dense")
    change(
        folder / "2_More" / "config.json",
        in_features=16,
        out_features=4,
        activation_function="theirs.TheirModule",
    )


def an_auto_map(folder: Path) -> None:
    names = {"AutoConfig": "theirs.TheirConfig", "AutoModel": "theirs.TheirModel"}
    change(folder / "config.json", model_type="theirs", auto_map=names)


def an_auto_map_that_trusts_itself(folder: Path) -> None:
    an_auto_map(folder)
    trust = {"trust_remote_code": True}
    change(
        folder / "sentence_bert_config.json",
        model_args=trust,
        tokenizer_args=trust,
        config_args=trust,
    )
    change(folder / "config_sentence_transformers.json", trust_remote_code=True)


def a_tokenizer_of_the_folder(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "theirs.TheirTokenizer"]},
        tokenizer_class="TheirTokenizer",
    )


def embed(folder: Path) -> None:
    SentenceTransformerEmbedder(str(folder))(["hello"])


def test_the_code_would_leave_a_mark(
    folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flag that the library never gives: the tests below see what they should."""
    import sentence_transformers

    a_module_of_the_folder(folder)
    sentence_transformers.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    assert mark.is_dir()


@pytest.mark.parametrize(
    "attack",
    [
        a_module_of_the_folder,
        the_first_module_of_the_folder,
        a_route_of_the_folder,
        an_activation_of_the_folder,
        an_auto_map,
        an_auto_map_that_trusts_itself,
        a_tokenizer_of_the_folder,
    ],
)
@pytest.mark.parametrize("importable", [False, True])
def test_no_code_that_the_folder_names_is_run(
    folder: Path, mark: Path, attack: Any, importable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python itself would find the file, as in the working directory."""
    attack(folder)
    if importable:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "theirs", raising=False)
    with pytest.raises(Exception, match=r".") as caught:
        embed(folder)
    assert not isinstance(caught.value, (AttributeError, ImportError, TypeError))
    assert not mark.exists()
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("where", ["", "2_More"])
def test_no_pickle_of_a_folder_is_run(folder: Path, mark: Path, where: str) -> None:
    place = folder / where
    if where:
        parts(folder, TRANSFORMER, POOLING, "sentence_transformers.models.Dense")
        change(place / "config.json", in_features=16, out_features=4)
    else:
        (place / "model.safetensors").unlink()
    torch.save({"linear.weight": Planted(mark)}, place / "pytorch_model.bin")
    with pytest.raises((OSError, pickle.UnpicklingError)):
        embed(folder)
    assert not mark.exists()


def test_an_honest_folder_is_read(folder: Path) -> None:
    assert SentenceTransformerEmbedder(str(folder))(["hello", "world"]).shape[0] == 2
