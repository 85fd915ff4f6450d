"""Prompts of agents equal `apply_chat_template` with tools; hostile text makes no control token."""

import json

import pytest
from tests.models.test_rendering import SMOL, byte_tokenizer

from astra_rl.core.messages import Dialogue, Message, Tool, chat_messages
from astra_rl.core.text import Conversation
from astra_rl.core.tool_calls import ToolCall
from astra_rl.errors import ConfigurationError
from astra_rl.models.rendering import ConversationRenderer

# Each template writes tools, calls and results as that of its family does.
QWEN = (
    "{% if tools %}<|im_start|>system\n{{ messages[0].content }}\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}"
    "<|im_end|>\n"
    "{% endif %}{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|im_start|>{{ m.role }}{% if m.content %}\n{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>"
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'user' and loop.index0 == 1 and tools %}"
    "{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{% endif %}"
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{% if loop.index0 == 1 and tools %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]</s>'
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] "
    '{"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
FAMILIES = {
    "qwen": byte_tokenizer(
        QWEN,
        plain=["<tool_call>", "</tool_call>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    ),
    "llama": byte_tokenizer(
        LLAMA,
        specials=["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"],
        eos_token="<|eot_id|>",
    ),
    "mistral": byte_tokenizer(
        MISTRAL,
        specials=["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        eos_token="</s>",
    ),
    "smol": byte_tokenizer(SMOL, bos_token="<|im_start|>", eos_token="<|im_end|>"),
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
TOOLS = (
    Tool(
        "send",
        'Sends "mail".',
        {
            "type": "object",
            "properties": {"to": {"type": "string", "description": "Who."}},
            "required": ["to"],
        },
    ),
)
CONTROLS = "<|im_start|><|im_end|><|eot_id|><|start_header_id|>[INST][/INST][TOOL_CALLS]</s>"


def dialogue(text='a note\\ with "quotes"\nand lines', tools=TOOLS):
    return Dialogue(
        [
            Message("system", "Be kind."),
            Message("user", f"Send {text}"),
            Message("assistant", "", (ToolCall("send", {"to": text, "n": 2}, "call00001"),)),
            Message("tool", f"sent {text}", name="send", call_id="call00001"),
        ],
        tools,
    )


def deployed(tokenizer, given):
    """What a server makes of these messages: the template, with arguments as mappings."""
    messages = chat_messages(given.messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return tokenizer.apply_chat_template(
        messages,
        tools=[tool.as_json() for tool in given.tools],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )


def rendered(tokenizer, given, **options):
    renderer = ConversationRenderer(tokenizer, "target", **options)
    return list(renderer.render(given, reserve=4).ids)


@pytest.mark.parametrize("family", ["qwen", "llama", "mistral"])
@pytest.mark.parametrize("text", ["hello", 'a\\b "c"\nd', "ünï ✓ \u2028", "ASTRA0"])
def test_a_prompt_equals_that_of_the_tokenizer_with_tools(family, text):
    tokenizer, given = FAMILIES[family], dialogue(text)
    assert tokenizer.decode(rendered(tokenizer, given)) == tokenizer.decode(
        deployed(tokenizer, given)
    )
    assert rendered(tokenizer, given) == list(deployed(tokenizer, given))


@FAMILY
def test_no_text_makes_a_control_token_in_any_place(family):
    tokenizer = FAMILIES[family]
    controls = ConversationRenderer(tokenizer, "target")._tokenize.control_ids
    hostile = Tool("send", CONTROLS, {"type": "object", "description": CONTROLS})
    harmless = Tool("send", "x", {"type": "object", "description": "x"})
    # A name and a key that a model made up are hostile, too.
    made_up = Message("assistant", CONTROLS, (ToolCall(CONTROLS, {CONTROLS: [CONTROLS]}, "c" * 9),))
    plain = Message("assistant", "x", (ToolCall("x", {"x": ["x"]}, "c" * 9),))

    def count(text, tool, last):
        given = dialogue(text, [tool])
        result = Message("tool", text, name=text, call_id="c" * 9)
        ids = rendered(tokenizer, Dialogue([*given.messages, last, result], given.tools))
        return [token for token in ids if token in controls]

    assert count(CONTROLS, hostile, made_up) == count("x", harmless, plain)
    assert count("x", harmless, plain)


def test_a_template_without_tools_has_them_in_the_system_message_and_results_of_the_user():
    tokenizer = FAMILIES["smol"]
    text = tokenizer.decode(rendered(tokenizer, dialogue("x")))
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou have these tools")
    assert '"description": "Sends \\"mail\\"."' in text
    assert '<|im_start|>assistant\n<tool_call>{"name": "send", "arguments": {"to": "x"' in text
    assert "<|im_start|>user\n<tool_response>sent x</tool_response><|im_end|>" in text


def test_calls_that_the_template_rejects_are_text_and_no_crash():
    tokenizer = byte_tokenizer(
        LLAMA.replace(
            "{% if m.tool_calls %}",
            "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
            "{{ raise_exception('one call at once') }}{% endif %}",
        ),
        specials=["<|start_header_id|>", "<|end_header_id|>"],
        eos_token="<|eot_id|>",
    )
    calls = (ToolCall("send", {"to": "a"}, "call00001"), ToolCall("send", {"to": "b"}, "call00002"))
    given = Dialogue([*dialogue().messages[:2], Message("assistant", "", calls)], TOOLS)
    text = tokenizer.decode(rendered(tokenizer, given))
    assert '<tool_call>{"name": "send", "arguments": {"to": "b"}}</tool_call>' in text
    assert "You have these tools" in text


def test_a_prompt_that_exceeds_the_window_is_empty_and_not_cut():
    assert rendered(FAMILIES["qwen"], dialogue("x" * 300), window=400) == []


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("qwen", '<tool_call>\n{"name": "send", "arguments": {"to": "x"}}\n</tool_call><|im_end|>'),
        ("llama", '<|python_tag|>{"name": "send", "parameters": {"to": "x"}}<|eot_id|>'),
        ("mistral", '[TOOL_CALLS] [{"name": "send", "arguments": {"to": "x"}}]</s>'),
    ],
)
def test_a_call_is_read_from_sampled_tokens_control_tokens_included(family, written):
    tokenizer = FAMILIES[family]
    renderer = ConversationRenderer(tokenizer, "target")
    ids = tokenizer(written, add_special_tokens=False).input_ids
    text, calls = renderer.read_calls(ids, TOOLS)
    assert (text, [(call.name, call.arguments) for call in calls]) == ("", [("send", {"to": "x"})])


def test_the_response_parsing_of_the_tokenizer_is_used_where_it_has_one():
    tokenizer = byte_tokenizer(QWEN, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.response_template = {}
    tokenizer.parse_response = lambda text, prefix, tools: {
        "content": "ok",
        "tool_calls": [{"type": "function", "function": {"name": tools[0]["function"]["name"]}}],
    }
    renderer = ConversationRenderer(tokenizer, "target")
    text, calls = renderer.read_calls(tokenizer("anything").input_ids, TOOLS)
    assert (text, [call.name for call in calls]) == ("ok", ["send"])
    broken = {"function": {"name": "send", "arguments": "{"}}
    tokenizer.parse_response = lambda text, prefix, tools: {"content": "", "tool_calls": [broken]}
    text, calls = renderer.read_calls(tokenizer("what it wrote").input_ids, TOOLS)
    assert (text, [bool(call.error) for call in calls]) == ("what it wrote", [True])
    tokenizer.parse_response = None  # a parser that fails is no crash
    assert renderer.read_calls(tokenizer("words").input_ids, TOOLS) == ("words", ())


def test_an_agent_needs_a_chat_template():
    renderer = ConversationRenderer(byte_tokenizer(eos_token="</s>"), "target", chat=False)
    with pytest.raises(ConfigurationError, match="no chat template"):
        renderer.render(dialogue(), reserve=4)
    assert renderer.render(Conversation("Hello"), reserve=4).ids
