"""Write a commented configuration to start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_rl.actions.redteam import is_url, judge_section, prompts_section, target_section
from astra_rl.config.preset_files import preset_text
from astra_rl.config.schema import LocalTargetConfig, TargetConfig
from astra_rl.datasets import load_scenario
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.jsonio import write_atomic

KINDS = {
    "local": "a model that is loaded into this process",
    "endpoint": "an OpenAI-compatible endpoint; the key goes into OPENAI_API_KEY, not here",
    "function": "a function of Python; 'astra-rl train' runs in the folder that has its module",
    "application": "an application's own HTTP API: adapt body and reply to it (docs/targets.md)",
}
"""What the target of a configuration may be, for the comment on it."""
TRAINING_SHARE = 0.7
"""Share of a limited time that training may take; the rest is for loading and evaluation."""


def write_initial_config(
    path: str | Path,
    *,
    preset: str,
    target: str,
    prompts: str | None = None,
    scenario: str | None = None,
    judge: str | None = None,
    model: str | None = None,
    judge_model: str | None = None,
    application: bool = False,
    minutes: float | None = None,
) -> Path:
    """Write a commented configuration of a preset with a target, prompts and a moderator.

    Args:
        path: The file; it must not exist.
        preset: Name of the preset.
        target: See `redteam`.
        prompts: See `redteam`.
        scenario: See `redteam`.
        judge: See `redteam`; it is the moderator, and so the training reward. None is that of the
            scenario.
        model: See `redteam`.
        judge_model: See `redteam`.
        application: Whether `target` is the address of an application, with an HTTP API of its own.
        minutes: Most minutes that the run takes; None is no limit.

    Raises:
        ConfigurationError: The file exists, there is no such preset, scenario or moderator, or
            `minutes` is not positive.
    """
    path = Path(path)
    if path.exists():
        raise ConfigurationError(f"{path} exists; name another file, or remove it.")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise ConfigurationError(f"minutes={minutes}; give a positive number of minutes.")
    preset_text(preset)  # raises if there is none
    kind, section = _target(target, model, application=application)
    asked = prompts_section(prompts, scenario)
    own = load_scenario(asked["scenario"]).moderator if "scenario" in asked else None
    if judge is None and own is None:
        raise ConfigurationError("no judge: name one (--judge), or a scenario that has its own.")
    parts = [
        f"# Check this file: astra-rl validate {path}   Run it: astra-rl train {path}\n"
        "# All settings: astra-rl info config   What can be named: astra-rl list",
        f"# Settings that are not here are those of the preset: astra-rl info preset {preset}\n"
        f"preset: {preset}",
        f"# The model under test: {KINDS[kind]}.\n{_yaml(target=section)}",
        f"# Where conversations begin. A part is kept for evaluation.\n{_yaml(prompts=asked)}",
        _moderator(judge, judge_model),
        _limits(minutes),
    ]
    write_atomic(path, "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")
    return path


def _target(target: str, model: str | None, *, application: bool) -> tuple[str, dict[str, Any]]:
    """Return the kind of a target, see `KINDS`, and its section."""
    if application:
        options = {"url": target, "body": {"message": "{message}"}, "reply": "reply"}
        return "application", {"type": "http", "options": options}
    section = target_section(target, model if is_url(target) else None)
    values = section.model_dump(exclude_defaults=True)
    if isinstance(section, LocalTargetConfig):
        return "local", values
    assert isinstance(section, TargetConfig)
    return ("function" if section.type != "openai" else "endpoint"), values


def _moderator(judge: str | None, judge_model: str | None) -> str:
    if judge is None:
        return (
            "# What a failure is: the moderator of the scenario, which is also the reward of the\n"
            "# training. To choose another: moderator: NAME (astra-rl list moderators)."
        )
    section = judge_section(judge, judge_model).model_dump(exclude_defaults=True)
    return (
        "# What a failure is: the score of each reply, which is also the reward of the training.\n"
        "# To evaluate with another judge than the one that trained: evaluation: {judge: NAME}.\n"
        + _yaml(moderator=section)
    )


def _limits(minutes: float | None) -> str:
    if minutes is None:
        return (
            "# Limits that end the run early: budget: {max_minutes: 60}, or max_requests,\n"
            "# max_tokens, max_cost. 'astra-rl resume RUN' continues it with larger ones."
        )
    share = {"max_minutes": round(minutes * TRAINING_SHARE, 2)}
    return (
        f"# The training ends after this time, of {minutes:g} minutes in all: the rest is for\n"
        f"# loading and evaluation.\n{_yaml(training=share)}"
    )


def _yaml(**sections: Mapping[str, Any]) -> str:
    return dump_yaml(sections)
