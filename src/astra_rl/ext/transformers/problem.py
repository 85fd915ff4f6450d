"""Adaptive stress testing with any causal language models of transformers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Utterance, context_key
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import score, speak
from astra_rl.ext.transformers.target_adapters import (
    BlackBoxTarget,
    LocalTarget,
    UnderTest,
    embedded,
)
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.dialogue import DialogueView, same_vocabulary, window_of
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.loading import LoraOptions, load_model, load_tokenizer, make_trainable
from astra_rl.rewards.base import RewardPart
from astra_rl.targets.base import Target


class ModelPair(NamedTuple):
    """A model in memory and the tokenizer it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


MAX_REMEMBERED_ROWS = 4096
"""So many scores of the baseline are kept at most; an experience is usually smaller."""

ModelSource = str | Path | ModelPair
"""A hub id, a folder, ``bundled:NAME``, or a model that is loaded already."""


class HFASTProblem(ASTProblem):
    """Attacker, target and baseline are causal language models, base or chat, of any tokenizers.

    Models that come from the same source share memory: a LoRA attacker uses the very weights of its
    baseline and target, and one that trains only its last layers shares the rest.

    Args:
        attacker_model_id: The model that is trained.
        target_model_id: The model under test: one that is loaded, or a
            `astra_rl.targets.Target` that is asked. Such a one gives no probabilities: where its
            likelihood of an attack is asked for, that of the baseline is used.
        baseline_model_id: The frozen reference; usually what the attacker starts from.
        moderator: Judge of what was said.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        dtype: ``"auto"`` takes bfloat16 where the device is fast at it, else float32. Weights of
            half precision are trained through float32 copies.
        reward: How a turn is rewarded; None is ASTPrompter's rule.
        attacker_sampling: How the attacker samples. On-policy algorithms need temperature 1.
        target_sampling: How the target answers.
        attacker_chat: Whether the attacker's tokenizer puts turns in its chat template; None if it
            has one. Without, the attacker continues one running text.
        target_chat: The same for the target.
        attacker_stops_at_newline: Whether an attack also ends at its first line break.
        lora: Train an adapter instead of the weights.
        trainable_layers: Train only so many of the last layers.
        trust_remote_code: Run code that comes with a model. Leave it off unless you have read it.
        sampler: What samples attacks and responses. The engine's own is the fastest; for comparison
            there is `astra_rl.models.generation_transformers.generate_with_transformers`.

    Attributes:
        attacker: The trained model; ``attacker.save_pretrained(folder)`` saves it.
        tokenizer: The attacker's tokenizer.
        target: The model under test.
        under_test: What is asked of it.
        baseline: The frozen reference.

    Raises:
        ModelError: A model or tokenizer cannot be loaded.
        ConfigurationError: Options that exclude each other, or a value out of range.
    """

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource | Target,
        baseline_model_id: ModelSource,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        dtype: str | torch.dtype = "auto",
        reward: RewardPart | None = None,
        attacker_sampling: Sampling | None = None,
        target_sampling: Sampling | None = None,
        attacker_chat: bool | None = None,
        target_chat: bool | None = None,
        attacker_stops_at_newline: bool = False,
        lora: LoraOptions | None = None,
        trainable_layers: int | None = None,
        trust_remote_code: bool = False,
        sampler: Sampler = generate,
    ) -> None:
        super().__init__(moderator, reward)
        self.sampler = sampler
        self.attacker_sampling = attacker_sampling or Sampling()
        self.target_sampling = target_sampling or Sampling()
        pool = _ModelPool(device, dtype, trust_remote_code)
        source, baseline = pool.load(attacker_model_id), pool.load(baseline_model_id)
        target = None if isinstance(target_model_id, Target) else pool.load(target_model_id)
        frozen = [baseline.model, *([] if target is None else [target.model])]
        shared = any(source.model is model for model in frozen)
        self.attacker = _trainable(source.model, lora, trainable_layers, shared=shared)
        self.tokenizer = source.tokenizer
        self.baseline = baseline.model
        for role, model in (("attacker", self.attacker), ("baseline", self.baseline)):
            _check_room(role, window_of(model.config), self.attacker_sampling.max_new_tokens)
        self._has_adapter = lora is not None
        self._baseline_rows: dict[Hashable, Tensor] = {}
        self._memories: dict[str, ConversationCache] = {}
        self.attacker_view = DialogueView(
            source.tokenizer,
            "attacker",
            window=window_of(source.model.config),
            chat=attacker_chat,
            stop_at_newline=attacker_stops_at_newline,
            hears_exactly=_speak_alike(source, target),
        )
        self.baseline_view = DialogueView(
            baseline.tokenizer,
            "attacker",
            window=window_of(baseline.model.config),
            chat=self.attacker_view.chat,
            stop_at_newline=attacker_stops_at_newline,
            hears_exactly=_speak_alike(baseline, target),
            said_exactly=_speak_alike(baseline, source),
        )
        self.target: PreTrainedModel | Target
        self.under_test: UnderTest
        if isinstance(target_model_id, Target):
            self.target = target_model_id
            self.under_test = BlackBoxTarget(target_model_id, self.get_baseline_logprobs)
            return
        assert target is not None
        self.target = target.model
        _check_room("target", window_of(target.model.config), self.target_sampling.max_new_tokens)
        self.target_view = DialogueView(
            target.tokenizer,
            "target",
            window=window_of(target.model.config),
            chat=target_chat,
            hears_exactly=_speak_alike(source, target),
        )
        self.under_test = LocalTarget(target.model, self.target_view, self.target_sampling)

    @property
    def samples_exactly(self) -> bool:
        """Whether attacks come from the very distribution that `get_attacker_logprobs` scores."""
        return self.attacker_sampling.is_exact

    @contextlib.contextmanager
    def attacking_at(self, temperature: float) -> Iterator[None]:
        """Sample attacks at this temperature inside the block."""
        usual = self.attacker_sampling
        self.attacker_sampling = replace(usual, temperature=temperature)
        try:
            yield
        finally:
            self.attacker_sampling = usual

    @contextlib.contextmanager
    def conversing(self) -> Iterator[None]:
        """Keep what attacker and target read inside the block: a turn reads only what is new."""
        self._memories = {"attacker": ConversationCache(), "target": ConversationCache()}
        try:
            yield
        finally:
            self._memories = {}

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample one attack per context."""
        return speak(
            self.attacker,
            self.attacker_view,
            contexts,
            self.attacker_sampling,
            self.sampler,
            self._memories.get("attacker"),
        )

    def rollout_prompt_with_baseline(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample per context what the frozen reference would say in the attacker's place."""
        with self._without_adapter(self.baseline):
            return speak(
                self.baseline,
                self.baseline_view,
                contexts,
                self.attacker_sampling,
                self.sampler,
                None,
            )

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Ask for one response per context; a local target also keeps how likely it finds attacks.

        A remote target leaves a `astra_rl.core.text.NoReply` where its call failed.
        """
        with self._without_adapter(self.target):
            return self.under_test.respond(contexts, self.sampler, self._memories.get("target"))

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score attacks under the attacker, (B, T) float32, with gradients if autograd is on."""
        return self._score_said(self.attacker, self.attacker_view, contexts, continuations)

    @torch.no_grad()
    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Score attacks under the frozen reference, (B, T) float32.

        What it said once of an attack it says again, so recent answers are kept: the reward and
        the algorithm often ask for the same ones.
        """
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        keys = [
            (context_key(context), str(said), Utterance.of(said).token_ids)
            for context, said in zip(contexts, continuations, strict=True)
        ]
        if len(self._baseline_rows) + len(keys) > MAX_REMEMBERED_ROWS:
            self._baseline_rows.clear()
        new = {key: row for row, key in enumerate(keys) if key not in self._baseline_rows}
        if new:
            rows = list(new.values())
            with self._without_adapter(self.baseline):
                scored = self._score_said(
                    self.baseline,
                    self.baseline_view,
                    [contexts[row] for row in rows],
                    [continuations[row] for row in rows],
                )
            for key, row in zip(new, scored, strict=True):
                self._baseline_rows[key] = row[row != 0]  # zeros are padding
        if not keys:
            return torch.zeros(0, 0, device=self.baseline.device)
        return torch.nn.utils.rnn.pad_sequence(
            [self._baseline_rows[key] for key in keys], batch_first=True
        )

    def forget_scores(self) -> None:
        """Forget what the baseline said of attacks, and the moderator; see `Moderator.forget`."""
        self._baseline_rows.clear()
        self.moderator.forget()

    @torch.no_grad()
    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Score attacks as the target hears them, (B, T) float32, in the target's tokens.

        A remote target gives no probabilities: these are the baseline's then, in its tokens.
        """
        with self._without_adapter(self.target):
            return self.under_test.attack_logprobs(contexts, continuations)

    @torch.no_grad()
    def get_response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score given beginnings of a response under the target, (B, T) float32.

        Each context ends in an attack. The end of a response is not scored: it may go on.

        Raises:
            ConfigurationError: The target is remote.
        """
        with self._without_adapter(self.target):
            return self.under_test.response_logprobs(contexts, responses)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], under: Literal["target", "baseline"]) -> Tensor:
        """Return the mean last hidden state of each text under a frozen model, (N, H) float32.

        Raises:
            ConfigurationError: The target is asked for, and is remote.
        """
        if under == "target":
            with self._without_adapter(self.target):
                return self.under_test.embed(texts)
        with self._without_adapter(self.baseline):
            return embedded(self.baseline, self.baseline_view, texts)

    def token_ends(self, attack: str) -> Sequence[int]:
        """See `Problem.token_ends`."""
        return self.attacker_view.token_ends(attack)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's trainable parameters."""
        return (p for p in self.attacker.parameters() if p.requires_grad)

    def save(self, folder: str | Path) -> None:
        """Save attacker and tokenizer in Hugging Face format, as safetensors, atomically."""
        with replace_folder(folder) as temporary:
            self.attacker.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)

    def said_after(
        self, view: DialogueView, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
        """Return the tokens that one side reads before each attack, and those of the attack."""
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        # What one model can say may be more than another can read.
        said = [view.said_ids(continuation)[: view.window] for continuation in continuations]
        room = self.attacker_sampling.max_new_tokens
        prompts: list[Sequence[int]] = [
            view.render(Conversation.of(context), room=max(room, len(ids))).ids
            for context, ids in zip(contexts, said, strict=True)
        ]
        return prompts, list(said)

    def _score_said(
        self,
        model: PreTrainedModel,
        view: DialogueView,
        contexts: Sequence[str],
        continuations: Sequence[str],
    ) -> Tensor:
        return score(model, *self.said_after(view, contexts, continuations))

    @contextlib.contextmanager
    def _without_adapter(self, model: PreTrainedModel | Target) -> Iterator[None]:
        """Run a frozen model without the adapter, where it lives in the same weights."""
        if self._has_adapter and model is self.attacker.get_base_model():
            with self.attacker.disable_adapter():
                yield
        else:
            yield


class HFEvaluationProblem(HFASTProblem):
    """A trained attacker against a target, for evaluation: nothing of it is trained.

    Args:
        attacker_model_id: The trained attacker, for instance a checkpoint folder.
        target_model_id: The model under test.
        moderator: The judge.
        device: See `HFASTProblem`.
        baseline_model_id: Model of ordinary use for the likelihood of attacks; None is the target,
            if it is local.
        options: See `HFASTProblem`.
    """

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource | Target,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        baseline_model_id: ModelSource | None = None,
        **options: Any,
    ) -> None:
        baseline = target_model_id if baseline_model_id is None else baseline_model_id
        if isinstance(baseline, Target):
            raise ConfigurationError(
                f"{baseline.name} gives no probabilities; name a baseline_model_id for the "
                "likelihood of attacks."
            )
        super().__init__(attacker_model_id, target_model_id, baseline, moderator, device, **options)
        self.attacker.requires_grad_(False)


class _ModelPool:
    """Loads each source once."""

    def __init__(self, device: str, dtype: str | torch.dtype, trust_remote_code: bool) -> None:
        self.device, self.dtype = device, dtype
        self.trust_remote_code = trust_remote_code
        self.loaded: dict[str, ModelPair] = {}

    def load(self, source: ModelSource) -> ModelPair:
        if isinstance(source, ModelPair):
            source.model.requires_grad_(False)
            source.model.train(False)
            return source
        if str(source) not in self.loaded:
            model = load_model(
                source,
                device=self.device,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
            )
            tokenizer = load_tokenizer(source, trust_remote_code=self.trust_remote_code)
            self.loaded[str(source)] = ModelPair(model, tokenizer)
        return self.loaded[str(source)]


def _trainable(
    model: PreTrainedModel, lora: LoraOptions | None, layers: int | None, *, shared: bool
) -> Any:
    if lora is not None or not shared:
        return make_trainable(model, lora=lora, layers=layers)
    # Mark what will be trained, copy only that, and freeze the original again.
    make_trainable(model, layers=layers)
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    attacker = copy.deepcopy(model, frozen)
    model.requires_grad_(False)
    return attacker


def _speak_alike(a: ModelPair, b: ModelPair | None) -> bool:
    return b is not None and same_vocabulary(a.tokenizer, b.tokenizer)


def _check_room(role: str, window: int | None, max_new_tokens: int) -> None:
    if window is not None and max_new_tokens >= window:
        raise ConfigurationError(
            f"max_new_tokens={max_new_tokens} leaves nothing of the {role}'s window of {window} "
            f"tokens to read a conversation in; choose less than {window}."
        )


__all__ = ["HFASTProblem", "HFEvaluationProblem", "ModelPair", "ModelSource"]
