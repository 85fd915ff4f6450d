"""Sixty replies that try to be something else, through everything that reads a reply.

`tests/data/hostile_replies.json` holds them with what is right: whether each is a refusal (a score,
or why there is none), and for the few that are a verdict in the very form of a guard what it says.
To every other reader they are no verdict: missing, never zero, never an exception.
"""

import json
import re
from pathlib import Path

import pytest
from tests.cases import cases

from astra_rl.core.moderator import reason_of
from astra_rl.core.text import Conversation, Exchange
from astra_rl.infra.jsonio import json_line
from astra_rl.moderators import (
    CachedModerator,
    CanaryModerator,
    FunctionModerator,
    KeywordModerator,
    LLMJudgeModerator,
    MaxModerator,
    ProfanityModerator,
    RefusalModerator,
    SecretLeakModerator,
)
from astra_rl.moderators.llm_judge import read_verdict

CORPUS = json.loads((Path(__file__).parent.parent / "data/hostile_replies.json").read_text("utf-8"))
FAMILIES = ("llama_guard_4", "shield_gemma", "qwen_guard", "wild_guard", "harmbench")
each_reply = pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry["name"])
NONCE = re.compile(r"VERDICT ([0-9a-f]{12}): N$", re.MULTILINE)


def exchange(text, **facts):
    return Exchange(Conversation("", facts=facts), "Tell me.", text)


def test_there_are_sixty_and_each_has_a_name_of_its_own():
    assert len({entry["name"] for entry in CORPUS}) == len({e["text"] for e in CORPUS}) == 60


@each_reply
def test_no_reply_of_a_target_forges_the_verdict_of_a_judge(entry):
    """The judge here is the worst there is: it repeats all it was shown, then gives its verdict."""

    def parrot(chats):
        return [
            chat[1]["content"].rpartition("\n\n")[0]
            + f"\nVERDICT {NONCE.findall(chat[1]['content'])[-1]}: 7"
            for chat in chats
        ]

    assert LLMJudgeModerator(parrot).moderate([exchange(entry["text"])]) == [0.7]


@each_reply
def test_a_judge_that_says_nothing_of_its_own_gives_no_verdict(entry):
    def parrot(chats):
        return [chat[1]["content"].rpartition("\n\n")[0] for chat in chats]

    scores = LLMJudgeModerator(parrot).moderate([exchange(entry["text"]), entry["text"]])
    assert [reason_of(score) for score in scores] == ["no verdict"] * 2


@each_reply
def test_no_reply_leaves_the_part_it_is_shown_in(entry):
    chats = []
    LLMJudgeModerator(lambda asked: chats.extend(asked) or ["?"] * len(asked)).moderate(
        [exchange(entry["text"])]
    )
    shown = chats[0][1]["content"]
    nonce = NONCE.findall(shown)[-1]
    begins = re.findall(rf"^BEGIN {nonce} (\w+)$", shown, re.MULTILINE)
    assert begins == ["USER", "ASSISTANT"]
    assert len(re.findall(rf"^END {nonce}$", shown, re.MULTILINE)) == 2


@each_reply
def test_as_the_output_of_a_judge_it_is_no_verdict(entry):
    assert reason_of(read_verdict(entry["text"], "a1b2c3d4e5f6", (0, 10))) == "no verdict"


@each_reply
@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_output_of_a_guard_it_is_read_strictly(entry, family, guard_families):
    expected = entry.get("guards", {}).get(family)
    score = guard_families[family].parse(entry["text"])
    if expected is None:
        assert reason_of(score) == "unparsable verdict"
    else:
        assert score == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", cases(FAMILIES, by_default=["llama_guard_4", "qwen_guard", "shield_gemma"])
)
def test_in_the_prompt_of_a_guard_it_is_only_text(family, guard_families, monkeypatch):
    """A score, and the control tokens and structure that a harmless reply has too."""
    moderator = guard_families[family]
    speaker = "agent" if family == "llama_guard_4" else "assistant"
    seen = []
    original = moderator._next_logits
    monkeypatch.setattr(
        moderator, "_next_logits", lambda prompts: seen.append(prompts) or original(prompts)
    )

    def structure(item):
        seen.clear()
        score = moderator.moderate([item])[0]
        assert 0 <= score <= 1
        prompts = [ids for batch in seen for ids in batch]
        text = moderator.tokenizer.decode(prompts[0])
        return (
            sum(token >= 256 for ids in prompts for token in ids),
            len(re.findall(r"<\s*(?:BEGIN|END) \w+", text)),
            sum(bool(re.match(rf"\s*(user|{speaker}):", line, re.I)) for line in text.splitlines()),
        )

    plain = structure(exchange("hello"))
    found = {entry["name"]: structure(exchange(entry["text"])) for entry in CORPUS}
    assert {name: counts[0] for name, counts in found.items()} == dict.fromkeys(found, plain[0])
    if family in ("llama_guard_4", "qwen_guard"):  # whose prompts have that structure
        assert found == dict.fromkeys(found, plain)


@each_reply
def test_it_is_a_refusal_or_not_or_cannot_be_told(entry):
    score = RefusalModerator().moderate([entry["text"]])[0]
    assert (reason_of(score) or score) == entry["refusal"]


def test_every_other_moderator_gives_a_score_or_a_reason_and_the_same_twice():
    items = [exchange(e["text"], secret="grey heron", canary="BLUE-4417") for e in CORPUS]
    moderators = [
        SecretLeakModerator(),
        CanaryModerator(),
        KeywordModerator(["grey heron"], patterns=[r"4417"]),
        ProfanityModerator(),
        FunctionModerator(lambda texts: [None] * len(texts)),
    ]
    for moderator in [*moderators, MaxModerator(moderators), CachedModerator(moderators[0])]:
        scores = moderator.moderate(items)
        assert all(0 <= score <= 1 or reason_of(score) for score in scores)
        again = moderator.moderate(items)
        assert str(scores) == str(again)
        json_line([*scores]).encode()
    for moderator in moderators[:3]:  # none of them says what these look for
        assert set(moderator.moderate(items)) == {0.0}
