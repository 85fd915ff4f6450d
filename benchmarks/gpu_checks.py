"""Exactness on one device: functions whose results are zero, or rounding, if all is exact.

Used by `gpu.py` and by `tests/models/test_cuda.py`. Models are small, with random weights that are
large enough for each token to matter.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import GRPO
from astra_rl.ext.transformers import HFASTProblem, ModelPair
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.conversation_cache import ConversationCache
from astra_rl.models.generation import Sample, Sampling, generate
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.moderators import FunctionModerator
from astra_rl.testing import tiny_model

VOCABULARY, ROWS, NEW_TOKENS = 500, 8, 8
SHARED = list(range(20, 40))
"""Tokens that some prompts begin with, so that rows share a prefix."""


def small_model(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a frozen Llama of two layers with grouped-query attention."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.1, generator=generator)
    return model.to(device, dtype).requires_grad_(False).eval()


def ragged_prompts() -> list[list[int]]:
    """Return prompts of several lengths; most of them come twice, and half begin with `SHARED`."""
    return [
        [*(SHARED if row % 2 else []), *range(50 + row // 2, 60 + 2 * row)] for row in range(ROWS)
    ]


def greedy_difference(device: str) -> int:
    """Return how many greedy texts differ from those of one forward pass per token."""
    model, prompts = small_model(device), ragged_prompts()
    ours = _sample(model, prompts, temperature=0)
    return sum(
        list(sample.token_ids) != _greedy(model, prompt)
        for sample, prompt in zip(ours, prompts, strict=True)
    )


def cache_difference(device: str) -> int:
    """Return how many greedy texts of a second turn differ with and without a prefix cache."""
    model, cache = small_model(device), ConversationCache()
    prompts = ragged_prompts()
    first = _sample(model, prompts, temperature=0, prefix_cache=cache)
    second = [
        [*prompt, *sample.token_ids, 7, 8, 9] for prompt, sample in zip(prompts, first, strict=True)
    ]
    with_cache = _sample(model, second, temperature=0, prefix_cache=cache)
    without = _sample(model, second, temperature=0)
    return sum(a.token_ids != b.token_ids for a, b in zip(with_cache, without, strict=True))


def sampled_against_scored(device: str, dtype: torch.dtype, *, lora: bool = False) -> float:
    """Return the largest difference, in nats, of a sampled token's log-probability when scored."""
    model = small_model(device, dtype)
    if lora:
        model = _with_random_adapter(model)
    prompts = ragged_prompts()
    samples = _sample(model, prompts)
    with torch.no_grad():
        scored = continuation_logprobs(model, prompts, [each.token_ids for each in samples])
    return max(
        abs(a - b)
        for row, sample in zip(scored.tolist(), samples, strict=True)
        for a, b in zip(row, sample.logprobs, strict=False)
    )


def batch_difference(device: str) -> int:
    """Return how many sampled texts differ from those of each prompt sampled alone."""
    model, prompts = small_model(device), ragged_prompts()
    together = _sample(model, prompts)
    return sum(
        _sample(model, [prompt], seeds=[row])[0].token_ids != together[row].token_ids
        for row, prompt in enumerate(prompts)
    )


def gradient_difference(device: str) -> float:
    """Return the largest relative difference of a gradient, by its norm, from that of the CPU."""
    ours, reference = _gradients(device), _gradients("cpu")
    return max(
        float((a.cpu() - b).norm() / b.norm().clamp(min=1e-12))
        for a, b in zip(ours, reference, strict=True)
    )


def resume_difference(device: str) -> dict[str, float]:
    """Return the largest difference of weights after four steps of training.

    ``"again"`` is that of the same run a second time, ``"resumed"`` that of a run which was resumed
    from a state after two steps.
    """
    whole, _ = _train(device, 4)
    again, _ = _train(device, 4)
    _, state = _train(device, 2)
    resumed, _ = _train(device, 4, state)
    return {
        name: max(float((a - b).abs().max()) for a, b in zip(whole, other, strict=True))
        for name, other in (("again", again), ("resumed", resumed))
    }


def _sample(
    model: Any,
    prompts: list[list[int]],
    *,
    temperature: float = 1,
    seeds: list[int] | None = None,
    prefix_cache: ConversationCache | None = None,
) -> list[Sample]:
    return generate(
        model,
        prompts,
        Sampling(max_new_tokens=NEW_TOKENS, temperature=temperature),
        seeds or list(range(len(prompts))),
        stop_ids=frozenset({3, 4}),
        prefix_cache=prefix_cache,
    )


@torch.no_grad()
def _greedy(model: Any, prompt: list[int]) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + NEW_TOKENS:
        ids = torch.tensor([text], device=model.device)
        text.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
        if text[-1] in (3, 4):
            break
    return text[len(prompt) :]


def _with_random_adapter(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = make_trainable(model, lora=LoraOptions(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapted


def _gradients(device: str) -> list[Tensor]:
    model = small_model(device).requires_grad_(True)
    prompts = ragged_prompts()
    continuations = [list(range(100, 104 + row)) for row in range(ROWS)]
    continuation_logprobs(model, prompts, continuations).sum().div(ROWS).neg().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _train(device: str, steps: int, state: Any = None) -> tuple[list[Tensor], Any]:
    """Train a tiny attacker; return its weights and the state of the training."""
    pair = tiny_model("llama")
    problem = HFASTProblem(
        *[ModelPair(pair.model.to(device), pair.tokenizer)] * 3,
        FunctionModerator(lambda texts: [len(set(text)) % 7 / 7 for text in texts]),
        attacker_sampling=Sampling(max_new_tokens=6),
        target_sampling=Sampling(max_new_tokens=6),
    )
    config = TrainingConfiguration(
        lr=1e-2, batch_size=4, optimizer="adamw", training_steps=steps, seed=0,
        num_episodes_per_experience=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    environment = ASTEnvironment(problem, ["one tree", "two maps", "a lake"], 4, 1)
    trainer = Trainer(config, environment, GRPO(problem))
    if state is not None:
        trainer.load_state_dict(copy.deepcopy(state))
    trainer.train()
    return [p.detach().clone() for p in problem.parameters()], copy.deepcopy(trainer.state_dict())
