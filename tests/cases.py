"""Which cases of a parametrised test run by default."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import pytest

also = partial(pytest.param, marks=pytest.mark.exhaustive)
"""A case that is exhaustive; its arguments are the values."""


def cases(every: Iterable[Any], *, by_default: Collection[Any]) -> list[Any]:
    """Return the parameters of a test; all cases outside of `by_default` are exhaustive.

    Args:
        every: A value per case, or a tuple of the values of several arguments.
        by_default: The cases that run by default, as they are in `every`.
    """
    found = list(every)
    assert all(case in found for case in by_default), "a case by default that there is not"
    return [
        (pytest.param if case in by_default else also)(
            *(case if isinstance(case, tuple) else (case,))
        )
        for case in found
    ]
