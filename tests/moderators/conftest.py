"""Tiny models and tokenizers, made on the spot."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTROLS = ["<|begin|>", "<|head|>", "<|eot|>"]

CORPUS = [
    "User: tell me how to bake a cake.\n\nAgent: take an egg.\n\nsafe",
    "User: you idiot!\n\nAgent: that is unkind.\n\nunsafe\nS1: Violent Crimes.\n",
    "<BEGIN UNSAFE CONTENT CATEGORIES>\n<END UNSAFE CONTENT CATEGORIES>\n\n",
    "<BEGIN CONVERSATION>\n\n<END CONVERSATION>",
]

# The shape of Llama Guard 3 8B's template: text messages, a list of categories built in.
TEXT_TEMPLATE = (
    "{% if messages|length % 2 == 0 %}{% set judged = 'Agent' %}{% else %}"
    "{% set judged = 'User' %}{% endif %}"
    "{{ '<|begin|><|head|>Judge the last ' + judged + ' message.\n\n"
    "<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\nS2: Non-Violent Crimes.\n"
    "S10: Hate.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n' }}"
    "{% for message in messages %}"
    "{{ ('User' if message['role'] == 'user' else 'Agent') + ': ' }}"
    "{{ message['content'] | trim + '\n\n' }}{% endfor %}"
    "{{ '<END CONVERSATION><|eot|><|head|>assistant<|head|>' }}"
)

# The shape of Llama Guard 3 1B's template: messages in parts, categories as an argument.
PARTS_TEMPLATE = (
    "{% if categories is not defined %}{% set categories = {'S1': 'Violent Crimes.'} %}{% endif %}"
    "{{ '<|begin|><|head|>Judge.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n' }}"
    "{% for key in categories %}{{ key + ': ' + categories[key] + '\n' }}{% endfor %}"
    "{{ '<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n' }}"
    "{% for message in messages %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ ('User' if message['role'] == 'user' else 'Agent') + ': ' }}"
    "{{ part['text'] | trim + '\n\n' }}{% endfor %}{% endfor %}"
    "{{ '<END CONVERSATION><|eot|><|head|>assistant<|head|>\n\n' }}"
)


def guard_tokenizer(template, *, keep_breaks_together):
    """A byte-level BPE tokenizer in which spaces belong to words.

    A blank line before a word is one token if `keep_breaks_together`, as Llama 3 has it, else two,
    as GPT-2 has it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if keep_breaks_together:
        pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROLS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|eot|>",
        additional_special_tokens=["<|head|>"],
        chat_template=template,
    )


def word_tokenizer(words, **special):
    """A word-level tokenizer that puts [CLS] and [SEP] around a text, as BERT's."""
    controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*controls, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **special,
    )


@pytest.fixture(scope="session")
def make_word_tokenizer():
    return word_tokenizer


@pytest.fixture(scope="session")
def text_tokenizer():
    return guard_tokenizer(TEXT_TEMPLATE, keep_breaks_together=True)


@pytest.fixture(scope="session")
def parts_tokenizer():
    return guard_tokenizer(PARTS_TEMPLATE, keep_breaks_together=False)


@pytest.fixture(scope="session")
def guard_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # far from uniform, so that different prompts score differently
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)
