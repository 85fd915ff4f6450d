"""Inference engines of a configuration, as samplers of the attacker and as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_rl.config.rollout import EngineConfig, ServersConfig, VLLMConfig
from astra_rl.config.schema import LocalModelConfig, RunConfig
from astra_rl.targets.base import Target


def attacker_sampler(config: RunConfig) -> Any:
    """Return the sampler of the attacker's engine; None if it is sampled in this process.

    Raises:
        ConfigurationError: A URL or a key is not valid.
        MissingDependencyError: vLLM, or the client of servers, is not installed.
    """
    engine = config.rollout.attacker
    if engine == "own":
        return None
    # Here, because a configuration is checked without the libraries of models.
    from astra_rl.ext.vllm import VLLMSampler, server_sampler

    if isinstance(engine, ServersConfig):
        folder = None if engine.adapters is None else Path(engine.adapters)
        return server_sampler(_pool(engine, config.trained.model), adapters=folder)
    return VLLMSampler(**_options(engine))


def served_target(section: LocalModelConfig, config: RunConfig) -> Target:
    """Return the target in its engine.

    Raises:
        ConfigurationError: A URL or a key is not valid, or the model is an adapter.
        MissingDependencyError: vLLM, or the client of servers, is not installed.
        ModelError: Tokenizer or configuration cannot be loaded, or the engine does not start.
    """
    from astra_rl.ext.transformers.served_target import ServedTarget
    from astra_rl.ext.vllm import VLLMEngine

    engine = config.rollout.target

    def start(source: str, window: int | None) -> Any:
        if isinstance(engine, ServersConfig):
            return _pool(engine, section.model)
        known: dict[str, Any] = {} if window is None else {"max_model_len": window}
        known |= {} if config.dtype == "auto" else {"dtype": config.dtype}
        return VLLMEngine(source, **{**known, **_options(engine)})

    return ServedTarget(
        section.model,
        start,
        sampling=section.sampling(),
        chat=section.chat,
        chat_template_kwargs=section.chat_template_kwargs,
        trust_remote_code=config.trust_remote_code,
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
