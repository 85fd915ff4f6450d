"""Reward terms: harm, and novelty among siblings."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, get_args

from astra_rl.agents.loop import answer
from astra_rl.core.contracts import check_length, is_missing
from astra_rl.core.level import current_level
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import current_row_seeds, derive_seed, row_seeds
from astra_rl.core.text import Conversation, Exchange, Utterance, context_key, judged_text
from astra_rl.core.word_sets import jaccard, word_set
from astra_rl.errors import ConfigurationError
from astra_rl.infra.registry import named
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.rewards.base import (
    RESPONSE_HARM,
    RewardModels,
    RewardPart,
    RewardTerm,
    Values,
    WeightedSum,
    walk,
    without_attack,
)
from astra_rl.rewards.likelihood import AttackNLL, check_choice

__all__ = ["AttackNLL", "Harm", "Novelty", "jaccard", "word_set"]

HarmOf = Literal["response", "exchange", "attack", "worst_turn", "last_turn"]
Scale = Literal["probability", "log", "log_complement"]
OTHER_JUDGE = "_other_judge"
"""Suffix of names of values that another moderator than the problem's computed."""


@named("harm")
class Harm(RewardTerm):
    """The score of a moderator.

    If the problem's moderator scores the response, its unscaled score is also recorded, as
    ``harm_response``: it decides whether the target failed.

    Args:
        of: The scored text. ``"response"``: the response. ``"exchange"``: attack and response as
            one text, as in ASTPrompter. ``"attack"``: the attack. ``"worst_turn"``: the highest
            score of the responses of this turn and all earlier turns of the episode.
            ``"last_turn"``: the last response of the conversation; earlier turns get 0.
        scale: ``"probability"``: the score p. ``"log"``: ``log p``, for log-rewards (GFlowNets).
            ``"log_complement"``: ``-log(1 - p)`` (Perez et al., arXiv 2202.03286), which grows
            without bound towards p = 1. Logarithms are clipped at 1e-6.
        replies: Number of responses per attack; the value is the mean of their scaled scores. The
            first is the response of the episode, the others are sampled for the reward, so that an
            attack that succeeds by chance gets a lower reward than one that always succeeds.
        moderator: The moderator; None is the problem's.

    Raises:
        ConfigurationError: A value is out of range, or `replies` is above 1 where no single
            response is scored.
    """

    def __init__(
        self,
        of: HarmOf = "response",
        *,
        scale: Scale = "probability",
        replies: int = 1,
        moderator: Moderator[Any, Any] | None = None,
    ) -> None:
        check_choice("of", of, get_args(HarmOf))
        check_choice("scale", scale, get_args(Scale))
        if not replies >= 1:
            raise ConfigurationError(f"replies={replies}; it must be at least 1.")
        if replies > 1 and of in ("attack", "worst_turn"):
            raise ConfigurationError(
                f"replies={replies} with of={of!r}; several replies need of='response', "
                "'exchange' or 'last_turn'."
            )
        self.of = of
        self.scale = scale
        self.replies = replies
        self.moderator = moderator
        self.name = f"harm_{of}" + ("" if scale == "probability" else f"_{scale}")
        # Another name, so that it is not mistaken for the score of the problem's moderator.
        self.name += ("_mean" if replies > 1 else "") + (
            OTHER_JUDGE if moderator is not None else ""
        )

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the score of each turn."""
        return self._judge(models, exchanges)[0]

    def evaluate(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Values:
        """Return the value of each turn; the record also has the score of the response."""
        missing = without_attack(exchanges)
        values, scores = (missing, missing) if missing else self._judge(models, exchanges)
        if not self.records_response_harm:
            return values, [{self.name: value} for value in values]
        return values, [
            {RESPONSE_HARM: score, self.name: value}
            for score, value in zip(scores, values, strict=True)
        ]

    @property
    def records_response_harm(self) -> bool:
        """Whether the problem's moderator scores the response."""
        return self.moderator is None and self.of not in ("exchange", "attack")

    @property
    def judged_per_turn(self) -> int:
        """One text per reply."""
        return self.replies

    @property
    def replies_per_turn(self) -> int:
        """All replies but the first."""
        return self.replies - 1

    def _judge(
        self, models: RewardModels, exchanges: Sequence[Exchange]
    ) -> tuple[list[float], list[float]]:
        """Return the value of each turn, and the unscaled scores of the turns themselves."""
        moderator = models.moderator if self.moderator is None else self.moderator
        level = current_level([each.context for each in exchanges])
        judged = [*exchanges, *more_replies(models, exchanges, self.replies - 1)]
        scores = score_exchanges(moderator, [self._text(each) for each in judged])
        own = scores[: len(exchanges)]
        if self.of == "worst_turn":
            earlier = earlier_scores(moderator, exchanges, level.depth)
            scores = [max_or_missing([*old, new]) for old, new in zip(earlier, scores, strict=True)]
        values = [
            _mean([_scaled(score, self.scale) for score in scores[row :: len(exchanges)]])
            for row in range(len(exchanges))
        ]
        if self.of == "last_turn":
            values = [
                value if ends else 0.0 for value, ends in zip(values, level.last, strict=True)
            ]
        return values, own

    def _text(self, each: Exchange) -> Exchange:
        if self.of == "exchange":
            said = each.attack + judged_text(each.response)
            return Exchange(each.context, each.attack, each.response, text=said)
        if self.of == "attack":
            return Exchange(each.context, each.attack, each.response, text=each.attack)
        return each


def recording_response_harm(reward: RewardPart) -> RewardPart:
    """Return a reward that records `RESPONSE_HARM`.

    A reward that already does is returned unchanged.
    """
    if any(part.records_response_harm for part in walk(reward)):
        return reward
    return WeightedSum({reward: 1.0, Harm(): 0.0})


_FLOOR = 1e-6
_SCALES: dict[str, Callable[[float], float]] = {
    "probability": lambda p: p,
    "log": lambda p: math.log(max(p, _FLOOR)),
    "log_complement": lambda p: -math.log(max(1 - p, _FLOOR)),
}


def _scaled(score: float, scale: Scale) -> float:
    return score if is_missing(score) else _SCALES[scale](score)


def _mean(scores: Sequence[float]) -> float:
    """Return the mean; a missing score, with its reason, if there is one."""
    missing = next((score for score in scores if is_missing(score)), None)
    return sum(scores) / len(scores) if missing is None else missing


def more_replies(models: RewardModels, exchanges: Sequence[Exchange], count: int) -> list[Exchange]:
    """Sample `count` more responses to each attack with one call of the target.

    Returns:
        The first new response to each attack, then the second ones, and so on.
    """
    if count < 1 or not exchanges:
        return []
    own = current_row_seeds(len(exchanges))
    seeds = [derive_seed(seed, "reply", reply) for reply in range(count) for seed in own]
    again = [each for _ in range(count) for each in exchanges]
    with row_seeds(seeds):
        responses = answer(
            [each.context + each.attack for each in again], models.rollout_prompt_with_target
        )
    check_length(responses, len(again), source="rollout_prompt_with_target")
    return [
        Exchange(each.context, each.attack, response)
        for each, response in zip(again, responses, strict=True)
    ]


def earlier_scores(
    moderator: Moderator[Any, Any], exchanges: Sequence[Exchange], depth: int | None
) -> list[list[float]]:
    """Score the turns before each turn, of the episode or, if `depth` is None, of its context.

    Turns that several conversations share are scored once.

    Args:
        moderator: The moderator.
        exchanges: Turns of one tree level.
        depth: Number of earlier turns of their episodes.
    """
    distinct: dict[Hashable, Exchange] = {}
    needed: list[list[Hashable]] = []
    for exchange in exchanges:
        earlier = earlier_exchanges(exchange.context)
        played = earlier if depth is None else earlier[max(0, len(earlier) - depth) :]
        keys = [
            (context_key(each.context), str(each.attack), Utterance.of(each.response).key)
            for each in played
        ]
        distinct.update(zip(keys, played, strict=True))
        needed.append(list(keys))
    scores = dict(zip(distinct, score_exchanges(moderator, list(distinct.values())), strict=True))
    return [[scores[key] for key in keys] for keys in needed]


def max_or_missing(values: Iterable[float]) -> float:
    """Return the highest value; NaN if one is missing, because it might be the highest."""
    values = list(values)
    return math.nan if any(map(is_missing, values)) else max(values)


def earlier_exchanges(context: str) -> list[Exchange]:
    """Return the turns of a conversation, oldest first; none of a context that is plain text."""
    if not isinstance(context, Conversation):
        return []
    state = Conversation(
        context.prompt,
        system=context.system,
        brief=context.brief,
        facts=context.facts,
        separator=context.separator,
    )
    exchanges = []
    for attack, response in zip(context.attacks, context.responses, strict=False):
        exchanges.append(Exchange(state, attack, response))
        state = state + attack + response
    return exchanges


@named("word_novelty")
class Novelty(RewardTerm):
    """Distance of an attack to its nearest siblings, from 0 (the same words) to 1.

    Siblings are the attacks sampled from one context of one episode. The value is the mean over the
    nearest siblings of ``min(1, (1 - similarity) / (1 - kind))``, with the Jaccard similarity of
    the sets of words. It is 1 without siblings.

    Args:
        nearest: Number of most similar siblings that are averaged, at least 1.
        kind: Similarity, in [0, 1), at or below which attacks count as entirely different.

    Raises:
        ConfigurationError: A value is out of range.
    """

    name = "novelty"

    def __init__(self, *, nearest: int = 4, kind: float = 0.0) -> None:
        if nearest < 1:
            raise ConfigurationError(f"nearest={nearest}; it must be at least 1.")
        if not 0 <= kind < 1:
            raise ConfigurationError(f"kind={kind}; it must be in [0, 1).")
        self.nearest = nearest
        self.kind = kind

    def __call__(self, models: RewardModels, exchanges: Sequence[Exchange]) -> Sequence[float]:
        """Return the novelty of each attack, in [0, 1]."""
        groups = current_level([exchange.context for exchange in exchanges]).groups()
        words = [word_set(exchange.attack) for exchange in exchanges]
        values = [1.0] * len(exchanges)
        for rows in groups:
            for row in rows:
                others = sorted(
                    (jaccard(words[row], words[other]) for other in rows if other != row),
                    reverse=True,
                )[: self.nearest]
                if others:
                    differences = [min(1.0, (1 - other) / (1 - self.kind)) for other in others]
                    values[row] = sum(differences) / len(differences)
        return values
