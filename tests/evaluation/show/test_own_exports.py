"""Export formats of other packages, and what the check of them finds."""

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tests.formats import FORMATS

from astra_rl.actions.export import export_run
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.records.source import source_of
from astra_rl.evaluation.show.exports import EXPORTS, Export, export_format, known_formats
from astra_rl.evaluation.show.exports.harmbench import write_harmbench
from astra_rl.infra import registry
from astra_rl.infra.jsonio import atomic_file
from astra_rl.testing import check_export

PLUGIN = Path(__file__).parents[3] / "examples" / "plugin" / "src"


def write(attempts, path):
    """Ids of the attempts, one per line."""
    with atomic_file(path) as file:
        ids = [attempt.id for attempt in source_of(attempts).attempts()]
        file.writelines(f"{each}\n" for each in ids)
    return len(ids)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "preferences"])
def test_the_formats_of_the_library_pass_the_check(name):
    check_export(export_format(name))


def test_the_template_of_a_plug_in_passes_the_check(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    check_export(EXPORTS.load("astra_rl_example_plugin.export:ATTACK_LIST"))


def raises(attempts, path):
    raise KeyError("turns")


def returns_none(attempts, path):
    write(attempts, path)


def writes_elsewhere(attempts, path):
    return write(attempts, Path(path).with_suffix(".txt"))


def leaks(attempts, path):
    texts = [turn.attack for each in attempts.attempts() for turn in each.turns]
    path.write_bytes("".join(texts).encode("utf-8", "replace"))
    return len(texts)


def appends(attempts, path):
    with open(path, "a") as file:
        file.write("".join(f"{each.id}\n" for each in attempts.attempts()))
    return 0


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (raises, "raises raised KeyError for ordinary attempts: 'turns'"),
        (returns_none, "returns_none returned None; it must return the number of entries"),
        (writes_elsewhere, "and nothing else; for ordinary attempts it wrote out.txt"),
        (leaks, "leaks wrote a credential of the environment; write by"),
        (appends, "appends appends to a file that exists; it must replace it"),
    ],
)
def test_the_check_names_what_is_wrong_in_one_sentence(writer, message):
    with pytest.raises(ContractError, match=re.escape(message)) as raised:
        check_export(writer)
    assert "\n" not in str(raised.value)


@pytest.fixture
def own(tmp_path, monkeypatch, attempt, turn):
    """A module with a writer, and a run of one attempt."""
    from astra_rl.runs.attempt_log import AttemptLog

    (tmp_path / "own_formats.py").write_text(
        "from astra_rl.evaluation.show.exports import Export\n"
        "def ids(attempts, path):\n"
        "    path.write_text(''.join(each.id for each in attempts.attempts()))\n"
        "    return 1\n"
        "IDS = Export('ids.txt', 'the ids', ids)\n"
        "class Ids: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    made = attempt(turn("ask", "leak", 0.9)).model_copy(update={"phase": "after"})
    with AttemptLog(tmp_path / "run" / "attempts.jsonl", write=True) as log:
        log.append(made)
    return tmp_path / "run", made


@pytest.mark.parametrize(("name", "file"), [("ids", "ids"), ("IDS", "ids.txt")])
def test_a_writer_is_named_by_its_import_path(own, name, file):
    run, made = own
    exported = export_run(run, f"own_formats:{name}")
    assert exported.path == run / file
    assert exported.path.read_text() == made.id


def test_what_is_no_writer_is_refused(own):
    run, _ = own
    with pytest.raises(ConfigurationError, match="is the class Ids; it must be an"):
        export_run(run, "own_formats:Ids")
    with pytest.raises(ConfigurationError, match="cannot import 'own_formats:Nothing'"):
        export_run(run, "own_formats:Nothing")


def test_a_format_of_an_installed_package_has_its_name(own, monkeypatch):
    run, made = own
    declared = [
        EntryPoint("ids", "own_formats:IDS", "astra_rl.exports"),
        EntryPoint("broken", "no_such_module:X", "astra_rl.exports"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: declared)
    monkeypatch.setitem(vars(EXPORTS), "_entry_points", {each.name: each for each in declared})
    assert export_run(run, "ids").path.read_text() == made.id
    assert "ids" in known_formats()
    assert "broken" not in known_formats()  # the report lists the others
    with pytest.raises(ConfigurationError, match="cannot import 'no_such_module:X'"):
        export_run(run, "broken")


def test_completions_of_harmbench(attempt, turn, tmp_path):
    attempts = [
        attempt(turn("ask", "no", 0.1), turn("more", "leak", 0.9), prompt_id="b1", opening="one"),
        attempt(turn("ask", "no", 0.1), prompt_id="b1", opening="one", trial=1),
        attempt(turn("ask", "?", None), prompt_id="b2"),
        attempt(prompt_id="b3", error="timed out"),
    ]
    assert write_harmbench(attempts, tmp_path / "a.json") == 3
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == {
        "b1": [
            {"test_case": "more", "generation": "leak", "label": 1},
            {"test_case": "oneask", "generation": "no", "label": 0},
        ],
        "b2": [{"test_case": found["b2"][0]["test_case"], "generation": "?"}],
    }  # and not b3: the mean of no completions would be NaN in HarmBench's evaluate_completions.py
    assert write_harmbench([], tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_an_export_is_called_as_its_writer(tmp_path, attempt, turn):
    export = Export("a.txt", "ids", write)
    assert export([attempt(turn("a", "b", 0.1))], tmp_path / "a.txt") == 1
