"""Moderators: one module each, imported when its class is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_rl.infra.lazy_names import load_name, modules_of
from astra_rl.moderators.registry import MODERATORS

if TYPE_CHECKING:  # the classes that `__getattr__` imports, for type checkers and editors
    from astra_rl.moderators.caching import CachedModerator as CachedModerator
    from astra_rl.moderators.composition import InverseModerator as InverseModerator
    from astra_rl.moderators.composition import MajorityModerator as MajorityModerator
    from astra_rl.moderators.composition import MaxModerator as MaxModerator
    from astra_rl.moderators.composition import MeanModerator as MeanModerator
    from astra_rl.moderators.composition import MinModerator as MinModerator
    from astra_rl.moderators.composition import ThresholdModerator as ThresholdModerator
    from astra_rl.moderators.composition import WeightedModerator as WeightedModerator
    from astra_rl.moderators.detoxify import DetoxifyModerator as DetoxifyModerator
    from astra_rl.moderators.fault_tolerant import FaultTolerantModerator as FaultTolerantModerator
    from astra_rl.moderators.function import FunctionModerator as FunctionModerator
    from astra_rl.moderators.harmbench import HarmBenchModerator as HarmBenchModerator
    from astra_rl.moderators.hf_classifier import HFClassifierModerator as HFClassifierModerator
    from astra_rl.moderators.keywords import CanaryModerator as CanaryModerator
    from astra_rl.moderators.keywords import KeywordModerator as KeywordModerator
    from astra_rl.moderators.llama_guard import LlamaGuardModerator as LlamaGuardModerator
    from astra_rl.moderators.llm_judge import LLMJudgeModerator as LLMJudgeModerator
    from astra_rl.moderators.openai_moderation import (
        OpenAIModerationModerator as OpenAIModerationModerator,
    )
    from astra_rl.moderators.profanity import ProfanityModerator as ProfanityModerator
    from astra_rl.moderators.qwen_guard import QwenGuardModerator as QwenGuardModerator
    from astra_rl.moderators.refusal import RefusalModerator as RefusalModerator
    from astra_rl.moderators.secret_leak import SecretLeakModerator as SecretLeakModerator
    from astra_rl.moderators.shield_gemma import ShieldGemmaModerator as ShieldGemmaModerator
    from astra_rl.moderators.strong_reject import StrongREJECTModerator as StrongREJECTModerator
    from astra_rl.moderators.wild_guard import WildGuardModerator as WildGuardModerator

_MODULES = {
    name: module
    for module, _, name in (str(MODERATORS.import_path(each)).partition(":") for each in MODERATORS)
    if module.startswith(f"{__name__}.")
} | modules_of(__name__, {"caching": "CachedModerator", "fault_tolerant": "FaultTolerantModerator"})

__all__ = ["MODERATORS", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
