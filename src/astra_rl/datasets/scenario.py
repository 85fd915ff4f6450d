"""Scenario: prompts, system messages, attacker instructions, moderator and judge of a test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from astra_rl.core.text import GOAL, REQUEST, Conversation
from astra_rl.datasets.files import Source
from astra_rl.datasets.rows import SPLITS, Row, Split
from astra_rl.errors import ConfigurationError
from astra_rl.infra.visible import html_table

PromptRole = Literal["opening", "goal"]
ROWS_SHOWN = 5
"""Rows of each split that a notebook shows."""


@dataclass(frozen=True)
class Scenario:
    """A test scenario.

    Attributes:
        name: Name of the scenario.
        rows: Rows of each split; splits share no prompts and no near-duplicates.
        description: One-sentence description.
        harm_category: Category of the tested failure, for example ``"privacy"``.
        system: System messages of the target for rows without one; each row is combined with each
            of them. Empty means no system message.
        brief: Instructions of the attacker for rows without a brief.
        prompt_role: ``"opening"``: the prompt opens the conversation and both sides see it.
            ``"goal"``: the prompt is the attacker's goal. Only the attacker reads it, in its brief,
            and the moderators, as ``facts["goal"]`` unless the row has that fact. If the two
            differ, the prompt is ``facts["request"]``, the direct request for the goal.
        moderator: Type and options of the training moderator, as in the configuration of a run:
            ``{"type": ..., "options": {...}}``.
        judge: The same for the judge of the evaluation.
        threshold: Score at or above which the attack is a success, in (0, 1].
        sources: Provenance of the rows.
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

    def _repr_html_(self) -> str:
        """Return its properties and the first rows of each split, for a notebook."""
        shown = ("name", "description", "harm_category", "prompt_role", "brief", "threshold")
        known = {name: getattr(self, name) for name in shown} | {
            name: section["type"]
            for name, section in (("moderator", self.moderator), ("judge", self.judge))
            if section
        }
        properties = [(name, value) for name, value in known.items() if value not in (None, "")]
        rows = [
            (f"{split}: {len(rows)} rows" if at == 0 else "", row.prompt, row.category or "")
            for split, rows in self.rows.items()
            for at, row in enumerate(rows[:ROWS_SHOWN])
        ]
        found = html_table(("scenario", ""), properties)
        return found + html_table(("split", "prompt", "category"), rows)

    def openings(self, split: Split, count: int | None = None) -> list[Conversation]:
        """Return the initial contexts of episodes.

        With several system messages, the first ``len(rows)`` contexts contain every row once, and
        later ones the same rows with the next system message.

        Args:
            split: Split of the rows.
            count: Maximum number of contexts; None returns all.

        Raises:
            ConfigurationError: The split has no rows, or `count` is below 1.
        """
        pairs = self._pairs(split, count)
        return [self._opening(row, system) for row, system in pairs]

    def categories(self, split: Split, count: int | None = None) -> list[str]:
        """Return the category of each opening, in the order of `openings`.

        That of its row, else the scenario's, else an empty string. For arguments and errors see
        `openings`.
        """
        return [row.category or self.harm_category or "" for row, _ in self._pairs(split, count)]

    def requests(self, split: Split, count: int | None = None) -> list[Conversation]:
        """Return conversations in which the prompt itself is the user message (direct requests).

        They await the target's response, for a baseline without an attacker. For arguments and
        errors see `openings`.
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

        def shifted(shift: int) -> list[tuple[Row, str | None]]:
            return [
                (row, row.system or systems[(index + shift) % len(systems)])
                for index, row in enumerate(rows)
                if shift == 0 or row.system is None
            ]

        return itertools.chain.from_iterable(map(shifted, range(len(systems))))

    def _opening(self, row: Row, system: str | None) -> Conversation:
        prompt, brief = row.prompt, row.brief or self.brief
        if self.prompt_role == "goal":
            brief = "\n\n".join(part for part in (brief, prompt) if part)
            prompt = ""
        return Conversation(
            prompt, system=system, brief=brief, facts=self._facts(row), separator="\n"
        )

    def _facts(self, row: Row) -> dict[str, str]:
        if self.prompt_role != "goal" or not row.prompt:
            return dict(row.facts)
        facts = {GOAL: row.prompt, **row.facts}
        return facts if facts[GOAL] == row.prompt else {REQUEST: row.prompt, **facts}
