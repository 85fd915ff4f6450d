"""A sample of `benchmarks/families.py`, and its table in the documentation."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from benchmarks.real_tokenizers import REAL, missing

ROOT = Path(__file__).parents[2]
OTHERS = ("Llama4", "Gemma2", "GptOss")


@pytest.fixture(scope="module")
def families():
    spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["families"] = module  # where its dataclass looks for annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["families"]


@pytest.mark.parametrize(
    "family", ["Llama", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_family_agrees_with_transformers(families, family):
    found = families.measure(family)
    assert found.is_exact, found


def test_a_family_that_cannot_be_read_in_segments_is_refused(families):
    assert families.measure("Mamba").refused == "MambaForCausalLM is not supported"


@pytest.mark.parametrize("name", ["llama-2", "gpt-oss"])
def test_prompts_are_those_of_the_template(families, name):
    is_same, ends = families.compare_template(families.templates()[name])
    assert is_same
    assert ends in ("</s>", "<|return|>")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_prompts_are_those_of_the_template_with_real_vocabularies(families, name):
    if left_out := missing(name):
        pytest.skip(f"{left_out} are not installed")
    is_same, _ = families.compare_template(families.real_templates([name])[name])
    assert is_same


def test_the_documentation_lists_what_was_measured(families):
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+) \|", text, re.MULTILINE)
    assert set(families.FAMILIES) | set(families.templates()) | set(REAL) <= set(listed)
