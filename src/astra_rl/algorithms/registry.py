"""Algorithms by the names that a configuration may give; none is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.infra.registry import Registry, declared_in

if TYPE_CHECKING:  # it needs torch
    from astra_rl.core.algorithm import Algorithm

_PACKAGE = "astra_rl.algorithms"
_OWN = declared_in(_PACKAGE)

ALGORITHMS: Registry[type[Algorithm[Any, Any, Any, Any]]] = Registry("algorithm", _PACKAGE, _OWN)
"""Algorithm classes by the names that a configuration may give."""


def is_pairwise(name: str) -> bool:
    """Whether an algorithm of a configuration learns from preference pairs of siblings.

    Those of this library are not imported, nor is one that is named by its import path: it counts
    as not pairwise.
    """
    if name in _OWN:
        return _OWN[name].startswith(f"{_PACKAGE}.dpo:")
    if name not in ALGORITHMS:
        return False
    from astra_rl.algorithms.dpo import PairwiseAlgorithm

    return issubclass(ALGORITHMS[name], PairwiseAlgorithm)
