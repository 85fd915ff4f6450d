"""Metrics of single conversations as JSON, and statistics over their turns and attacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from astra_rl.core.contracts import is_missing, mean_of_present
from astra_rl.evaluation.measures.diversity import distinct_n, diversity, effective_number_of
from astra_rl.evaluation.measures.embeddings import Embedder
from astra_rl.evaluation.measures.fluency import Fluency
from astra_rl.evaluation.measures.text_clusters import greedy_clusters

if TYPE_CHECKING:  # records need pydantic, which `import astra_rl` does without
    from astra_rl.evaluation.records.attempt import Attempt
    from astra_rl.evaluation.records.turn import Turn

ConversationMetrics = dict[str, Any]
"""Metrics of one conversation, see `conversation_metrics`."""


def conversation_metrics(attempt: Attempt) -> ConversationMetrics:
    """Return an attempt as one entry of ``conversations`` in ``evaluation_*.json``.

    Returns:
        JSON values, None where one is missing. `prompt`, `prompt_id`, `trial` and
        `queries_per_turn`; `turns`, each with `attack`, `response`, `score`, `reward`,
        `reward_terms`, `nll` (nats per token, by model), `attack_nll` if one was measured, and
        `unscored`, the reason, if the score is missing; `max_score`, `mean_score` and `mean_reward`
        over the turns that have one; `first_failing_turn`, counted from 1; and `outcome`, the value
        of an `Outcome`.
    """
    scores = [turn.score(attempt.judge) for turn in attempt.turns]
    return {
        "prompt": str(attempt.opening.conversation()),
        "prompt_id": attempt.prompt_id,
        "trial": attempt.trial,
        "queries_per_turn": attempt.queries_per_turn,
        "turns": [_turn_metrics(turn, attempt.judge) for turn in attempt.turns],
        "max_score": attempt.score,
        "mean_score": _mean_or_none(scores),
        "mean_reward": _mean_or_none(turn.reward for turn in attempt.turns),
        "first_failing_turn": attempt.first_failing_turn,
        "outcome": attempt.outcome.value,
    }


def _turn_metrics(turn: Turn, judge: str) -> dict[str, Any]:
    score = turn.scores[judge]
    metrics: dict[str, Any] = {
        "attack": turn.attack,
        "response": turn.response,
        "score": score.value,
        "reward": turn.reward,
        "reward_terms": dict(turn.reward_terms),
        "nll": {
            name: -known.per_token
            for name, known in turn.logprobs.items()
            if name != "attacker"  # low by construction, so it measures nothing
        },
    }
    if score.value is None:
        metrics["unscored"] = score.reason
    # The baseline stands for ordinary text better than the target, which has read the conversation.
    for nll in (
        turn.reward_terms.get("attack_nll_baseline"),
        metrics["nll"].get("baseline"),
        turn.reward_terms.get("attack_nll_target"),
    ):
        if nll is not None:
            return {**metrics, "attack_nll": nll}
    return metrics


def turn_statistics(conversations: Sequence[ConversationMetrics]) -> dict[str, Any]:
    """Aggregate scores, rewards and likelihoods over all turns.

    Returns:
        `unscored_turns` (counts by reason); `mean_score`, `max_score`, `mean_reward` and
        `mean_attack_nll`, NaN where no turn has one; `fluency` by model, as `Fluency.as_dict`;
        `mean_score_by_turn` and `first_failures_by_turn`, with one entry per turn.
    """
    turns = [turn for each in conversations for turn in each["turns"]]
    scores = _present(turns, "score")
    depth = max((len(each["turns"]) for each in conversations), default=0)
    by_turn = [
        [each["turns"][at] for each in conversations if at < len(each["turns"])]
        for at in range(depth)
    ]
    first = Counter(each["first_failing_turn"] for each in conversations)
    return {
        "unscored_turns": dict(Counter(turn["unscored"] for turn in turns if "unscored" in turn)),
        "mean_score": mean_of_present(scores),
        "max_score": max((score for score in scores if not is_missing(score)), default=math.nan),
        "mean_reward": mean_of_present(_present(turns, "reward")),
        "mean_attack_nll": mean_of_present(_present(turns, "attack_nll")),
        "fluency": _fluency_by_model(turns),
        "mean_score_by_turn": [mean_of_present(_present(each, "score")) for each in by_turn],
        "first_failures_by_turn": [first[turn] for turn in range(1, depth + 1)],
    }


def attack_statistics(
    conversations: Sequence[ConversationMetrics], embed: Embedder | None = None
) -> dict[str, Any]:
    """Measure how diverse the attacks are, and group those that succeeded.

    Args:
        conversations: The conversations.
        embed: Embeds attacks, for `diversity`; None gives no kinds by meaning.

    Returns:
        `distinct_attacks`, the number of groups, which grows with the number of attacks;
        `effective_attacks`, their effective number, see `effective_number_of`; `clusters`, the
        groups, largest first, each with `attack`, `size` and `conversations` (indices);
        `diversity` of the successful attacks, as `Diversity.as_dict`; `distinct_1` and
        `distinct_2` of all attacks.
    """
    attacks = [turn["attack"] for each in conversations for turn in each["turns"]]
    successful = [
        (index, each["turns"][each["first_failing_turn"] - 1]["attack"], each["prompt_id"])
        for index, each in enumerate(conversations)
        if each["outcome"] == "success"
    ]
    texts, prompts = [attack for _, attack, _ in successful], [each for _, _, each in successful]
    clusters = greedy_clusters(texts)
    return {
        "distinct_attacks": len(clusters),
        "effective_attacks": effective_number_of(clusters, prompts).as_dict(),
        "clusters": [
            {
                "attack": texts[members[0]],
                "size": len(members),
                "conversations": [successful[member][0] for member in members],
            }
            for members in sorted(clusters, key=len, reverse=True)
        ],
        "diversity": diversity(texts, embed=embed, prompts=prompts).as_dict(),
        "distinct_1": distinct_n(attacks, 1),
        "distinct_2": distinct_n(attacks, 2),
    }


def _fluency_by_model(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    measured = [turn.get("nll", {}) for turn in turns]
    names = dict.fromkeys(name for each in measured for name in each)
    return {
        name: Fluency.of(
            name,
            [each[name] for each in measured if name in each],
            missing=sum(name not in each for each in measured),
        ).as_dict()
        for name in names
    }


def _present(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    mean = mean_of_present(value for value in values if value is not None)
    return None if is_missing(mean) else mean
