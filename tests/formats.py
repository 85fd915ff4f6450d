"""The export formats that need no package beside those of the tests."""

from __future__ import annotations

from astra_rl.evaluation.show.exports import EXPORTS, export_format

FORMATS = [name for name in EXPORTS if export_format(name).extra in ("", "data")]
"""Their names; the tests of `tests/bridges` have the others."""
