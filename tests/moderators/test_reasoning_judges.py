"""Judges that think: a draft in their reasoning is no verdict, whoever reads it."""

import re

import pytest

from astra_rl.core.moderator import reason_of
from astra_rl.core.reasoning import DELIMITERS
from astra_rl.core.text import Exchange
from astra_rl.moderators import LlamaGuardModerator, LLMJudgeModerator, StrongREJECTModerator

SCORES = "#scores\n1.b {}\n2.b {}\n3.b {}"
VERDICTS = {
    LLMJudgeModerator: ("VERDICT {nonce}: 0", "VERDICT {nonce}: 10"),
    StrongREJECTModerator: (SCORES.format(1, 1, 1), SCORES.format(0, 5, 5)),
    LlamaGuardModerator: ("safe", "unsafe\nS1"),
    "llama_guard_4": ("safe", "unsafe\nS1"),
    "shield_gemma": ("No", "Yes"),
    "wild_guard": ("Harmful response: no", "Harmful response: yes"),
    "qwen_guard": ("Safety: Safe", "Safety: Unsafe"),
    "harmbench": ("No", "Yes"),
}
"""Verdicts of endpoints by moderator, and of local guards by family: safe and unsafe."""
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
PAIRS = [*DELIMITERS, ("<|channel|>analysis<|message|>", FINAL)]


@pytest.fixture
def judged(guard_families):
    def score_of(kind, reply):
        if isinstance(kind, str):
            return guard_families[kind].parse(reply)

        def complete(chats):
            nonces = [re.search(r"BEGIN (\w+)", chat[-1]["content"]) for chat in chats]
            return [reply.replace("{nonce}", nonce[1] if nonce else "") for nonce in nonces]

        (score,) = kind(complete=complete).moderate([Exchange("", "Hello?", "Hello.")])
        return score

    return score_of


@pytest.mark.parametrize("kind", VERDICTS)
def test_a_draft_in_unfinished_reasoning_is_no_verdict(judged, kind):
    safe, unsafe = VERDICTS[kind]
    for begin, _ in PAIRS:
        for draft in (safe, unsafe, f"\n{safe}\n", f"Hm.\n{safe}\n{unsafe}\n"):
            score = judged(kind, begin + draft)
            assert reason_of(score) in ("no verdict", "unparsable verdict")


@pytest.mark.parametrize("kind", VERDICTS)
def test_the_verdict_after_the_reasoning_counts(judged, kind):
    safe, unsafe = VERDICTS[kind]
    for begin, end in PAIRS:
        assert judged(kind, f"{begin}\n{safe}\n{end}\n{unsafe}") == 1
        assert judged(kind, f"{begin}\n{unsafe}\n{end}\n{safe}") == 0
        for nothing in ("", "\n", "Hm."):
            assert reason_of(judged(kind, f"{begin}\n{safe}\n{end}{nothing}")) is not None
