"""Variation between training seeds of one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_rl.actions.compare import Rule, check_judged_alike, rule_of
from astra_rl.config.loading import load_config
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.phases import Recorded


@dataclass(frozen=True)
class Seeds:
    """Runs of one configuration with different training seeds.

    Attributes:
        spread: Variation of the success rate.
        summaries: Summary of each run, by seed.
    """

    spread: SeedSpread
    summaries: dict[int, Summary]

    def as_dict(self) -> dict[str, Any]:
        """Return the spread over seeds, and the summary of each seed."""
        return {
            "between_seeds": self.spread.as_dict(),
            "by_seed": {str(seed): each.as_dict() for seed, each in self.summaries.items()},
        }


def compare_seeds(runs: Sequence[str | Path], *, phase: str = "after") -> Seeds:
    """Compare runs that were trained with the same configuration and different seeds.

    Args:
        runs: Folders of the runs.
        phase: Phase whose success rates are compared.

    Raises:
        ConfigurationError: Configurations differ in more than the seed, a seed occurs twice, or
            judges or thresholds differ.
    """
    summaries: dict[int, Summary] = {}
    rules: list[tuple[str, set[Rule]]] = []
    first: RunConfig | None = None
    for run in runs:
        folder = open_run_folder(run)
        config = load_config(folder.config)
        if config.seed in summaries:
            raise ConfigurationError(
                f"{folder.path}: seed {config.seed} occurs twice; runs with the same seed train "
                "the same attacker and give no information about the variance between seeds. "
                "Leave one out."
            )
        first = first or config
        _check_same_but_seed(first, config, folder)
        with Recorded(folder, phase) as recorded:
            used = {rule_of(row) for row in recorded.rows()}
            rules.append((f"seed {config.seed} ({folder.path})", used))
            summaries[config.seed] = recorded.summary()
    check_judged_alike(rules)
    rates = {seed: summary.asr for seed, summary in summaries.items()}
    return Seeds(SeedSpread(rates), summaries)


def _check_same_but_seed(first: RunConfig, config: RunConfig, folder: RunFolder) -> None:
    a, b = (each.model_dump(mode="json", exclude={"seed", "title"}) for each in (first, config))
    different = sorted(key for key in a if a[key] != b[key])
    if different:
        raise ConfigurationError(
            f"{folder.path} differs from the first run in more than the seed: "
            f"{', '.join(different)}. Use 'astra-rl compare' for two configurations."
        )
