"""Adaptive stress testing (AST) problems with causal language models of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from transformers import PreTrainedModel

from astra_rl.agents.assignment import Assignment
from astra_rl.core.contracts import check_length
from astra_rl.core.extraction import Extraction
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.generation import (
    check_model,
    generate_turns,
    mutate_turns,
    score_continuations,
)
from astra_rl.ext.transformers.model_pool import (
    ModelPair,
    ModelPool,
    ModelSource,
    Place,
    SharedAdapters,
    trainable_attacker,
)
from astra_rl.ext.transformers.opponents import LoadedTarget, Opponent, draw
from astra_rl.ext.transformers.reference import MovingReference
from astra_rl.ext.transformers.score_cache import ScoreCache
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.transformers.slots import slot_token_ids
from astra_rl.ext.transformers.target_adapters import (
    BlackBoxTarget,
    EngineTarget,
    LocalTarget,
    TargetAdapter,
    embed_texts,
)
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.models.adapters import OWN_ADAPTER, save_model
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.engines import EngineSampler
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.memory import activation_bytes, backward_tokens
from astra_rl.models.recomputation import check_recomputable, recomputed_layers
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.models.settings import AttentionImplementation
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards.base import RewardPart
from astra_rl.targets.base import Target

MAX_CACHED_BASELINE_SCORES = 4096
"""Maximum number of attacks whose baseline log-probabilities are cached."""


class HFASTProblem(ASTProblem):
    """AST problem whose attacker, target and baseline are causal language models.

    Base and chat models with different tokenizers can be combined. Models with the same source
    share memory: a LoRA attacker shares all weights with its baseline and target, and an attacker
    that trains its last layers shares the other layers. Targets that are LoRA adapters share the
    weights of their base model with each other, the baseline and the attacker.

    Args:
        attacker_model_id: The policy that is trained. A PEFT adapter is merged into the weights of
            its base model first; `lora` then adds a new adapter.
        target_model_id: The model under test: a model to load, a `ServedTarget` in an inference
            engine, or a black-box `astra_rl.targets.Target`. For a black-box target, the
            baseline's log-probabilities of attacks replace the target's.
        baseline_model_id: The frozen reference model, usually the attacker's initial weights.
        moderator: Scores the harm of responses.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        dtype: Dtype of the weights. ``"auto"`` is the faster of bfloat16 and float32, see
            `astra_rl.models.devices.resolve_dtype`. Half-precision weights are trained with float32
            master weights.
        attn_implementation: Attention function of models that are loaded here, see
            `astra_rl.models.settings.AttentionImplementation`.
        reward: Reward of a turn; None is the reward of ASTPrompter.
        attacker_sampling: Sampling parameters of attacks. On-policy algorithms need temperature 1.
        opponents: Local targets that training attacks instead, see `draw_opponent`.
        target_sampling: Sampling parameters of responses.
        attacker_chat: Whether to use the chat template of the attacker's tokenizer; None uses it if
            there is one. Without it, the attacker continues plain text.
        target_chat: The same for the target.
        attacker_chat_template_kwargs: Further variables of the attacker's chat template, for
            instance ``{"enable_thinking": False}``.
        target_chat_template_kwargs: The same for the target.
        attacker_stops_at_newline: Whether an attack also ends at its first line break.
        attacker_extraction: Takes the attack out of the attacker's output, which may contain
            private reasoning; None sends the whole output.
        lora: Train a LoRA adapter instead of the weights.
        trainable_layers: Train only this number of last layers.
        gradient_checkpointing: Recompute each layer of the attacker in the backward pass instead of
            keeping its activations: less memory, same gradients, about a third more time of an
            update.
        trust_remote_code: Run Python code that is part of a model repository. Review it first.
        sampler: Sampling backend of attacks and responses. The default is the fastest on one
            machine; `astra_rl.models.generation_transformers.generate_with_transformers` is a
            reference.
        attacker_sampler: Sampling backend of the attacker, for instance an inference engine; None
            is `sampler`.

    Attributes:
        attacker: The trained model; see `save`.
        tokenizer: The attacker's tokenizer.
        target: The model under test.
        target_adapter: Interface to the target, in-process or black-box.
        baseline: The frozen reference model.
        opponent: Name of the opponent that answers; None for the target under test.

    Raises:
        ModelError: A model or tokenizer cannot be loaded.
        ConfigurationError: Options are mutually exclusive, or a value is out of range.
    """

    _trains_attacker: ClassVar[bool] = True

    def __init__(
        self,
        attacker_model_id: ModelSource,
        target_model_id: ModelSource | Target,
        baseline_model_id: ModelSource,
        moderator: Moderator[str, str],
        device: str = "cpu",
        *,
        dtype: str | torch.dtype = "auto",
        attn_implementation: AttentionImplementation = "auto",
        reward: RewardPart | None = None,
        opponents: Sequence[Opponent] = (),
        attacker_sampling: Sampling | None = None,
        target_sampling: Sampling | None = None,
        attacker_chat: bool | None = None,
        target_chat: bool | None = None,
        attacker_chat_template_kwargs: Mapping[str, Any] | None = None,
        target_chat_template_kwargs: Mapping[str, Any] | None = None,
        attacker_stops_at_newline: bool = False,
        attacker_extraction: Extraction | None = None,
        lora: LoraOptions | None = None,
        trainable_layers: int | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        sampler: Sampler = generate,
        attacker_sampler: Sampler | None = None,
    ) -> None:
        super().__init__(moderator, reward)
        self.sampler = sampler
        self.attacker_sampler = sampler if attacker_sampler is None else attacker_sampler
        self.attacker_extraction = attacker_extraction
        self.attacker_sampling = attacker_sampling or Sampling()
        self.target_sampling = target_sampling or Sampling()
        pool = ModelPool(device, dtype, trust_remote_code, attn_implementation)
        own = (
            Place(pool.load(attacker_model_id, merge=True))
            if self._trains_attacker
            else pool.place(attacker_model_id)
        )
        source = own.pair
        baseline = pool.load(baseline_model_id)
        local: list[ModelSource] = [each.source for each in opponents]
        if not isinstance(target_model_id, Target):
            local.insert(0, target_model_id)
        elif opponents:
            raise ConfigurationError("opponents: they take turns with a local target only.")
        places = [pool.place(each) for each in local]
        target = places[0].pair if places else None
        frozen = [baseline.model, *(each.pair.model for each in places)]
        shared = any(source.model is model for model in frozen)
        self._adapters = SharedAdapters()
        self.attacker: Any = (
            trainable_attacker(source.model, lora, trainable_layers, shared=shared)
            if self._trains_attacker
            else self._adapters.add(own, OWN_ADAPTER).model
        )
        self.tokenizer = source.tokenizer
        self.baseline = baseline.model
        has_adapter = lora is not None and self._trains_attacker
        if has_adapter:
            self._adapters.own(self.attacker)
        self._baseline_scores = ScoreCache(MAX_CACHED_BASELINE_SCORES)
        self._reference = MovingReference(self.attacker, self.baseline, has_adapter=has_adapter)
        self._prefix_caches: dict[str, ConversationCache] = {}
        self._attacks_untrained = False
        for role, model in (("attacker", self.attacker), ("baseline", self.baseline)):
            check_model(role, model, self.attacker_sampling)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            check_recomputable(self.attacker)
        self.attacker_renderer = source.renderer(
            "attacker",
            chat=attacker_chat,
            chat_template_kwargs=attacker_chat_template_kwargs,
            stop_at_newline=attacker_stops_at_newline,
            reuse_other_ids=source.shares_ids_with(target),
        )
        self.baseline_renderer = baseline.renderer(
            "attacker",
            chat=self.attacker_renderer.chat,
            chat_template_kwargs=attacker_chat_template_kwargs,
            stop_at_newline=attacker_stops_at_newline,
            reuse_other_ids=baseline.shares_ids_with(target),
            reuse_own_ids=baseline.shares_ids_with(source),
        )
        self.opponent: str | None = None
        self._adapter_of_target: str | None = None
        self._opponents: tuple[Opponent, ...] = ()
        self.target: PreTrainedModel | Target
        self.target_adapter: TargetAdapter
        if isinstance(target_model_id, Target):
            self.target = target_model_id
            self.target_adapter = (
                target_model_id.adapter
                if isinstance(target_model_id, ServedTarget)
                else BlackBoxTarget(target_model_id, self._baseline_as_reader)
            )
            return
        assert target is not None
        names = [None, *(each.name for each in opponents)]
        self._opponents = tuple(opponents)
        self._targets = [
            self._loaded_target(
                name,
                place,
                place.pair.renderer(
                    "target",
                    chat=target_chat,
                    chat_template_kwargs=target_chat_template_kwargs,
                    reuse_other_ids=source.shares_ids_with(place.pair),
                ),
            )
            for name, place in zip(names, places, strict=True)
        ]
        self._attack(self._targets[0])

    def _loaded_target(
        self, name: str | None, place: Place, renderer: ConversationRenderer
    ) -> LoadedTarget:
        model = place.pair.model
        check_model("target", model, self.target_sampling)
        speaks = LocalTarget(model, renderer, self.target_sampling)
        return LoadedTarget(name, model, self._adapters.add(place).adapter, speaks)

    def _attack(self, target: LoadedTarget) -> None:
        """Make this the target that answers from now on."""
        self.target, self.target_adapter = target.model, target.speaks
        self.target_renderer = target.speaks.renderer
        self._adapter_of_target, self.opponent = target.adapter, target.name

    @property
    def has_opponents(self) -> bool:
        """Whether there are opponents to draw."""
        return bool(self._opponents)

    def draw_opponent(self, seed: int | None) -> None:
        """Let one of the opponents answer from now on, drawn by weight.

        Args:
            seed: Determines which; None is the target under test.

        Raises:
            ConfigurationError: There are no opponents, or a weight is not positive.
        """
        if seed is None:
            self._attack(self._targets[0])
            return
        if not self._opponents:
            raise ConfigurationError("this problem has no opponents to draw.")
        self._attack(self._targets[1 + draw(self._opponents, seed)])

    @property
    def samples_exactly(self) -> bool:
        """Whether attacks are sampled from the distribution that `get_attacker_logprobs` scores."""
        return self.attacker_sampling.is_exact

    @contextlib.contextmanager
    def attacking_at(self, temperature: float) -> Iterator[None]:
        """Context in which attacks are sampled at this temperature."""
        original = self.attacker_sampling
        self.attacker_sampling = replace(original, temperature=temperature)
        try:
            yield
        finally:
            self.attacker_sampling = original

    def frozen_attacker(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """See `Problem.frozen_attacker`; the attacker must be sampled in an engine."""
        if not isinstance(self.attacker_sampler, EngineSampler):
            return super().frozen_attacker()
        return self.attacker_sampler.frozen(self.attacker)

    @contextlib.contextmanager
    def attacking_untrained(self) -> Iterator[None]:
        """Context in which attacks are sampled from the frozen reference model."""
        self._attacks_untrained = True
        try:
            yield
        finally:
            self._attacks_untrained = False

    @contextlib.contextmanager
    def conversing(self) -> Iterator[None]:
        """Context with prefix caches for attacker and target: a turn computes only new tokens.

        Inside another one it is the same context: the caches stay.
        """
        if self._prefix_caches:
            yield
            return
        self._prefix_caches = {"attacker": ConversationCache(), "target": ConversationCache()}
        try:
            yield
        finally:
            self._prefix_caches = {}

    def rollouts_over(self) -> None:
        """Let inference engines free their memory until the next rollout."""
        if isinstance(self.attacker_sampler, EngineSampler):
            self.attacker_sampler.sleep()
        if isinstance(self.target_adapter, EngineTarget):
            self.target_adapter.engine.sleep()

    def activation_bytes(self, tokens: int | None) -> int:
        """See `Problem.activation_bytes`."""
        count = backward_tokens(self.attacker) if tokens is None else tokens
        recomputed = self.gradient_checkpointing
        return count * activation_bytes(self.attacker.config, recomputed=recomputed)

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample one attack per context."""
        if self._attacks_untrained:
            return self.rollout_prompt_with_baseline(contexts)
        return self._extracted(
            generate_turns(
                self.attacker,
                self.attacker_renderer,
                contexts,
                self.attacker_sampling,
                self.attacker_sampler,
                self._prefix_caches.get("attacker"),
            )
        )

    def rollout_prompt_with_baseline(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Sample one attack per context from the frozen reference model.

        Attacks have token ids if they are of the attacker's vocabulary.
        """
        with self._adapters.using(self.baseline):
            outputs = generate_turns(
                self.baseline,
                self.baseline_renderer,
                contexts,
                self.attacker_sampling,
                self.sampler,
                None,
            )
        if not self.baseline_renderer.reuse_own_ids:
            # Attacker and target would read them as ids of the attacker's vocabulary.
            outputs = [Utterance(str(each), finish_reason=each.finish_reason) for each in outputs]
        return self._extracted(outputs)

    def mutate_attacks(
        self, contexts: Sequence[str], attacks: Sequence[str], *, temperature: float
    ) -> Sequence[Utterance]:
        """See `Problem.mutate_attacks`.

        Raises:
            ConfigurationError: Attacker and baseline have different vocabularies.
        """
        renderer = self.baseline_renderer
        if not renderer.reuse_own_ids:
            raise ConfigurationError(
                "mutated attacks: baseline and attacker have different vocabularies; use the "
                "attacker's model as the baseline."
            )
        with self._adapters.using(self.baseline):
            outputs = mutate_turns(
                self.baseline,
                renderer,
                contexts,
                self.attack_token_ids(renderer, contexts, attacks),
                replace(self.attacker_sampling, temperature=temperature, max_new_tokens=1),
                self.sampler,
            )
        return self._extracted(outputs)

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        """Return one response per context; each context ends in an attack.

        Responses of a local target have the target's log-probabilities of the attack. A failed call
        of a remote target gives a `astra_rl.core.text.NoReply`.
        """
        with self._as_target():
            return self.target_adapter.respond(
                contexts, self.sampler, self._prefix_caches.get("target")
            )

    def get_attacker_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return the attacker's log-probabilities of attacks, (B, T) float32, with gradients."""
        with self.recomputing():
            return self._attack_logprobs(
                self.attacker, self.attacker_renderer, contexts, continuations
            )

    def recomputing(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of forward passes of the attacker that may need gradients."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recomputed_layers(self.attacker)
        return contextlib.nullcontext()

    @torch.no_grad()
    def get_baseline_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return the reference model's log-probabilities of attacks, (B, T) float32.

        Recent results are cached, because reward and algorithm often score the same attacks.
        """
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        if not contexts:
            return torch.zeros(0, 0, device=self.baseline.device)
        found = self._baseline_scores.scores(contexts, continuations, self._scored_by_baseline)
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def _scored_by_baseline(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        with self._adapters.using(self.baseline):
            return self._attack_logprobs(self.baseline, self.baseline_renderer, contexts, attacks)

    @torch.no_grad()
    def get_slot_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return the baseline's log-probabilities of attacks where an agent reads them, (B, T).

        The baseline reads the messages of `astra_rl.agents.reading.reading` up to the attack, not
        the attacker's brief. A row is all zeros, so that its score is missing, if the context is of
        no agent, or the attack is not shown.
        """
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        rows = [
            slot_token_ids(self.baseline_renderer, context, attack) or ((), ())
            for context, attack in zip(contexts, continuations, strict=True)
        ]
        with self._adapters.using(self.baseline):
            return score_continuations(
                self.baseline, [prompt for prompt, _ in rows], [ids for _, ids in rows]
            )

    def _baseline_as_reader(self, contexts: Sequence[str], attacks: Sequence[str]) -> Tensor:
        """Return log-probabilities of attacks in place of a black-box target's: agents have slots.

        All contexts of a run are of agents, or none is.
        """
        if any(Assignment.of(context) is not None for context in contexts):
            return self.get_slot_logprobs(contexts, attacks)
        return self.get_baseline_logprobs(contexts, attacks)

    @torch.no_grad()
    def get_reference_logprobs(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> Tensor:
        """Return the log-probabilities of attacks under the reference of the KL, (B, T) float32."""
        if not self._reference.weights:
            return self.get_baseline_logprobs(contexts, continuations)
        with self._reference.in_attacker():
            return self._attack_logprobs(
                self.attacker, self.attacker_renderer, contexts, continuations
            )

    def sync_reference(self, alpha: float) -> None:
        """See `Problem.sync_reference`; only trained weights are copied.

        Raises:
            ConfigurationError: As `MovingReference.sync`.
        """
        self._reference.sync(alpha)

    def reference_state(self) -> list[Tensor]:
        """See `Problem.reference_state`."""
        return list(self._reference.weights)

    def load_reference_state(self, state: Sequence[Tensor]) -> None:
        """See `Problem.load_reference_state`."""
        self._reference.load(state)

    def forget_scores(self) -> None:
        """Clear the cached scores of the baseline and of the moderator; see `Moderator.forget`."""
        self._baseline_scores.clear()
        self.moderator.forget()

    @torch.no_grad()
    def get_target_logprobs(self, contexts: Sequence[str], continuations: Sequence[str]) -> Tensor:
        """Return the target's log-probabilities of attacks, (B, T) float32, in the target's tokens.

        For a black-box target, the baseline's log-probabilities in the baseline's tokens.
        """
        with self._as_target():
            return self.target_adapter.attack_logprobs(contexts, continuations)

    @torch.no_grad()
    def get_response_logprobs(self, contexts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the target's log-probabilities of response prefixes, (B, T) float32.

        Each context ends in an attack. End tokens are not scored.

        Raises:
            ConfigurationError: The target is a black box.
        """
        with self._as_target():
            return self.target_adapter.response_logprobs(contexts, responses)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], under: Literal["target", "baseline"]) -> Tensor:
        """Return the mean last hidden state of each text under a frozen model, (N, H) float32.

        Raises:
            ConfigurationError: `under` is ``"target"`` and the target is a black box.
        """
        if under == "target":
            with self._as_target():
                return self.target_adapter.embed(texts)
        with self._adapters.using(self.baseline):
            return embed_texts(self.baseline, self.baseline_renderer, texts)

    def token_ends(self, attack: str) -> Sequence[int]:
        """See `Problem.token_ends`."""
        return self.attacker_renderer.token_ends(attack)

    def parameters(self) -> Iterator[Parameter]:
        """Yield the attacker's trainable parameters."""
        return (p for p in self.attacker.parameters() if p.requires_grad)

    def save(self, folder: str | Path) -> None:
        """Save attacker and tokenizer atomically, in Hugging Face format with safetensors.

        A LoRA adapter is saved without its base model if that was loaded unchanged from a hub id or
        folder; otherwise all weights are saved, with the adapter merged into them.
        """
        with replace_folder(folder) as temporary:
            save_model(self.attacker, temporary)
            self.tokenizer.save_pretrained(temporary)

    def attack_token_ids(
        self, renderer: ConversationRenderer, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
        """Return the token ids of each attack's prompt, and of the attack.

        Args:
            renderer: Renderer of the attacker or of the baseline.
            contexts: Contexts of the attacks.
            continuations: The attacks.

        Raises:
            ContractError: The numbers of contexts and attacks differ.
        """
        check_length(continuations, len(contexts), source="the caller's list of continuations")
        # Truncated, because the context windows of attacker and baseline may differ.
        attacks = [
            renderer.utterance_ids(
                continuation, opens=renderer.begins_text(Conversation.of(context))
            )[: renderer.window]
            for context, continuation in zip(contexts, continuations, strict=True)
        ]
        reserve = self.attacker_sampling.max_new_tokens
        prompts: list[Sequence[int]] = [
            renderer.render(Conversation.of(context), reserve=max(reserve, len(ids))).ids
            for context, ids in zip(contexts, attacks, strict=True)
        ]
        return prompts, list(attacks)

    def _extracted(self, outputs: Sequence[Utterance]) -> Sequence[Utterance]:
        extract = self.attacker_extraction
        return outputs if extract is None else [extract(output) for output in outputs]

    def _attack_logprobs(
        self,
        model: PreTrainedModel,
        renderer: ConversationRenderer,
        contexts: Sequence[str],
        continuations: Sequence[str],
    ) -> Tensor:
        return score_continuations(model, *self.attack_token_ids(renderer, contexts, continuations))

    def _as_target(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the target has its own adapter, not the attacker's."""
        return self._adapters.using(self.target, self._adapter_of_target)


__all__ = ["HFASTProblem", "ModelPair", "ModelSource"]
