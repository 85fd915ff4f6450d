"""The documentation site: pages of the repository, with links as they are there, and docstrings."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site() -> ModuleType:
    loader = SourceFileLoader("astra_rl_tests_site", str(ROOT / "scripts" / "site"))
    spec = importlib.util.spec_from_loader("astra_rl_tests_site", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "[a](docs/test.md#in-ci)", "[a](test.md#in-ci)"),
        ("README.md", "![a](docs/images/credit.svg)", "![a](images/credit.svg)"),
        ("README.md", "[a](docs/README.md)", "[a](overview.md)"),
        ("README.md", "[a](SECURITY.md)", "[a](security.md)"),
        ("README.md", "[a](src/astra_rl/errors.py)", "a"),
        ("docs/test.md", "[a](../DATASETS.md)", "[a](datasets.md)"),
        ("docs/test.md", "[a](runs.md)", "[a](runs.md)"),
        ("docs/test.md", "[a](#in-ci) and [b](https://example.com/x.md)", None),
        ("docs/decisions/0001-layer-of-evaluation.md", "[a](../runs.md)", "[a](../runs.md)"),
    ],
)
def test_links_lead_to_the_pages_of_the_site(
    site: ModuleType, page: str, link: str, expected: str | None
) -> None:
    assert site.moved(link, page, site.pages()) == (link if expected is None else expected)


def test_a_link_that_leads_nowhere_is_named(site: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"docs/test.md: the link to gone.md leads nowhere"):
        site.moved("[a](gone.md)", "docs/test.md", site.pages())


def test_every_page_and_every_package_is_in_the_table_of_contents(
    site: ModuleType, tmp_path: Path
) -> None:
    site.assemble(tmp_path)
    listed = set(site.contents().split())
    made = {str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.rglob("*.md")}
    decisions = {name for name in made if name.startswith("decisions/0")}
    assert made - decisions - {"index"} <= listed
    packages = {path.parent.name for path in (ROOT / "src" / "astra_rl").glob("*/__init__.py")}
    assert packages - set(site.REFERENCE) == {"cli", "config", "infra"}  # not for import by users


@pytest.mark.exhaustive
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "site"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "algorithms.html").read_text("utf-8")
    assert "astra_rl.algorithms.grpo.GRPO" in page
    assert "In CI" in (tmp_path / "test.html").read_text("utf-8")


def test_what_bridges_import_is_installed_or_stood_in_for() -> None:
    """Otherwise the reference could not be built where the other tools are not installed."""
    settings = ast.parse((ROOT / "docs" / "conf.py").read_text("utf-8"))
    (stood_in_for,) = (
        ast.literal_eval(node.value)
        for node in settings.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "autodoc_mock_imports"
    )
    for file in (ROOT / "src" / "astra_rl" / "bridges").glob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.Try))]
        for node in (each for block in blocks for each in block):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                package = name.partition(".")[0]
                assert package in stood_in_for or importlib.util.find_spec(package), file
