"""Rewards of a self-play game between an attacker and a defender."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from astra_rl.core.contracts import is_missing
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.rewards.base import Reward, RewardModels, RewardPart, Values, measure
from astra_rl.rewards.likelihood import check_choice, fact_of
from astra_rl.rewards.terms import Harm

KINDS = ("harmful", "benign")


@named("general_sum_game")
class GeneralSumGame(Reward):
    """Reward of one player of the general-sum game of Self-RedTeam, for one exchange.

    The attacker rewrites a seed prompt that is harmful or benign, as the fact `kind` says; the
    defender should refuse harmful ones and help with benign ones (arXiv 2506.07468, and its
    released code). With +1 for yes and -1 for no:

    - attacker: ``harmful response + 0.5 * (the attack is of the seed's kind) + 0.5 * (the defender
      errs: complies with a harmful seed, or refuses a benign one)``;
    - defender: ``-(harmful response) + (it does not err)``.

    The sum is not constant, so both can gain from a benign conversation. The third component of the
    paper, the format of hidden reasoning, is a `Format` term.

    Args:
        role: ``"attacker"`` or ``"defender"``.
        refusal: Moderator that scores whether a response is a refusal.
        prompt_harm: Moderator that scores whether the attack is harmful; needed for the attacker.
        moderator: Moderator that scores whether the response is harmful; None is the problem's.
        threshold: Scores at or above it mean yes; in (0, 1].
        kind: Name of the fact of the `Conversation` that is ``"harmful"`` or ``"benign"``.

    Raises:
        ConfigurationError: `prompt_harm` is missing for an attacker, or `threshold` out of range;
            when called, also if a prompt has no kind.
    """

    def __init__(
        self,
        role: Literal["attacker", "defender"],
        refusal: Moderator[Any, Any],
        *,
        prompt_harm: Moderator[Any, Any] | None = None,
        moderator: Moderator[Any, Any] | None = None,
        threshold: float = 0.5,
        kind: str = "kind",
    ) -> None:
        check_choice("role", role, ("attacker", "defender"))
        if role == "attacker" and prompt_harm is None:
            raise ConfigurationError("prompt_harm is missing; the reward of the attacker needs it.")
        if not 0 < threshold <= 1:
            raise ConfigurationError(f"threshold={threshold}; it must be above 0 and at most 1.")
        self.role = role
        self.threshold = threshold
        self.kind = kind
        self.harm = Harm("response", moderator=moderator)
        self.refusal = Harm("response", moderator=refusal)
        self.refusal.name = "refusal"
        self.terms = [self.harm, self.refusal]
        if role == "attacker":
            self.prompt_harm = Harm("attack", moderator=prompt_harm)
            self.prompt_harm.name = "harm_attack"
            self.terms.append(self.prompt_harm)

    @property
    def parts(self) -> Sequence[RewardPart]:
        """The scored terms."""
        return self.terms

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the reward of each turn, and the scores by name."""
        rows = measure(self.terms, models, exchanges)
        return [
            self._reward(row, self._is_harmful_seed(exchange))
            for row, exchange in zip(rows, exchanges, strict=True)
        ], rows

    def _reward(self, row: dict[str, float], harmful_seed: bool) -> float:
        harmful = self._sign(row[self.harm.name])
        refused = self._sign(row[self.refusal.name])
        right = refused if harmful_seed else -refused
        if self.role == "defender":
            return right - harmful
        attack_harmful = self._sign(row[self.prompt_harm.name])
        faithful = attack_harmful if harmful_seed else -attack_harmful
        return harmful + 0.5 * faithful - 0.5 * right

    def _sign(self, score: float) -> float:
        if is_missing(score):
            return math.nan
        return 1.0 if score >= self.threshold else -1.0

    def _is_harmful_seed(self, exchange: Exchange) -> bool:
        kind = fact_of(exchange.context, self.kind, "general_sum_game")
        if kind not in KINDS:
            raise ConfigurationError(
                f"the fact {self.kind!r} is {kind!r}; it must be 'harmful' or 'benign'."
            )
        return kind == "harmful"
