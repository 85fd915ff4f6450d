"""Moderators that name the failures that they score."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from astra_rl.errors import ConfigurationError
from astra_rl.moderators.registry import MODERATORS

NAMING = ("invented_number", "secret_leak")
"""Names of the moderators that name failures."""


@runtime_checkable
class NamesFailures(Protocol):
    """A rule that says which failures an exchange has, where a score says only how bad it is."""

    def failures(self, text: str) -> tuple[str, ...]:
        """Return the names of the failures of an `Exchange`, the first one first; often none."""


def naming_moderator(name: str) -> NamesFailures:
    """Return the moderator of this name, with its default options.

    Raises:
        ConfigurationError: It names no failures, or there is none.
    """
    if name not in NAMING:
        raise ConfigurationError(
            f"rule={name!r}; moderators that name failures: {', '.join(NAMING)}."
        )
    moderator = MODERATORS.load(name)()
    assert isinstance(moderator, NamesFailures)
    return moderator
