"""Environments by the names that a configuration may give; none is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from astra_rl.infra.registry import Registry, declared_in

if TYPE_CHECKING:  # it needs torch
    from astra_rl.methods.ast_problem import ASTEnvironment

ENVIRONMENTS: Registry[Callable[..., ASTEnvironment]] = Registry(
    "environment",
    "astra_rl.environments",
    declared_in("astra_rl.methods"),
)
"""Environments by their names in a configuration."""
