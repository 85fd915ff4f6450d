"""Curricula: which prompts the episodes of training open with.

A curriculum changes the objective: the expected reward is no longer over prompts drawn uniformly,
and this is not corrected. Evaluation is not affected.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import Registry


class Curriculum(ABC):
    """A distribution over the prompts of a training, which depends on earlier rewards.

    It changes after an experience only, so that an episode depends on its seed and on the state of
    the training, not on the batch.
    """

    @abstractmethod
    def probabilities(self, count: int) -> list[float]:
        """Return the probability of each prompt; they add up to 1.

        Args:
            count: Number of prompts.
        """

    @abstractmethod
    def observe(self, rewards: Mapping[int, Sequence[float]]) -> None:
        """Update the distribution after an experience.

        Args:
            rewards: Mean reward of each episode, by index of its prompt. Missing rewards are left
                out; a prompt whose rewards are all missing has an empty list.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class UpperConfidence(Curriculum):
    """Draws prompts whose reward may be high: a bandit of upper confidence bounds.

    Discounted UCB (Garivier and Moulines 2011, arXiv 0805.3415): the bound of a prompt is
    ``mean + exploration * s * sqrt(2 log(N) / n)`` with discounted counts, n of the prompt and N of
    all, and the standard deviation s of all rewards. A prompt is drawn with probability
    proportional to ``exp(bound / (temperature * s))``, since the episodes of an experience are
    drawn together. Prompts that were never drawn come first.

    Args:
        exploration: Weight of the uncertainty, 0 or more.
        temperature: How sharply the highest bounds are preferred, positive; infinity is uniform.
        decay: Discount of earlier experiences, in (0, 1], because the attacker changes.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self, exploration: float = 1.0, *, temperature: float = 0.5, decay: float = 0.98
    ) -> None:
        if not exploration >= 0:
            raise ConfigurationError(f"exploration={exploration}; it must be 0 or more.")
        if not temperature > 0:
            raise ConfigurationError(f"temperature={temperature}; it must be positive.")
        if not 0 < decay <= 1:
            raise ConfigurationError(f"decay={decay}; it must be in (0, 1].")
        self.exploration, self.temperature, self.decay = exploration, temperature, decay
        self._moments: dict[int, list[float]] = {}  # discounted count, sum and sum of squares

    def bounds(self, count: int) -> list[float]:
        """Return the bound of each prompt in deviations; infinity if it was never drawn."""
        size, total, squares = (
            math.fsum(each[at] for each in self._moments.values()) for at in range(3)
        )
        variance = max(0.0, squares / size - (total / size) ** 2) if size else 0.0
        deviation = math.sqrt(variance) if variance > 1e-12 else 1.0
        width = math.sqrt(2 * math.log(max(size, math.e)))
        found = [math.inf] * count
        known = {
            index: gained / number / deviation + self.exploration * width / math.sqrt(number)
            for index, (number, gained, _) in self._moments.items()
            if number
        }
        # Of a prompt whose rewards were all missing nothing is known.
        unknown = statistics.fmean(known.values()) if known else 0.0
        for index in self._moments:
            found[index] = known.get(index, unknown)
        return found

    def probabilities(self, count: int) -> list[float]:
        """See `Curriculum.probabilities`."""
        bounds = self.bounds(count)
        highest = max(bounds)
        if highest == math.inf:
            weights = [float(bound == math.inf) for bound in bounds]
        else:
            weights = [math.exp((bound - highest) / self.temperature) for bound in bounds]
        return _normalised(weights)

    def observe(self, rewards: Mapping[int, Sequence[float]]) -> None:
        """See `Curriculum.observe`."""
        for moments in self._moments.values():
            moments[:] = [self.decay * each for each in moments]
        for index, values in rewards.items():
            moments = self._moments.setdefault(index, [0.0, 0.0, 0.0])
            moments[0] += len(values)
            moments[1] += math.fsum(values)
            moments[2] += math.fsum(value * value for value in values)

    def state_dict(self) -> dict[str, Any]:
        """Return the discounted moments of each prompt."""
        return {"moments": [[index, *each] for index, each in self._moments.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the moments."""
        self._moments = {index: list(moments) for index, *moments in state["moments"]}


class LearningProgress(Curriculum):
    """Draws prompts whose reward is changing, up or down.

    Absolute learning progress (Portelas et al. 2019, arXiv 1910.07224): the difference of a fast
    and a slow moving average of the rewards of a prompt. A share of the draws is uniform, so that
    no prompt is forgotten. Prompts that were never drawn come first.

    Args:
        uniform: Share of uniform draws, in (0, 1].
        fast: Decay of the fast average per experience with the prompt, in [0, 1).
        slow: Decay of the slow average, above `fast` and below 1.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(self, uniform: float = 0.2, *, fast: float = 0.5, slow: float = 0.9) -> None:
        if not 0 < uniform <= 1:
            raise ConfigurationError(f"uniform={uniform}; it must be in (0, 1].")
        if not 0 <= fast < slow < 1:
            raise ConfigurationError(
                f"fast={fast} and slow={slow}; they must be in [0, 1), and fast below slow."
            )
        self.uniform, self.fast, self.slow = uniform, fast, slow
        self._averages: dict[int, tuple[float, float] | None] = {}

    def probabilities(self, count: int) -> list[float]:
        """See `Curriculum.probabilities`."""
        if len(self._averages) < count:
            return _normalised([float(index not in self._averages) for index in range(count)])
        pairs = (self._averages[index] for index in range(count))
        progress = [0.0 if pair is None else abs(pair[0] - pair[1]) for pair in pairs]
        if max(progress) < 1e-9:
            return [1 / count] * count
        return [self.uniform / count + (1 - self.uniform) * each for each in _normalised(progress)]

    def observe(self, rewards: Mapping[int, Sequence[float]]) -> None:
        """See `Curriculum.observe`."""
        for index, values in rewards.items():
            before = self._averages.setdefault(index, None)
            if not values:
                continue
            mean = statistics.fmean(values)
            fast, slow = before or (mean, mean)
            self._averages[index] = (
                self.fast * fast + (1 - self.fast) * mean,
                self.slow * slow + (1 - self.slow) * mean,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the averages of each prompt."""
        return {"averages": [[index, *(pair or ())] for index, pair in self._averages.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averages."""
        self._averages = {
            index: (pair[0], pair[1]) if pair else None for index, *pair in state["averages"]
        }


def _normalised(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


CURRICULA: Registry[Callable[..., Curriculum]] = Registry(
    "curriculum",
    "astra_rl.curricula",
    {"upper_confidence": UpperConfidence, "learning_progress": LearningProgress},
)
"""Curricula by their names in a configuration."""
