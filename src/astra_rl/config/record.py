"""A configuration as the files of its run keep it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from astra_rl.config.schema import RunConfig
from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.infra.redaction import redact_settings


@dataclass(frozen=True)
class ConfigRecord:
    """A configuration as the files of its run keep it, without credentials.

    Attributes:
        settings: All settings, as JSON values.
        fixed: The same with defaults for the settings that do not change results.
        target: Name of the target.
        attacker: Name of the attacker; None if the prompts are sent as they are.
        is_trained: Whether the attacker is trained; another one is prompted.
    """

    settings: Mapping[str, Any]
    fixed: Mapping[str, Any]
    target: str
    attacker: str | None
    is_trained: bool

    @classmethod
    def of(cls, config: RunConfig) -> ConfigRecord:
        """Return the record of a configuration."""
        attacker = None if config.attacker is None else config.attacker.name
        names = redact_settings({"target": config.target.name, "attacker": attacker})
        return cls(
            redact_settings(config.model_dump(mode="json")),
            redact_settings(config.without_budget().model_dump(mode="json")),
            **names,
            is_trained=config.has_local_attacker,
        )

    @cached_property
    def yaml(self) -> str:
        """The settings as YAML, as `RunConfig.to_yaml` returns them."""
        return dump_yaml(self.settings)

    @cached_property
    def run(self) -> str:
        """Checksum of the settings that determine results; it names the run in its attempts."""
        return hashlib.blake2b(dump_yaml(self.fixed).encode(), digest_size=6).hexdigest()
