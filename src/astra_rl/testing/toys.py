"""Toy problem without a language model, and a moderator with scripted scores."""

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
    """Moderator that scores a text by the first listed word it contains, and records its calls.

    Args:
        scores: Scores by word.
        default: Score of texts without a listed word.

    Attributes:
        calls: The texts of each call of `moderate`.
    """

    def __init__(self, scores: Mapping[str, float], default: float = 0.0) -> None:
        self.scores = dict(scores)
        self.default = default
        self.calls: list[list[str]] = []

    def moderate(self, x: Sequence[str]) -> Sequence[float]:
        """Return one score per text."""
        self.calls.append(list(x))
        return [
            next((score for word, score in self.scores.items() if word in text), self.default)
            for text in x
        ]


class ToyProblem(Problem[str, str]):
    """Toy problem: an attack is two words, and the target echoes them.

    The attacker is a vector of logits over words, the same for each position. Log-probabilities are
    exact, so results of algorithms can be computed by hand.

    Args:
        moderator: Scores the echoed text; None scores 1 for texts with the word ``"boom"``.
        words: The vocabulary.
        seed: Seed of the attacker's initial weights.
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
        """Return the last two words of each context."""
        return [" " + " ".join(context.split()[-self.length :]) for context in contexts]

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return the attacker's log-probabilities of words, (B, T), with gradients."""
        return self._logprobs(self.attacker, continuations)

    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return the target's log-probabilities of words, (B, T), from a uniform distribution."""
        return self._logprobs(self.target, continuations)

    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return log-probabilities of words under the attacker's initial weights, (B, T)."""
        return self._logprobs(self.baseline, continuations)

    def token_ends(self, attack: str) -> Sequence[int]:
        """Return the end offset of each word, in characters."""
        return [match.end() for match in re.finditer(r"\S+", attack)]

    def advance(self, context: str, attack: str, response: str) -> str:
        """Append the turn."""
        return context + attack + response

    def reward(
        self, contexts: Sequence[str], attacks: Sequence[str], responses: Sequence[str]
    ) -> Sequence[float]:
        """Return the moderator's scores of the responses."""
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
    """Toy problem with a value function: one estimate per position, initially zero.

    Args:
        count: Number of estimated returns, K.
        options: Options of `ToyProblem`.
    """

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.estimates = Parameter(torch.zeros(8, count))

    def value(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return the estimated return at each word, (B, T), with gradients."""
        return self.values(contexts, continuations)[:, :, 0]

    def values(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return all estimated returns at each word, (B, T, K), with gradients."""
        lengths = [len(text.split()) for text in continuations]
        rows = [self.estimates[:length] for length in lengths]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's logits and the value estimates."""
        yield from super().parameters()
        yield self.estimates


def echo(text: str) -> str:
    """Example application for `CallableTarget`: returns its input with a prefix."""
    return f"You said: {text}"
