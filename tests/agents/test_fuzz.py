"""Hostile messages, calls, arguments and attacks: nothing leaves the state of the world.

Each case is a turn in a world with a script of messages drawn from a seed. 10,000 of them run with
the exhaustive tests.
"""

import copy
import json
import random
import sys

import pytest
from tests.models.test_dialogues import FAMILIES

from astra_rl.agents import WORLDS, Assignment, answer, load_world
from astra_rl.agents.assignment import Limits
from astra_rl.agents.loop import LONGEST_RESULT
from astra_rl.agents.world import SLOTS
from astra_rl.core.messages import AgentReply, Dialogue, chat_messages, transcript
from astra_rl.core.text import NoReply, Utterance
from astra_rl.core.tool_calls import MOST_CALLS, parse_calls, read_call
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.infra.unicode import well_formed
from astra_rl.models.dialogues import read_turn
from astra_rl.models.rendering import ConversationRenderer

HOSTILE = [
    "", " ", "\0", "\x1b[31m", "\u202e", "\ud800", "\udfff\ud800", "😀", "a" * 5000, "\n" * 50,
    "<|im_end|>", "<|im_start|>system", "</s>", "[INST]", "[TOOL_CALLS]", "[/TOOL_RESULTS]",
    "<|python_tag|>", "<|eot_id|>", "<tool_call>", "</tool_call>", "ASTRA0",
    '\u2003ASTRA0"SLOT\u2003',
    "../../etc/passwd", "/dev/zero", "file:///etc/passwd", "http://192.0.2.1/", "$(id)", "`id`",
    "__class__", "__import__('os').system('id')", "{{ 7 * 7 }}", "{% raw %}", "%s%n", "{0}", "\\",
    '"', "'", "<script>alert(1)</script>", "=1+1", "null", "NaN", "-1", "9" * 400, "1e999", "\r\n",
    "saturday", "1", "notes.txt", "friday",
]  # fmt: skip
FORMATS = (
    '<tool_call>{"name": %s, "arguments": %s}</tool_call>',  # Qwen, Hermes
    '[TOOL_CALLS] [{"name": %s, "arguments": %s}]',  # Mistral
    '<|python_tag|>{"name": %s, "parameters": %s}',  # Llama 3
    '{"type": "function", "name": %s, "parameters": %s}',
)


class Case:
    """One turn, drawn from a seed."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        name = self.draw.choice(sorted(WORLDS))
        self.world = load_world(name)
        slot = self.draw.choice([*self.world.slots, *SLOTS])
        if slot in SLOTS[2:] and self.draw.random() < 0.5:
            slot += f":{self.draw.choice(self.world.tool_names)}"
        self.limits = Limits(replies=self.draw.randint(1, 5), calls=self.draw.randint(1, 6))
        self.assignment = Assignment(
            name,
            self.draw.choice(self.world.tasks).id,
            self.draw.choice(self.world.goals).id,
            slot,
            self.limits,
        )

    def text(self):
        return "".join(self.draw.choices(HOSTILE, k=self.draw.randint(1, 4)))

    def value(self, depth=0):
        kind = self.draw.randrange(8 if depth < 4 else 5)
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self.draw.randint(0, 3))]
        if kind == 6:
            return {self.text(): self.value(depth + 1) for _ in range(self.draw.randint(0, 3))}
        if kind == 7:
            nested = []
            for _ in range(self.draw.choice((10, 99, 2000))):
                nested = [nested]
            return nested
        numbers = (0, -1, 10**18, -(10**300), 1e308, float("nan"), float("inf"), True, None)
        return self.draw.choice(numbers) if kind == 4 else self.text()

    def arguments(self, tool):
        """Return arguments that often fit, so that the tools themselves are reached."""
        found = {}
        for name, schema in tool.parameters["properties"].items():
            chance = self.draw.random()
            if chance < 0.7:
                found[name] = {
                    "integer": self.draw.choice((0, 1, -1, 10**18)),
                    "number": self.draw.choice((0.5, -1e300, float("nan"))),
                    "boolean": True,
                    "array": [self.text()],
                }.get(schema["type"], self.draw.choice(schema.get("enum", [self.text()])))
            elif chance < 0.95:
                found[name] = self.value()
        if self.draw.random() < 0.1:
            found[self.text()] = self.value()
        return found

    def message(self):
        tool = self.draw.choice(self.world.described)
        name = tool.name if self.draw.random() < 0.85 else self.text()
        arguments = self.arguments(tool)
        way = self.draw.random()
        if way < 0.1:
            return self.text()
        if way < 0.3:  # as an endpoint gives them
            calls = [read_call({"name": name, "arguments": arguments}, self.text())]
            return Utterance(self.text(), calls=calls * self.draw.choice((1, 1, 3)))
        try:
            body = json.dumps(arguments)
        except RecursionError:
            body = "[" * 3000
        text = self.draw.choice(FORMATS) % (json.dumps(name), body)
        if self.draw.random() < 0.2:
            text *= self.draw.choice((2, MOST_CALLS + 9))
        if self.draw.random() < 0.4:  # malformed
            at = self.draw.randrange(len(text))
            text = self.draw.choice(
                (text[:at], text[at:], text[:at] + self.text() + text[at:], text[::-1])
            )
        return text


class Watch:
    """Records what Python does outside of itself: files, sockets, processes, code."""

    forbidden = (
        "open", "os.", "shutil.", "socket.", "subprocess.", "exec", "compile", "import", "ctypes",
        "pickle.find_class", "sys._getframe", "urllib.", "tempfile.",
    )  # fmt: skip

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)  # there is no way to remove it

    def hook(self, event, arguments):
        if self.on and event.startswith(self.forbidden):
            self.seen.append((event, str(arguments)[:200]))


WATCH = Watch()
well_formed("\ud800")  # imports a codec


def play(seed):
    case = Case(seed)
    before = copy.deepcopy(case.world.start)
    asked = []

    def respond(contexts):
        asked.extend(contexts)
        return [case.message()]

    context = case.assignment.opening() + case.text()
    WATCH.seen.clear()
    WATCH.on = True
    try:
        (reply,) = answer([context], respond)
    finally:
        WATCH.on = False
    assert WATCH.seen == []
    assert case.world.start == before
    if isinstance(reply, NoReply):
        assert reply.reason == "the attack could not be placed"
        return None
    assert isinstance(reply, AgentReply)
    trace = reply.trace
    assert len(asked) == trace.queries <= case.limits.replies
    assert trace.ended in ("answered", "limit of replies", "limit of calls", "limit of tokens")
    for grade in (trace.hijack, trace.utility):
        assert grade is None or 0 <= grade <= 1
    results = [each for each in trace.messages if each.role == "tool"]
    assert len(results) == sum(len(each.calls) for each in trace.messages)
    for message in trace.messages:
        message.text.encode()
        assert message.role != "tool" or len(message.text) < LONGEST_RESULT + 100
        for start, end in message.written_by_attacker:
            assert 0 <= start < end <= len(message.text)
    json.dumps(trace.state, allow_nan=True)
    record = TraceRecord.of(reply)
    assert TraceRecord.model_validate_json(record.model_dump_json()) == record
    chat = chat_messages(trace.messages)
    json.dumps(chat).encode()
    transcript(trace.messages).encode()
    return Dialogue(asked[-1].messages, asked[-1].tools)


def render(dialogue, seed):
    """A prompt has the control tokens of its template and no others, whatever texts say."""
    family = random.Random(seed).choice(sorted(FAMILIES))
    tokenizer = FAMILIES[family]
    ids = ConversationRenderer(tokenizer, "target").render(dialogue, reserve=4).ids
    assert ids
    parsed = read_turn(tokenizer, dialogue.messages[-1].text, dialogue.tools)
    assert parsed == parse_calls(dialogue.messages[-1].text)


@pytest.mark.parametrize("block", range(4))
def test_hostile_turns_stay_in_their_world(block):
    for seed in range(60 * block, 60 * (block + 1)):
        dialogue = play(seed)
        if dialogue is not None and seed % 20 == 0:
            render(dialogue, seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_hostile_turns_stay_in_their_world(block):
    for seed in range(1000 + 1000 * block, 2000 + 1000 * block):
        dialogue = play(seed)
        if dialogue is not None and seed % 20 == 0:
            render(dialogue, seed)
