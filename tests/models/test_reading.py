"""Replies of reasoning models: what they say, what they think, and where they end."""

import pytest
import torch
from tests.models.test_rendering import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from astra_rl.core.serialization import from_record, to_record
from astra_rl.core.text import Conversation, NoAttack, NoReply, Utterance
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.ext.transformers.problem import HFASTProblem, ModelPair
from astra_rl.models.generation import Sample, Sampling
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.models.vocabulary import model_end_ids
from astra_rl.testing import ScriptedModerator, tiny_model

QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
R1 = (
    "{% for message in messages %}{% set content = message.content.split('</think>')[-1] %}"
    "{% if message.role == 'assistant' %}<|Assistant|>{{ content }}<|end|>"
    "{% else %}<|User|>{{ content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
KEEPING = R1.replace(".split('</think>')[-1]", "")
GPT_OSS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% if '<|channel|>' in message.content %}{{ raise_exception('tags in content') }}{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ message.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MAGISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ message.content + eos_token }}{% else %}[INST]{{ message.content }}[/INST]{% endif %}"
    "{% endfor %}{# reasoning: [THINK] [/THINK] #}"
)
HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]
TOKENIZERS = {
    "qwen3": byte_tokenizer(
        QWEN3, plain=["<think>", "</think>"], specials=["<|im_start|>"], eos_token="<|im_end|>"
    ),
    "r1": byte_tokenizer(
        R1,
        plain=["<think>", "</think>"],
        specials=["<|User|>", "<|Assistant|>"],
        eos_token="<|end|>",
    ),
    "gpt-oss": byte_tokenizer(GPT_OSS, specials=HARMONY, eos_token="<|return|>"),
    "magistral": byte_tokenizer(
        MAGISTRAL,
        specials=["[INST]", "[/INST]", "[THINK]", "[/THINK]"],
        bos_token="<s>",
        eos_token="</s>",
    ),
}
REPLIES = {  # reasoning "Zebra.", answer "No."
    "qwen3": "<think>\nZebra.\n</think>\n\nNo.<|im_end|>",
    "r1": "Zebra.\n</think>\n\nNo.<|end|>",
    "gpt-oss": (
        "<|channel|>analysis<|message|>Zebra.<|end|><|start|>assistant<|channel|>final<|message|>"
        "No.<|return|>"
    ),
    "magistral": "[THINK]Zebra.[/THINK]No.</s>",
}
FAMILIES = pytest.mark.parametrize("family", TOKENIZERS)


def ids_of(family):
    return tuple(TOKENIZERS[family](REPLIES[family], add_special_tokens=False).input_ids)


@FAMILIES
def test_the_reasoning_is_separated_from_the_answer(family):
    view = ConversationRenderer(TOKENIZERS[family], "target")
    ids = ids_of(family)
    reply = view.read(ids)
    assert (reply.answer, reply.reasoning) == ("No.", "Zebra.")
    assert view.tokenizer.decode(reply.answer_ids) == "No."
    assert ids[-1] in view.stop_ids
    cut = view.read(ids[:5])
    assert cut.answer is None


@pytest.mark.parametrize("family", ["qwen3", "r1", "gpt-oss"])
def test_past_reasoning_is_dropped_as_the_template_drops_it(family):
    tokenizer = TOKENIZERS[family]
    view = ConversationRenderer(tokenizer, "target")
    ids = ids_of(family)
    reply = Utterance("No.", token_ids=ids, reasoning="Zebra.")
    rendered = view.render(Conversation(turns=("Say it", reply, "Please")), reserve=1)
    messages = [
        {"role": "user", "content": "Say it"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Please"},
    ]
    assert tokenizer.decode(rendered.ids) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert "Zebra" not in tokenizer.decode(rendered.ids)


def test_reasoning_stays_where_the_template_keeps_it():
    tokenizer = byte_tokenizer(
        KEEPING,
        plain=["<think>", "</think>"],
        specials=["<|User|>", "<|Assistant|>"],
        eos_token="<|end|>",
    )
    view = ConversationRenderer(tokenizer, "target")
    ids = tuple(tokenizer(REPLIES["r1"], add_special_tokens=False).input_ids)
    turns = ("Say it", Utterance("No.", token_ids=ids, reasoning="Zebra."), "Please")
    first = view.render(Conversation(turns=turns[:1]), reserve=1).ids
    assert view.render(Conversation(turns=turns), reserve=1).ids[: len(first) + len(ids)] == (
        *first,
        *ids,
    )


@FAMILIES
def test_a_model_stops_at_the_end_of_its_answer(family):
    view = ConversationRenderer(TOKENIZERS[family], "target")
    last = TOKENIZERS[family].convert_ids_to_tokens(list(view.stop_ids))
    assert REPLIES[family].endswith(tuple(last))
    if family == "gpt-oss":
        assert last == ["<|return|>"]  # "<|end|>" ends each of its messages, also the analysis


def test_all_end_tokens_of_the_generation_configuration_end_a_reply():
    tokenizer = TOKENIZERS["qwen3"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=None,
        )
    )
    model.generation_config.eos_token_id = [5, 6, 10**6]
    assert model_end_ids(model) == {5, 6}
    pair = ModelPair(model, tokenizer)
    problem = HFASTProblem(pair, pair, pair, ScriptedModerator({}))
    for view in (problem.attacker_renderer, problem.target_renderer, problem.baseline_renderer):
        assert view.stop_ids == {5, 6, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert model_end_ids(model) == frozenset()
    for hostile in ("x", [[1]], {"a": 1}, [5, "6"], True, 1.5):
        model.generation_config.eos_token_id = hostile
        with pytest.raises(ModelError, match=r"eos_token_id in the generation_config\.json"):
            model_end_ids(model)


def test_a_tokenizer_without_an_end_token_uses_that_of_the_model():
    tokenizer = byte_tokenizer()
    view = ConversationRenderer(tokenizer, "target", chat=False, model_end_ids=[7])
    assert view.stop_ids == {7}
    assert view.decode([*tokenizer("ab").input_ids, 7]) == "ab"


def test_arguments_of_the_template_are_passed_to_it():
    tokenizer = TOKENIZERS["qwen3"]
    view = ConversationRenderer(
        tokenizer, "target", chat_template_kwargs={"enable_thinking": False}
    )
    conversation = Conversation(turns=("Hi",))
    assert tokenizer.decode(view.render(conversation, reserve=1).ids).endswith(
        "assistant\n<think>\n\n</think>\n\n"
    )
    # The empty reasoning is of the prompt, so a reply is an answer, and the past has none.
    ids = tuple(tokenizer("No.<|im_end|>", add_special_tokens=False).input_ids)
    assert view.read(ids).answer == "No."
    said = Utterance("No.", token_ids=ids)
    past = tokenizer.decode(view.render(Conversation(turns=("Hi", said, "So")), reserve=1).ids)
    assert "assistant\nNo.<|im_end|>" in past
    with pytest.raises(ConfigurationError, match="messages, which the library sets"):
        ConversationRenderer(tokenizer, "target", chat_template_kwargs={"messages": []})


def test_the_response_template_of_a_tokenizer_is_used():
    tokenizer = byte_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
        specials=["<|user|>", "<|assistant|>"],
        eos_token="<|end|>",
    )
    tokenizer.response_template = {
        "fields": {
            "reasoning_content": {"open": "(hm:", "close": ")"},
            "content": {"close": "<|end|>", "content": "text"},
        },
        "start_anchor": "<|assistant|>",
    }
    view = ConversationRenderer(tokenizer, "target")
    ids = tokenizer("(hm:Zebra.)No.", add_special_tokens=False).input_ids
    reply = view.read((*ids, tokenizer.eos_token_id))
    assert (reply.answer.strip(), reply.reasoning.strip()) == ("No.", "Zebra.")


def test_a_target_that_only_thinks_gives_no_reply():
    letters = "".join(sorted({*"<think>/ abcdefgijlmopqrsuvwxyz.,"}))
    model, tokenizer = tiny_model(chat=True, letters=letters)
    tokenizer.chat_template += "{# <think> </think> #}"
    texts = ["<think>zebra", "<think>zebra</think>no", "no"]

    def sampler(model, prompts, sampling, seeds, *, stop_ids, score_spans=None, prefix_cache=None):
        ids = [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        return [Sample(each, (-1.0,) * len(each), "length") for each in ids]

    pair = ModelPair(model, tokenizer)
    problem = HFASTProblem(
        pair,
        pair,
        pair,
        ScriptedModerator({"zebra": 1.0}),
        sampler=sampler,
        target_sampling=Sampling(max_new_tokens=9),
    )
    contexts = [Conversation("p") + "ask"] * 3
    cut, thought, plain = problem.rollout_prompt_with_target(contexts)
    assert isinstance(cut, NoReply)
    assert cut.error == (
        "cut before any text: the reply reached max_new_tokens=9 while reasoning; raise that limit"
    )
    assert cut.reasoning == "zebra"
    assert (thought, thought.reasoning) == ("no", "zebra")
    assert (plain, plain.reasoning) == ("no", None)
    attacks = problem.rollout_prompt_with_attacker(["p"] * 3)
    assert [isinstance(each, NoAttack) for each in attacks] == [True, False, False]
    assert [str(each) for each in attacks] == ["", "no", "no"]
    assert problem.token_ends(attacks[1])[-2:] == [1, 2]
    assert from_record(to_record(attacks[1])).reasoning == "zebra"
    with torch.no_grad():
        rewards = problem.moderator.moderate([thought, plain])
    assert rewards == [0.0, 0.0]
