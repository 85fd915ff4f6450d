"""Load opening contexts from the prompts section of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astra_rl.config.schema import PromptsConfig
from astra_rl.core.seeding import derive_seed
from astra_rl.core.text import Conversation
from astra_rl.datasets.files import LoadedRows, Source
from astra_rl.datasets.rows import Split
from astra_rl.datasets.scenario import Scenario
from astra_rl.datasets.scenario_files import (
    GENERATED,
    generated_scenario,
    load_scenario,
)
from astra_rl.datasets.scenario_schema import SourceSpec
from astra_rl.datasets.splits import all_in_test, assign_splits
from astra_rl.evaluation.records.turn import Opening

SHARES: dict[Split, float] = {"train": 0.8, "test": 0.2}
"""Split of a file without splits of its own; a run needs no validation part."""


@dataclass(frozen=True)
class Openings:
    """Contexts that conversations open with.

    Attributes:
        train: Openings of training.
        test: Openings of evaluation; none is a near-duplicate of a training prompt.
        sources: Files or datasets that they were loaded from.
        categories: Harm or scenario category by `Opening.id`, where known.
        moderators: Types of the moderators that their scenario names, if it does.
    """

    train: Sequence[Conversation]
    test: Sequence[Conversation]
    sources: Sequence[Source]
    categories: Mapping[str, str]
    moderators: frozenset[str] = frozenset()


def read_openings(config: PromptsConfig, *, seed: int, trained: bool = True) -> Openings:
    """Load the opening contexts of a run.

    Evaluation openings are the same for every seed, so that runs can be compared.

    Args:
        config: The section of the configuration.
        seed: Seed of the training openings that are generated.
        trained: Whether an attacker is trained. Otherwise nothing is split: all prompts are those
            of the evaluation.

    Raises:
        ConfigurationError: They cannot be loaded, a row is invalid, or training and evaluation
            share a prompt.
    """
    scenario = _scenario(config, seed, undivided=not trained)
    counts: dict[Split, int | None] = {"train": config.train, "test": config.test}
    if not trained:
        del counts["train"]
    contexts = {split: scenario.openings(split, count) for split, count in counts.items()}
    categories = {
        Opening.of(context).id: category
        for split, count in counts.items()
        for context, category in zip(
            contexts[split], scenario.categories(split, count), strict=True
        )
        if category
    }
    named = (scenario.moderator, scenario.judge)
    return Openings(
        contexts.get("train", []),
        contexts["test"],
        scenario.sources,
        categories,
        frozenset(section["type"] for section in named if section is not None),
    )


def _scenario(config: PromptsConfig, seed: int, *, undivided: bool) -> Scenario:
    if config.file is not None:
        return _from_files(config, config.file, undivided=undivided)
    name = config.scenario or ""
    if name in GENERATED and not undivided:
        return generated_scenario(
            name, config.train, config.test, seed=derive_seed(seed, "openings")
        )
    return load_scenario(name, undivided=undivided)


def _from_files(config: PromptsConfig, file: str, *, undivided: bool) -> Scenario:
    parts: dict[Split, LoadedRows] = {"train": _rows(config, file)}
    if config.test_file is not None:
        parts["test"] = _rows(config, config.test_file)
    if undivided:
        rows = all_in_test(parts.values())
    elif config.test_file is not None:
        rows = assign_splits(parts, name="prompts")
    else:
        whole = parts["train"]
        divided = any(row.split is not None for row in whole.rows)
        rows = assign_splits(whole, name=file, shares=None if divided else SHARES)
    return Scenario(
        file,
        rows,
        prompt_role=config.role or ("opening" if config.benchmark is None else "goal"),
        sources=[part.source for part in parts.values()],
    )


def _rows(config: PromptsConfig, file: str) -> LoadedRows:
    return SourceSpec(
        source=file,
        columns=config.columns,
        separator=config.separator,
        benchmark=config.benchmark,
    ).load()
