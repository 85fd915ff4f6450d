"""Terms made of log-probabilities, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from astra_rl.core.contracts import checked_logprobs, token_mask
from astra_rl.core.problem import FrozenModel
from astra_rl.core.text import Conversation, Exchange, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.rewards.base import RewardModels, RewardTerm, TargetReading


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the allowed words.

    Raises:
        ConfigurationError: It is not.
    """
    if value not in allowed:
        choices = [repr(each) for each in allowed]
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise ConfigurationError(f"{name}={value!r}; choose {listed}.")


def token_logprobs(
    score: Callable[[Sequence[Any], Sequence[Any]], Tensor],
    contexts: Sequence[Any],
    continuations: Sequence[Any],
) -> list[list[float]]:
    """Return the log-probability of each token, without gradients; no tokens give an empty list."""
    logprobs = checked_logprobs(score, contexts, continuations, grad=False)
    # The ids a text remembers are of its speaker's vocabulary, maybe not of this model's.
    mask = token_mask(logprobs, [str(said) for said in continuations])
    return [row[real].tolist() for row, real in zip(logprobs, mask, strict=True)]


def attack_logprobs(
    under: FrozenModel, models: RewardModels, exchanges: Sequence[Exchange]
) -> list[list[float]]:
    """Return how likely a frozen model found each token of each attack.

    What fell out of the target's reading is used if it kept all of them.
    """
    heard = _heard(exchanges) if under == "target" else None
    if heard is not None:
        return heard
    contexts = [exchange.context for exchange in exchanges]
    attacks = [exchange.attack for exchange in exchanges]
    return token_logprobs(_frozen(models, under), contexts, attacks)


def _heard(exchanges: Sequence[Exchange]) -> list[list[float]] | None:
    rows = []
    for exchange in exchanges:
        heard = Utterance.of(exchange.response).heard_logprobs
        if not heard:
            return None
        rows.append(list(heard))
    return rows


def _frozen(models: RewardModels, under: FrozenModel) -> Callable[..., Tensor]:
    return models.get_target_logprobs if under == "target" else models.get_baseline_logprobs


class AttackNLL(RewardTerm):
    """Mean negative log-likelihood of the attack per token, in nats; the log of its perplexity.

    Args:
        under: Which model finds the attack likely or not.
        per_token: Whether it is the mean over tokens, or the sum over the attack.

    An attack without tokens has no likelihood: its value is missing.
    """

    def __init__(self, under: FrozenModel = "target", *, per_token: bool = True) -> None:
        check_choice("under", under, ("target", "baseline"))
        self.under = under
        self.per_token = per_token
        self.name = f"attack_nll_{under}" + ("" if per_token else "_total")

    @property
    def reads_target(self) -> TargetReading | None:
        """The target's likelihood, if it is the model that counts."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the nats of each attack."""
        heard = _heard(exchanges) if self.under == "target" else None
        if heard is not None:
            return [-sum(row) / (len(row) if self.per_token else 1) for row in heard]
        attacks = [exchange.attack for exchange in exchanges]
        logprobs = checked_logprobs(
            _frozen(models, self.under),
            [exchange.context for exchange in exchanges],
            attacks,
            grad=False,
        )
        # The ids an attack remembers are of the attacker's vocabulary, maybe not of this model's.
        mask = token_mask(logprobs, [str(attack) for attack in attacks])
        counts = mask.sum(dim=1)
        totals = -(logprobs * mask).sum(dim=1)
        # No tokens: 0 / 0, which is NaN.
        values = totals / (counts if self.per_token else (counts > 0).float())
        return [float(value) for value in values]


class AttackProbability(RewardTerm):
    """Probability of the whole attack, in [0, 1].

    It is next to zero for all but the shortest attacks (32 tokens at 3 nats each have e^-96), so it
    hardly tells a likely attack from an unlikely one; `AttackNLL` does. It is here to reproduce
    what was done with it.

    Args:
        under: Which model finds the attack likely or not.
    """

    def __init__(self, under: FrozenModel = "target") -> None:
        check_choice("under", under, ("target", "baseline"))
        self.under = under
        self.name = f"attack_probability_{under}"

    @property
    def reads_target(self) -> TargetReading | None:
        """The target's likelihood, if it is the model that counts."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the probability of each attack."""
        rows = attack_logprobs(self.under, models, exchanges)
        return [math.exp(-_total_nll(row)) for row in rows]


class MinK(RewardTerm):
    """Mean of the `k` lowest token log-probabilities of an attack, in nats, at most 0.

    One odd token shows here and is lost in a mean over all. As the condition of a gate it keeps an
    attacker fluent without paying it for being dull (min-k fluency: Stable-GFN, arXiv 2605.00553,
    with k 7 and a threshold of -10).

    Args:
        k: Tokens that count; all, if an attack has fewer.
        under: The model that finds them likely or not.
    """

    def __init__(self, k: int = 7, *, under: FrozenModel = "baseline") -> None:
        if not k >= 1:
            raise ConfigurationError(f"k={k}; at least 1 token must count.")
        check_choice("under", under, ("target", "baseline"))
        self.k = k
        self.under = under
        self.name = f"min_k_{under}"

    @property
    def reads_target(self) -> TargetReading | None:
        """The target's likelihood, if it is the model that counts."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the mean over the least likely tokens of each attack."""
        rows = attack_logprobs(self.under, models, exchanges)
        return [-_mean_nll(sorted(row)[: self.k]) for row in rows]


class KL(RewardTerm):
    """Estimate, from one sample, of the nats between attacker and baseline over an attack.

    ``log p_attacker(attack) - log p_baseline(attack)``: its mean is the divergence, a single one
    may be negative. Weigh it negatively to stay near the baseline.

    Args:
        per_token: Whether it is the mean over the attacker's tokens, or the sum over the attack.
    """

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token
        self.name = "kl_per_token" if per_token else "kl"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the nats of each attack."""
        own = _sampled_logprobs(models, exchanges)
        frozen = attack_logprobs("baseline", models, exchanges)
        return [
            (_total_nll(theirs) - _total_nll(row)) / (len(row) if self.per_token and row else 1)
            for row, theirs in zip(own, frozen, strict=True)
        ]


class Entropy(RewardTerm):
    """Surprise of the attacker at its own attack, in nats: ``-log p_attacker(attack)``.

    Its mean is the attacker's entropy, which keeps it exploring (Curiosity-driven red teaming,
    arXiv 2402.19464, equation 2).

    Args:
        per_token: Whether it is the mean over tokens, or the sum over the attack.
    """

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token
        self.name = "entropy_per_token" if per_token else "entropy"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the nats of each attack."""
        rows = _sampled_logprobs(models, exchanges)
        return [_mean_nll(row) if self.per_token else _total_nll(row) for row in rows]


class ResponseLikelihood(RewardTerm):
    """Mean log-likelihood per token, in nats, of a given response to the attack under the target.

    A white-box signal that is there before the target ever fails: how near it is to answering, for
    instance, ``"Sure, here is"`` (Zou et al., arXiv 2307.15043).

    Args:
        text: The response; None takes it from the prompt.
        fact: Which fact of the `Conversation` holds it, if `text` is None.

    Raises:
        ConfigurationError: The target's likelihoods cannot be had, or a prompt lacks the fact.
    """

    name = "response_likelihood"

    def __init__(self, text: str | None = None, *, fact: str = "response") -> None:
        if text == "":
            raise ConfigurationError("text is empty; give the response that is hoped for.")
        self.text = text
        self.fact = fact

    @property
    def reads_target(self) -> TargetReading:
        """The probability of a response."""
        return "inside"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the nats per token of the wanted response to each attack."""
        contexts = [Conversation.of(each.context) + each.attack for each in exchanges]
        wanted = [
            fact_of(each.context, self.fact, self.name) if self.text is None else self.text
            for each in exchanges
        ]
        return [
            -_mean_nll(row)
            for row in token_logprobs(models.get_response_logprobs, contexts, wanted)
        ]


def fact_of(context: str, fact: str, needed_by: str) -> str:
    """Return what a prompt brings as a fact.

    Raises:
        ConfigurationError: It does not bring it.
    """
    facts = context.facts if isinstance(context, Conversation) else {}
    if fact not in facts:
        raise ConfigurationError(
            f"{needed_by} needs prompts with the fact {fact!r}, and {str(context)[:60]!r} has "
            f"{sorted(facts) or 'none'}. Open with Conversation(..., facts={{{fact!r}: ...}})."
        )
    return facts[fact]


def _sampled_logprobs(models: RewardModels, exchanges: Sequence[Exchange]) -> list[list[float]]:
    """Log-probabilities under the attacker: those it sampled with, if it samples exactly."""
    attacks = [exchange.attack for exchange in exchanges]
    known = [each.logprobs if isinstance(each, Utterance) else None for each in attacks]
    if models.samples_exactly and all(row is not None for row in known):
        return [list(row) for row in known if row is not None]
    contexts = [exchange.context for exchange in exchanges]
    logprobs = checked_logprobs(models.get_attacker_logprobs, contexts, attacks, grad=False)
    mask = token_mask(logprobs, attacks)
    return [row[real].tolist() for row, real in zip(logprobs, mask, strict=True)]


def _total_nll(logprobs: Sequence[float]) -> float:
    return -math.fsum(logprobs) if logprobs else math.nan


def _mean_nll(logprobs: Sequence[float]) -> float:
    return _total_nll(logprobs) / len(logprobs) if logprobs else math.nan
