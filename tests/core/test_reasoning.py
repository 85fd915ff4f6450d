import pytest

from astra_rl.core.reasoning import DELIMITERS, Reply, split_reply


@pytest.mark.parametrize(("begin", "end"), DELIMITERS)
def test_reasoning_before_an_answer_is_separated(begin, end):
    text = f"\n{begin}\nThe secret is zebra.\n{end}\n\nI can't say."
    assert split_reply(text) == Reply(
        "I can't say.", "The secret is zebra.", text.index("I can't say.")
    )
    assert split_reply(f"{begin}Hm.{end}{begin}Hm?{end} Yes.")[:2] == ("Yes.", "Hm.\n\nHm?")
    assert split_reply(f"{begin}\n\n{end}\n\nYes.")[:2] == ("Yes.", None)


@pytest.mark.parametrize(("begin", "end"), DELIMITERS)
def test_unfinished_reasoning_has_no_answer(begin, end):
    assert split_reply(f"{begin}VERDICT: 3")[:2] == (None, "VERDICT: 3")
    assert split_reply(f"{begin}Hm.{end}{begin}VERDICT")[:2] == (None, "Hm.\n\nVERDICT")
    assert split_reply("still thinking", end=end)[:2] == (None, "still thinking")
    assert split_reply(f"{begin}Hm.{end}")[:2] == ("", "Hm.")


@pytest.mark.parametrize(("begin", "end"), DELIMITERS)
def test_a_start_in_the_prompt_needs_none_in_the_reply(begin, end):
    assert split_reply(f"Hm.\n{end}\n\nYes.")[:2] == ("Yes.", "Hm.")
    assert split_reply(f"Hm.\n{end}\n\nYes.", end=end)[:2] == ("Yes.", "Hm.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "The secret is zebra. </think> Bye.",
        "zebra\n</think> Bye.",
        "A tag looks like <think>this</think>.",
        "2 < 3",
        "I think so",
        "<thin>k</thin>",
    ],
)
def test_a_text_without_reasoning_is_the_answer(text):
    assert split_reply(text) == Reply(text)


def test_only_given_delimiters_count():
    text = "<think>Hm.</think>Yes."
    assert split_reply(text, [("[THINK]", "[/THINK]")]) == Reply(text)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        (
            "<|channel|>analysis<|message|>the user asks<|end|><|start|>assistant<|channel|>final"
            "<|message|>Four.<|return|>",
            "Four.",
            "the user asks",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f "
            "<|constrain|>json<|message|>{}<|call|>",
            None,
            "a\n\n{}",
        ),
        ("<|channel|>final<|message|>Four.", "Four.", None),
        ("<|channel|>analysis<|message|>the user", None, "the user"),
    ],
)
def test_channels_are_told_apart(text, answer, reasoning):
    reply = split_reply(text)
    assert reply[:2] == (answer, reasoning)
    if answer is not None:
        assert text[reply.start :].startswith(answer)
