"""A target in an inference engine: its tokenizer here, its weights elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astra_rl.core.text import Utterance
from astra_rl.ext.transformers.generation import check_window
from astra_rl.ext.transformers.target_adapters import EngineTarget
from astra_rl.models.engines import Engine
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import load_settings, load_tokenizer
from astra_rl.models.rendering import ConversationRenderer, context_window
from astra_rl.models.vocabulary import end_ids
from astra_rl.targets.base import Target


class ServedTarget(Target):
    """A language model in an inference engine, as a target with log-probabilities.

    Its prompts are rendered here, as those of a local target, so its tokenizer and configuration
    are loaded; its weights are not. The log-probabilities of attacks are the target's own.

    Args:
        model_id: Hub id, folder, or ``bundled:NAME`` of a complete model.
        start: Returns the engine; called with the hub id or folder, and the context window.
        sampling: Sampling parameters of responses; None is `Sampling()`.
        chat: Whether to use the tokenizer's chat template; None uses it if there is one.
        chat_template_kwargs: Further variables of the chat template.
        trust_remote_code: Run Python code that is part of the model repository.

    Attributes:
        adapter: How a problem uses it.

    Raises:
        ModelError: Tokenizer or configuration cannot be loaded, or the engine does not start.
        ConfigurationError: New tokens alone fill the context window, or the model is an adapter.
    """

    def __init__(
        self,
        model_id: str,
        start: Callable[[str, int | None], Engine],
        *,
        sampling: Sampling | None = None,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = model_id
        sampling = sampling or Sampling()
        settings = load_settings(model_id, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(model_id, trust_remote_code=trust_remote_code)
        window = context_window(settings.config)
        check_window("target", window, sampling)
        renderer = ConversationRenderer(
            tokenizer,
            "target",
            chat=chat,
            chat_template_kwargs=chat_template_kwargs,
            window=window,
            model_end_ids=end_ids(
                settings.generation, settings.config.get_text_config().vocab_size, model_id
            ),
        )
        self.adapter = EngineTarget(model_id, start(settings.source, window), renderer, sampling)

    @property
    def most_output_tokens(self) -> int | None:
        """Most tokens of a reply."""
        return self.adapter.sampling.max_new_tokens

    def respond(self, conversations: Sequence[str]) -> list[Utterance]:
        """Sample one response per conversation."""
        return self.adapter.respond(conversations, generate, None)
