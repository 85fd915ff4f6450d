"""A language model that is a table: the next letter depends on the last one alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from astra_rl.models.closed_vocabulary import BEGIN_ID, END_ID, closed_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz .,?!:/"


def save_scripted_attacker(folder: Path, words: Mapping[str, float], *, window: int = 8192) -> None:
    """Write a model that says one of a few words, whatever it has read.

    Each letter of a word decides the next one, so no letter may stand in two places. What it reads
    must end in a character that is in no word.

    Args:
        folder: Where it is written.
        words: Words with their probabilities.
        window: Context window, in tokens.
    """
    letters = "".join(words)
    assert len(set(letters)) == len(letters)
    tokenizer = closed_tokenizer(["\n", *LETTERS], r"[\s\S]")
    count = len(tokenizer)
    ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in words}
    chances = torch.zeros(count, count)  # [next, last]
    for word, chance in words.items():
        chances[ids[word][0]] += chance
    for said in ids.values():
        for last, following in zip(said, [*said[1:], END_ID], strict=True):
            chances[:, last] = 0.0
            chances[following, last] = 1.0
    config = LlamaConfig(
        vocab_size=count, hidden_size=64, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=window,
        bos_token_id=BEGIN_ID, eos_token_id=END_ID, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # the hidden state is the embedding of the last letter
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(count, 64))
        model.lm_head.weight.zero_()
        # The final norm scales a row of the identity by the root of its size.
        model.lm_head.weight[:, :count] = (chances + 1e-6).log() / 8
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
