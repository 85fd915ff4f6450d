"""Base classes of the sections of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from astra_rl.infra.registry import Registry


class Section(BaseModel):
    """A section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class SectionWithType(Section):
    """A section that names a class or function, and the arguments to call it with.

    Attributes:
        registry: What `type` may name, besides import paths.
        own_keys: Arguments that are keys of the section itself, beside `options`; null leaves one
            out.
    """

    registry: ClassVar[Registry[Any]]
    own_keys: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # each section declares them, in its own order
        type: str
        options: dict[str, Any]

    @field_validator("type", check_fields=False)
    @classmethod
    def _known_type(cls, value: str) -> str:
        cls.registry.check(value)
        return value

    def factory(self) -> Callable[..., Any]:
        """Return the class or function to call; its module is imported.

        Raises:
            ConfigurationError: It cannot be imported.
            MissingDependencyError: Its module needs an extra that is not installed.
        """
        return self.registry.load(self.type)  # type: ignore[no-any-return]

    def arguments_in_section(self) -> dict[str, Any]:
        """Return the arguments that are keys of the section itself, where given."""
        given = {name: getattr(self, name) for name in self.own_keys}
        return {name: value for name, value in given.items() if value is not None}
