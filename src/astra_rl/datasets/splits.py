"""Training, validation and test splits without shared near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from random import Random

from astra_rl.core.seeding import derive_seed
from astra_rl.datasets.files import LoadedRows
from astra_rl.datasets.rows import SPLITS, Row, Split
from astra_rl.datasets.similarity import NEAR_DUPLICATE, near_duplicate_groups, near_duplicates
from astra_rl.errors import ConfigurationError

SHARES: Mapping[Split, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Default fraction of the rows in each split."""

_MAX_LISTED_PAIRS = 5


def assign_splits(
    loaded: LoadedRows | Mapping[Split, LoadedRows],
    *,
    name: str,
    shares: Mapping[Split, float] | None = None,
    seed: int = 0,
    similarity: float = NEAR_DUPLICATE,
) -> dict[Split, Sequence[Row]]:
    """Assign rows to splits, without near-duplicates in two splits.

    Args:
        loaded: Rows by split, rows that all have a split, or rows without splits, which are split
            by `split_rows`.
        name: Name of the data in messages.
        shares: Fraction of each split if `split_rows` is used; None is 60% training, 20%
            validation and 20% test.
        seed: Random seed if `split_rows` is used.
        similarity: Similarity at or above which rows are near-duplicates, in (0, 1].

    Raises:
        ConfigurationError: Two splits share a near-duplicate or an id, only some rows have a split,
            or `shares` is given for rows that already have splits.
    """
    if isinstance(loaded, LoadedRows) and all(row.split is None for row in loaded.rows):
        return dict(
            split_rows(loaded.rows, shares=shares or SHARES, seed=seed, threshold=similarity)
        )
    if shares is not None:
        raise ConfigurationError(
            f"{name}: the rows already have splits; remove either the shares or the splits."
        )
    splits = _by_split(loaded.rows, name) if isinstance(loaded, LoadedRows) else _of_mapping(loaded)
    owner: dict[str, Split] = {}
    for split, rows in splits.items():
        for row in rows:
            if owner.setdefault(row.id, split) != split:
                raise ConfigurationError(
                    f"{name}: the id {row.id!a} is in {owner[row.id]} and in {split}."
                )
    check_splits(splits, threshold=similarity, name=name)
    return splits


def all_in_test(parts: Iterable[LoadedRows]) -> dict[Split, Sequence[Row]]:
    """Return all rows as the split ``"test"``, for a test without training."""
    return {"test": [row for part in parts for row in part.rows]}


def _by_split(rows: Sequence[Row], name: str) -> dict[Split, Sequence[Row]]:
    without = [row.id for row in rows if row.split is None]
    if without:
        raise ConfigurationError(
            f"{name}: {len(without)} of {len(rows)} rows have no split, for example "
            f"{without[0]!a}. Give a split to every row or to none."
        )
    return {split: [row for row in rows if row.split == split] for split in SPLITS}


def _of_mapping(loaded: Mapping[Split, LoadedRows]) -> dict[Split, Sequence[Row]]:
    return {split: loaded[split].rows if split in loaded else () for split in SPLITS}


def split_rows(
    rows: Sequence[Row],
    *,
    shares: Mapping[Split, float] = SHARES,
    seed: int = 0,
    threshold: float = NEAR_DUPLICATE,
) -> dict[Split, list[Row]]:
    """Split rows so that all rows of a near-duplicate group are in the same split.

    Split sizes follow the shares as closely as the groups allow, overall and, where possible,
    within each category. The result depends on the rows and the seed only.

    Args:
        rows: Rows to split.
        shares: Fraction of each split; they sum to 1. Splits that are left out stay empty.
        seed: Random seed of the assignment.
        threshold: Similarity at or above which rows are near-duplicates; see `similarity`.

    Returns:
        The rows of every split, in their original order.

    Raises:
        ConfigurationError: The shares do not sum to 1, or there are fewer groups than splits.
    """
    wanted = _checked_shares(shares)
    groups = near_duplicate_groups([row.comparison_text for row in rows], threshold=threshold)
    if len(groups) < len(wanted):
        raise ConfigurationError(
            f"{len(rows)} rows form {len(groups)} groups of near-duplicates, too few for "
            f"{', '.join(wanted)}. Add different prompts, use fewer splits, or raise the "
            f"similarity (it is {threshold:g})."
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
                _shortfall(in_all, split, wanted[split], len(group))
                + _shortfall(in_category, split, wanted[split], len(group))
            ),
        )
        chosen[best].extend(group)
        in_all[best] += len(group)
        in_category[best] += len(group)
    return {split: [rows[index] for index in sorted(chosen[split])] for split in SPLITS}


def _shortfall(have: Counter[Split], split: Split, share: float, more: int) -> float:
    """Return by how many rows a split is below its share after `more` rows were added."""
    return share * (have.total() + more) - have[split]


def _checked_shares(shares: Mapping[Split, float]) -> dict[Split, float]:
    for split, share in shares.items():
        if split not in SPLITS or not 0 <= share <= 1:
            raise ConfigurationError(
                f"shares: {split}={share}; give {', '.join(SPLITS)} a fraction in [0, 1] each."
            )
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigurationError(
            f"shares: {dict(shares)} sum to {sum(shares.values()):g}; they must sum to 1."
        )
    return {split: shares[split] for split in SPLITS if shares.get(split)}


def check_splits(
    splits: Mapping[Split, Sequence[Row]], *, threshold: float = NEAR_DUPLICATE, name: str
) -> None:
    """Check that no row of one split has a near-duplicate in another split.

    Args:
        splits: Rows of each split.
        threshold: Similarity at or above which rows are near-duplicates.
        name: Name of the data in the message.

    Raises:
        ConfigurationError: Splits share near-duplicates; the message lists some of the pairs.
    """
    placed = [(split, row) for split, rows in splits.items() for row in rows]
    texts = [row.comparison_text for _, row in placed]
    across = (
        (placed[a], placed[b])
        for a, b in near_duplicates(texts, threshold=threshold)
        if placed[a][0] != placed[b][0]
    )
    pairs = list(islice(across, _MAX_LISTED_PAIRS + 1))  # there may be millions
    if not pairs:
        return
    lines = [
        f"{row.id} ({split}) and {other.id} ({other_split}): "
        f"{row.comparison_text[:60]!a} and {other.comparison_text[:60]!a}"
        for (split, row), (other_split, other) in pairs[:_MAX_LISTED_PAIRS]
    ]
    raise ConfigurationError(
        "\n  ".join(
            [
                f"{name}: its splits share near-duplicates (similarity {threshold:g} or more). "
                "Evaluation prompts must not be trained on: remove these rows, or have the splits "
                "made automatically.",
                *lines,
                *(["and more"] if len(pairs) > _MAX_LISTED_PAIRS else []),
            ]
        )
    )
