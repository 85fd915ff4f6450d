"""A server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.endpoint import Endpoint, serving


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as server:
        yield server
