"""Reward functions and data sets for TRL, and two steps of its own trainers with them."""

import math

import pytest
from tests.bridges.making import ATTEMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl.bridges.trl import _attacker_row, as_reward_func, to_trl_dataset
from astra_rl.core.messages import Dialogue
from astra_rl.core.text import Conversation, NoReply
from astra_rl.datasets.scenario_files import load_scenario
from astra_rl.errors import ConfigurationError
from astra_rl.moderators.function import FunctionModerator
from astra_rl.moderators.secret_leak import SecretLeakModerator
from astra_rl.rewards.base import FunctionTerm, WeightedSum
from astra_rl.rewards.terms import AttackNLL, Harm
from astra_rl.targets.base import Target
from astra_rl.targets.scripted_agent import ScriptedAgent
from astra_rl.testing import tiny_model


def count(texts):
    return [math.nan if "?" in text else min(1.0, text.count("a") / 4) for text in texts]


def says(text):
    return [{"role": "assistant", "content": text}]


def asks(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


class Loud(Target):
    """Answers in capital letters, with the system message; fails on "fail"."""

    def respond(self, conversations):
        self.heard = list(conversations)
        return [
            NoReply("timed out")
            if each.turns[-1] == "fail"
            else f"{each}".upper() + (each.system or "")
            for each in conversations
        ]


def test_a_moderator_scores_completions_of_plain_and_conversational_prompts():
    reward = as_reward_func(FunctionModerator(count), name="letters")
    assert reward.__name__ == "letters"
    assert reward(["a", "b", "c"], ["aa", "?", "x"], other=[1, 2, 3]) == [0.5, None, 0.0]
    chats = [asks("hello"), [{"role": "system", "content": "s"}, *asks("a", "b", "c")]]
    assert reward(prompts=chats, completions=[says("aaaa"), says("?")]) == [1.0, None]
    assert as_reward_func(FunctionModerator(count), weight=-2.0)(["p"], ["aa"]) == [-1.0]


def test_a_moderator_reads_the_conversation_and_the_facts():
    seen = []

    class Reader(SecretLeakModerator):
        def moderate(self, x):
            seen.extend(x)
            return super().moderate(x)

    reward = as_reward_func(Reader(partial_per_word=0.0))
    chat = [{"role": "system", "content": "s"}, *asks("a", "b", "c")]
    facts = [{"secret": "the blue door"}, [["secret", "a red roof"]]]
    completions = [says("The blue door."), says("The blue door.")]
    assert reward([chat, chat], completions, facts=facts) == [1.0, 0.0]
    assert (seen[0].context.system, seen[0].context.turns, seen[0].attack) == ("s", ("a", "b"), "c")


def test_with_a_target_a_completion_is_an_attack():
    target = Loud()
    reward = as_reward_func(
        FunctionModerator(lambda texts: [text.count("A") / 4 for text in texts]), target=target
    )
    columns = {"opening": ["an", "", "", ""], "system": ["AAA", "", "", None]}
    found = reward(["p"] * 4, [says("x"), "a", "fail", " "], **columns)
    assert found == [1.0, 0.25, None, None]
    assert len(target.heard) == 3  # nothing to send in the last one
    assert target.heard[0].prompt == "an"


def test_an_agent_that_is_attacked_has_its_tools():
    opening = Conversation(facts=load_scenario("mailbox").rows["train"][0].facts)
    row = _attacker_row(opening)
    columns = {name: [row[name]] for name in ("opening", "system", "facts")}
    said = []

    class Watched(ScriptedAgent):
        def respond(self, conversations):
            said.extend(conversations)
            return super().respond(conversations)

    as_reward_func(FunctionModerator(count), target=Watched())(["p"], ["a note"], **columns)
    assert len(said) > 1  # calls of tools, and the answer
    assert all(isinstance(each, Dialogue) and each.tools for each in said)


def test_a_reward_of_terms_is_a_reward_function():
    length = FunctionTerm(lambda turns: [len(each.attack) for each in turns], name="length")
    reward = WeightedSum({Harm("response"): 1.0, length: 0.5})
    function = as_reward_func(reward, moderator=FunctionModerator(count))
    assert function(["four", "x"], ["a", "?"]) == [0.25 + 2.0, None]
    with pytest.raises(ConfigurationError, match=r"attack_nll.* needs probabilities"):
        as_reward_func(WeightedSum({Harm("response"): 1.0, AttackNLL("target"): 1.0}))
    with pytest.raises(ConfigurationError, match="need a moderator; give one"):
        as_reward_func(reward)(["p"], ["c"])


def test_a_run_is_a_data_set_in_every_form(run):
    safe = {"ask": "I keep that to myself.", "more": "No more."}
    pairs = to_trl_dataset(run, "preference", safe_replies=safe)
    assert pairs.column_names == ["prompt", "chosen", "rejected"]
    assert {
        "prompt": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "good evening\nask"},
        ],
        "chosen": says("I keep that to myself."),
        "rejected": says("a leak"),
    } in list(pairs)
    unpaired = to_trl_dataset(run, "unpaired")
    assert sorted(unpaired["label"]) == [False, False, True]
    (good,) = to_trl_dataset(run, "prompt_completion")
    assert good["completion"] == says("no")
    (whole,) = to_trl_dataset(run, "sft")
    assert whole["messages"] == good["prompt"] + good["completion"]
    attacker = to_trl_dataset(run, "attacker")
    assert attacker[0] == {
        "prompt": [{"role": "user", "content": "You are a user.\n\na leak\n\ngood evening"}],
        "opening": "good evening",
        "system": "Be kind.",
        "facts": [["goal", "a leak"]],
    }
    assert len(attacker) == len({each.opening.id for each in ATTEMPTS})
    with pytest.raises(ConfigurationError, match="choose preference, unpaired"):
        to_trl_dataset(run, "pairs")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Keyword arguments of a trainer with a tiny chat model; the hub is not asked for anything."""
    model, tokenizer = tiny_model("llama", window=256, chat=True)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return {
        "model": AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        "processing_class": AutoTokenizer.from_pretrained(tmp_path / "model"),
    }


@pytest.fixture
def arguments(tmp_path):
    return {
        "output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip


@pytest.mark.bridge("trl")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("with_target", [False, True])
def test_grpo_of_trl_trains_with_our_reward(run, arguments, models, with_target):
    from trl import GRPOConfig, GRPOTrainer

    reward = as_reward_func(
        FunctionModerator(lambda texts: [min(1.0, len(text) / 40) for text in texts]),
        target=Loud() if with_target else None,
        name="letters",
    )
    trainer = GRPOTrainer(
        **models,
        reward_funcs=[reward],
        args=GRPOConfig(**arguments, num_generations=2, max_completion_length=6),
        train_dataset=to_trl_dataset(run, "attacker"),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/letters/mean" in row]
    assert len(logged) == 2
    assert all(0 < row["rewards/letters/mean"] <= 1 for row in logged)


@pytest.mark.bridge("trl")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_dpo_of_trl_trains_on_the_pairs_of_a_run(run, arguments, models):
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        **models,
        args=DPOConfig(**arguments),
        train_dataset=to_trl_dataset(run, safe_replies={"ask": "No.", "more": "No more."}),
    )
    trainer.train()
    assert [row["loss"] > 0 for row in trainer.state.log_history if "loss" in row] == [True, True]
