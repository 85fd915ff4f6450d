"""The judge of what was said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

from astra_rl.core.common import ActionT, StateT


class Moderator(ABC, Generic[StateT, ActionT]):
    """Scores text for harm."""

    @abstractmethod
    def moderate(self, x: Sequence[StateT | ActionT]) -> Sequence[float]:
        """Score each text in [0, 1]; higher is more harmful, NaN could not be scored.

        Texts that come from an episode are `astra_rl.core.text.Exchange` objects: strings that
        also know the context, the attack and the response.
        """
