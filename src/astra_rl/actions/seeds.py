"""Variation between training seeds, of one configuration or of several that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_rl.actions.compare import Rule, check_judged_alike, rule_of
from astra_rl.config.loading import load_config
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgedSummary, JudgeQuality
from astra_rl.evaluation.measures.summary import Summary
from astra_rl.evaluation.show.charts.seeds import Curve
from astra_rl.evaluation.stats.paired_seeds import SeedPairs
from astra_rl.evaluation.stats.paired_tests import holm
from astra_rl.evaluation.stats.seed_spread import SeedSpread
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.progress import metrics_of_steps
from astra_rl.runs.recorded import Recorded, quality_of_phase

MOST_NAMED = 3
"""Largest number of differing settings in the name of a configuration."""


@dataclass(frozen=True)
class Seeds:
    """Runs of one configuration with different training seeds.

    Attributes:
        spread: Variation of the success rate.
        summaries: Summary of each run, by seed.
        qualities: Measured errors of the judge, by seed; None if it is not calibrated.
        curves: Training steps and success rates of the training, by seed.
    """

    spread: SeedSpread
    summaries: dict[int, Summary]
    qualities: Mapping[int, JudgeQuality | None] = field(default_factory=dict)
    curves: Mapping[int, Curve] = field(default_factory=dict)

    @property
    def judged(self) -> list[JudgedSummary]:
        """The summaries with the errors of the judge."""
        return [
            JudgedSummary(summary, self.qualities.get(seed))
            for seed, summary in self.summaries.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the spread over seeds, and the summary of each seed."""
        return {
            "between_seeds": self.spread.as_dict(),
            "by_seed": {str(seed): each.as_dict() for seed, each in self.summaries.items()},
        }


@dataclass(frozen=True)
class Methods:
    """Several configurations, each trained with several seeds.

    Attributes:
        by_name: Runs by the settings in which a configuration differs from the others, for instance
            ``algorithm.type=rloo``; the first is the one that the others are compared with.
        pairs: Difference of each further one from the first, paired by seed.
        adjusted: Its p-value, adjusted for the number of comparisons (Holm); None without one.
    """

    by_name: Mapping[str, Seeds]
    pairs: Mapping[str, SeedPairs]
    adjusted: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; those of one configuration as `Seeds.as_dict`."""
        if len(self.by_name) == 1:
            (only,) = self.by_name.values()
            return only.as_dict()
        return {
            "methods": {name: each.as_dict() for name, each in self.by_name.items()},
            "differences": {
                name: {**each.as_dict(), "p_value_adjusted": self.adjusted[name]}
                for name, each in self.pairs.items()
            },
        }


@dataclass(frozen=True)
class _Run:
    folder: RunFolder
    config: RunConfig
    summary: Summary
    rules: set[Rule]
    prompts: set[str]
    quality: JudgeQuality | None


def compare_methods(runs: Sequence[str | Path], *, phase: str = "after") -> Methods:
    """Compare configurations that were trained with the same seeds.

    Runs whose configurations differ by the seed only are those of one method. The first one given
    is compared with each other one on the seeds that both have.

    Args:
        runs: Folders of the runs.
        phase: Phase whose success rates are compared.

    Raises:
        ConfigurationError: A seed occurs twice in one configuration, two have no seed in common, or
            judges, thresholds or prompts differ.
    """
    known = [_read(open_run_folder(run), phase) for run in runs]
    check_judged_alike(
        [(f"seed {each.config.seed} ({each.folder.path})", each.rules) for each in known]
    )
    groups: dict[str, list[_Run]] = {}
    for each in known:
        groups.setdefault(_without_seed(each.config).to_yaml(), []).append(each)
    names = _names([group[0] for group in groups.values()])
    methods = dict(zip(names, groups.values(), strict=True))
    by_name = {name: _seeds_of(group) for name, group in methods.items()}
    base, *others = names
    for name in others:
        _check_comparable(methods[base], methods[name])
    pairs = {name: _pairs(by_name[base], by_name[name]) for name in others}
    values = [each.p_value for each in pairs.values()]
    found = iter(holm([each for each in values if each is not None]))
    adjusted = {
        name: None if value is None else next(found)
        for name, value in zip(others, values, strict=True)
    }
    return Methods(by_name, pairs, adjusted)


def compare_seeds(runs: Sequence[str | Path], *, phase: str = "after") -> Seeds:
    """Compare runs that were trained with the same configuration and different seeds.

    Args:
        runs: Folders of the runs.
        phase: Phase whose success rates are compared.

    Raises:
        ConfigurationError: Configurations differ in more than the seed, a seed occurs twice, or
            judges or thresholds differ.
    """
    methods = compare_methods(runs, phase=phase)
    if len(methods.by_name) > 1:
        raise ConfigurationError(
            f"the runs differ in more than the seed: {'; '.join(methods.by_name)}. "
            "compare_methods compares several configurations."
        )
    (only,) = methods.by_name.values()
    return only


def _read(folder: RunFolder, phase: str) -> _Run:
    config = load_config(folder.config)
    with Recorded(folder, phase) as recorded:
        rules, prompts = set(), set()
        for row in recorded.rows():
            rules.add(rule_of(row))
            prompts.add(row.prompt_id)
        quality = quality_of_phase(folder, recorded.phase)
        return _Run(folder, config, recorded.summary(), rules, prompts, quality)


def _without_seed(config: RunConfig) -> RunConfig:
    return config.without_budget().model_copy(update={"seed": 0, "title": ""})


def _seeds_of(runs: Sequence[_Run]) -> Seeds:
    summaries: dict[int, Summary] = {}
    for each in runs:
        seed = each.config.seed
        if seed in summaries:
            raise ConfigurationError(
                f"{each.folder.path}: seed {seed} occurs twice; runs with the same seed train "
                "the same attacker and give no information about the variance between seeds. "
                "Leave one out."
            )
        summaries[seed] = each.summary
    return Seeds(
        SeedSpread({seed: each.asr for seed, each in summaries.items()}),
        summaries,
        {each.config.seed: each.quality for each in runs},
        {each.config.seed: _curve(each.folder) for each in runs},
    )


def _curve(folder: RunFolder) -> Curve:
    rows = metrics_of_steps(folder)
    return [(int(row["step"]), row["asr"]) for row in rows if "asr" in row]


def _check_comparable(base: Sequence[_Run], other: Sequence[_Run]) -> None:
    """Check that two configurations can be compared by seed.

    Raises:
        ConfigurationError: They have no seed in common, or were evaluated on other prompts.
    """
    a, b = (each[0].config.model_dump(mode="json") for each in (base, other))
    different = sorted(key for key in a if a[key] != b[key] and key not in ("seed", "title"))
    if not {each.config.seed for each in base} & {each.config.seed for each in other}:
        raise ConfigurationError(
            f"{other[0].folder.path} differs from the first run in more than the seed: "
            f"{', '.join(different)}. Two configurations are compared on the seeds that both have, "
            "and these have none in common. Train them with the same seeds, or use 'astra-rl "
            "compare' for two runs."
        )
    first, second = (set().union(*(each.prompts for each in runs)) for runs in (base, other))
    if first != second:
        raise ConfigurationError(
            f"{base[0].folder.path} and {other[0].folder.path} were evaluated on different "
            f"prompts: {len(first & second)} of {len(first | second)} in common. Evaluate both on "
            "the same prompts."
        )


def _pairs(base: Seeds, other: Seeds) -> SeedPairs:
    both = [seed for seed in base.summaries if seed in other.summaries]
    return SeedPairs({seed: (base.summaries[seed].asr, other.summaries[seed].asr) for seed in both})


def _names(runs: Sequence[_Run]) -> list[str]:
    """Return a name of each configuration: the settings in which they differ."""
    if len(runs) == 1:
        return ["one configuration"]
    settings = [dict(_flat(_without_seed(each.config).model_dump(mode="json"))) for each in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    different = [key for key in keys if len({str(each.get(key)) for each in settings}) > 1]
    types = [key for key in different if key.endswith(".type") or key == "attacker.model"]
    for chosen in (types, different[:MOST_NAMED]):
        names = [
            ", ".join(f"{key}={each[key]}" for key in chosen if key in each) for each in settings
        ]
        if all(names) and len(set(names)) == len(names):
            return names
    return [each.folder.path.name + f" ({at})" for at, each in enumerate(runs, 1)]


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
