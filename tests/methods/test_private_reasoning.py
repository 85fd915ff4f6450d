"""Private reasoning reaches nobody but the attacker, and is trained like the rest of its output."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from astra_rl import (
    GRPO,
    ASTEnvironment,
    ASTEvaluator,
    ConfigurationError,
    FunctionModerator,
    Node,
    Utterance,
)
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.core.extraction import Extraction
from astra_rl.core.seeding import row_seeds
from astra_rl.core.text import Conversation, NoAttack, NotAsked, written_text
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels, record_path
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.ast_problem import ASTProblem
from astra_rl.methods.environments import PrunedTreeEnvironment, SelfPlayEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.rewards import Extracted, Format, Gate, Harm
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.runner import run_experiment
from astra_rl.testing import ToyProblem, tiny_model

EXTRACT = Extraction(pattern=r" (?:calm|nice|boom|tree|rain) (\w+)")
"""The first word is private; an output that starts with "song" has no attack."""


class Reasoning(ToyProblem, ASTProblem):
    """Its attacker writes two words, of which the first is private reasoning."""

    def __init__(self, reward: Any = None) -> None:
        self.judged: list[str] = []
        self.asked: list[str] = []
        ToyProblem.__init__(self, FunctionModerator(self._judge))
        self.reward_rule = reward or Gate(Harm(), Extracted(), at_least=1)

    reward = ASTProblem.reward
    advance = ASTProblem.advance

    def _judge(self, texts: Sequence[str]) -> list[float]:
        self.judged += [str(getattr(each, "attack", each)) + str(each) for each in texts]
        return [float("boom" in text) for text in texts]

    def rollout_prompt_with_attacker(self, contexts: Sequence[str]) -> list[Utterance]:
        said = super().rollout_prompt_with_attacker(contexts)
        return [
            EXTRACT(Utterance(each, token_ids=[self.words.index(w) for w in each.split()]))
            for each in said
        ]

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> list[str]:
        self.asked += contexts
        return [" " + context.split()[-1] for context in contexts]

    def _logprobs(self, logits: torch.Tensor, continuations: Sequence[str]) -> torch.Tensor:
        return super()._logprobs(logits, [written_text(each) for each in continuations])


def played(problem: Any, depth: int = 1, count: int = 12) -> list[Any]:
    environment = ASTEnvironment(problem, ["Hello "], tree_width=4, tree_depth=depth)
    return environment.rollouts(range(count))


def test_target_and_moderator_get_what_was_extracted_only() -> None:
    problem = Reasoning()
    nodes = [node for graph in played(problem, depth=2) for node in graph.nodes()]
    sent = [node for node in nodes if not isinstance(node.attack, NoAttack)]
    assert len(sent) < len(nodes)
    assert len(problem.asked) == len(sent)
    assert all(
        node.attack.written == f" {node.attack.written.split()[0]} {node.attack}" for node in sent
    )
    asked = [Conversation.of(context) for context in problem.asked]
    assert {len(attack.split()) for context in asked for attack in context.attacks} == {1}
    assert sorted(map(str, asked)) == sorted(str(node.context) + str(node.attack) for node in sent)
    assert {len(text.split()) for text in problem.judged} == {2}  # an attack and its response


def test_an_output_without_an_attack_is_not_sent_and_has_the_reward_of_its_format() -> None:
    problem = Reasoning()
    graphs = played(problem, depth=2)
    malformed = [n for graph in graphs for n in graph.nodes() if isinstance(n.attack, NoAttack)]
    assert malformed
    for node in malformed:
        assert isinstance(node.response, NotAsked)
        assert (node.reward, node.reward_terms["extracted"]) == (0.0, 0.0)
        assert math.isnan(node.reward_terms["harm_response"])
        assert not node.children
        assert not node.truncated


@pytest.mark.parametrize("reward", [None, Harm()])
def test_without_a_reward_of_the_format_its_reward_is_missing(reward: Any) -> None:
    """Never zero, and never that of a target that was asked nothing."""

    class Own(Reasoning):
        def reward(self, contexts: Any, attacks: Any, responses: Any) -> list[float]:
            return [1.0 for _ in attacks]

    problem = Reasoning(reward) if reward is not None else Own()
    for graph in played(problem):
        for node in graph.children:
            assert math.isnan(node.reward) == isinstance(node.attack, NoAttack)


def test_a_pruned_tree_drops_what_is_malformed() -> None:
    problem = Reasoning()
    environment = PrunedTreeEnvironment(
        problem, ["Hello "], tree_width=4, tree_depth=2, quality=Extracted()
    )
    nodes = [node for graph in environment.rollouts(range(8)) for node in graph.nodes()]
    assert {math.isnan(node.reward) for node in nodes if isinstance(node.attack, NoAttack)} == {
        True
    }
    assert not any(math.isnan(n.reward) for n in nodes if not isinstance(n.attack, NoAttack))


def test_the_format_is_looked_for_in_the_whole_output() -> None:
    problem = Reasoning(Format("boom"))
    for graph in played(problem):
        for node in graph.children:
            assert node.reward == float("boom" in node.attack.written)


def test_tokens_of_reasoning_and_answer_are_trained() -> None:
    """The gradient of GRPO by hand: both words of every output have the output's advantage."""
    problem = Reasoning()
    graphs = played(problem, count=3)
    algorithm = GRPO(problem, scale="none")
    steps = [step for graph in graphs for step in algorithm.flatten(graph)]
    batch = algorithm.collate_fn(list(algorithm.prepare(steps)))
    algorithm.step(batch)[0].backward()
    table = problem.attacker.detach().clone().requires_grad_()
    logprobs = table.log_softmax(0)
    loss = torch.zeros(())
    for graph in graphs:
        mean = sum(node.reward for node in graph.children) / 4
        for node in graph.children:
            first, second = (problem.words.index(w) for w in node.attack.written.split())
            loss = loss - (node.reward - mean) * (logprobs[first] + logprobs[second]) / 2 / 12
    loss.backward()
    torch.testing.assert_close(problem.attacker.grad, table.grad)


def test_it_is_an_outcome_of_its_own_and_counts_as_no_success() -> None:
    problem = Reasoning()
    environment = ASTEnvironment(problem, ["Hello "], tree_width=1, tree_depth=1)
    result = ASTEvaluator(environment, range(40)).run()
    outcomes = result.summary.outcomes
    assert outcomes[Outcome.NO_ATTACK] > 0
    assert outcomes[Outcome.ERROR] == outcomes[Outcome.UNSCORED] == 0
    assert result.summary.asr.trials == 40
    assert result.summary.asr_last_turn.trials == 40
    for attempt in result.attempts:
        again = Attempt.from_json(attempt.to_json())
        assert again == attempt
        (turn,) = again.turns
        none = attempt.outcome is Outcome.NO_ATTACK
        assert turn.without_attack == none == (not attempt.sent)
        assert turn.written.split()[-1] == turn.attack or none
        assert turn.attack_tokens == 2
        assert isinstance(again.exchanges()[0].response, NotAsked) == none
        assert not attempt.error


def test_it_is_no_error_where_the_opening_has_no_text_either() -> None:
    opening = Conversation("", brief="Write to the target.")
    node = Node(opening, NoAttack(written="well"), NotAsked(), math.nan)
    attempt = record_path([node], opening, Labels(), judge="j", scores=[math.nan], threshold=0.5)
    assert attempt.outcome is Outcome.NO_ATTACK
    assert not attempt.error


def test_a_defender_without_an_answer_gave_none() -> None:
    problem = Reasoning(Harm())
    environment = SelfPlayEnvironment(problem, ["Hello "], tree_width=4, replies=1)
    for graph in environment.rollouts(range(8)):
        for node in graph.children:
            assert math.isnan(node.reward) == (node.response == "")


def hf_problem(**options: Any) -> HFASTProblem:
    pair = tiny_model("llama")  # one vocabulary, plain text: ids of turns are reused
    sampling = Sampling(max_new_tokens=6)
    return HFASTProblem(
        pair,
        tiny_model("llama", seed=1),
        pair,
        FunctionModerator(lambda texts: [0.5 for _ in texts]),
        attacker_sampling=sampling,
        target_sampling=sampling,
        dtype="float32",
        **options,
    )


def test_a_target_with_the_attackers_vocabulary_reads_no_token_of_the_reasoning() -> None:
    problem = hf_problem(attacker_extraction=Extraction(pattern="..(.*)"))
    with row_seeds([1, 2, 3, 4]):
        attacks = problem.rollout_prompt_with_attacker(["say one"] * 4)
    whole = [each for each in attacks if len(each.written or "") > 2]
    assert whole
    for attack in whole:
        opening = Conversation("say one")
        ids = problem.target_renderer.render(opening + attack, reserve=6).ids
        assert ids == problem.target_renderer.render(opening + str(attack), reserve=6).ids
        # The attacker itself reads all that it wrote.
        state = opening + attack + "reply"
        own = problem.attacker_renderer.render(state, reserve=6).ids
        written = opening + Utterance(attack.written, token_ids=attack.token_ids) + "reply"
        assert own == problem.attacker_renderer.render(written, reserve=6).ids
        logprobs = problem.get_attacker_logprobs([opening], [attack])
        torch.testing.assert_close(logprobs[0].detach(), torch.tensor(attack.logprobs))
        assert len(problem.token_ends(attack)) == len(attack.token_ids)
        assert problem.token_ends(attack)[-1] == len(attack.written)


@pytest.mark.slow
def test_a_run_from_yaml_records_what_was_sent_and_what_was_written(tmp_path: Path) -> None:
    for seed, role in enumerate(("attacker", "target")):
        model, tokenizer = tiny_model("llama", window=256, seed=seed)
        model.save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    (tmp_path / "train.txt").write_text("hello there\nwhat is new\n")
    (tmp_path / "test.txt").write_text("good evening\n")
    config = {
        "attacker": {
            "model": str(tmp_path / "attacker"),
            "max_new_tokens": 6,
            "extract": {"pattern": "[^a].(.*)"},
        },
        "target": {"model": str(tmp_path / "target"), "max_new_tokens": 6},
        "moderator": {"type": "keyword", "options": {"patterns": ["e"]}},
        "prompts": {"file": str(tmp_path / "train.txt"), "test_file": str(tmp_path / "test.txt")},
        "reward": {"gate": {"part": "harm", "when": "extracted", "at_least": 1}},
        "training": {"steps": 2, "episodes_per_step": 4, "batch_size": 8},
        "evaluation": {"before": False, "trials": 8},
        "dtype": "float32",
        "device": "cpu",
    }
    folder = RunFolder(tmp_path / "run")
    result = run_experiment(resolve(parse_config(yaml.safe_dump(config), source="extract")), folder)
    assert sum(result.after.summary.outcomes.values()) == 8
    lines = [json.loads(line) for line in folder.attempts.read_text("utf-8").splitlines()]
    turns = [turn for line in lines for turn in line["turns"]]
    sent = [turn for turn in turns if turn["finish_reason"] != "not_asked"]
    assert all(turn["written"][2:] == turn["attack"] for turn in sent)
    assert {line["outcome"] for line in lines} & {"no_attack", "success", "failure"}
    assert parse_config(
        parse_config(yaml.safe_dump(config), source="a").to_yaml(), source="b"
    ).attacker.extract == Extraction(pattern="[^a].(.*)")


def test_the_yaml_is_checked() -> None:
    base = (
        "{attacker: {model: a, extract: %s}, target: {model: t}, moderator: {type: refusal}, "
        "prompts: {scenario: planted_secrets}}"
    )
    assert parse_config(base % "{tag: prompt}", source="x").attacker.extract == Extraction("prompt")
    for wrong in ("{tag: prompt, pattern: (a)}", "{}", "{tag: <a>}", "{name: a}"):
        with pytest.raises(ConfigurationError):
            parse_config(base % wrong, source="x")
