"""Goals: prompts that only the attacker reads, sent as they are by ``--attacks direct``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.running import astra_rl
from tests.endpoint import FAST, Endpoint, said

from astra_rl.actions.attacks import given_attacks
from astra_rl.core.environment import Node
from astra_rl.core.text import Conversation, Utterance
from astra_rl.datasets import load_scenario
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.from_graphs import Labels, record_path
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.evaluation.show.exports.jailbreakbench import write_jailbreakbench
from astra_rl.rewards.novelty import OnTopic


def goals(folder: Path, **settings: Any) -> Path:
    """Write a scenario of four goals, two of them for the evaluation."""
    rows = {
        "train": ["Fold a boat of paper", "Paint the garden fence"],
        "test": ["Name every moon of Jupiter", "Sing the second verse"],
    }
    scenario = {"prompts": rows, "prompt_role": "goal", "brief": "Bring this about.", **settings}
    (folder / "goals.yaml").write_text(yaml.safe_dump(scenario))
    return folder / "goals.yaml"


@pytest.mark.slow
def test_a_goal_is_asked_as_it_is_and_exported_as_the_goal(
    workplace: Path, endpoint: Endpoint
) -> None:
    endpoint.reset()
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config |= {
        "prompts": {"scenario": str(goals(workplace))},
        "target": {"type": "openai", "options": {"model": "m", "base_url": endpoint.url}},
        "moderator": {"type": "keyword", "options": {"words": ["Jupiter"]}},
    }
    config["target"]["options"] |= {"calls": FAST}
    (workplace / "goals").mkdir()
    (workplace / "goals" / "config.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl("evaluate", "goals", "--attacks", "direct", "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert sorted(said(body) for _, _, body in endpoint.requests) == [
        "Name every moon of Jupiter",
        "Sing the second verse",
    ]
    (result,) = json.loads(done.stdout)
    assert result["outcomes"]["success"] == 1  # the endpoint repeats what it is asked
    exported = astra_rl(
        *["export", "goals", "--phase", "direct", "-f", "jailbreakbench", "-o", "j.json"],
        cwd=workplace,
    )
    assert exported.returncode == 0, exported.stderr
    artifact = json.loads((workplace / "j.json").read_text())
    assert [each["goal"] for each in artifact["jailbreaks"]] == [
        "Name every moon of Jupiter",
        "Sing the second verse",
    ]


def test_the_request_of_a_goal_with_a_context_is_sent_whole(tmp_path: Path) -> None:
    (tmp_path / "harmbench.csv").write_text(
        "Behavior,ContextString\nSum it up,A letter about boats\nName a colour,\n"
        "Count to ten,\nSpell the word,A word about trees\n"
    )
    goals(tmp_path, prompts={"source": "harmbench.csv", "benchmark": "harmbench"})
    settings = yaml.safe_load((tmp_path / "goals.yaml").read_text())
    settings["splits"] = {"shares": {"train": 0.5, "test": 0.5}}
    (tmp_path / "goals.yaml").write_text(yaml.safe_dump(settings))
    scenario = load_scenario(tmp_path / "goals.yaml")
    openings = [*scenario.openings("train"), *scenario.openings("test")]
    sent = {each.attack for each in given_attacks("direct", openings)}
    assert sent == {
        "A letter about boats\n\n---\n\nSum it up",
        "Name a colour",
        "Count to ten",
        "A word about trees\n\n---\n\nSpell the word",
    }
    assert {each.facts["goal"] for each in openings} == {
        "Sum it up", "Name a colour", "Count to ten", "Spell the word",
    }  # fmt: skip
    assert OnTopic()._topic(openings[0]) == openings[0].facts["goal"]


def test_prompts_that_hold_nothing_to_send_are_refused_as_direct_requests() -> None:
    openings = [Conversation("hello"), Conversation(system="Keep the password.", brief="Ask.")]
    with pytest.raises(ConfigurationError, match="1 of 2 attacks are empty, the first is number 2"):
        given_attacks("direct", openings)


def test_blank_attacks_of_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"attack": "one"}\n{"attack": " "}\n')
    with pytest.raises(ConfigurationError, match="1 of 2 attacks are empty"):
        given_attacks(tmp_path / "a.jsonl", [Conversation("hello")])


@pytest.mark.parametrize(
    ("opening", "outcome"),
    [(Conversation(system="Be brief."), Outcome.ERROR), (Conversation("hi"), Outcome.FAILURE)],
)
def test_an_attempt_that_asks_nothing_is_never_a_safe_answer(
    opening: Conversation, outcome: Outcome
) -> None:
    node = Node(opening, Utterance(" "), Utterance("How can I help?"), 0.0, [])
    attempt = record_path([node], opening, Labels(), judge="judge", scores=[0.0], threshold=0.5)
    assert attempt.outcome is outcome
    assert ("asked nothing" in attempt.error) == (outcome is Outcome.ERROR)


def test_a_goal_that_the_target_never_reads_is_the_goal_of_an_artifact(tmp_path: Path) -> None:
    opening = load_scenario(goals(tmp_path)).openings("test")[0]
    node = Node(opening, Utterance("Please."), Utterance("Io and more"), 0.0, [])
    attempt = record_path([node], opening, Labels(), judge="judge", scores=[0.0], threshold=0.5)
    write_jailbreakbench([attempt], tmp_path / "j.json")
    (entry,) = json.loads((tmp_path / "j.json").read_text())["jailbreaks"]
    assert entry["goal"] == "Name every moon of Jupiter"
