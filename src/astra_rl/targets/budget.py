"""What may be spent on calls, what tokens cost, and what a call took or can take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from astra_rl.core.contracts import check_number

ASSUMED_OUTPUT = 256
"""Tokens that are expected of a reply whose length nobody limits, until one has come."""


@dataclass(frozen=True)
class Budget:
    """The most that may be spent; None is without limit.

    Attributes:
        max_requests: Requests sent, tries again included.
        max_tokens: Tokens read and written by the endpoints.
        max_cost: In the currency of the prices.
        max_minutes: Of all sessions of the run together.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None:
                check_number(name, value, lambda n: n > 0, "above 0")

    @classmethod
    def least(cls, budgets: Iterable[Budget]) -> Budget:
        """Return the budget that exceeds none of them."""
        limits: dict[str, float] = {}
        for budget in budgets:
            for name, value in asdict(budget).items():
                if value is not None:
                    limits[name] = min(value, limits.get(name, value))
        return cls(**limits)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Prices:
    """What tokens cost, per million, in any one currency."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_number(f"prices.{name}", value, lambda n: n >= 0, "0 or more")

    def cost_of(self, read: float, written: float) -> float:
        """Return what so many tokens cost."""
        return (read * self.input + written * self.output) / 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of one call.

    Attributes:
        input: Tokens read.
        output: Tokens written.
        estimated: Whether nobody counted them: a quarter of the characters is assumed.
    """

    input: int
    output: int
    estimated: bool = False

    @classmethod
    def estimate(cls, read: int, written: int) -> Usage:
        """Estimate from characters."""
        return cls(math.ceil(read / 4), math.ceil(written / 4), estimated=True)


class Worst(NamedTuple):
    """The most tokens that a call can take.

    Attributes:
        input: Read by the endpoint.
        output: Written by it; None if nobody limits it.
    """

    input: int = 0
    output: int | None = 0
