"""Datasets of Hugging Face: folders, and the hub through a stand-in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from tests.privileges import permissions_apply

import datasets
from astra_rl.datasets.files import load_rows
from astra_rl.datasets.local_folders import without_files
from astra_rl.errors import ConfigurationError, MissingDependencyError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def made(**splits: list[str]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"prompt": rows}) for name, rows in splits.items()}
    )


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(
        [
            {"question": "Hello?", "facts": {"secret": "amber"}},
            {"question": "Who?", "facts": {"secret": None}},
        ]
    )
    data.save_to_disk(tmp_path / "saved")
    loaded = load_rows(tmp_path / "saved", columns={"prompt": "question"})
    assert [row.prompt for row in loaded.rows] == ["Hello?", "Who?"]
    assert [row.facts for row in loaded.rows] == [{"secret": "amber"}, {}]


def test_splits_that_are_called_so_become_those_of_the_rows(tmp_path: Path) -> None:
    made(train=["a", "b"], test=["c"]).save_to_disk(tmp_path / "saved")
    loaded = load_rows(tmp_path / "saved")
    assert [(row.prompt, row.split) for row in loaded.rows] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "test"),
    ]


def test_the_only_split_is_no_division(tmp_path: Path) -> None:
    made(train=["a", "b"]).save_to_disk(tmp_path / "saved")
    assert [row.split for row in load_rows(tmp_path / "saved").rows] == [None, None]


def test_one_split_can_be_asked_for(tmp_path: Path) -> None:
    made(harmful=["a"], benign=["b"]).save_to_disk(tmp_path / "saved")
    assert load_rows(tmp_path / "saved", split="benign").rows[0].prompt == "b"
    with pytest.raises(ConfigurationError, match="splits harmful, benign; pass one"):
        load_rows(tmp_path / "saved")
    with pytest.raises(ConfigurationError, match="no split 'test'; choose from harmful, benign"):
        load_rows(tmp_path / "saved", split="test")


def test_a_folder_of_data_files_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    made(train=["a", "b"])["train"].to_parquet(folder / "train-00000-of-00001.parquet")
    made(test=["c"])["test"].to_parquet(folder / "test-00000-of-00001.parquet")
    loaded = load_rows(tmp_path / "repository")
    assert {(row.prompt, row.split) for row in loaded.rows} == {
        ("a", "train"),
        ("b", "train"),
        ("c", "test"),
    }


def test_a_file_with_the_time_of_an_earlier_one_is_read(tmp_path: Path) -> None:
    """The library would take the rows of the earlier one from its cache."""
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    for text in ("good evening", "how is work?"):
        path.write_text(json.dumps({"prompt": text}) + "\n")
        os.utime(path, ns=(10**18, 10**18))
        assert [row.prompt for row in load_rows(str(path.parent)).rows] == [text]


def test_a_folder_is_read_where_no_cache_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "good evening"}\n')
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", closed / "datasets")
    with permissions_apply():
        assert len(load_rows(str(path.parent)).rows) == 1


def test_the_checksum_is_of_the_content_not_of_the_folder(tmp_path: Path) -> None:
    for name, rows in (("one", ["a", "b"]), ("copy", ["a", "b"]), ("other", ["a", "c"])):
        made(train=rows).save_to_disk(tmp_path / name)
    one, copy, other = (
        load_rows(tmp_path / name).source.sha256 for name in ("one", "copy", "other")
    )
    assert one == copy != other


def test_bad_rows_of_a_dataset_are_named(tmp_path: Path) -> None:
    made(train=["a", "", "b\0"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigurationError) as caught:
        load_rows(tmp_path / "saved")
    assert "row 2: no text in 'prompt'" in str(caught.value)
    assert "row 3: prompt contains NUL" in str(caught.value)


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot load the dataset .*empty"):
        load_rows(tmp_path / "empty")


def test_the_hub_is_asked_only_for_what_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, *, revision: str | None = None) -> Any:
        assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
        asked.append((path, name, revision))
        return made(train=["a"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigurationError, match=r"cannot read the prompts"):
        load_rows("someone/something")
    assert asked == []
    loaded = load_rows("hub:someone/something@abc123", subset="small")
    assert asked == [("someone/something", "small", "abc123")]
    assert loaded.source.name == "hub:someone/something@abc123"
    assert loaded.rows[0].id == "something-1"


def test_what_the_hub_says_went_wrong_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network\nmany more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigurationError, match=r"dataset hub:a/b: no network$"):
        load_rows("hub:a/b")


def test_a_file_has_no_subsets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigurationError, match="subset and split apply to hub datasets"):
        load_rows(tmp_path / "a.txt", split="train")


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="extra 'data'"):
        load_rows(tmp_path)


ELSEWHERE = [
    "../private.jsonl",
    "data/../../private.jsonl",
    "{outside}/private.jsonl",
    "file://{outside}/private.jsonl",
    "https://host.example/private.jsonl",
    "hf://datasets/owner/name/private.jsonl",
    "zip://private.jsonl::https://host.example/x.zip",
    "..\\private.jsonl",
]


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "private.jsonl").write_text('{"prompt": "private"}\n')
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "own.jsonl").write_text('{"prompt": "own"}\n')
    return folder


def card(*, name, key="data_files"):
    return "---\nconfigs:\n" + yaml.safe_dump([{"config_name": "default", key: name}]) + "---\n"


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("nested", [False, True])
def test_a_card_names_no_file_elsewhere(outside, name, nested):
    name = name.format(outside=outside.parent)
    files = [{"split": "train", "path": [name]}] if nested else name
    (outside / "README.md").write_text(card(name=files))
    with pytest.raises(ConfigurationError, match="leads out of its folder: README"):
        load_rows(outside)


def test_a_card_names_no_folder_elsewhere(outside):
    (outside / "README.md").write_text(card(name="..", key="data_dir"))
    with pytest.raises(ConfigurationError, match="leads out of its folder"):
        load_rows(outside)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_to_elsewhere_is_refused(outside, what):
    there = outside.parent / "private.jsonl" if what == "file" else outside.parent
    (outside / "more.jsonl").symlink_to(there)
    with pytest.raises(ConfigurationError, match=r"leads out of its folder: more\.jsonl"):
        load_rows(outside)


def test_a_card_may_name_files_of_its_folder(outside):
    (outside / "README.md").write_text(card(name="own.jsonl"))
    assert [row.prompt for row in load_rows(outside).rows] == ["own"]


@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_a_saved_data_set_names_no_file_elsewhere(tmp_path, file):
    made(train=["private"]).save_to_disk(tmp_path / "private")
    made(train=["own"]).save_to_disk(tmp_path / "saved")
    if file == "state.json":
        state = tmp_path / "saved" / "train" / file
        found = json.loads(state.read_text())
        name = "../../private/train/" + found["_data_files"][0]["filename"]
        state.write_text(json.dumps({**found, "_data_files": [{"filename": name}]}))
    else:
        (tmp_path / "saved" / file).write_text('{"splits": ["../private/train"]}')
    with pytest.raises(ConfigurationError, match=f"leads out of its folder: {file}"):
        load_rows(tmp_path / "saved")


def test_columns_of_files_are_not_opened(tmp_path):
    """An image is a path; opening a FIFO would wait forever."""
    os.mkfifo(tmp_path / "fifo.png")
    rows = {"prompt": ["a"], "image": [{"bytes": None, "path": str(tmp_path / "fifo.png")}]}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "image": datasets.Image(decode=True)}
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    assert list(without_files(data)) == [{"prompt": "a"}]
