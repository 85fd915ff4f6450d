"""The moderators by name, for configuration files and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.importing import is_path, load_object

MODERATORS = {
    "canary": "keywords:CanaryModerator",
    "detoxify": "detoxify:DetoxifyModerator",
    "function": "function:FunctionModerator",
    "harmbench": "harmbench:HarmBenchModerator",
    "hf_classifier": "hf_classifier:HFClassifierModerator",
    "inverse": "composition:InverseModerator",
    "keyword": "keywords:KeywordModerator",
    "llama_guard": "llama_guard:LlamaGuardModerator",
    "llm_judge": "llm_judge:LLMJudgeModerator",
    "majority": "composition:MajorityModerator",
    "max": "composition:MaxModerator",
    "mean": "composition:MeanModerator",
    "min": "composition:MinModerator",
    "openai_moderation": "openai_moderation:OpenAIModerationModerator",
    "profanity": "profanity:ProfanityModerator",
    "qwen_guard": "qwen_guard:QwenGuardModerator",
    "refusal": "refusal:RefusalModerator",
    "secret_leak": "secret_leak:SecretLeakModerator",
    "shield_gemma": "shield_gemma:ShieldGemmaModerator",
    "threshold": "composition:ThresholdModerator",
    "weighted": "composition:WeightedModerator",
    "wild_guard": "wild_guard:WildGuardModerator",
}
"""Names, and where the classes are; a class is imported when it is first asked for."""


def check_type(name: str) -> None:
    """Raise unless `name` is one of `MODERATORS`, or ``"package.module:Class"``.

    Raises:
        ConfigurationError: It is neither.
    """
    if name not in MODERATORS and not is_path(name):
        raise ConfigurationError(
            f"no moderator {name!r}.{did_you_mean(name, MODERATORS)} Choose from "
            f"{', '.join(MODERATORS)}, or name a class of your own as 'package.module:Class'."
        )


def is_composition(name: str) -> bool:
    """Whether a moderator of this name is made of others."""
    return MODERATORS.get(name, "").startswith("composition:")


def moderator_class(name: str) -> Callable[..., Any]:
    """Return the class of a moderator by its name, or by ``"package.module:Class"``.

    Raises:
        ConfigurationError: There is no such class.
        MissingDependencyError: Its module needs an extra that is not installed.
    """
    check_type(name)
    where = MODERATORS.get(name)
    chosen: Callable[..., Any] = load_object(f"astra_rl.moderators.{where}" if where else name)
    return chosen
