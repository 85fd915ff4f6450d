"""Training, validation and test rows that share no prompt and no near-duplicate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random

from astra_rl.core.seeding import derive_seed
from astra_rl.datasets.rows import SPLITS, Row, Split
from astra_rl.datasets.similarity import NEAR_DUPLICATE, near_duplicate_groups, near_duplicates
from astra_rl.errors import ConfigurationError

SHARES: Mapping[Split, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Parts of the rows that each split gets, unless others are asked for."""

_NAMED_PAIRS = 5


def split_rows(
    rows: Sequence[Row],
    *,
    shares: Mapping[Split, float] = SHARES,
    seed: int = 0,
    threshold: float = NEAR_DUPLICATE,
) -> dict[Split, list[Row]]:
    """Divide rows so that near-duplicates, and those of near-duplicates, stay together.

    Sizes follow the shares as closely as the groups of near-duplicates allow, and so does each
    category where it has rows enough. The same rows and seed give the same splits.

    Args:
        rows: Rows to split.
        shares: Part of each split, adding up to 1; a split that is not named gets nothing.
        seed: Chooses which rows go where.
        threshold: Similarity from which on rows are near-duplicates; see `similarity`.

    Returns:
        Rows of every split, in the order they came in.

    Raises:
        ConfigurationError: The shares do not add up to 1, or there are not enough groups to give
            each split one.
    """
    wanted = _checked_shares(shares)
    groups = near_duplicate_groups([row.compared for row in rows], threshold=threshold)
    if len(groups) < len(wanted):
        raise ConfigurationError(
            f"{len(rows)} rows make {len(groups)} groups of near-duplicates, too few for "
            f"{', '.join(wanted)}. Add prompts that say something else, ask for fewer splits, or "
            f"raise the similarity (it is {threshold:g})."
        )
    Random(derive_seed(seed, "splits")).shuffle(groups)
    groups.sort(key=len, reverse=True)
    chosen: dict[Split, list[int]] = {split: [] for split in SPLITS}
    placed: dict[str | None, Counter[Split]] = defaultdict(Counter)
    in_all: Counter[Split] = Counter()
    for remaining, group in zip(range(len(groups), 0, -1), groups, strict=True):
        in_category = placed[rows[group[0]].category]
        empty = [split for split in wanted if not chosen[split]]
        options = empty if len(empty) == remaining else list(wanted)
        best = max(
            options,
            key=lambda split: (
                _lack(in_all, split, wanted[split], len(group))
                + _lack(in_category, split, wanted[split], len(group))
            ),
        )
        chosen[best].extend(group)
        in_all[best] += len(group)
        in_category[best] += len(group)
    return {split: [rows[index] for index in sorted(chosen[split])] for split in SPLITS}


def _lack(have: Counter[Split], split: Split, share: float, more: int) -> float:
    """How many rows a split is short of its share once so many more are placed."""
    return share * (have.total() + more) - have[split]


def _checked_shares(shares: Mapping[Split, float]) -> dict[Split, float]:
    for split, share in shares.items():
        if split not in SPLITS or not 0 <= share <= 1:
            raise ConfigurationError(
                f"shares: {split}={share}; name {', '.join(SPLITS)} and give each a part in [0, 1]."
            )
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigurationError(
            f"shares: {dict(shares)} add up to {sum(shares.values()):g}; they must add up to 1."
        )
    return {split: shares[split] for split in SPLITS if shares.get(split)}


def check_splits(
    splits: Mapping[Split, Sequence[Row]], *, threshold: float = NEAR_DUPLICATE, name: str
) -> None:
    """Check that no two splits share a row, its prompt or a near-duplicate.

    Args:
        splits: Rows of each split.
        threshold: Similarity from which on rows are near-duplicates.
        name: What the splits are of, for the message.

    Raises:
        ConfigurationError: They do; the message names some of the pairs.
    """
    placed = [(split, row) for split, rows in splits.items() for row in rows]
    texts = [row.compared for _, row in placed]
    across = (
        (placed[a], placed[b])
        for a, b in near_duplicates(texts, threshold=threshold)
        if placed[a][0] != placed[b][0]
    )
    pairs = list(islice(across, _NAMED_PAIRS + 1))  # there may be millions
    if not pairs:
        return
    lines = [
        f"{row.id} ({split}) and {other.id} ({other_split}): "
        f"{row.compared[:60]!a} and {other.compared[:60]!a}"
        for (split, row), (other_split, other) in pairs[:_NAMED_PAIRS]
    ]
    raise ConfigurationError(
        "\n  ".join(
            [
                f"{name}: its splits share near-duplicates (similarity {threshold:g} or more). "
                "Evaluate on prompts that were not trained on: leave these out, or let the splits "
                "be made.",
                *lines,
                *(["and more"] if len(pairs) > _NAMED_PAIRS else []),
            ]
        )
    )
