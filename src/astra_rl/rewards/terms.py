"""Terms of rewards: harm, likelihood, novelty."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from astra_rl.core.contracts import check_length, checked_logprobs, token_mask
from astra_rl.core.text import Exchange, context_key
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.base import RewardModels, RewardTerm


class Harm(RewardTerm):
    """The moderator's score.

    Args:
        on: ``"response"`` judges what the target said; ``"exchange"`` judges the attack and the
            response as one text, as ASTPrompter does.
    """

    def __init__(self, on: Literal["response", "exchange"] = "response") -> None:
        if on not in ("response", "exchange"):
            raise ConfigurationError(f"on={on!r}; choose 'response' or 'exchange'.")
        self.on = on
        self.name = f"harm_{on}"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the moderator's score of each turn."""
        texts = exchanges
        if self.on == "exchange":
            texts = [
                Exchange(each.context, each.attack, each.response, text=each.attack + each.response)
                for each in exchanges
            ]
        scores = models.moderator.moderate(texts)
        check_length(scores, len(exchanges), source=type(models.moderator).__name__)
        return [float(score) for score in scores]


class AttackNLL(RewardTerm):
    """Mean negative log-likelihood of the attack per token, in nats; the log of its perplexity.

    Args:
        under: Which model finds the attack likely or not.

    An attack without tokens has no likelihood: its value is missing.
    """

    def __init__(self, under: Literal["target", "baseline"] = "target") -> None:
        if under not in ("target", "baseline"):
            raise ConfigurationError(f"under={under!r}; choose 'target' or 'baseline'.")
        self.under = under
        self.name = f"attack_nll_{under}"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the nats per token of each attack."""
        heard = self._heard(exchanges)
        return self._scored(models, exchanges) if heard is None else heard

    def _heard(self, exchanges: Sequence[Exchange]) -> list[float] | None:
        """The likelihoods that fell out of the target's reading, if it kept all of them."""
        if self.under != "target":
            return None
        values = []
        for exchange in exchanges:
            heard = getattr(exchange.response, "heard_logprobs", None)
            if not heard:
                return None
            values.append(-sum(heard) / len(heard))
        return values

    def _scored(self, models: RewardModels, exchanges: Sequence[Exchange]) -> list[float]:
        score = (
            models.get_target_logprobs if self.under == "target" else models.get_baseline_logprobs
        )
        attacks = [exchange.attack for exchange in exchanges]
        logprobs = checked_logprobs(
            score, [exchange.context for exchange in exchanges], attacks, grad=False
        )
        # The ids an attack remembers are of the attacker's vocabulary, maybe not of this model's.
        mask = token_mask(logprobs, [str(attack) for attack in attacks])
        counts = mask.sum(dim=1)
        means = -(logprobs * mask).sum(dim=1) / counts  # no tokens: 0 / 0, which is NaN
        return [float(mean) for mean in means]


class Novelty(RewardTerm):
    """How unlike its nearest siblings an attack is, from 0 (the same words) to 1.

    Siblings are the attacks tried from the same context; likeness is the Jaccard similarity of
    sets of words, and the value is the mean of ``min(1, (1 - similarity) / (1 - kind))``. An attack
    without siblings is new.

    Args:
        nearest: How many of the most similar siblings count.
        kind: Attacks no more similar than this are of different kinds, and being still less alike
            is worth nothing more; in [0, 1).
    """

    name = "novelty"

    def __init__(self, *, nearest: int = 4, kind: float = 0.0) -> None:
        if nearest < 1:
            raise ConfigurationError(f"nearest={nearest}; at least 1 sibling must count.")
        if not 0 <= kind < 1:
            raise ConfigurationError(f"kind={kind}; it must be in [0, 1).")
        self.nearest = nearest
        self.kind = kind

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return how new each attack is, in [0, 1]."""
        groups: dict[object, list[int]] = defaultdict(list)
        for row, exchange in enumerate(exchanges):
            groups[context_key(exchange.context)].append(row)
        words = [word_set(exchange.attack) for exchange in exchanges]
        values = [1.0] * len(exchanges)
        for rows in groups.values():
            for row in rows:
                others = sorted(
                    (jaccard(words[row], words[other]) for other in rows if other != row),
                    reverse=True,
                )[: self.nearest]
                if others:
                    differences = [min(1.0, (1 - other) / (1 - self.kind)) for other in others]
                    values[row] = sum(differences) / len(differences)
        return values


def word_set(text: str) -> frozenset[str]:
    """Lower-cased words of a text."""
    return frozenset(re.findall(r"\w+", text.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of words that two sets have in common; two empty sets are equal."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0
