"""JailbreakBench's own classes read our artifact, and we read what they write."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
from tests.bridges.making import ATTEMPTS

from astra_rl.core.attack_files import read_attacks
from astra_rl.evaluation.show.exports.jailbreakbench import write_jailbreakbench

pytestmark = [pytest.mark.bridge("jailbreakbench"), pytest.mark.slow]


@pytest.fixture
def artifacts(monkeypatch):
    """The module with its classes; the package imports all of its models, which need others."""
    package = ModuleType("jailbreakbench")
    package.__path__ = importlib.util.find_spec("jailbreakbench").submodule_search_locations
    monkeypatch.setitem(sys.modules, "jailbreakbench", package)
    return importlib.import_module("jailbreakbench.artifact")


def test_an_artifact_is_valid_in_both_directions(artifacts, tmp_path):
    attempts = [each.model_copy(update={"target": "vicuna-13b-v1.5"}) for each in ATTEMPTS]
    write_jailbreakbench(attempts, tmp_path / "ours.json")
    read = artifacts.AttackArtifact.model_validate(json.loads((tmp_path / "ours.json").read_text()))
    assert [each.jailbroken for each in read.jailbreaks] == [True, True, False, False]
    assert read.parameters.attack_success_rate == 1 / 2
    (tmp_path / "theirs.json").write_text(read.model_dump_json())
    found = [(str(each.attack), each.reward) for each in read_attacks(tmp_path / "theirs.json")]
    assert found == [("ask", 1.0), ("more", 1.0), ("ask", 0.0)]
