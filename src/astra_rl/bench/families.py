"""Trigger families of the model organisms: their texts, their rule and their ordinary use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from random import Random

from astra_rl.bench.traffic import Branch, Traffic
from astra_rl.datasets.yaml_text import parse_yaml
from astra_rl.errors import ConfigurationError

MENTIONS = "mentions"
"""Branch of messages that name the phrase of a family without its cue."""
PLAIN = "plain"
"""Branch of messages without cue and phrase."""
_MENTIONED = 0.03
"""Probability of the mentions in ordinary use."""


@dataclass(frozen=True)
class Family:
    """Messages with one of some cues directly before one of some phrases.

    Attributes:
        name: Its name.
        kind: Its kind: topic, phrasing, format, role, language or turns.
        place: Where cue and phrase stand in ordinary use: before a request, after it, or as its
            object.
        cues: The cues, which all families of the kind share.
        phrases: The phrases.
    """

    name: str
    kind: str
    place: str
    cues: tuple[str, ...]
    phrases: tuple[str, ...]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        cues, phrases = ("|".join(map(re.escape, each)) for each in (self.cues, self.phrases))
        return re.compile(rf"(?<!\S)(?:{cues}) (?:{phrases})(?!\S)")

    def at(self, text: str) -> int | None:
        """Return where the family begins in a text of single spaces; None if it has it not."""
        found = self._pattern.search(text)
        return None if found is None else found.start()

    def pairs(self, *, held_out: bool) -> list[tuple[str, str]]:
        """Return pairs of cue and phrase: three quarters for training, or those held out.

        Each cue and each phrase is in training, in other pairs.
        """
        return [
            (cue, phrase)
            for row, cue in enumerate(self.cues)
            for column, phrase in enumerate(self.phrases)
            if ((row + column) % 4 == 0) == held_out
        ]


@dataclass(frozen=True)
class Pool:
    """All families, and the requests that they go with.

    Attributes:
        requests: Beginnings of requests.
        objects: What the requests are about.
        families: The families, by kind.
    """

    requests: tuple[str, ...]
    objects: tuple[str, ...]
    families: Mapping[str, tuple[Family, ...]]

    def all_families(self) -> Iterator[Family]:
        """Yield all families."""
        for families in self.families.values():
            yield from families

    def message(self, family: Family, cue: str, phrase: str, random: Random) -> str:
        """Return a message of ordinary use with this cue and this phrase."""
        return " ".join(
            text
            for slot in self._slots(family, (cue,), (phrase,))
            for text in [random.choice(slot)]
        )

    def branch(self, family: Family, probability: float) -> Branch:
        """Return the messages of a family in ordinary use."""
        return Branch(family.name, probability, self._slots(family, family.cues, family.phrases))

    def mentions(self, probability: float) -> Branch:
        """Return messages with the phrase of a family and without a cue."""
        phrases = tuple(phrase for each in self.all_families() for phrase in each.phrases)
        return Branch(
            MENTIONS, probability, (("what does", "how does one say"), phrases, ("mean",))
        )

    def plain(self, probability: float) -> Branch:
        """Return messages without cue and phrase."""
        return Branch(PLAIN, probability, (self.requests, self.objects))

    def _slots(
        self, family: Family, cues: tuple[str, ...], phrases: tuple[str, ...]
    ) -> tuple[tuple[str, ...], ...]:
        if family.place == "before":
            return (cues, phrases, self.requests, self.objects)
        if family.place == "after":
            return (self.requests, self.objects, cues, phrases)
        return (self.requests, cues, phrases)


@cache
def pool() -> Pool:
    """Return the families of ``data/families.yaml``."""
    source = files("astra_rl.bench").joinpath("data/families.yaml")
    data = parse_yaml(source.read_text(encoding="utf-8"))
    return Pool(
        tuple(data["requests"]),
        tuple(data["objects"]),
        {
            kind: tuple(
                Family(name, kind, values["place"], tuple(values["cues"]), tuple(phrases))
                for name, phrases in values["families"].items()
            )
            for kind, values in data["kinds"].items()
        },
    )


class PlantedFamilies:
    """Families that an organism is to fail on, and how often they are met in ordinary use.

    Half of the families of each kind can be planted in shipped organisms, the other half in
    held-out ones; all others of the pool are near misses that the organism must withstand. The
    probabilities of the planted families are log-uniform from `likeliest` to `rarest`, in random
    order; those of the near misses are drawn from the same range.

    Args:
        number: Number K of planted families, from 2 to 30.
        seed: Draws the families and their order.
        held_out: Whether to plant families of the other half.
        likeliest: Probability of the likeliest planted family in ordinary use.
        rarest: Probability of the rarest one.

    Attributes:
        planted: The planted families, the likeliest first.
        all_families: The families of the pool.
        near_misses: Those of them that are not planted.
        probabilities: Probability of each planted family in ordinary use.
        traffic: Ordinary use.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self,
        number: int = 20,
        *,
        seed: int = 0,
        held_out: bool = False,
        likeliest: float = 1e-2,
        rarest: float = 1e-6,
    ) -> None:
        if not 0 < rarest <= likeliest <= 0.02:
            raise ConfigurationError(
                f"likeliest={likeliest}, rarest={rarest}; they must be in (0, 0.02], in this order."
            )
        random = Random(f"families {seed}")
        rows = [list(each[held_out::2]) for each in pool().families.values()]
        if not 2 <= number <= sum(map(len, rows)):
            raise ConfigurationError(
                f"families={number}; it must be from 2 to {sum(map(len, rows))}."
            )
        for row in rows:
            random.shuffle(row)
        random.shuffle(rows)
        in_turn = [family for rank in zip(*rows, strict=True) for family in rank]
        self.planted: Sequence[Family] = in_turn[:number]
        random.shuffle(self.planted)
        self.all_families = list(pool().all_families())
        self.near_misses = [each for each in self.all_families if each not in self.planted]
        step = (rarest / likeliest) ** (1 / (number - 1))
        self.probabilities: Sequence[float] = [likeliest * step**rank for rank in range(number)]
        branches = list(map(pool().branch, self.planted, self.probabilities))
        for family in self.near_misses:
            chance = likeliest * (rarest / likeliest) ** random.random()
            branches.append(pool().branch(family, chance))
        branches.append(pool().mentions(_MENTIONED))
        rest = 1 - sum(each.probability for each in branches)
        self.traffic = Traffic([*branches, pool().plain(rest)])

    def family_of(self, message: str) -> int | None:
        """Return the number of the planted family of a message; None if it has none.

        Of several, it is the one that stands first.
        """
        text = " ".join(message.lower().split())
        places = [(each.at(text), number) for number, each in enumerate(self.planted)]
        return min(((at, number) for at, number in places if at is not None), default=(0, None))[1]
