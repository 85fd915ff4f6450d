"""Every block of Python in the documentation runs, block after block, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from astra_rl import FunctionModerator
from astra_rl.runs.build import check_moderator_options
from astra_rl.runs.config import load_moderator
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = _given()
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_configuration_of_a_moderator_in_its_page_is_accepted(tmp_path: Path) -> None:
    found = 0
    for block in YAML_BLOCK.findall((ROOT / "docs" / "moderators.md").read_text("utf-8")):
        section = yaml.safe_load(block)
        section = section.get("moderator") or section["evaluation"]["judge"]
        file = tmp_path / "moderator.yaml"
        file.write_text(yaml.safe_dump(section), encoding="utf-8")
        check_moderator_options(load_moderator(str(file)))
        found += 1
    assert found >= 5
