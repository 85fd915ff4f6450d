"""A trained attacker without its target."""

import pytest
from tests.bridges.making import opening

from astra_rl.bridges.attacker import TrainedAttacker, conversation_of, openings_of
from astra_rl.config.loading import load_recorded_config
from astra_rl.core.seeding import row_seeds
from astra_rl.core.text import GOAL, Conversation
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.moderators.keywords import KeywordModerator
from astra_rl.runs.folder import RunFolder
from astra_rl.testing import tiny_model


@pytest.fixture(scope="module")
def attacker(run):
    return TrainedAttacker(run)


def test_it_writes_what_it_writes_in_an_evaluation_of_its_run(run, attacker):
    """The oracle is the problem of an evaluation, which loads the target too."""
    config = load_recorded_config(RunFolder(run).config)
    model = str(run / "checkpoints" / "last")
    problem = HFASTProblem(
        model,
        tiny_model("gpt2", seed=1),
        model,
        KeywordModerator(["leak"]),
        dtype="float32",
        attacker_sampling=config.attacker.sampling(),
    )
    first = opening("good evening", "a leak")
    contexts = [first, first + "Hello" + "No."]
    with row_seeds([1, 2]):
        expected = problem.rollout_prompt_with_attacker(contexts)
    written = attacker.write(contexts, [1, 2])
    assert written == expected
    assert [each.token_ids for each in written] == [each.token_ids for each in expected]
    assert attacker.write(contexts[1:], [2]) == expected[1:]  # in any batch


def test_its_brief_is_that_of_the_run_without_the_goals(run, attacker):
    assert attacker.brief == "You are a user."
    begun = attacker.opening("hello", goal="more")
    assert begun.brief == "You are a user.\n\nmore"
    assert begun.facts == {GOAL: "more"}
    assert attacker.opening("hello").brief == "You are a user."
    assert [each.prompt for each in openings_of(run)] == [
        "good evening", "hello", "what is new", "bye",
    ]  # fmt: skip


def test_a_chat_is_a_conversation_whose_attacks_are_the_messages_of_the_user():
    begun = Conversation(brief="b", facts={"secret": "s"}, separator="\n")
    chat = [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "four"},
    ]
    found = conversation_of(chat, begun)
    assert found.turns == ("one", "two", "three\nmore", "four")
    assert (found.system, found.brief, found.facts) == ("sys", "b", {"secret": "s"})
    assert conversation_of(chat[:2], begun).prompt == "one"
    assert conversation_of([], begun) == begun


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "assistant", "content": "a"}], "message 1 has the role 'assistant'"),
        ([{"role": "tool", "content": "a"}], "message 1 has the role 'tool'"),
        ([{"role": "user", "content": ["a"]}], "message 1: its content is list"),
        (
            [{"role": r, "content": "a"} for r in ("user", "assistant", "user")],
            "ends with the assistant",
        ),
    ],
)
def test_a_chat_that_is_no_conversation_is_refused(chat, message):
    with pytest.raises(ConfigurationError, match=message):
        conversation_of(chat, Conversation())


def test_a_conversation_without_a_response_is_refused(attacker):
    with pytest.raises(ConfigurationError, match="no response yet"):
        attacker.write([Conversation("a") + "b"])


def test_a_run_without_a_trained_attacker_is_refused(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ConfigurationError, match=r"no trained attacker: .*last is missing"):
        TrainedAttacker(tmp_path)
