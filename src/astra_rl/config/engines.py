"""Inference engines of a configuration, as samplers of the attacker and as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_rl.config.model_sections import LocalModelConfig
from astra_rl.config.rollout import EngineConfig, ServersConfig, VLLMConfig
from astra_rl.models.settings import Loading
from astra_rl.targets.base import Target


def attacker_sampler(engine: EngineConfig, model: str, *, staleness: int = 0) -> Any:
    """Return the sampler of the attacker's engine; None if it is sampled in this process.

    Args:
        engine: What samples its attacks.
        model: The attacker.
        staleness: See `astra_rl.models.engines.EngineSampler`.

    Raises:
        ConfigurationError: A URL or a key is not valid.
        MissingDependencyError: vLLM, or the client of servers, is not installed.
    """
    if engine == "own":
        return None
    # Here, because a configuration is checked without the libraries of models.
    from astra_rl.ext.vllm import VLLMSampler, server_sampler

    if isinstance(engine, ServersConfig):
        folder = None if engine.adapters is None else Path(engine.adapters)
        return server_sampler(_pool(engine, model), staleness=staleness, adapters=folder)
    return VLLMSampler(**{"staleness": staleness, **_options(engine)})


def served_target(section: LocalModelConfig, engine: EngineConfig, loading: Loading) -> Target:
    """Return the target in its engine.

    Args:
        section: The model and its sampling parameters.
        engine: What samples its responses.
        loading: Its dtype, and whether code of its repository is run.

    Raises:
        ConfigurationError: A URL or a key is not valid, or the model is an adapter.
        MissingDependencyError: vLLM, or the client of servers, is not installed.
        ModelError: Tokenizer or configuration cannot be loaded, or the engine does not start.
    """
    from astra_rl.ext.transformers.served_target import ServedTarget
    from astra_rl.ext.vllm import VLLMEngine

    def start(source: str, window: int | None) -> Any:
        if isinstance(engine, ServersConfig):
            return _pool(engine, section.model)
        known: dict[str, Any] = {} if window is None else {"max_model_len": window}
        known |= {} if loading.dtype == "auto" else {"dtype": loading.dtype}
        return VLLMEngine(source, **{**known, **_options(engine)})

    return ServedTarget(
        section.model,
        start,
        sampling=section.sampling(),
        chat=section.chat,
        chat_template_kwargs=section.chat_template_kwargs,
        trust_remote_code=loading.trust_remote_code,
    )


def _options(engine: EngineConfig) -> dict[str, Any]:
    return dict(engine.vllm) if isinstance(engine, VLLMConfig) else {}


def _pool(engine: ServersConfig, model: str) -> Any:
    from astra_rl.ext.vllm import ServerPool

    return ServerPool(
        engine.servers,
        engine.model or model,
        api_key_env=engine.api_key_env,
        timeout=engine.timeout,
        gives_sampled_logprobs=engine.logprobs_mode == "processed_logprobs",
    )
