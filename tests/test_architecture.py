"""Imports point one way only, from what is used by many to what uses many."""

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

import astra_rl

ROOT = Path(astra_rl.__file__).parent
ORDER = [
    ("errors", "logging", "distribution"),
    ("infra",),
    ("core",),
    ("agents",),
    ("distributed",),
    ("models",),
    ("targets",),
    ("moderators",),
    ("rewards",),
    ("evaluation",),
    ("algorithms",),
    ("methods",),
    ("training",),
    ("datasets",),
    ("ext",),
    ("bench",),
    ("config",),
    ("runs",),
    ("actions",),
    ("bridges",),
    ("cli",),
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
ANYTHING = {"testing", "__init__", "__main__"}
"""Modules at the top that may import any package: the fakes, and the front door."""
WITHOUT_TRANSFORMERS = (
    *(
        "infra",
        "core",
        "agents",
        "distributed",
        "targets",
        "rewards",
        "evaluation",
        "algorithms",
        "methods",
    ),
    *("training", "datasets", "config", "runs", "actions"),
)
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


class Imports(ast.NodeVisitor):
    """Collects what a module imports when it runs, functions included."""

    def __init__(self, package):
        self.package = package
        self.found = []

    def visit_If(self, node):
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
        else:
            for each in node.orelse:
                self.visit(each)

    def visit_Import(self, node):
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node):
        module = node.module or ""
        if node.level:
            module = importlib.util.resolve_name("." * node.level + module, self.package)
        # `from astra_rl import moderators` imports a package as well
        names = (
            [f"{module}.{alias.name}" for alias in node.names] if module == "astra_rl" else [module]
        )
        self.found += [(name, node.lineno) for name in names]


class AllImports(Imports):
    """Collects also what a module imports for type checkers."""

    visit_If = ast.NodeVisitor.generic_visit


@functools.cache
def imports_of(path, kind=Imports):
    parts = ("astra_rl", *path.relative_to(ROOT).parent.parts)
    visitor = kind(".".join(parts))
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.found


def violations(path):
    part = part_of(path)
    for name, line in imports_of(path):
        above, _, below = name.partition(".")
        if above != "astra_rl" or not below:
            continue
        used = below.split(".")[0]
        if LEVEL.get(used, len(ORDER)) > LEVEL[part]:
            yield f"{path.relative_to(ROOT)}:{line}: {part} imports {used}"


def test_every_package_has_its_place_in_the_order():
    parts = {part_of(path) for path in FILES}
    assert parts <= set(LEVEL) | ANYTHING


def test_imports_point_down_only():
    found = [each for path in FILES if part_of(path) not in ANYTHING for each in violations(path)]
    assert found == []


def test_no_two_modules_import_each_other_not_even_for_type_checkers():
    modules = {
        ".".join(("astra_rl", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in FILES
        if path.name != "__init__.py"
    }
    used = {
        name: {each for each, _ in imports_of(path, AllImports)} & set(modules)
        for name, path in modules.items()
    }
    assert [(a, b) for a in used for b in used[a] if a in used[b]] == []


@pytest.mark.parametrize("package", WITHOUT_TRANSFORMERS)
def test_only_models_moderators_and_ext_import_transformers(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, line in imports_of(path)
        if name.split(".")[0] in ("transformers", "peft", "tokenizers")
    ]
    assert found == []


def test_nothing_imports_the_fakes():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        if part_of(path) != "testing"
        for name, line in imports_of(path)
        if name.startswith("astra_rl.testing")
    ]
    assert found == []


def test_the_test_sees_what_it_should():
    """Imports in functions count, those for type checkers do not, relative ones are resolved."""
    code = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from astra_rl.training import Trainer\n"
        "def late():\n    from astra_rl import training\n"
        "from ..cli import main\n"
    )
    visitor = Imports("astra_rl.core")
    visitor.visit(ast.parse(code))
    assert [name for name, _ in visitor.found] == ["typing", "astra_rl.training", "astra_rl.cli"]
