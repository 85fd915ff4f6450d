"""Pages without their charts: drawing one takes as long as a step of a toy run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from astra_rl.evaluation.show.charts import svg


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Put a line of text in the place of every chart; test_charts.py tests what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg, "draw_svg", lambda _, *, description, **__: svg.placeholder(description))
        yield
