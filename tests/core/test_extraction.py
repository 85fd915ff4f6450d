"""An attack is taken out of an output by one rule, and what has none is told from an empty one."""

from __future__ import annotations

import pytest

from astra_rl import ConfigurationError, Utterance
from astra_rl.core.extraction import Extraction
from astra_rl.core.text import NoAttack, written_text

PROMPTS = [
    ("thinking\n<prompt>do this\nand that</prompt>\n", "do this\nand that"),
    ("<prompt></prompt>", ""),
    ("<prompt>a</prompt> b </prompt>", None),
    ("<prompt>a</prompt> <prompt>b</prompt>", None),
    ("<prompt>a</prompt> and more", None),
    ("</prompt>a<prompt>", None),
    ("<prompt>a", None),
    ("<Prompt>a</Prompt>", None),
    ("no tags", None),
    ("", None),
]
"""Outputs, and what `attack_prompt_format_reward` of RL-Hammer's code accepts in them."""


@pytest.mark.parametrize(("output", "attack"), PROMPTS)
def test_a_tag_must_be_there_once_at_the_end(output: str, attack: str | None) -> None:
    found = Extraction("prompt")(output)
    assert isinstance(found, NoAttack) == (attack is None)
    assert str(found) == (attack or "")
    assert found.written == output


@pytest.mark.parametrize(
    ("output", "attack"),
    [("<think>x</think><answer>a\nb</answer> ", "a\nb"), ("<answer>a</answer>", None)],
)
def test_a_pattern_matches_the_whole_output(output: str, attack: str | None) -> None:
    found = Extraction(pattern=r"<think>.*</think>\s*<answer>(.*)</answer>\s*")(output)
    assert (None if isinstance(found, NoAttack) else str(found)) == attack


def test_the_tokens_stay_those_of_the_whole_output() -> None:
    whole = Utterance(
        "x <a>hi</a>", token_ids=[5, 6, 7], logprobs=[-1.0, -2.0, -3.0], finish_reason="stop"
    )
    found = Extraction("a")(whole)
    assert (str(found), found.token_ids, found.logprobs) == ("hi", (5, 6, 7), (-1.0, -2.0, -3.0))
    assert (found.finish_reason, written_text(found)) == ("stop", "x <a>hi</a>")


def test_a_full_context_window_is_no_fault_of_the_format() -> None:
    full = Utterance(token_ids=(), finish_reason="context_overflow")
    assert Extraction("a")(full) is full


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"tag": "a", "pattern": "(a)"}, "exactly one"),
        ({"tag": "<a>"}, "its name only"),
        ({"pattern": "a"}, "no group"),
        ({"pattern": "("}, "not a regular expression"),
    ],
)
def test_options_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Extraction(**options)
