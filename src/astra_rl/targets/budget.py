"""Budgets, prices and token usage of calls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.infra.ranges import Count, NotNegative, Positive, check_fields

ASSUMED_OUTPUT = 256
"""Assumed output tokens of a reply without a limit, until the first one has been received."""

MAX_TOKENS_OF_A_CALL = 1_000_000_000
"""Most tokens that a call can be charged; larger reported numbers are not believed."""


@dataclass(frozen=True)
class Budget:
    """Limits of what may be spent; None is no limit.

    Attributes:
        max_requests: Most requests, including retries.
        max_tokens: Most tokens, input and output together.
        max_cost: Most cost, in the currency of the prices.
        max_minutes: Most minutes, summed over all sessions of the run.
    """

    max_requests: Count | None = None
    max_tokens: Count | None = None
    max_cost: Positive | None = None
    max_minutes: Positive | None = None

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def least(cls, budgets: Iterable[Budget]) -> Budget:
        """Return the tightest limits of several budgets."""
        limits: dict[str, float] = {}
        for budget in budgets:
            for name, value in asdict(budget).items():
                if value is not None:
                    limits[name] = min(value, limits.get(name, value))
        return cls(**limits)  # type: ignore[arg-type]

    def part(self, share: Fraction) -> Budget:
        """Return the limits of a part of the work that is done at the same time as the rest.

        The limits of all parts add up to at most this budget; each has the whole of the minutes.

        Args:
            share: Part of the work, in (0, 1].

        Raises:
            ConfigurationError: The part of a limit is less than one request or token.
        """
        whole = {"max_requests": self.max_requests, "max_tokens": self.max_tokens}
        parts = {k: math.floor(v * share) for k, v in whole.items() if v is not None}
        for name, least in parts.items():
            if least < 1:
                raise ConfigurationError(
                    f"budget.{name}={whole[name]} is too small to divide: the part of this shard "
                    f"is {share}. Raise it, or use fewer shards."
                )
        cost = self.max_cost and float(Fraction(self.max_cost) * share)
        return replace(self, **parts, max_cost=cost)


@dataclass(frozen=True)
class Prices:
    """Cost per million tokens, in any one currency.

    Attributes:
        input: Cost per million input tokens.
        output: Cost per million output tokens.
    """

    input: NotNegative = 0.0
    output: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def cost_of(self, input_tokens: float, output_tokens: float) -> float:
        """Return the cost of these numbers of tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Usage:
    """Tokens of one call.

    Attributes:
        input: Input tokens.
        output: Output tokens.
        estimated: Whether they are estimated (a quarter of the characters) and not counted.

    Raises:
        ContractError: A number is not whole, or not from 0 to `MAX_TOKENS_OF_A_CALL`.
    """

    input: int
    output: int
    estimated: bool = False

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (is_whole and 0 <= value <= MAX_TOKENS_OF_A_CALL):
                raise ContractError(
                    f"Usage.{name} is {value!r:.50}; it must be a whole number of tokens from 0 to "
                    f"{MAX_TOKENS_OF_A_CALL}."
                )

    @classmethod
    def estimate(cls, input_characters: int, output_characters: int) -> Usage:
        """Estimate the tokens as a quarter of the characters."""
        return cls(math.ceil(input_characters / 4), math.ceil(output_characters / 4), True)


class TokenBound(NamedTuple):
    """Upper bound of the tokens of a call.

    Attributes:
        input: Most input tokens.
        output: Most output tokens; None if there is no limit.
    """

    input: int = 0
    output: int | None = 0
