"""Published sets, by the columns they were published with; the rows here are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import datasets
from astra_rl.datasets.benchmarks import BENCHMARKS, load_benchmark
from astra_rl.errors import ConfigurationError

WriteFile = Callable[[str, str | bytes], Path]
HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
Fold a paper boat,standard,crafts,,,fold_boat
Explain this letter,contextual,reading,context,"Dear all,
the boat leaves at nine.",explain_letter
Sing the song of the boat,copyright,music,"lyrics, hash_check",,sing_song
"""


def test_harmbench_gives_behaviors_with_what_they_refer_to(write: WriteFile) -> None:
    boat, letter, song = load_benchmark("harmbench", write("all.csv", HARMBENCH)).rows
    assert (boat.id, boat.prompt, boat.category) == ("fold_boat", "Fold a paper boat", "crafts")
    assert boat.facts == {"goal": "Fold a paper boat"}
    assert letter.prompt == "Dear all,\nthe boat leaves at nine.\n\n---\n\nExplain this letter"
    assert letter.facts == {
        "goal": "Explain this letter",
        "context": "Dear all,\nthe boat leaves at nine.",
    }
    assert song.category == "music"


def test_a_subset_of_harmbench_can_be_asked_for(write: WriteFile) -> None:
    path = write("all.csv", HARMBENCH)
    assert [row.id for row in load_benchmark("harmbench", path, subset="standard").rows] == [
        "fold_boat"
    ]
    with pytest.raises(ConfigurationError, match="contextual, copyright, standard"):
        load_benchmark("harmbench", path, subset="easy")


def test_advbench_gives_goals_and_targets(write: WriteFile) -> None:
    path = write("harmful_behaviors.csv", 'goal,target\nFold a boat,"Sure, here is how"\n')
    (row,) = load_benchmark("advbench", path).rows
    assert (row.id, row.prompt, row.category) == ("harmful_behaviors-2", "Fold a boat", None)
    assert row.facts == {"target": "Sure, here is how", "goal": "Fold a boat"}


def test_jailbreakbench_gives_goals_and_categories(write: WriteFile) -> None:
    path = write(
        "harmful-behaviors.csv",
        "Index,Goal,Target,Behavior,Category,Source\n0,Fold a boat,Sure,Boats,Crafts,Original\n",
    )
    (row,) = load_benchmark("jailbreakbench", path).rows
    assert (row.prompt, row.category) == ("Fold a boat", "Crafts")
    assert row.facts == {"target": "Sure", "goal": "Fold a boat"}


def test_strongreject_gives_prompts_and_categories(write: WriteFile) -> None:
    path = write("strongreject.csv", "category,source,forbidden_prompt\ncrafts,us,Fold a boat\n")
    (row,) = load_benchmark("strongreject", path).rows
    assert (row.prompt, row.category) == ("Fold a boat", "crafts")


@pytest.mark.parametrize(
    ("name", "columns", "subset", "expected"),
    [
        ("harmbench", ["prompt", "category"], None, ("standard", "train")),
        ("harmbench", ["prompt", "context", "category"], "contextual", ("contextual", "train")),
        ("advbench", ["prompt", "target"], None, (None, "train")),
        ("jailbreakbench", ["Goal", "Target", "Category"], None, ("behaviors", "harmful")),
        ("jailbreakbench", ["Goal", "Target", "Category"], "benign", ("behaviors", "benign")),
        ("strongreject", ["prompt", "category"], None, (None, "train")),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_from_the_hub_each_is_asked_for_as_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    columns: list[str],
    subset: str | None,
    expected: tuple[str | None, str],
    named: bool,
) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, config: str | None = None, *, revision: str | None = None) -> Any:
        asked.extend([path, config])
        rows = datasets.Dataset.from_list([{column: f"a {column}" for column in columns}])
        other = datasets.Dataset.from_list([dict.fromkeys(columns, "not this")])
        return datasets.DatasetDict({"other": other, expected[1]: rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = BENCHMARKS[name].hub
    loaded = load_benchmark(name, f"hub:{hub}" if named else None, subset=subset)
    assert asked == [hub, expected[0]]
    assert len(loaded.rows) == 1
    assert loaded.rows[0].prompt.endswith(f"a {columns[0]}")
    assert loaded.source.name == f"hub:{hub}"


def test_a_subset_that_the_hub_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="choose from harmful, benign"):
        load_benchmark("jailbreakbench", subset="standard")
    with pytest.raises(ConfigurationError, match="leave subset out"):
        load_benchmark("advbench", subset="standard")


def test_a_file_of_something_else_is_recognised(write: WriteFile) -> None:
    path = write("other.csv", "text\nFold a boat\n")
    with pytest.raises(ConfigurationError, match="is not a copy of StrongREJECT: it has no col"):
        load_benchmark("strongreject", path)


def test_bad_rows_are_named_by_their_line_in_the_file(write: WriteFile) -> None:
    path = write("all.csv", HARMBENCH + ",standard,crafts,,,empty\n")
    with pytest.raises(ConfigurationError, match="line 6: no text in 'prompt'; it is empty"):
        load_benchmark("harmbench", path)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'harmbench'"):
        load_benchmark("harmbnch")
