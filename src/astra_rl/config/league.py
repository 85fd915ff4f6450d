"""Configuration of a league: several methods against one target, at equal numbers of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from astra_rl.config.estimate import training_size
from astra_rl.config.loading import parse_config, validated
from astra_rl.config.plan import Plan
from astra_rl.config.preset_files import merge, preset_text
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.config.section import Section
from astra_rl.config.shorthands import expanded
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError
from astra_rl.infra.user_files import read_user_text

OF_A_METHOD = ("reward", "environment", "algorithm", "training")
"""Sections of a preset that make a method; models, prompts and judge are those of the league."""
MOST_METHODS = 64
"""Largest number of methods."""


class LeagueConfig(Section):
    """Methods that are trained against one target with several seeds."""

    run: dict[str, Any] = Field(
        description="Settings of a run, as for 'astra-rl train': models, prompts, moderator."
    )
    calls: int = Field(
        ge=1, description="Target calls of the training of each method and seed, at most."
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Training seeds.")
    methods: dict[str, dict[str, Any]] = Field(
        min_length=1,
        max_length=MOST_METHODS,
        description="Settings of each method, by its name, over those of 'run'. With 'preset', "
        "reward, environment, algorithm and training are those of the preset.",
    )

    def config(self, method: str, seed: int) -> RunConfig:
        """Return the configuration of a run whose training makes at most `calls` target calls.

        Raises:
            ConfigurationError: A setting is wrong, or one training step makes more calls.
        """
        own = expanded(self.methods[method])
        values = expanded(self.run)
        if (preset := own.pop("preset", None)) is not None:
            below = expanded(parse_yaml(preset_text(preset)))
            kept = {key: value for key, value in values.items() if key not in OF_A_METHOD[:-1]}
            values = merge(kept, {key: below[key] for key in OF_A_METHOD if key in below})
        values = merge(values, own) | {"seed": seed}
        source = f"the method {method!r}"
        training = values.get("training", {})
        # The schedule of the learning rate does not matter for the size of one step.
        one = {**training, "steps": 1, "warmup_steps": 0}
        per_step = training_size(resolve(_parsed({**values, "training": one}, source))).replies
        if not 0 < per_step <= self.calls:
            raise ConfigurationError(
                f"methods.{method}: a training step makes up to {per_step} target calls, and calls "
                f"is {self.calls}. Set its training.episodes_per_step lower, or calls higher."
            )
        values["training"] = {**training, "steps": self.calls // per_step}
        return _parsed({"title": method, **values}, source)

    def plan(self, method: str, seed: int) -> Plan:
        """Return the plan of `config`."""
        return resolve(self.config(method, seed))


def _parsed(values: dict[str, Any], source: str) -> RunConfig:
    return parse_config(yaml.safe_dump(values, sort_keys=False), source=source)


def load_league(path: str | Path) -> LeagueConfig:
    """Read a league from a YAML file; each method is checked, with its first seed.

    Raises:
        ConfigurationError: A value is wrong; the message has the key, the value and what is
            allowed.
    """
    try:
        values = parse_yaml(read_user_text(Path(path)))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the league {path}: {error}") from error
    league = validated(LeagueConfig, values, source=str(path))
    repeated = sorted({seed for seed in league.seeds if league.seeds.count(seed) > 1})
    if repeated:
        raise ConfigurationError(
            f"seeds: {repeated} given twice; runs of one seed are equal and show no variation."
        )
    folded: dict[str, str] = {}
    for method in league.methods:
        if (other := folded.setdefault(method.casefold(), method)) != method:
            raise ConfigurationError(
                f"methods: {other!r} and {method!r} differ only by case, and many file systems "
                "would give both one folder; name them differently."
            )
    for method in league.methods:
        league.config(method, league.seeds[0])
    return league
