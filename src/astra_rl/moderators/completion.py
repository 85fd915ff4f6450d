"""Language models that answer chats, as judges use them: local models and endpoints."""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.reasoning import NO_ANSWER, OUT_OF_TOKENS
from astra_rl.core.text import Conversation, NoReply
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count
from astra_rl.models.engines import Engine, EngineAlone, served_model
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import LOADING, load_model, load_settings, load_tokenizer
from astra_rl.models.rendering import ConversationRenderer, context_window
from astra_rl.models.vocabulary import check_vocabulary, end_ids, model_end_ids
from astra_rl.moderators.completer import Completer as Completer
from astra_rl.moderators.completer import replies_of
from astra_rl.moderators.identity import weights_of
from astra_rl.targets.base import Message


@document_options(LOADING)
class LocalCompleter:
    """Answers chats with a local model by greedy decoding: the same chat gets the same reply.

    Text in a chat cannot act as control tokens, and nothing is truncated: a chat that does not fit
    the context window of the model gets no reply.

    Args:
        model_id: What `astra_rl.models.loading.load_model` accepts; unused for `model` and
            `tokenizer` if they are given.
        max_new_tokens: Most tokens per reply.
        chat_template_kwargs: Further variables of the chat template, for instance
            ``{"enable_thinking": False}``.
        model: A loaded model, in evaluation mode.
        tokenizer: A loaded tokenizer, with a chat template.
        engine: Runs the model; its weights are then not loaded here, and `model` is not used.

    Raises:
        ConfigurationError: No model is given, or the tokenizer has no chat template.
        ModelError: The model cannot be loaded.
    """

    def __init__(
        self,
        model_id: str = "",
        *,
        max_new_tokens: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        engine: Engine | None = None,
    ) -> None:
        if not model_id and (model is None or tokenizer is None):
            raise ConfigurationError("give a model_id, or both a model and a tokenizer.")
        if engine is not None and not model_id:
            raise ConfigurationError("give the model_id of the model that the engine runs.")
        self.model_id = model_id
        self.sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0)
        tokenizer = load_tokenizer(model_id) if tokenizer is None else tokenizer
        self.model: PreTrainedModel | None = None
        if engine is None:
            self.model = model or load_model(model_id, device=device, dtype=dtype)
            check_vocabulary(self.model, tokenizer, model_id or "the model in memory")
            config, ends = self.model.config, model_end_ids(self.model)
        else:
            settings = load_settings(model_id)
            self.identity = served_model(model_id, settings)
            config = settings.config
            size = config.get_text_config().vocab_size
            ends = end_ids(settings.generation, size, model_id)
        self._sample: Any = generate if engine is None else EngineAlone(engine)
        self.view = ConversationRenderer(
            tokenizer,
            "target",
            chat=True,
            chat_template_kwargs=chat_template_kwargs,
            model_end_ids=ends,
        )
        self._window = context_window(config)

    def __call__(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        """Answer each chat: an optional system message and one message of the user.

        Raises:
            ContractError: A chat has other roles.
        """
        room = self.sampling.max_new_tokens
        prompts = [self.view.render(_conversation(chat), reserve=room).ids for chat in chats]
        fits = [
            row
            for row, ids in enumerate(prompts)
            if self._window is None or len(ids) + room <= self._window
        ]
        replies: list[str] = [NoReply("too long for the judge")] * len(chats)
        samples = self._sample(
            self.model,
            [prompts[row] for row in fits],
            self.sampling,
            [0] * len(fits),
            stop_ids=frozenset(self.view.stop_ids),
        )
        for row, sample in zip(fits, samples, strict=True):
            reply = self.view.read(sample.token_ids)
            is_cut = sample.finish_reason == "length"
            replies[row] = (
                NoReply(OUT_OF_TOKENS if is_cut else NO_ANSWER)
                if reply.answer is None
                else reply.answer
            )
        return replies


JUDGE_OPTIONS = {
    "complete": "Answers chats, for instance an `astra_rl.targets.OpenAITarget`; see `Completer`. "
    "Give either this or `model_id`.",
    **LOADING,
    "model_id": "A local model with a chat template; see `LocalCompleter`.",
    "max_new_tokens": "Most tokens of a reply of a local judge.",
    "chat_template_kwargs": "Variables of the chat template of a local judge, for instance "
    '``{"enable_thinking": False}``.',
    "engine": "Runs the local judge; its weights are then not loaded here.",
}
"""Descriptions of the options of `PromptedJudge`, see `document_options`."""


@dataclass(eq=False, repr=False)
class PromptedJudge(Moderator[str, str], ABC):
    """A moderator that prompts a language model: at an endpoint, or in this process.

    A subclass is a dataclass (``eq=False, repr=False, kw_only=True``) whose own options are fields,
    which asks with `ask`, and whose `identity_settings` add its prompt to those here. The decorator
    ``document_options(JUDGE_OPTIONS)`` completes its docstring.

    Raises:
        ConfigurationError: Neither or both of `complete` and `model_id` are given, or an option is
            out of range.
        ModelError: The model cannot be loaded.
    """

    complete: Completer | None = None
    _: KW_ONLY
    model_id: str = ""
    max_new_tokens: Count = 256
    chat_template_kwargs: Mapping[str, Any] | None = None
    device: str = "auto"
    dtype: str = "auto"
    engine: Engine | None = None

    takes_engine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options, and load the local model, if it is one."""
        self.check_options(**vars(self))
        self._completer: Completer = self.complete or LocalCompleter(
            self.model_id,
            max_new_tokens=self.max_new_tokens,
            chat_template_kwargs=self.chat_template_kwargs,
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
        )

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise unless there is either an endpoint or a local model."""
        super().check_options(**options)
        if (options.get("complete") is None) == (not options.get("model_id")):
            raise ConfigurationError("give either complete or model_id, not both.")
        if options.get("complete") is not None and options.get("engine") is not None:
            raise ConfigurationError("give either complete or engine, not both.")

    def ask(self, chats: Sequence[Sequence[Message]]) -> list[str | Score]:
        """Return the reply to each chat; where there is none, the missing score that says why.

        Raises:
            ContractError: `complete` returned another number of replies.
        """
        return replies_of(self._completer, chats)

    def identity_settings(self) -> dict[str, Any]:
        """Return the decoding settings."""
        template = self.chat_template_kwargs
        own = {"chat_template_kwargs": dict(template)} if template else {}
        return {"max_new_tokens": self.max_new_tokens, **own}

    def identity_weights(self) -> str | None:
        """Return the model that judges."""
        return weights_of(self._completer)


def _conversation(chat: Sequence[Message]) -> Conversation:
    *system, last = chat
    if len(system) > 1 or last["role"] != "user" or any(m["role"] != "system" for m in system):
        raise ContractError(
            f"a chat of the roles {[message['role'] for message in chat]} came; expected at most "
            "one system message and then one message of the user."
        )
    return Conversation(last["content"], system=system[0]["content"] if system else None)
