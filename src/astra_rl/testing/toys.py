"""Fakes that train in milliseconds: a moderator that is told its scores, a game without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from astra_rl.core.moderator import Moderator
from astra_rl.core.problem import Problem, ValueFunctionProblem
from astra_rl.core.seeding import current_row_seeds


class ScriptedModerator(Moderator[str, str]):
    """Scores by the first listed word that a text contains, and remembers what it was asked.

    Args:
        scores: Words and their scores.
        default: Score of a text that contains none.

    Attributes:
        calls: The texts of each `moderate` call.
    """

    def __init__(self, scores: Mapping[str, float], default: float = 0.0) -> None:
        self.scores = dict(scores)
        self.default = default
        self.calls: list[list[str]] = []

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        """Score each text."""
        self.calls.append(list(x))
        return [
            next((score for word, score in self.scores.items() if word in text), self.default)
            for text in x
        ]


class ToyProblem(Problem[str, str]):
    """A language game without a language model: an attack is two words, the target echoes them.

    The attacker is a table of logits over words, the same at each position. Log-probabilities are
    exact, so a learning algorithm can be checked by hand.

    Args:
        moderator: Scores the echoed text; None likes the word ``"boom"``.
        words: The vocabulary.
        seed: Of the attacker's first weights.
    """

    length = 2

    def __init__(
        self,
        moderator: Moderator[str, str] | None = None,
        words: Sequence[str] = ("calm", "nice", "boom", "tree", "rain", "song"),
        seed: int = 0,
    ) -> None:
        super().__init__(moderator or ScriptedModerator({"boom": 1.0}))
        self.words = list(words)
        generator = torch.Generator().manual_seed(seed)
        self.attacker = Parameter(0.1 * torch.randn(len(self.words), generator=generator))
        self.baseline = Parameter(self.attacker.detach().clone(), requires_grad=False)
        self.target = Parameter(torch.zeros(len(self.words)), requires_grad=False)

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[str]:
        """Sample two words per context."""
        probabilities = self.attacker.detach().softmax(0)
        out = []
        for seed in current_row_seeds(len(contexts)):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.multinomial(
                probabilities, self.length, replacement=True, generator=generator
            )
            out.append("".join(f" {self.words[int(index)]}" for index in drawn))
        return out

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[str]:
        """Echo the last two words."""
        return [" " + " ".join(context.split()[-self.length :]) for context in contexts]

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score words under the attacker, (B, T), with gradients."""
        return self._logprobs(self.attacker, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Score words under the target, which finds all alike, (B, T)."""
        return self._logprobs(self.target, continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score words under the attacker's first weights, (B, T)."""
        return self._logprobs(self.baseline, continuations)

    def token_ends(self, attack: str) -> Sequence[int]:
        """Return where each word ends."""
        return [match.end() for match in re.finditer(r"\S+", attack)]

    def advance(self, context: str, attack: str, response: str) -> str:
        """Append the turn."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Reward what the moderator scores."""
        return self.moderator.moderate(responses)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's logits."""
        yield self.attacker

    def _logprobs(self, logits: Tensor, continuations: Sequence[str]) -> Tensor:
        table = logits.log_softmax(0)
        width = max((len(text.split()) for text in continuations), default=0)
        rows = [
            torch.cat(
                [
                    table[[self.words.index(word) for word in text.split()]],
                    table.new_zeros(width - len(text.split())),
                ]
            )
            for text in continuations
        ]
        return torch.stack(rows) if rows else table.new_zeros(0, 0)


class ToyValueProblem(ToyProblem, ValueFunctionProblem[str, str]):
    """The toy with a value function: a table of estimates by position, all zero at first.

    Args:
        count: How many returns are estimated.
        options: Of `ToyProblem`.
    """

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.estimates = Parameter(torch.zeros(8, count))

    def value(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate the return at each word, (B, T), with gradients."""
        return self.values(contexts, continuations)[:, :, 0]

    def values(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Estimate all returns at each word, (B, T, K), with gradients."""
        lengths = [len(text.split()) for text in continuations]
        rows = [self.estimates[:length] for length in lengths]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's logits and the table."""
        yield from super().parameters()
        yield self.estimates


def echo(text: str) -> str:
    """An application that says what it hears: a target that is asked, for trying things out."""
    return f"You said: {text}"
