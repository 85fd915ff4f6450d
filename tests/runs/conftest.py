"""Runs are reported without charts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.undrawn import undrawn


@pytest.fixture(scope="module", autouse=True)
def no_charts() -> Iterator[None]:
    """Draw no charts; they have tests of their own."""
    with undrawn():
        yield
