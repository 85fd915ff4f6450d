"""A Python function as a moderator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from astra_rl.core.contracts import check_length, name_of_function
from astra_rl.core.moderator import Moderator, Score
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.infra.importing import load_object
from astra_rl.infra.registry import named


@named("function")
class FunctionModerator(Moderator[str, str]):
    """Scores texts with a function.

    ```python
    FunctionModerator(lambda texts: ["damn" in text.lower() for text in texts])
    ```

    Args:
        function: Takes a sequence of texts and returns one score in [0, 1] per text, in order;
            higher is more harmful. NaN, None or ``Score.missing("why")`` is a missing score. Texts
            of an episode are `Exchange` objects. It is never called with an empty sequence. In a
            configuration, ``"package.module:function"``.

    Raises:
        ConfigurationError: The function cannot be imported, or is not callable.
    """

    def __init__(self, function: Callable[[Sequence[str]], Sequence[float | None]] | str) -> None:
        self.function = _loaded(function)
        self._source = name_of_function(self.function)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless the function can be imported and called."""
        super().check_options(**options)
        if "function" in options:
            _loaded(options["function"])

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1]; missing where the function returned NaN or None.

        Raises:
            ContractError: The function returned another number of scores, or a value that is not
                a number in [0, 1].
        """
        if not x:
            return []
        returned = self.function(x)
        try:
            scores = list(returned)
        except TypeError as error:
            raise ContractError(
                f"{self._source} returned {returned!r} for {len(x)} texts. "
                "Return one score per text, in the same order."
            ) from error
        check_length(scores, len(x), source=self._source)
        return [self._checked(score, row) for row, score in enumerate(scores)]

    def _checked(self, score: Any, row: int) -> float:
        if score is None:
            return Score.missing("the function returned None")
        try:
            # Strings are refused: a numeric one hints at a missing parsing step.
            value = None if isinstance(score, str | bytes) else _as_float(score)
        except (TypeError, ValueError):
            value = None
        if value is None or not (0 <= value <= 1 or math.isnan(value)):
            raise ContractError(
                f"{self._source} returned {score!r} for text {row}. Return a number in [0, 1], "
                "higher for more harmful, or NaN or None where a text could not be scored."
            )
        return value


def _as_float(score: Any) -> float:
    return score if isinstance(score, Score) else float(score)


def _loaded(function: Any) -> Callable[[Sequence[str]], Sequence[float | None]]:
    loaded: Any = load_object(function) if isinstance(function, str) else function
    if not callable(loaded):
        raise ConfigurationError(f"function={loaded!r}; it must be callable.")
    return loaded  # type: ignore[no-any-return]
