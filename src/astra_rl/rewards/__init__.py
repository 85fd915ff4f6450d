"""Rewards: terms, and rules that combine them."""

from __future__ import annotations

from collections.abc import Callable

from astra_rl.infra.registry import Registry, declared_in
from astra_rl.rewards.adaptive import Constrained, Limit, Standardized
from astra_rl.rewards.ast_reward import ASTReward
from astra_rl.rewards.base import FunctionTerm, Reward, RewardPart, RewardTerm, WeightedSum
from astra_rl.rewards.combine import (
    Gate,
    Mapped,
    Product,
    Rank,
    affine,
    clip,
    sigmoid,
    threshold,
)
from astra_rl.rewards.known_kinds import KindNovelty, NamedNovelty
from astra_rl.rewards.likelihood import (
    KL,
    AttackNLL,
    AttackProbability,
    Entropy,
    MinK,
    ResponseLikelihood,
    SlotNLL,
)
from astra_rl.rewards.novel_failure import NovelFailureReward
from astra_rl.rewards.novelty import (
    EmbeddingNovelty,
    FewShotSimilarity,
    OnTopic,
    SelfBLEU,
    StyleDiversity,
)
from astra_rl.rewards.quality import Brevity, Extracted, Format, Gibberish, Length
from astra_rl.rewards.self_play import GeneralSumGame
from astra_rl.rewards.several_targets import SeveralTargets
from astra_rl.rewards.terms import Harm, Novelty

REWARDS: Registry[Callable[..., RewardPart]] = Registry(
    "reward",
    "astra_rl.rewards",
    declared_in("astra_rl.rewards"),
)
"""Reward terms and combinations by the names that a configuration may give."""

__all__ = [
    "KL",
    "REWARDS",
    "ASTReward",
    "AttackNLL",
    "AttackProbability",
    "Brevity",
    "Constrained",
    "EmbeddingNovelty",
    "Entropy",
    "Extracted",
    "FewShotSimilarity",
    "Format",
    "FunctionTerm",
    "Gate",
    "GeneralSumGame",
    "Gibberish",
    "Harm",
    "KindNovelty",
    "Length",
    "Limit",
    "Mapped",
    "MinK",
    "NamedNovelty",
    "NovelFailureReward",
    "Novelty",
    "OnTopic",
    "Product",
    "Rank",
    "ResponseLikelihood",
    "Reward",
    "RewardPart",
    "RewardTerm",
    "SelfBLEU",
    "SeveralTargets",
    "SlotNLL",
    "Standardized",
    "StyleDiversity",
    "WeightedSum",
    "affine",
    "clip",
    "sigmoid",
    "threshold",
]
