"""Moderators by name, for configuration files and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from astra_rl.infra.importing import load_object as load_object
from astra_rl.infra.registry import Registry

MODERATORS: Registry[Callable[..., Any]] = Registry(
    "moderator",
    "astra_rl.moderators",
    {
        "canary": "astra_rl.moderators.keywords:CanaryModerator",
        "detoxify": "astra_rl.moderators.detoxify:DetoxifyModerator",
        "function": "astra_rl.moderators.function:FunctionModerator",
        "harmbench": "astra_rl.moderators.harmbench:HarmBenchModerator",
        "hf_classifier": "astra_rl.moderators.hf_classifier:HFClassifierModerator",
        "inverse": "astra_rl.moderators.composition:InverseModerator",
        "keyword": "astra_rl.moderators.keywords:KeywordModerator",
        "llama_guard": "astra_rl.moderators.llama_guard:LlamaGuardModerator",
        "llm_judge": "astra_rl.moderators.llm_judge:LLMJudgeModerator",
        "majority": "astra_rl.moderators.composition:MajorityModerator",
        "max": "astra_rl.moderators.composition:MaxModerator",
        "mean": "astra_rl.moderators.composition:MeanModerator",
        "min": "astra_rl.moderators.composition:MinModerator",
        "openai_moderation": "astra_rl.moderators.openai_moderation:OpenAIModerationModerator",
        "profanity": "astra_rl.moderators.profanity:ProfanityModerator",
        "qwen_guard": "astra_rl.moderators.qwen_guard:QwenGuardModerator",
        "refusal": "astra_rl.moderators.refusal:RefusalModerator",
        "secret_leak": "astra_rl.moderators.secret_leak:SecretLeakModerator",
        "shield_gemma": "astra_rl.moderators.shield_gemma:ShieldGemmaModerator",
        "strong_reject": "astra_rl.moderators.strong_reject:StrongREJECTModerator",
        "threshold": "astra_rl.moderators.composition:ThresholdModerator",
        "weighted": "astra_rl.moderators.composition:WeightedModerator",
        "wild_guard": "astra_rl.moderators.wild_guard:WildGuardModerator",
    },
)
"""Moderator classes by name; each module is imported when its class is first used."""


def is_composition(name: str) -> bool:
    """Whether the moderator of this name combines the scores of other moderators."""
    return name in COMPOSITIONS


def moderator_class(name: str) -> Callable[..., Any]:
    """Return the class of a moderator by its name, or by ``"package.module:Class"``.

    Raises:
        ConfigurationError: There is no such class.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    return MODERATORS.load(name)


COMPOSITIONS = frozenset({"inverse", "majority", "max", "mean", "min", "threshold", "weighted"})
"""Moderators that combine others, which a configuration lists under ``of``."""
