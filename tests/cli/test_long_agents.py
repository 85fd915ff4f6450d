"""Long conversations with agents by the command line: turns that are taken back, and compaction."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.cli.running import astra_rl
from tests.evaluation.show.report.making import unpacked
from tests.scripted_attacker import save_scripted_attacker

from astra_rl.agents.history import BACK, NOT_TAKEN_BACK, TAKEN_BACK, compacted
from astra_rl.agents.registry import load_world
from astra_rl.core.text import Conversation
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.base import content_digest
from astra_rl.models import rendering
from astra_rl.runs.attempt_log import AttemptLog

pytestmark = pytest.mark.slow


def deleting_agent(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """Delete one mail after the other, one per turn; a file makes it stop the run after a step."""
    stop = Path("stop.txt")
    if stop.is_file():
        stop.unlink()
        os.kill(os.getpid(), signal.SIGTERM)
    if messages[-1]["role"] == "tool":
        return f"Done after {len(messages)} messages."
    deleted = sum(each["role"] == "tool" for each in messages)
    call = {"name": "delete_mail", "arguments": {"number": str(1 + deleted % 5)}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    save_scripted_attacker(folder / "attacker", {BACK: 0.5, "hi": 0.5}, window=4096)
    return folder


def trained(
    place: Path, name: str, agent: dict[str, Any], episodes: int = 2, **environment: Any
) -> Path:
    """Train a run as a whole, and again with a stop after the first step; return its folder."""
    scenario = {"agent": {"world": "mailbox", **agent}, "moderator": "hijack", "threshold": 1.0}
    (place / f"{name}-scenario.yaml").write_text(yaml.safe_dump(scenario))
    config = {
        "attacker": {"model": "attacker", "max_new_tokens": 8},
        "target": {"type": f"{__name__}:deleting_agent"},
        "prompts": {"scenario": f"{name}-scenario.yaml", "train": 2, "test": 1},
        "environment": {"type": "tools", "options": environment},
        "reward": "harm",
        "algorithm": {"type": "reinforce", "options": {"credit": "return_to_go"}},
        "training": {"steps": 2, "episodes_per_step": episodes, "batch_size": 64, "lr": 1e-3,
                     "save_every": 1},
        "evaluation": {"before": False},
        "dtype": "float32",
    }  # fmt: skip
    (place / f"{name}.yaml").write_text(yaml.safe_dump(config))
    done = astra_rl("train", f"{name}.yaml", "-o", name, cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "stop.txt").touch()
    stopped = f"{name}-stopped"
    assert astra_rl("train", f"{name}.yaml", "-o", stopped, cwd=place).returncode == 130
    assert len(attempts(place / stopped)) < len(attempts(place / name))
    done = astra_rl("resume", stopped, cwd=place)
    assert done.returncode == 0, done.stderr
    assert attempts(place / stopped) == attempts(place / name)
    weights = [
        load_file(place / each / "checkpoints/last/model.safetensors") for each in (name, stopped)
    ]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    return place / name


def attempts(run: Path) -> list[Attempt]:
    with AttemptLog(run / "attempts.jsonl") as log:
        found = sorted(log, key=lambda each: each.id)
    return [each.model_copy(update={"started": None, "seconds": None, "run": ""}) for each in found]


def check_states(attempt: Attempt) -> set[str]:
    """Check the state after each turn by a stack of states; return how turns ended."""
    stack: list[tuple[str, float | None]] = []
    start = content_digest(load_world("mailbox").new_state())
    ended = set()
    for turn in attempt.turns:
        assert turn.trace is not None
        ended.add(turn.trace.ended)
        if turn.attack.strip() != BACK:
            assert turn.trace.ended == "answered"
            stack.append((turn.trace.state, turn.trace.hijack))
            continue
        stays = not stack or stack[-1][1] != 0.0
        assert turn.trace.ended == (NOT_TAKEN_BACK if stays else TAKEN_BACK)
        assert (turn.trace.messages, turn.trace.queries, turn.trace.hijack) == ((), 0, 0.0)
        if not stays:
            stack.pop()
        assert turn.trace.state == (stack[-1][0] if stack else start)
    return ended


def test_an_attacker_takes_turns_back_through_training_resume_and_report(place: Path) -> None:
    run = trained(place, "back", {"rollback": True}, tree_width=2, tree_depth=4)
    played = attempts(run)
    assert {"answered", TAKEN_BACK, NOT_TAKEN_BACK} == set().union(*map(check_states, played))
    # Siblings of one state: what one took back the other still has.
    assert len({len(each.branch) for each in played if each.phase == "training"}) == 1
    shown = json.dumps(unpacked((run / "report.html").read_text("utf-8"), "chunk-0"))
    assert f'"ended": "{TAKEN_BACK}"' in shown
    assert f'"attack": "{BACK}"' in shown
    for command in (("replay", "back"), ("score", "back", "--moderator", "hijack"),
                    ("export", "back", "--format", "unpaired")):  # fmt: skip
        done = astra_rl(*command, cwd=place)
        assert done.returncode == 0, (command, done.stderr)


def test_a_conversation_of_33_turns_is_compacted_in_training_resume_and_report(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def recorded(conversation: Conversation) -> Conversation:
        found = compacted(conversation)
        read.append(len(found.turns) // 2)
        assert (found is conversation) == ("are left out" not in (found.brief or ""))
        return found

    monkeypatch.setattr(rendering, "compacted", recorded)
    agent = {"history": 3, "rollback": True, "limits": {"replies": 4}}
    run = trained(place, "long", agent, 1, tree_width=1, tree_depth=33)
    played = attempts(run)
    assert {len(each.turns) for each in played} == {33}
    assert len(played) == 2 * 1 + 1
    for attempt in played:
        check_states(attempt)
        assert attempt.opening.facts["agent.history"] == "3"
        # The agent reads everything that was not taken back; its answer counts the messages.
        kept = sum(turn.trace.ended == "answered" for turn in attempt.turns if turn.trace)
        kept -= sum(turn.trace.ended == TAKEN_BACK for turn in attempt.turns if turn.trace)
        answers = [turn.response for turn in attempt.turns if turn.response.startswith("Done")]
        assert max(int(each.split()[2]) for each in answers) >= 4 * kept - 1
    assert max(read) == 2 * 3 - 1  # in sampling and in the update
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step["overflows"] for step in steps] == [0, 0]
    shown = json.dumps(unpacked((run / "report.html").read_text("utf-8"), "chunk-0"))
    assert shown.count('"trace"') == sum(len(each.turns) for each in played)
