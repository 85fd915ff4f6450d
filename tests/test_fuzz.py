"""A few hundred cases of `scripts/fuzz.py`; run the script itself for many more."""

import importlib.util
from pathlib import Path

import pytest
from tests.cases import cases

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["config", "moderator", "prompts", "labels", "judge", "state", "log", "run", "reply", "spent"],
)
@pytest.mark.parametrize(
    "seeds", cases([range(10), range(10, 40)], by_default=[range(10)]), ids=["few", "more"]
)
def test_damaged_input_gives_a_result_or_an_error_of_ours(fuzz, name, seeds, tmp_path):
    assert set(fuzz.TARGETS) >= {name}
    for seed in seeds:
        _, error = fuzz.try_case(name, seed, tmp_path / "case")
        if error is not None:
            raise AssertionError(f"scripts/fuzz.py --only {name} --seed {seed}") from error


@pytest.mark.parametrize(
    "name", ["config", "moderator", "labels", "judge", "state", "log", "run", "reply", "spent"]
)
def test_what_is_damaged_was_whole_before(fuzz, name, tmp_path, monkeypatch):
    """Otherwise the fuzzer would only ever see the first refusal."""
    monkeypatch.setattr(fuzz, "damaged", lambda data, draw: data)
    monkeypatch.setattr(fuzz.Draw, "random", lambda self: 0.9)
    assert fuzz.try_case(name, 0, tmp_path / "case") == ("read", None)
