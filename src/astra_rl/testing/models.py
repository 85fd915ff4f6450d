"""Tiny randomly initialised language models for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair


def tiny_model(
    family: Literal["gpt2", "llama"] = "llama",
    *,
    chat: bool = False,
    window: int = 128,
    seed: int = 0,
    letters: str = "abcdefghijklmnopqrstuvwxyz .,?!:",
) -> ModelPair:
    """Return a randomly initialised two-layer model with a character tokenizer.

    Args:
        family: ``"gpt2"`` has absolute position embeddings, ``"llama"`` rotary ones.
        chat: Whether the tokenizer has a chat template.
        window: Context window, in tokens.
        seed: Seed of the weights.
        letters: Characters of the vocabulary, besides the newline.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from astra_rl.ext.transformers.problem import ModelPair
    from astra_rl.models.closed_vocabulary import BEGIN_ID, END_ID, closed_tokenizer

    template = _TINY_TEMPLATE if chat else None
    tokenizer = closed_tokenizer(["\n", *letters], r"[\s\S]", chat_template=template)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        common: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "bos_token_id": BEGIN_ID,
            "eos_token_id": END_ID,
        }
        model: Any
        if family == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=window, **common)
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=window,
                    **common,
                )
            )
    return ModelPair(model.eval(), tokenizer)


_TINY_TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
