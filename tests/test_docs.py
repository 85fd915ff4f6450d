"""Every block of Python in the documentation runs, block after block, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from astra_rl import FunctionModerator
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.testing import tiny_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _given() -> dict[str, object]:
    """What the pages say stands in for the reader's own models and prompts."""
    pair = tiny_model("llama", window=256)
    return {
        "attacker_model_id": pair,
        "target_model_id": tiny_model("gpt2", window=256, seed=1),
        "baseline_model_id": pair,
        "moderator": FunctionModerator(lambda texts: [text.count("a") > 2 for text in texts]),
        "prompts": ["hello there.", "what is new?"],
        "held_out_prompts": ["good evening."],
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = _given()
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), names)


MINIMAL = {
    "attacker": {"model": "a"},
    "target": {"model": "b"},
    "moderator": {"type": "secret_leak"},
    "prompts": {"scenario": "planted_secrets"},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_section_of_yaml_on_the_page_is_a_valid_configuration(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        values = {**MINIMAL, **yaml.safe_load(block)}
        config = parse_config(yaml.safe_dump(values), source=page.name)
        if config.prompts.file is None:  # a file of the reader's is not here
            resolve(config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            to = page.parent / target if target else page
            assert anchor in _anchors(to), f"{page.name} links to {target}#{anchor}"


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = re.findall(
        r"`((?:tests|requirements|\.github)/[^`]*)`", (ROOT / "SECURITY.md").read_text("utf-8")
    )
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
