"""Adaptive stress testing with any causal language models of transformers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.checkpointing import replace_folder
from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import current_row_seeds
from astra_rl.core.text import Conversation, Utterance, context_key
from astra_rl.errors import ConfigurationError
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.models.dialogue import DialogueView, Rendered, same_vocabulary, window_of
from astra_rl.models.embedding import mean_hidden_states
from astra_rl.models.generation import Sample, Sampler, Sampling, generate
from astra_rl.models.loading import LoraOptions, load_model, load_tokenizer, make_trainable
from astra_rl.models.memory import ConversationMemory
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.rewards.base import RewardPart


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
        target_model_id: The model under test.
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
            there is `astra_rl.models.hf_generation.generate_with_transformers`.

    Attributes:
        attacker: The trained model; ``attacker.save_pretrained(folder)`` saves it.
        tokenizer: The attacker's tokenizer.
        target: The model under test.
        baseline: The frozen reference.

    Raises:
        ModelError: A model or tokenizer cannot be loaded.
        ConfigurationError: Options that exclude each other, or a value out of range.
    """

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource,
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
        source = pool.load(attacker_model_id)
        target = pool.load(target_model_id)
        baseline = pool.load(baseline_model_id)
        shared = source.model is target.model or source.model is baseline.model
        self.attacker = _trainable(source.model, lora, trainable_layers, shared=shared)
        self.tokenizer = source.tokenizer
        self.target, self.baseline = target.model, baseline.model
        for role, model, sampling in (
            ("attacker", self.attacker, self.attacker_sampling),
            ("baseline", self.baseline, self.attacker_sampling),
            ("target", self.target, self.target_sampling),
        ):
            _check_room(role, window_of(model.config), sampling.max_new_tokens)
        self._has_adapter = lora is not None
        self._baseline_rows: dict[Hashable, Tensor] = {}
        self._memories: dict[str, ConversationMemory] = {}
        self.attacker_view = DialogueView(
            source.tokenizer,
            "attacker",
            window=window_of(source.model.config),
            chat=attacker_chat,
            stop_at_newline=attacker_stops_at_newline,
            hears_exactly=same_vocabulary(source.tokenizer, target.tokenizer),
        )
        self.baseline_view = DialogueView(
            baseline.tokenizer,
            "attacker",
            window=window_of(baseline.model.config),
            chat=self.attacker_view.chat,
            stop_at_newline=attacker_stops_at_newline,
            hears_exactly=same_vocabulary(baseline.tokenizer, target.tokenizer),
            said_exactly=same_vocabulary(baseline.tokenizer, source.tokenizer),
        )
        self.target_view = DialogueView(
            target.tokenizer,
            "target",
            window=window_of(target.model.config),
            chat=target_chat,
            hears_exactly=same_vocabulary(source.tokenizer, target.tokenizer),
        )

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
        self._memories = {"attacker": ConversationMemory(), "target": ConversationMemory()}
        try:
            yield
        finally:
            self._memories = {}

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample one attack per context."""
        return self._speak(self.attacker, self.attacker_view, contexts, self.attacker_sampling)

    def rollout_prompt_with_baseline(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample per context what the frozen reference would say in the attacker's place."""
        with self._without_adapter(self.baseline):
            return self._speak(self.baseline, self.baseline_view, contexts, self.attacker_sampling)

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample one response per context, and keep how likely the target found the attack."""
        with self._without_adapter(self.target):
            return self._speak(self.target, self.target_view, contexts, self.target_sampling)

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
            (context_key(context), str(said), getattr(said, "token_ids", None))
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

    @torch.no_grad()
    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Score attacks as the target hears them, (B, T) float32, in the target's tokens."""
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        room = self.target_sampling.max_new_tokens
        rendered = [
            self.target_view.render(Conversation.of(context) + continuation, room=room)
            for context, continuation in zip(contexts, continuations, strict=True)
        ]
        with self._without_adapter(self.target):
            return _score(
                self.target,
                [each.ids[: each.heard[0]] for each in rendered],
                [each.ids[slice(*each.heard)] for each in rendered],
            )

    @torch.no_grad()
    def get_response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score given beginnings of a response under the target, (B, T) float32.

        Each context ends in an attack. The end of a response is not scored: it may go on.
        """
        check_length(responses, len(contexts), source="the caller's list of responses")
        view = self.target_view
        said = [_without_end(view, view.said_ids(str(response))) for response in responses]
        prompts = [
            view.render(Conversation.of(context), room=len(ids)).ids
            for context, ids in zip(contexts, said, strict=True)
        ]
        with self._without_adapter(self.target):
            return _score(self.target, prompts, said)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], under: Literal["target", "baseline"]) -> Tensor:
        """Return the mean last hidden state of each text under a frozen model, (N, H) float32."""
        model, view = (
            (self.target, self.target_view)
            if under == "target"
            else (self.baseline, self.baseline_view)
        )
        ids = [_without_end(view, view.said_ids(str(text)))[: view.window] for text in texts]
        with self._without_adapter(model):
            return mean_hidden_states(model, ids)

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

    def _speak(
        self,
        model: PreTrainedModel,
        view: DialogueView,
        contexts: Sequence[str],
        sampling: Sampling,
    ) -> list[Utterance]:
        rendered = [
            view.render(Conversation.of(context), room=sampling.max_new_tokens)
            for context in contexts
        ]
        seeds = current_row_seeds(len(contexts))
        rows = [row for row, each in enumerate(rendered) if each.ids]
        heard = view.side == "target"
        samples = self.sampler(
            model,
            [rendered[row].ids for row in rows],
            sampling,
            [seeds[row] for row in rows],
            stop_ids=frozenset(view.stop_ids),
            # Only what was heard is scored; index 0 has no token before it to predict it.
            score=[_scored_span(rendered[row]) for row in rows] if heard else None,
            memory=self._memories.get(view.side) if view is not self.baseline_view else None,
        )
        out = [Utterance(token_ids=(), logprobs=(), finish_reason="context_overflow")] * len(
            rendered
        )
        for row, sample in zip(rows, samples, strict=True):
            out[row] = _utterance(sample, view, rendered[row] if heard else None)
        return out

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
        return _score(model, *self.said_after(view, contexts, continuations))

    @contextlib.contextmanager
    def _without_adapter(self, model: PreTrainedModel) -> Iterator[None]:
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
        baseline_model_id: Model of ordinary use for the likelihood of attacks; None is the target.
        options: See `HFASTProblem`.
    """

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        baseline_model_id: ModelSource | None = None,
        **options: Any,
    ) -> None:
        baseline = target_model_id if baseline_model_id is None else baseline_model_id
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


def _check_room(role: str, window: int | None, max_new_tokens: int) -> None:
    if window is not None and max_new_tokens >= window:
        raise ConfigurationError(
            f"max_new_tokens={max_new_tokens} leaves nothing of the {role}'s window of {window} "
            f"tokens to read a conversation in; choose less than {window}."
        )


def _without_end(view: DialogueView, ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(ids[:-1] if ids and ids[-1] in view.end_ids else ids)


def _scored_span(rendered: Rendered) -> tuple[int, int]:
    start, stop = rendered.heard
    return (max(1, start), stop) if stop > max(1, start) else (len(rendered.ids),) * 2


def _utterance(sample: Sample, view: DialogueView, heard: Rendered | None) -> Utterance:
    heard_logprobs = None
    if heard is not None and heard.heard[1] > heard.heard[0]:
        heard_logprobs = sample.prompt_logprobs
    return Utterance(
        view.decode(sample.token_ids),
        token_ids=sample.token_ids,
        logprobs=sample.logprobs,
        finish_reason=sample.finish_reason,
        heard_logprobs=heard_logprobs,
        asked=None if heard is None else _read_digest(view, heard),
    )


def _read_digest(view: DialogueView, rendered: Rendered) -> str:
    """Digest of what a side reads around the attack, control tokens included.

    The attack itself is on record. As text it may be split otherwise when it is sent again, or have
    lost bytes that are no letter, and neither is a change of what stands around it.
    """
    start, stop = rendered.heard
    around = (list(rendered.ids[:start]), list(rendered.ids[stop:]))
    text = "\0".join(str(view.tokenizer.decode(ids, skip_special_tokens=False)) for ids in around)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def readable(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Give every row a prompt to read: one without takes the first token of its continuation.

    A context that leaves no room is so read as its last possible token: a score, never a crash.
    """
    rows = [
        (prompt, ids) if prompt else (ids[:1] or (0,), ids[1:])
        for prompt, ids in zip(prompts, continuations, strict=True)
    ]
    return [prompt for prompt, _ in rows], [ids for _, ids in rows]


def _score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Tensor:
    prompts, continuations = readable(prompts, continuations)
    logprobs = continuation_logprobs(model, prompts, continuations)
    lengths = torch.tensor([len(ids) for ids in continuations], device=logprobs.device)
    real = torch.arange(logprobs.shape[1], device=logprobs.device) < lengths[:, None]
    # Zero means padding, so a token of probability one is made a hair less likely than that.
    hair = torch.finfo(logprobs.dtype).tiny
    return torch.where(real, logprobs.clamp(max=-hair), logprobs)


__all__ = ["HFASTProblem", "HFEvaluationProblem", "ModelPair", "ModelSource"]
