"""Every name that the documentation puts in backticks exists: commands, options, files, code, keys.

Three kinds of text are checked: inline code of the pages, the commands of their shell blocks, and
how they say that the package is installed. What an inline code span names is decided by its form
(`problem_of_span`); a span of no known form, such as a formula, is not checked.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import keyword
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from astra_rl.agents import WORLDS
from astra_rl.algorithms.registry import ALGORITHMS
from astra_rl.cli.main import COMMANDS, app
from astra_rl.config.schema import RunConfig
from astra_rl.config.sections import keys_of, section_class
from astra_rl.evaluation.show.exports import EXPORTS
from astra_rl.methods.curriculum import CURRICULA
from astra_rl.methods.registry import ENVIRONMENTS
from astra_rl.moderators.registry import MODERATORS
from astra_rl.rewards import REWARDS
from astra_rl.targets.registry import TARGETS
from astra_rl.training.config import OPTIMIZERS

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "astra_rl"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "DATASETS.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"

REGISTRIES = (
    *(ALGORITHMS, CURRICULA, ENVIRONMENTS, EXPORTS),
    *(MODERATORS, OPTIMIZERS, REWARDS, TARGETS, WORLDS),
)
ELSEWHERE = {
    # Names of other projects.
    *("AutoModelForCausalLM.from_pretrained", "DPOTrainer", "KTOTrainer", "Infinity"),
    *("GRPOTrainer", "SFTTrainer", "atkgen", "--probe_option_file", "options.json"),
    *("datasets.load_dataset", "save_to_disk", "pyrit", "sha256sum", "tmp_path", "uv"),
    "dashscope",
    # Files of published data sets.
    "data/advbench/harmful_behaviors.csv",
    "data/behavior_datasets/harmbench_behaviors_text_all.csv",
    "strongreject_dataset/strongreject_dataset.csv",
    # A file that is named after two runs.
    "comparisons/A-B.json",
    # A symbol of formulas.
    "h",
}
"""What pages may name although it is not in this repository."""


# --- What exists ----------------------------------------------------------------------------------


@functools.cache
def files() -> set[str]:
    """Return paths of the files and folders of the repository, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = {Path(line) for line in listed}
    return {str(each) for path in paths for each in (path, *path.parents)}


@functools.cache
def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text("utf-8")) for path in sorted(SOURCES.rglob("*.py"))]


@functools.cache
def defined() -> set[str]:
    """Return names of modules, classes, functions, parameters, constants and attributes."""
    names = {path.stem for path in SOURCES.rglob("*") if path.suffix in (".py", ".yaml", ".jsonl")}
    names |= {path.name for path in SOURCES.rglob("*") if path.is_dir()}
    for tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    names.add(name)
                case ast.arg(arg=name) | ast.Attribute(attr=name):
                    names.add(name)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    names.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
    return names


@functools.cache
def strings() -> set[str]:
    """Return the strings of the code, docstrings left out, and of the presets and the packaging."""
    found: set[str] = set()
    for tree in trees():
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            for statement in body if isinstance(body, list) else ():
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    statement.value.value = ""  # a docstring
        found |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    for path in SOURCES.rglob("*.yaml"):
        found |= set(_scalars(yaml.safe_load(path.read_text("utf-8"))))
    return found | set(_scalars(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))))


@functools.cache
def templates() -> re.Pattern[str]:
    """Return a pattern of the texts that f-strings of the code make, if they look like a file."""
    patterns = {
        "".join(
            re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[^/]*"
            for part in node.values
        )
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    }
    named = (each for each in patterns if re.search(r"\w{2,}.*\\\.[a-z]+$|[a-z]\w*/", each))
    return re.compile("|".join(sorted(each for each in named if " " not in each)))


@functools.cache
def words() -> set[str]:
    """Return the single words of `strings` and of the names of their parts."""
    return {word for text in strings() for word in re.findall(r"[A-Za-z0-9_+@-]+", text)} | {
        word for text in strings() for word in re.findall(IDENTIFIER, text)
    }


def _scalars(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _scalars(each)
    elif isinstance(value, list):
        for each in value:
            yield from _scalars(each)
    else:
        yield str(value)


@functools.cache
def commands() -> dict[str, Any]:
    """Return the commands of the command line by name."""
    return dict(typer.main.get_group(app).commands)


def options_of(command: Any) -> set[str]:
    """Return the options of a command and of the commands under it."""
    own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    below = getattr(command, "commands", {}).values()
    return own.union({"--help"}, *map(options_of, below))


@functools.cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z][a-z_-]*):", text, re.MULTILINE))


@functools.cache
def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return set(project["optional-dependencies"])


# --- Is it there? ---------------------------------------------------------------------------------


def problem_of_span(span: str) -> str | None:
    """Return what is wrong with an inline code span, or None."""
    if span in ELSEWHERE:
        return None
    if span.startswith("<") or span in keyword.kwlist or hasattr(builtins, span):
        return None
    first, *rest = span.split()
    if first == "astra-rl" or (
        first in commands() and rest and re.match(r"-|[A-Z]{1,}\b", rest[0])
    ):
        return problem_of_command(span)
    if first == "make":
        return None if not rest or rest[0] in make_targets() else f"make has no target {rest[0]}"
    if first.startswith("--"):
        known = set[str]().union(*map(options_of, commands().values()))
        return None if first in known else f"no command has the option {first}"
    if call := re.fullmatch(rf"({IDENTIFIER}(?:\.{IDENTIFIER})*)\((.*)\)", span):
        return problem_of_dotted(call[1]) or problem_of_arguments(call[2])
    if setting := re.fullmatch(rf"({IDENTIFIER}(?:\.{IDENTIFIER})*)(?:: |=|:$).*", span):
        return problem_of_dotted(setting[1])
    if re.fullmatch(
        r"[\w.<>*-]*(?:/[\w.<>*-]+)+/?|[\w.-]+/|[\w*-]+\.(?:py|jsonl?|html|svg|ya?ml|txt|sqlite|md|toml|csv|safetensors)",
        span,
    ):
        return problem_of_path(span)
    if re.fullmatch(rf"{IDENTIFIER}(?:\.{IDENTIFIER})*", span):
        return problem_of_dotted(span)
    return None


def problem_of_command(line: str) -> str | None:
    """Check a command line of ``astra-rl``: the command, its own commands, and its options."""
    parts = [part for part in shlex.split(line, comments=True) if part != "astra-rl"]
    if not parts:
        return None
    command = commands().get(parts[0])
    if command is None:
        return f"astra-rl has no command {parts[0]!r}"
    for part in parts[1:]:
        name = part.split("=")[0]
        if re.match(r"--?[a-z]", name) and name not in options_of(command):
            return f"astra-rl {parts[0]} has no option {name}"
    return None


def problem_of_path(span: str) -> str | None:
    """Check a file, a folder, or a metric such as ``rewards/NAME/mean``."""
    path = span.strip("/")
    suffix = f"/{path}"
    if any(f"/{each}".endswith(suffix) for each in files()):
        return None
    example = re.sub(r"<\w+>|\*|[A-Z]+(?:_[A-Z]+)*(?![a-z0-9])", "x", path)
    is_file = re.search(r"\.[a-z]+$", path)
    parts = [path, example, *(example.split("/")[-1:] if is_file else ())]
    if any(part in strings() or templates().fullmatch(part) for part in parts):
        return None
    known = words() | defined() | {"x"}
    if not is_file and all(part in known for part in example.split("/")):
        return None  # a metric
    return f"{span} is neither a file nor written in the code"


def problem_of_dotted(name: str) -> str | None:
    """Check a name: of a module, a class, a function, a parameter, a setting, or a metric."""
    if name in ELSEWHERE or name in {each.group for each in REGISTRIES}:
        return None
    parts = name.split(".")
    if parts[0] == "astra_rl":
        return _problem_of_import(parts)
    if len(parts) > 1 and parts[0] in RunConfig.model_fields:
        return _problem_of_setting(parts)
    if len(parts) > 1 and (SOURCES / parts[0]).is_dir():
        return _problem_of_import(["astra_rl", *parts])
    known = defined() | words()
    missing = [part for part in parts if part not in known and part not in ELSEWHERE]
    if not missing or re.fullmatch(r"[A-Z][A-Z_0-9]*", name):  # a placeholder, as in RUN
        return None
    return f"{missing[0]} is not the name of anything"


def _problem_of_import(parts: list[str]) -> str | None:
    for split in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            known = getattr(found, "__annotations__", {})
            if not hasattr(found, part):
                return None if part in known else f"{'.'.join(parts)} does not exist"
            found = getattr(found, part)
        return None
    return f"{'.'.join(parts)} does not exist"


def _problem_of_setting(parts: list[str]) -> str | None:
    section: Any = RunConfig
    for depth, part in enumerate(parts):
        models = list(_models(section))
        if not models:  # options of a part are checked by its own class
            return None if part in defined() | words() else f"{part} is no setting"
        found = [keys_of(each)[part].type for each in models if part in keys_of(each)]
        if not found:
            return f"the configuration has no setting {'.'.join(parts[: depth + 1])}"
        section = found[0]
    return None


def _models(annotation: Any) -> Iterator[Any]:
    if section_class(annotation) is annotation:
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def problem_of_arguments(text: str) -> str | None:
    """Check the names of keyword arguments."""
    for name in re.findall(rf"(?<![\w\"'])({IDENTIFIER})=(?!=)", text):
        if name not in defined():
            return f"no function has a parameter {name}"
    return None


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_backticks_exists(page: Path) -> None:
    spans = dict.fromkeys(SPAN.findall(prose(page)))
    own = re.findall(r"^(?:class|def) (\w+)", page.read_text("utf-8"), re.MULTILINE)
    problems = [
        f"`{span}`: {problem}"
        for span in spans
        if (problem := problem_of_span(span)) and re.split(r"\W", span)[0] not in own
    ]
    assert problems == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_list_of_commands_names_commands_only(page: Path) -> None:
    joined = rf"`{IDENTIFIER}`(?:(?:,|,? or|,? and)\s+`{IDENTIFIER}`)+"
    for listed in re.findall(joined, prose(page)):
        names = SPAN.findall(listed)
        if 2 * len([name for name in names if name in commands()]) > len(names):
            assert [name for name in names if name not in commands()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_shell_block_exists(page: Path) -> None:
    problems = []
    for language, block in FENCE.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            for part in re.split(r"&&|;(?! )| do |; do |; done", line):
                part = part.strip().removeprefix(".venv/bin/")
                if part.startswith("astra-rl "):
                    problems.append(problem_of_command(part))
                elif part.startswith("make ") and part.split()[1] not in make_targets():
                    problems.append(f"make has no target {part.split()[1]}")
                elif found := re.match(r"(?:python|\.venv/bin/python) ([\w/]+\.py)", part):
                    problems.append(problem_of_path(found[1]))
    assert [problem for problem in problems if problem] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nobody_is_told_to_install_the_package_from_the_index(page: Path) -> None:
    """The name astra-rl belongs to another project there."""
    text = page.read_text("utf-8")
    assert (
        re.findall(
            r"pip install [^\n]*?['\"]?\bastra[-_]rl(?:\[[^\]]*\])?(?! ?@ )(?![-_\w.])", text
        )
        == []
    )
    named = re.findall(r"(?:\.|\.whl|astra-rl)\[([a-z,]+)\]", text)
    assert {extra for each in named for extra in each.split(",")} <= extras()


@pytest.mark.parametrize(
    "span",
    [
        "astra-rl likelihood",
        "astra-rl train --no-such-option",
        "--no-such-option",
        "astra_rl.evaluation.no_such_module",
        "astra_rl.testing.NoSuchProblem",
        "runs/no_such_module.py",
        "no_such_file.jsonl",
        "training.no_such_setting",
        "NoSuchTrainer",
        "GRPO(no_such_option=1)",
        "no_such_metric/mean",
        "make nosuch",
        "no_such_key: 3",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(span: str) -> None:
    assert problem_of_span(span)


@pytest.mark.parametrize(
    "span",
    [
        "astra-rl score RUN --moderator JUDGE",
        "--fail-on CONDITION",
        "astra_rl.testing.ToyProblem",
        "cli/main.py",
        "attempts_NAME.jsonl",
        "training.save_every",
        "HFASTTrainer",
        "GRPO(problem, kl_in_loss=0.1)",
        "rewards/NAME/mean",
        "log Z + log pi",
    ],
)
def test_a_name_that_exists_is_accepted(span: str) -> None:
    assert problem_of_span(span) is None


def test_the_changelog_counts_what_there_is() -> None:
    """The list of commands is whole."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    listed = text[text.index("- Commands `test`") :].partition("`--json`")[0]
    commands = {each.__name__ for group in COMMANDS.values() for each in group}
    assert set(re.findall(r"`(\w+)`", listed)) == commands


def test_the_group_of_entry_points_of_every_registry_is_documented() -> None:
    made = [
        each
        for path in SOURCES.rglob("*.py")
        for each in re.findall(r"= Registry\(", path.read_text())
    ]
    assert len(made) == len(REGISTRIES)
    page = (ROOT / "docs" / "extending.md").read_text()
    assert [each.group for each in REGISTRIES if f"`{each.group}`" not in page] == []
