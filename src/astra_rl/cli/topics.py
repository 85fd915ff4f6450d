"""The topics of ``astra-rl info``."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_origin

from astra_rl.cli.console import SafeConsole
from astra_rl.errors import ConfigurationError, did_you_mean

REGISTRIES = {
    "algorithms": ("astra_rl.algorithms:ALGORITHMS", 1),
    "environments": ("astra_rl.methods.environments:ENVIRONMENTS", 2),
    "moderators": ("astra_rl.moderators.registry:MODERATORS", 0),
    "rewards": ("astra_rl.rewards:REWARDS", 0),
    "targets": ("astra_rl.targets.registry:TARGETS", 0),
}
"""Topics that list what a configuration may name: where the names are registered, and the number of
arguments that the library supplies."""
TOPICS = (
    *("versions", "config", "presets", "preset", "scenarios", "scenario", "formats"),
    *REGISTRIES,
)


LISTED = (*sorted((*REGISTRIES, "presets", "scenarios")),)
"""Kinds of `astra-rl list`."""


def print_list(kind: str, console: SafeConsole) -> None:
    """Print a line on everything of a kind that can be named; of all kinds if it is empty.

    Raises:
        ConfigurationError: There is no such kind.
    """
    if kind and kind not in LISTED:
        raise ConfigurationError(
            f"no kind {kind!r}; choose from {', '.join(LISTED)}.{did_you_mean(kind, LISTED)}"
        )
    for each in (kind,) if kind else LISTED:
        if not kind:
            console.print_line(each, "bold")
        for name in _names(each):
            console.print_line(f"{'' if kind else '  '}{name:20} {_line_on(each, name)}")


def _names(kind: str) -> list[str]:
    """Return the names of a kind of `LISTED`; nothing is imported but their registry."""
    from astra_rl.config.preset_files import preset_names
    from astra_rl.datasets import scenario_names
    from astra_rl.infra.importing import load_object

    if kind == "presets":
        return [*preset_names()]
    if kind == "scenarios":
        return [*scenario_names()]
    return sorted(load_object(REGISTRIES[kind][0]))


def _line_on(kind: str, name: str) -> str:
    """Return one line on what has a name."""
    import yaml

    from astra_rl.config.preset_files import preset_text
    from astra_rl.datasets import load_scenario
    from astra_rl.evaluation.show.escaping import terminal_text
    from astra_rl.infra.importing import load_object

    if kind == "presets":
        return str(yaml.safe_load(preset_text(name))["title"])
    if kind == "scenarios":
        scenario = load_scenario(name)
        count = sum(map(len, scenario.rows.values()))
        return terminal_text(f"{scenario.description} ({count} rows)")
    registry = load_object(REGISTRIES[kind][0])
    written = _written_docstring(registry.import_path(name))
    return _first_sentence(written) if written else _summary(registry.load(name))


def _written_docstring(path: str | None) -> str | None:
    """Return the docstring of ``package.module:Name`` from its source; its module is not run."""
    module, _, name = (path or "").partition(":")
    spec = importlib.util.find_spec(module) if name else None
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
    return None


def _named(name: str) -> Iterator[str]:
    """Yield everything that has a name, of whatever kind, in full.

    Raises:
        ConfigurationError: Nothing has.
    """
    known = {kind: _names(kind) for kind in LISTED}
    kinds = [kind for kind in LISTED if name in known[kind]]
    if not kinds:
        names = (*TOPICS, *(each for names in known.values() for each in names))
        raise ConfigurationError(
            f"no topic or name {name!r}; 'astra-rl list' shows all names, and the topics are "
            f"{', '.join(TOPICS)}.{did_you_mean(name, names)}"
        )
    for kind in kinds:
        yield f"{name} ({kind.removesuffix('s')})"
        if kind == "presets":
            yield from _preset(name)
        elif kind == "scenarios":
            yield from _scenario(name)
        else:
            yield from _registered(kind, name)


def print_topic(topic: str, name: str, console: SafeConsole) -> None:
    """Print a topic, or what has that name.

    Raises:
        ConfigurationError: There is no such topic or name.
    """
    if topic not in TOPICS:
        for line in _named(topic):
            console.print_line(line)
        return
    lines: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _version_lines,
        "config": _config_lines,
        "presets": _presets,
        "preset": lambda: _preset(name or "demo"),
        "formats": _formats,
        "scenarios": _scenarios,
        "scenario": lambda: _scenario(name),
        **{each: partial(_registered, each, name) for each in REGISTRIES},
    }
    for line in lines[topic]():
        console.print_line(line)


def _registered(topic: str, name: str) -> Iterator[str]:
    """Yield the names of a registry with what each is, or the options of one."""
    from astra_rl.infra.importing import load_object

    path, supplied = REGISTRIES[topic]
    if name:
        yield from _options(load_object(path).load(name), supplied)
        return
    for each in _names(topic):
        yield f"{each:22} {_line_on(topic, each)}"
    yield f"or your own, as package.module:Name; options of one: astra-rl info {topic} NAME"


def _options(entry: Any, supplied: int) -> Iterator[str]:
    from astra_rl.config.signatures import parameters_of

    yield _summary(entry)
    for option, parameter in parameters_of(entry, supplied=supplied).items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        required = parameter.default is parameter.empty
        yield f"  {option}: {'required' if required else parameter.default}"


def _summary(entry: Any) -> str:
    """Return the first sentence of a docstring."""
    return _first_sentence(inspect.getdoc(entry) or "")


def _first_sentence(text: str) -> str:
    sentences = re.split(
        r"(?<! al)(?<!\bDr)(?<! sec)\.(?= |$)", " ".join(text.split("\n\n")[0].split())
    )
    return sentences[0]


def _version_lines() -> Iterator[str]:
    import os

    import torch

    from astra_rl.errors import ConfigurationError
    from astra_rl.infra.storage import cache_dir
    from astra_rl.models.devices import DTYPES, resolve_device, resolve_dtype
    from astra_rl.runs.provenance import versions

    yield from (f"{package:14} {version}" for package, version in versions().items())
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    names = {value: key for key, value in DTYPES.items()}
    yield f"{'device':14} {device} ({os.cpu_count()} processors, {torch.get_num_threads()} threads)"
    yield f"{'dtype':14} {names[dtype]}"
    try:
        cache = str(cache_dir())
    except ConfigurationError as error:  # information, not a reason to fail
        cache = str(error)
    yield f"{'model cache':14} {cache}"


def _config_lines() -> Iterator[str]:
    from astra_rl.config.schema import RunConfig

    yield "# every setting with its default; those marked 'required' must be given"
    yield from _section_lines(RunConfig, indent=0)


def _section_lines(section: Any, *, indent: int) -> Iterator[str]:
    from astra_rl.config.sections import REQUIRED, keys_of, section_class

    margin = " " * indent
    for name, key in keys_of(section).items():
        note = f"  # {key.description}" if key.description else ""
        is_list = get_origin(key.type) in (list, tuple)  # may be made of its own kind
        inner = None if is_list else section_class(key.type)
        if inner is not None:
            yield f"{margin}{name}:{'  # optional' if key.default is None else ''}{note}"
            yield from _section_lines(inner, indent=indent + 2)
        else:
            shown = "null" if key.default is None else str(key.default)
            yield f"{margin}{name}: {'required' if key.default is REQUIRED else shown}{note}"


def _preset(name: str) -> Iterator[str]:
    from astra_rl.config.preset_files import preset_text

    yield preset_text(name).rstrip("\n")


def _presets() -> Iterator[str]:
    yield from (f"{name:18} {_line_on('presets', name)}" for name in _names("presets"))


def _formats() -> Iterator[str]:
    from astra_rl.evaluation.show.exports import EXPORTS, export_format

    for name in EXPORTS:
        each = export_format(name)
        needs = f" (extra {each.extra})" if each.extra else ""
        yield f"{name:16} {each.filename:22} {each.purpose}{needs}"
    yield "or your own writer, as package.module:name"


def _scenarios() -> Iterator[str]:
    from astra_rl.datasets import load_scenario, scenario_names

    for name in scenario_names():
        scenario = load_scenario(name)
        count = sum(map(len, scenario.rows.values()))
        yield f"{name} ({count} rows): {scenario.description}"


def _scenario(name: str) -> Iterator[str]:
    from astra_rl.datasets import load_scenario
    from astra_rl.evaluation.show.escaping import terminal_text

    scenario = load_scenario(name)
    facts = [
        ("harm category", scenario.harm_category or "-"),
        *((role, _type_of(getattr(scenario, role))) for role in ("moderator", "judge")),
        ("threshold", str(scenario.threshold or "yours")),
        *((split, f"{len(rows)} rows") for split, rows in scenario.rows.items()),
        *(("sha256", f"{source.sha256}  {source.name}") for source in scenario.sources),
    ]
    examples = next(filter(None, scenario.rows.values()), ())[:3]
    yield terminal_text(f"{scenario.name}: {scenario.description}")
    yield from (terminal_text(f"{name:14} {value}") for name, value in facts)
    for row in examples:
        yield ""
        yield terminal_text(f"{row.id} [{row.category or '-'}] {row.comparison_text}")


def _type_of(moderator: Mapping[str, Any] | None) -> str:
    return "yours" if moderator is None else str(moderator["type"])
