"""What is being tested: what the target is told, how conversations open, and who judges them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from astra_rl.core.text import Conversation
from astra_rl.datasets.files import LoadedRows, Source
from astra_rl.datasets.rows import SPLITS, Row, Split
from astra_rl.datasets.similarity import NEAR_DUPLICATE
from astra_rl.datasets.splits import SHARES, check_splits, split_rows
from astra_rl.errors import ConfigurationError

PromptRole = Literal["opening", "goal"]


@dataclass(frozen=True)
class Scenario:
    """What is being tested.

    Attributes:
        name: What to call it.
        rows: Rows of each split; no two splits share a prompt or a near-duplicate.
        description: What it is for, in a sentence.
        harm_category: What kind of failure it looks for, for instance ``"privacy"``.
        system: System messages of the target for rows that bring none; each row meets each of
            them. Empty: none.
        brief: What the attacker is told, for rows that bring none.
        prompt_role: ``"opening"``: a prompt is what was said before the attacker speaks, and both
            sides see it. ``"goal"``: it is what the attacker is to bring about, and only the
            attacker and the moderators see it.
        moderator: Name and options of the moderator to train against, as in the configuration of
            a run: ``{"type": ..., "options": {...}}``.
        judge: The same for the judge.
        threshold: Score from which on the target failed, in (0, 1].
        sources: Where the rows came from.
    """

    name: str
    rows: Mapping[Split, Sequence[Row]]
    description: str = ""
    harm_category: str | None = None
    system: Sequence[str] = ()
    brief: str | None = None
    prompt_role: PromptRole = "opening"
    moderator: Mapping[str, Any] | None = None
    judge: Mapping[str, Any] | None = None
    threshold: float | None = None
    sources: Sequence[Source] = field(default=())

    def openings(self, split: Split, count: int | None = None) -> list[Conversation]:
        """Return the contexts that an attacker starts from.

        With several system messages, each row meets them in turn: the first so many contexts as
        there are rows hold every row once, and those after them the same rows with the next
        system message.

        Args:
            split: Whose rows.
            count: At most so many; None returns all.

        Raises:
            ConfigurationError: The split has no rows, or `count` is below 1.
        """
        pairs = self._pairs(split, count)
        return [self._opening(row, system) for row, system in pairs]

    def categories(self, split: Split, count: int | None = None) -> list[str]:
        """Return the category of each opening, in the order of `openings`.

        That of its row, else the scenario's; empty where neither says one. Arguments and errors are
        those of `openings`.
        """
        return [row.category or self.harm_category or "" for row, _ in self._pairs(split, count)]

    def requests(self, split: Split, count: int | None = None) -> list[Conversation]:
        """Return conversations in which the target was asked each prompt directly.

        They await the target's response: this is how it answers without any attacker. Arguments
        and errors are those of `openings`.
        """
        pairs = self._pairs(split, count)
        return [
            Conversation(system=system, facts=self._facts(row), separator="\n") + row.prompt
            for row, system in pairs
        ]

    def _pairs(self, split: Split, count: int | None) -> list[tuple[Row, str | None]]:
        if split not in SPLITS:
            raise ConfigurationError(f"split={split!r}; choose from {', '.join(SPLITS)}.")
        if count is not None and count < 1:
            raise ConfigurationError(f"count={count}; ask for at least 1 conversation.")
        rows = self.rows.get(split, ())
        if not rows:
            raise ConfigurationError(f"scenario {self.name!r} has no {split} rows.")
        return list(itertools.islice(self._all_pairs(rows), count))

    def _all_pairs(self, rows: Sequence[Row]) -> itertools.chain[tuple[Row, str | None]]:
        systems: Sequence[str | None] = self.system or (None,)

        def turn(shift: int) -> list[tuple[Row, str | None]]:
            return [
                (row, row.system or systems[(index + shift) % len(systems)])
                for index, row in enumerate(rows)
                if shift == 0 or row.system is None
            ]

        return itertools.chain.from_iterable(map(turn, range(len(systems))))

    def _opening(self, row: Row, system: str | None) -> Conversation:
        prompt, brief = row.prompt, row.brief or self.brief
        if self.prompt_role == "goal":
            brief = "\n\n".join(part for part in (brief, prompt) if part)
            prompt = ""
        return Conversation(
            prompt, system=system, brief=brief, facts=self._facts(row), separator="\n"
        )

    def _facts(self, row: Row) -> dict[str, str]:
        goal = {"behavior": row.prompt} if self.prompt_role == "goal" and row.prompt else {}
        return {**goal, **row.facts}


def assign_splits(
    loaded: LoadedRows | Mapping[Split, LoadedRows],
    *,
    name: str,
    shares: Mapping[Split, float] | None = None,
    seed: int = 0,
    similarity: float = NEAR_DUPLICATE,
) -> dict[Split, Sequence[Row]]:
    """Return the rows of each split, and make sure that no two share a near-duplicate.

    Args:
        loaded: Rows by split; or rows that say themselves where they belong, all of them; or rows
            that do not, and are divided by `split_rows`.
        name: What they are of, for messages.
        shares: Part of each split if rows are divided here; None is 60% training, 20% validation
            and 20% test.
        seed: Chooses which rows go where if they are divided here.
        similarity: From which on rows are near-duplicates.

    Raises:
        ConfigurationError: Splits share something, an id occurs twice, some rows but not all name
            a split, or shares are given for rows that are divided already.
    """
    if isinstance(loaded, LoadedRows) and all(row.split is None for row in loaded.rows):
        return dict(
            split_rows(loaded.rows, shares=shares or SHARES, seed=seed, threshold=similarity)
        )
    if shares is not None:
        raise ConfigurationError(
            f"{name}: its rows are divided already; leave out the shares, or their splits."
        )
    splits = _by_split(loaded.rows, name) if isinstance(loaded, LoadedRows) else _of_each(loaded)
    owner: dict[str, Split] = {}
    for split, rows in splits.items():
        for row in rows:
            if owner.setdefault(row.id, split) != split:
                raise ConfigurationError(
                    f"{name}: the id {row.id!a} is in {owner[row.id]} and in {split}."
                )
    check_splits(splits, threshold=similarity, name=name)
    return splits


def _by_split(rows: Sequence[Row], name: str) -> dict[Split, Sequence[Row]]:
    without = [row.id for row in rows if row.split is None]
    if without:
        raise ConfigurationError(
            f"{name}: {len(without)} of {len(rows)} rows name no split, for instance "
            f"{without[0]!a}. Give every row a split, or none."
        )
    return {split: [row for row in rows if row.split == split] for split in SPLITS}


def _of_each(loaded: Mapping[Split, LoadedRows]) -> dict[Split, Sequence[Row]]:
    return {split: loaded[split].rows if split in loaded else () for split in SPLITS}
