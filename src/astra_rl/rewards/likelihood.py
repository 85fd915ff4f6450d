"""Reward terms of log-probabilities, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from astra_rl.core.contracts import checked_logprobs, token_mask
from astra_rl.core.problem import FrozenModel
from astra_rl.core.text import Conversation, Exchange, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.rewards.base import RewardModels, RewardTerm, TargetReading


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the allowed values.

    Raises:
        ConfigurationError: It is not; the allowed values are listed.
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
    """Return the log-probability of each token, without gradients; empty lists without tokens."""
    logprobs = checked_logprobs(score, contexts, continuations, grad=False)
    # Token ids of a text are of the vocabulary of the model that sampled it.
    return _rows(logprobs, token_mask(logprobs, [str(said) for said in continuations]))


def _rows(logprobs: Tensor, mask: Tensor) -> list[list[float]]:
    """Return the values of each row under its mask; one copy from the device for all rows."""
    pairs = zip(logprobs.cpu(), mask.cpu(), strict=True)
    return [row[real].tolist() for row, real in pairs]


def attack_logprobs(
    under: FrozenModel, models: RewardModels, exchanges: Sequence[Exchange]
) -> list[list[float]]:
    """Return the log-probability of each token of each attack under a frozen model.

    Log-probabilities that the target computed while responding are used if all turns have them.
    """
    known = _computed_by_target(exchanges) if under == "target" else None
    if known is not None:
        return known
    contexts = [exchange.context for exchange in exchanges]
    attacks = [exchange.attack for exchange in exchanges]
    return token_logprobs(_frozen(models, under), contexts, attacks)


def _computed_by_target(exchanges: Sequence[Exchange]) -> list[list[float]] | None:
    rows = []
    for exchange in exchanges:
        logprobs = Utterance.of(exchange.response).heard_logprobs
        if not logprobs:
            return None
        rows.append(list(logprobs))
    return rows


def _frozen(models: RewardModels, under: FrozenModel) -> Callable[..., Tensor]:
    return models.get_target_logprobs if under == "target" else models.get_baseline_logprobs


@named("attack_nll")
class AttackNLL(RewardTerm):
    """Mean negative log-likelihood of the attack per token, in nats; the log of its perplexity.

    The value is missing for an attack without tokens.

    Args:
        under: The model, ``"target"`` or ``"baseline"``.
        per_token: Whether to take the mean over tokens; False is the sum.
    """

    reads_model = True

    def __init__(self, under: FrozenModel = "target", *, per_token: bool = True) -> None:
        check_choice("under", under, ("target", "baseline"))
        self.under = under
        self.per_token = per_token
        self.name = f"attack_nll_{under}" + ("" if per_token else "_total")

    @property
    def reads_target(self) -> TargetReading | None:
        """Log-probabilities of attacks, if `under` is the target."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the negative log-likelihood of each attack."""
        known = _computed_by_target(exchanges) if self.under == "target" else None
        if known is not None:
            return [-sum(row) / (len(row) if self.per_token else 1) for row in known]
        attacks = [exchange.attack for exchange in exchanges]
        logprobs = checked_logprobs(
            _frozen(models, self.under),
            [exchange.context for exchange in exchanges],
            attacks,
            grad=False,
        )
        # Token ids of an attack are of the vocabulary of the attacker.
        mask = token_mask(logprobs, [str(attack) for attack in attacks])
        counts = mask.sum(dim=1)
        totals = -(logprobs * mask).sum(dim=1)
        # Without tokens 0 / 0, which is NaN.
        values = totals / (counts if self.per_token else (counts > 0).float())
        return [float(value) for value in values]


@named("slot_nll")
class SlotNLL(RewardTerm):
    """Mean negative log-likelihood of an agent's attack in its slot, per token, in nats.

    It says how well the attack reads as content of its slot: the baseline reads what an agent reads
    up to the attack (the mails before it, the document that it ends), not the attacker's brief. Use
    it as the condition of a `Gate`, or with a negative weight. The value is missing if the target
    is no agent, for an attack without tokens, and where no call of the user's task shows the slot.
    """

    reads_model = True
    name = "slot_nll"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the negative log-likelihood of each attack.

        Raises:
            ConfigurationError: The problem has no models that could score it.
        """
        score = getattr(models, "get_slot_logprobs", None)
        if score is None:
            raise ConfigurationError(
                f"slot_nll: {type(models).__name__} has no get_slot_logprobs; use HFASTProblem."
            )
        contexts = [exchange.context for exchange in exchanges]
        attacks = [str(exchange.attack) for exchange in exchanges]
        logprobs = checked_logprobs(score, contexts, attacks, grad=False)
        values = -logprobs.sum(dim=1) / token_mask(logprobs, attacks).sum(dim=1)
        return [float(value) for value in values]


@named("attack_probability")
class AttackProbability(RewardTerm):
    """Probability of the whole attack, in [0, 1].

    It is almost zero for all but the shortest attacks (e^-96 for 32 tokens of 3 nats each), so it
    hardly separates likely from unlikely attacks; prefer `AttackNLL`. It exists to reproduce
    published results.

    Args:
        under: The model, ``"target"`` or ``"baseline"``.
    """

    reads_model = True

    def __init__(self, under: FrozenModel = "target") -> None:
        check_choice("under", under, ("target", "baseline"))
        self.under = under
        self.name = f"attack_probability_{under}"

    @property
    def reads_target(self) -> TargetReading | None:
        """Log-probabilities of attacks, if `under` is the target."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the probability of each attack."""
        rows = attack_logprobs(self.under, models, exchanges)
        return [math.exp(-_total_nll(row)) for row in rows]


@named("min_k")
class MinK(RewardTerm):
    """Mean of the `k` lowest token log-probabilities of an attack, in nats, at most 0.

    A single unlikely token changes it, unlike a mean over all tokens. As the condition of a gate it
    keeps attacks fluent without rewarding likely text (min-k fluency: Stable-GFN, arXiv 2605.00553,
    with k = 7 and a threshold of -10).

    Args:
        k: Number of tokens, at least 1; all tokens of a shorter attack.
        under: The model, ``"target"`` or ``"baseline"``.

    Raises:
        ConfigurationError: A value is out of range.
    """

    reads_model = True

    def __init__(self, k: int = 7, *, under: FrozenModel = "baseline") -> None:
        if not k >= 1:
            raise ConfigurationError(f"k={k}; it must be at least 1.")
        check_choice("under", under, ("target", "baseline"))
        self.k = k
        self.under = under
        self.name = f"min_k_{under}"

    @property
    def reads_target(self) -> TargetReading | None:
        """Log-probabilities of attacks, if `under` is the target."""
        return "likelihood" if self.under == "target" else None

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the mean log-probability of the least likely tokens of each attack."""
        rows = attack_logprobs(self.under, models, exchanges)
        return [-_mean_nll(sorted(row)[: self.k]) for row in rows]


@named("kl")
class KL(RewardTerm):
    """Single-sample estimate (k1) of the KL divergence of the attacker from the baseline, in nats.

    ``log p_attacker(attack) - log p_baseline(attack)``: its mean is the divergence; a single value
    may be negative. Use a negative weight to stay near the baseline.

    Args:
        per_token: Whether to divide by the number of the attacker's tokens; False is the sum.
    """

    reads_model = True

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token
        self.name = "kl_per_token" if per_token else "kl"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the estimate of each attack."""
        own = _sampled_logprobs(models, exchanges)
        frozen = attack_logprobs("baseline", models, exchanges)
        return [
            (_total_nll(theirs) - _total_nll(row)) / (len(row) if self.per_token and row else 1)
            for row, theirs in zip(own, frozen, strict=True)
        ]


@named("entropy")
class Entropy(RewardTerm):
    """Single-sample estimate of the attacker's entropy, in nats: ``-log p_attacker(attack)``.

    Rewarding it keeps the attacker exploring (curiosity-driven red teaming, arXiv 2402.19464,
    equation 2).

    Args:
        per_token: Whether to take the mean over tokens; False is the sum.
    """

    reads_model = True

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token
        self.name = "entropy_per_token" if per_token else "entropy"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the estimate of each attack."""
        rows = _sampled_logprobs(models, exchanges)
        return [_mean_nll(row) if self.per_token else _total_nll(row) for row in rows]


@named("response_likelihood")
class ResponseLikelihood(RewardTerm):
    """Mean log-probability per token, in nats, of a given response to the attack under the target.

    A dense white-box signal before the target ever fails: how likely it is to begin its response
    with, for instance, ``"Sure, here is"`` (Zou et al., arXiv 2307.15043).

    Args:
        text: The response; None takes it from the facts of the conversation.
        fact: Name of the fact of the `Conversation` that holds it, if `text` is None.

    Raises:
        ConfigurationError: The log-probabilities of the target are not available, or a prompt lacks
            the fact.
    """

    name = "response_likelihood"

    def __init__(self, text: str | None = None, *, fact: str = "response") -> None:
        if text == "":
            raise ConfigurationError(
                "text is empty; give the wanted response, or None to take it from a fact."
            )
        self.text = text
        self.fact = fact

    @property
    def reads_target(self) -> TargetReading:
        """Log-probabilities of responses."""
        return "inside"

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the mean log-probability of the wanted response to each attack."""
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
    """Return a fact of a conversation.

    Raises:
        ConfigurationError: The conversation does not have the fact.
    """
    facts = context.facts if isinstance(context, Conversation) else {}
    if fact not in facts:
        raise ConfigurationError(
            f"{needed_by} needs prompts with the fact {fact!r}, and {str(context)[:60]!r} has "
            f"{sorted(facts) or 'none'}. Use Conversation(..., facts={{{fact!r}: ...}})."
        )
    return facts[fact]


def _sampled_logprobs(models: RewardModels, exchanges: Sequence[Exchange]) -> list[list[float]]:
    """Return log-probabilities under the attacker: the sampled ones, if sampling is exact."""
    attacks = [exchange.attack for exchange in exchanges]
    known = [each.logprobs if isinstance(each, Utterance) else None for each in attacks]
    if models.samples_exactly and all(row is not None for row in known):
        return [list(row) for row in known if row is not None]
    contexts = [exchange.context for exchange in exchanges]
    logprobs = checked_logprobs(models.get_attacker_logprobs, contexts, attacks, grad=False)
    return _rows(logprobs, token_mask(logprobs, attacks))


def _total_nll(logprobs: Sequence[float]) -> float:
    return -math.fsum(logprobs) if logprobs else math.nan


def _mean_nll(logprobs: Sequence[float]) -> float:
    return _total_nll(logprobs) / len(logprobs) if logprobs else math.nan
