"""A tiny model that calls a tool, for trainers of agents."""

from pathlib import Path

import torch

CALL = '<tool_call>\n{"name": "send_message", "arguments": {"message": "'
END = '"}}\n</tool_call>'
WORDS = ("blue", "red")


def save_tool_caller(folder):
    """Save a model that calls the tool with one of two words, at equal odds, and then stops.

    It is a table of what follows each token: embeddings are one-hot, the layers add nothing, and
    the head has the logits.
    """
    import trl
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={each: n for n, each in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    words.add_tokens([AddedToken(each, normalized=False) for each in (CALL, END, *WORDS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text("utf-8")
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4096, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    follows = {"Ċ": [CALL], CALL: WORDS, "blue": [END], "red": [END], END: ["<|im_end|>"]}
    ids = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()[:, :size] = torch.eye(size)
        model.lm_head.weight.zero_()
        for token, after in follows.items():
            for each in after:  # the norm makes a one-hot vector sqrt(hidden_size) long
                model.lm_head.weight[ids(each), ids(token)] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
