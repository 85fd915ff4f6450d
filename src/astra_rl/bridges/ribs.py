"""pyribs: the archive of a search as a `GridArchive`, for its statistics and visualisation."""

from __future__ import annotations

from typing import Any

from astra_rl.errors import require
from astra_rl.methods.archive import Archive


def to_ribs(archive: Archive) -> Any:
    """Return the best attacks of an archive as a ``ribs.archives.GridArchive``.

    The grid has a row per risk and a column per style, in order of their first cells. A solution is
    the text of an attack, its objective the score, and its measures are the middle of its cell,
    ``(row + 0.5, column + 0.5)``.

    Args:
        archive: The archive.

    Raises:
        MissingDependencyError: pyribs is not installed.
    """
    archives = require("ribs.archives", extra="ribs")
    risks = list(dict.fromkeys(cell.risk for cell in archive.cells))
    styles = list(dict.fromkeys(cell.style for cell in archive.cells))
    grid = archives.GridArchive(
        solution_dim=(),
        dims=[len(risks), len(styles)],
        ranges=[(0, len(risks)), (0, len(styles))],
        solution_dtype=object,
    )
    for cell, elite in archive.elites.items():
        place = [risks.index(cell.risk) + 0.5, styles.index(cell.style) + 0.5]
        grid.add_single(elite.attack, elite.score, place)
    return grid


__all__ = ["to_ribs"]
