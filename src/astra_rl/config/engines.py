"""Inference engines of a configuration: of the attacker, the target and the judge."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from astra_rl.config.model_sections import LocalModelConfig
from astra_rl.config.rollout import EngineConfig, ServersConfig, VLLMConfig
from astra_rl.errors import ConfigurationError
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
        return server_sampler(
            _pool(engine, model), staleness=staleness, adapters=folder, started_with=model
        )
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

    def start(source: str, window: int | None) -> Any:
        return _started(engine, section.model, loading, source, window)

    return ServedTarget(
        section.model,
        start,
        sampling=section.sampling(),
        chat=section.chat,
        chat_template_kwargs=section.chat_template_kwargs,
        trust_remote_code=loading.trust_remote_code,
    )


class JudgeEngine:
    """The engine of the judge, started when it is first asked for.

    Args:
        engine: What runs the judge's model.
        loading: Its dtype.

    Attributes:
        model: The model that it runs; None before a moderator has named one.
    """

    def __init__(self, engine: EngineConfig, loading: Loading) -> None:
        self._engine, self._loading = engine, loading
        self.model: str | None = None

    def take(self, where: str, model: str) -> None:
        """Note a moderator whose model it runs.

        Args:
            where: Place of the moderator in the configuration.
            model: Its model.

        Raises:
            ConfigurationError: Another moderator has another model.
        """
        if self.model not in (None, model):
            raise ConfigurationError(
                f"{where}: model_id {model} given, and rollout.judge runs {self.model}; an engine "
                "runs one model. Use one for both, or rollout.judge: own."
            )
        self.model = model

    @cached_property
    def started(self) -> Any:
        """The engine.

        Raises:
            ConfigurationError: A URL or a key is not valid.
            MissingDependencyError: vLLM, or the client of servers, is not installed.
            ModelError: The configuration of the model cannot be loaded, or the engine not started.
        """
        from astra_rl.models.loading import load_settings
        from astra_rl.models.rendering import context_window

        assert self.model is not None
        settings = load_settings(self.model)
        window = context_window(settings.config)
        return _started(self._engine, self.model, self._loading, settings.source, window)


def _started(
    engine: EngineConfig, model: str, loading: Loading, source: str, window: int | None
) -> Any:
    """Return the engine of a model without adapters.

    Args:
        engine: What runs it.
        model: Its name in the configuration.
        loading: Its dtype.
        source: Its hub id or folder.
        window: Its context window.
    """
    from astra_rl.ext.vllm import VLLMEngine

    if isinstance(engine, ServersConfig):
        return _pool(engine, model)
    known: dict[str, Any] = {} if window is None else {"max_model_len": window}
    known |= {} if loading.dtype == "auto" else {"dtype": loading.dtype}
    return VLLMEngine(source, **{**known, **_options(engine)})


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
