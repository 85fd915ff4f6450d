"""A league: equal numbers of target calls, finished runs kept, interrupted ones resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.cli.running import astra_rl

from astra_rl.actions import league as actions
from astra_rl.actions.league import run_league
from astra_rl.actions.league_table import COLUMNS, Cell
from astra_rl.bench import PlantedGame, save_planted_attacker
from astra_rl.bench.parts import HELD_OUT, REPORTED, START
from astra_rl.config.estimate import training_size
from astra_rl.config.league import load_league
from astra_rl.config.preset_files import preset_names
from astra_rl.config.resolve import resolve
from astra_rl.errors import (
    BudgetEndedError,
    BudgetSpentError,
    ConfigurationError,
    EndpointError,
    InterruptedRunError,
    NonFiniteLossError,
    StorageError,
)
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.methods.archive import STYLES
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import Recorded
from astra_rl.targets.budget import Budget
from astra_rl.targets.ledger import Ledger

GAME = {"modes": 10, "seed": 1, "words": 16}


@pytest.fixture(scope="module")
def attacker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacker")
    save_planted_attacker(PlantedGame(**GAME), folder)
    return str(folder)


@pytest.fixture
def write(tmp_path, attacker):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text(f"{START}\n")
    test.write_text(f"{HELD_OUT}\n")

    def make(**changes):
        settings = {
            "run": {
                "attacker": {"model": attacker, "max_new_tokens": 4},
                "target": {"type": "astra_rl.bench:PlantedTarget", "options": GAME},
                "moderator": {"type": "keyword", "options": {"words": [REPORTED]}},
                "prompts": {"file": str(train), "test_file": str(test), "role": "opening"},
                "reward": "harm",
                "environment": {"type": "single_turn", "tree_width": 8},
                "training": {"episodes_per_step": 2, "batch_size": 16, "lr": 1.0e-3},
                "evaluation": {"before": False, "trials": 4, "watch": 0},
            },
            "calls": 64,
            "seeds": [0],
            "methods": {
                "grpo": {},
                "known kinds": {
                    "reward": {
                        "novel_failure": {
                            "novelty_share": 1.0,
                            "nll_weight": 0.0,
                            "novelty": {"kind_novelty": {"similarity": 0.6}},
                        }
                    }
                },
            },
            **changes,
        }
        path = tmp_path / "league.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return make


@pytest.mark.slow
def test_one_command_writes_the_table_and_keeps_finished_runs(write, tmp_path, monkeypatch):
    path = write()
    done = astra_rl("league", str(path), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["methods"]) == ["grpo", "known kinds"]
    assert [cell["calls"] for cell in found["cells"]] == [64, 64]
    for cell in found["cells"]:
        # The likeliest of ten modes has probability 0.1: 64 calls miss it once in a thousand.
        assert 0.1 <= cell["recall"] <= 1.0
        assert 0.0 < cell["weighted_recall"] <= 1.0
        assert cell["effective_kinds"] >= 1.0
        assert 0.0 <= cell["asr"] <= 1.0
    folder = tmp_path / "leagues" / "league"
    assert (folder / "league.md").read_text().startswith("| method | seeds | calls |")
    monkeypatch.setattr(actions, "run_experiment", lambda *_, **__: pytest.fail("played again"))
    again = astra_rl("league", str(path), "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == found
    # Its folder stands for its runs, in the order of the methods.
    seeds = json.loads(astra_rl("seeds", str(folder), "--json", cwd=tmp_path).stdout)
    rates = [each["by_seed"]["0"]["asr"]["estimate"] for each in seeds["methods"].values()]
    assert rates == [pytest.approx(cell["asr"]) for cell in found["cells"]]


@pytest.mark.slow
def test_an_interrupted_league_ends_as_an_uninterrupted_one(write, tmp_path, monkeypatch):
    config = load_league(write(seeds=[0, 1]))
    whole = run_league(config, tmp_path / "whole")
    real, calls = actions.run_experiment, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(actions, "run_experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_league(config, tmp_path / "parts")
    assert run_league(config, tmp_path / "parts") == whole
    assert len(calls) == 5  # two runs, the interrupted one, and the two that were left


UNTRAINED = {"algorithm": {"type": "astra_rl.bench:NoTraining"}}
MUTE = {"environment": {"type": "goat", "tree_width": 8, "tree_depth": 1}}
"""GOAT with an attacker that writes no ``<message>`` tag, so that nothing is sent."""


@pytest.mark.slow
def test_a_method_that_fails_is_reported_and_tried_again_and_the_others_are_played(write, tmp_path):
    mute = {**MUTE, "training": {"max_unscored_steps": 2}}
    path = write(methods={"mute": mute, "grpo": {}}, seeds=[0, 1])
    for steps in (2, 4):  # the second command goes on where the first failed
        done = astra_rl("league", str(path), "--json", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        found = json.loads(done.stdout)
        assert [cell["method"] for cell in found["cells"]] == ["grpo", "grpo"]
        assert list(found["methods"]) == ["grpo"]
        first, second = found["failed"]
        assert (first["method"], first["seed"], second["seed"]) == ("mute", 0, 1)
        said = f"no valid reward in 2 consecutive training steps, up to step {steps}"
        assert said in first["reason"]
        assert f"mute, seed 0 failed: {said}" in done.stderr
    folder = tmp_path / "leagues" / "league"
    table = (folder / "league.md").read_text().splitlines()
    assert "grpo ` | 2 | 64 of 64 |" in table[2]
    assert "mute ` | 0 of 2 | failed |" in table[3]
    assert "mute, seed 0 failed: no valid reward" in table[5]
    assert len((folder / "league.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_a_search_without_training_goes_on_without_attacks_and_its_calls_are_counted(
    write, tmp_path
):
    file = write(
        calls=96,
        methods={
            "GOAT": {**UNTRAINED, **MUTE},
            "best of n": {**UNTRAINED, "environment": {"type": "best_of_n", "tree_width": 8}},
            "few-shot": {**UNTRAINED, "environment": {"type": "few_shot", "tree_width": 8}},
            "PAIR": {
                **UNTRAINED,
                "environment": {"type": "tap", "tree_width": 1, "tree_depth": 3},
                "training": {"episodes_per_step": 32},
            },
        },
    )
    league = run_league(load_league(file), tmp_path / "league")
    assert not league.failed
    assert {cell.method: cell.calls for cell in league.cells} == dict.fromkeys(
        ["GOAT", "best of n", "few-shot", "PAIR"], 96
    )
    made = {cell.method: cell.calls_made for cell in league.cells}
    assert (made["GOAT"], made["best of n"], made["few-shot"]) == (0, 96, 96)
    assert 32 < made["PAIR"] < 96  # a stream ends with its first success
    with Recorded(RunFolder(tmp_path / "league" / "PAIR" / "seed-0"), "training") as recorded:
        turns = [len(attempt.turns) for attempt in recorded.attempts()]
    assert made["PAIR"] == sum(turns)
    _, rows = league.table()
    assert {row[0]: row[2] for row in rows}["GOAT"] == "0 of 96"


def failing(monkeypatch, error):
    """Let the first run of a league fail, and all others return no result."""
    played = []

    def run(plan, folder, *_, **__):
        played.append(folder.path.parent.name)
        if len(played) == 1:
            raise error
        return SimpleNamespace(ended=None)

    numbers = dict.fromkeys((each.name for each in COLUMNS), 0.5)
    monkeypatch.setattr(actions, "run_experiment", run)
    monkeypatch.setattr(actions, "read_cell", lambda *of: Cell(*of[:2], 64, 64, numbers))
    return played


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteLossError("no finite loss in 5 steps.\nMore.", 3), "no finite loss in 5 steps."),
        (ConfigurationError("tree_depth=-1"), "tree_depth=-1"),
        (BudgetEndedError("the budget max_requests=3 is spent"), "max_requests=3 is spent"),
        (EndpointError("the judge answers with 500"), "the judge answers with 500"),
        (TypeError("of a method of the user"), "TypeError: of a method of the user"),
    ],
)
def test_an_error_of_a_run_does_not_end_the_league(write, tmp_path, monkeypatch, error, reason):
    played = failing(monkeypatch, error)
    league = run_league(load_league(write()), tmp_path / "out")
    assert len(played) == 2
    (failed,) = league.failed
    assert (failed.method, failed.seed) == ("grpo", 0)
    assert reason in failed.reason
    assert "\n" not in failed.reason


@pytest.mark.parametrize(
    "error", [InterruptedRunError("a signal"), StorageError("disk full"), KeyboardInterrupt()]
)
def test_a_signal_and_a_full_disk_end_the_league(write, tmp_path, monkeypatch, error):
    played = failing(monkeypatch, error)
    with pytest.raises(type(error)):
        run_league(load_league(write()), tmp_path / "out")
    assert len(played) == 1


def test_a_budget_of_the_whole_league_ends_it(write, tmp_path, monkeypatch):
    played = failing(monkeypatch, BudgetEndedError("max_requests"))
    ledger = Ledger(Budget(max_requests=1))
    ledger.admit("target")
    with ledger.charging(), pytest.raises(BudgetSpentError):
        run_league(load_league(write()), tmp_path / "out")
    assert len(played) == 1


def test_replies_of_a_tree_count_once_and_only_those_that_were_sent():
    """Two branches share their first turn; one output has no attack, one call failed."""

    def attempt(branch, *turns):
        return Attempt.make(
            run="r", phase="training", opening="p", target="t", attacker="a", turns=turns,
            judge="j", branch=branch,
        )  # fmt: skip

    said = Turn(attack="a", response="r")
    unsent = Turn(attack="", written="no tag", finish_reason="not_asked")
    lost = Turn(attack="a", finish_reason="error")
    trace = TraceRecord(queries=3)
    found = [
        attempt((0, 0), said, said),
        attempt((0, 1), said, unsent),
        attempt((1,), lost),
        attempt((2,), Turn(attack="a", response="r", trace=trace)),
    ]
    assert actions.replies_of(found) == 2 + 1 + 3
    # A reward that samples two more replies does so where there is a first one.
    assert actions.replies_of(found, per_answer=3) == 3 * 2 + 1 + 3 * 3


def test_every_method_gets_the_same_number_of_target_calls(write):
    """Presets that sample five replies per attack, or play trees, take fewer steps."""
    training = {"training": {"episodes_per_step": 2, "warmup_steps": 2}}
    presets = ["crt", "diverct", "gflownet", "stable_gfn", "astprompter", "rlhammer"]
    assert set(presets) <= set(preset_names())
    methods = {name: {"preset": name, **training} for name in presets}
    league = load_league(write(methods=methods, calls=4000))
    for name in presets:
        config = league.config(name, 7)
        size = training_size(resolve(config))
        one = size.replies / config.training.steps
        assert 4000 - one < size.replies <= 4000, name
        assert config.seed == 7
        assert config.attacker.max_new_tokens == 4  # of the league


def test_all_messages_of_an_agent_are_target_calls(write):
    """Each of 8 turns of a step has up to 8 messages, which is the limit of an agent."""
    path = write(calls=130)
    league = yaml.safe_load(path.read_text())
    league["run"] |= {
        "target": {"type": "scripted_agent"},
        "prompts": {"scenario": "mailbox", "train": 3, "test": 2},
        "environment": {"type": "tools", "options": {"tree_width": 4, "tree_depth": 1}},
    }
    del league["run"]["moderator"]
    league["methods"] = {"grpo": {}}
    path.write_text(yaml.safe_dump(league))
    size = training_size(load_league(path).plan("grpo", 0))
    assert (size.attempts, size.replies) == (16, 128)
    path.write_text(yaml.safe_dump({**league, "calls": 16}))
    with pytest.raises(ConfigurationError, match="up to 64 target calls, and calls is 16"):
        load_league(path)


def test_a_finished_run_of_other_settings_is_refused(write, tmp_path, monkeypatch):
    """A changed league in the same folder must not show the old runs under the new settings."""
    methods = {"grpo": {}}
    first = load_league(write(calls=16, methods=methods))

    def finished(plan, run, *_, **__):
        run.write_text(run.config, plan.record.yaml)
        return SimpleNamespace(ended=None)

    monkeypatch.setattr(actions, "run_experiment", finished)
    monkeypatch.setattr(actions, "is_complete", lambda run: run.config.is_file())
    cell = Cell("grpo", 0, 16, 16, dict.fromkeys((each.name for each in COLUMNS), 0.5))
    monkeypatch.setattr(actions, "read_cell", lambda *_: cell)
    assert run_league(first, tmp_path / "out") == run_league(first, tmp_path / "out")
    for changed in (
        write(calls=32, methods=methods),
        write(methods={"grpo": {"training": {"lr": 0.1}}}, calls=16),
    ):
        with pytest.raises(ConfigurationError, match=r"training\.(steps|lr): .* then, .* now"):
            run_league(load_league(changed), tmp_path / "out")


def test_the_league_of_the_documentation_is_valid(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "discovery.md").read_text("utf-8")
    (block,) = re.findall(r'^```yaml title="league.yaml"\n(.*?)^```$', page, re.M | re.S)
    (tmp_path / "league.yaml").write_text(block)
    league = load_league(tmp_path / "league.yaml")
    for method in league.methods:
        size = training_size(resolve(league.config(method, 0)))
        assert 0.8 * league.calls < size.replies <= league.calls, method


def test_a_preset_brings_its_reward_and_algorithm_and_the_method_its_changes(write):
    methods = {"mine": {"preset": "crt", "training": {"lr": 0.5, "episodes_per_step": 2}}}
    config = load_league(write(methods=methods)).config("mine", 0)
    assert config.algorithm.type == "ppo"
    assert config.training.lr == 0.5
    assert config.training.adam_beta2 == 0.95  # of the preset
    assert config.environment.tree_width == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"calls": 8}, "a training step makes up to 16 target calls, and calls is 8"),
        ({"seeds": [1, 1]}, r"seeds: \[1\] given twice"),
        ({"methods": {"grpo": {}, "GRPO": {}}}, "'GRPO' and 'grpo' differ only by case"),
        ({"methods": {}}, "methods"),
        ({"methods": {"a": {"preset": "nobody"}}}, "no preset 'nobody'"),
        ({"methods": {"a": {"algoritm": {}}}}, "algoritm: unknown key"),
        ({"call": 3}, "call: unknown key"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_played(write, changes, says):
    with pytest.raises(ConfigurationError, match=says):
        load_league(write(**changes))


def test_a_seed_without_a_success_and_conversations_without_a_score_count(tmp_path, monkeypatch):
    """A target that refused twice and failed in none of four conversations."""
    monkeypatch.setattr(actions, "training_size", lambda _: SimpleNamespace(replies=4))
    plan = SimpleNamespace(reward_parts=lambda: [])
    monkeypatch.setattr(actions, "_found", lambda *_: {"recall": 0.0, "weighted_recall": 0.0})
    held_out = SimpleNamespace(asr=Rate(0, 3))
    monkeypatch.setattr(actions, "summary_of_phase", lambda *_: held_out)

    def attempt(at, score, refused):
        turn = Turn(
            attack="a", response="r", scores={"j": JudgeScore(value=score)}, refused=refused
        )
        return Attempt.make(
            run="r", phase="training", opening=f"p{at}", target="t", attacker="a", turns=[turn],
            judge="j",
        )  # fmt: skip

    def cell(name, *scores):
        folder = RunFolder(tmp_path / name)
        with AttemptLog(folder.attempts, write=True) as log:
            for at, (score, refused) in enumerate(scores):
                log.append(attempt(at, score, refused))
        return actions.read_cell("m", 0, folder, plan).numbers

    never = cell("never", (0.1, True), (0.1, True), (0.1, False), (0.1, False))
    assert never["effective_kinds"] == never["kinds"] == never["training_asr"] == 0.0
    assert never["first_success"] == 4.0
    once = cell("once", (0.1, True), (0.1, True), (0.9, False), (0.1, False))
    assert once["training_asr"] == 0.25  # of all four, not of the two that were not refused
    assert once["first_success"] == 3.0


@pytest.mark.slow
def test_searches_run_at_equal_calls_and_the_archive_is_written_and_shown(write, tmp_path):
    """The map on the page has every cell, filled or empty."""
    file = write(
        calls=48,
        methods={
            "archive": {**UNTRAINED, "environment": {"type": "archive", "tree_width": 8}},
            "mutation": {**UNTRAINED, "environment": {"type": "mutation", "tree_width": 8}},
            "PAIR": {
                **UNTRAINED,
                "environment": {"type": "tap", "tree_width": 1, "tree_depth": 3},
                "training": {"episodes_per_step": 8},
            },
        },
    )
    league = run_league(load_league(file), tmp_path / "league")
    assert {cell.method: cell.calls for cell in league.cells} == {
        "archive": 48,
        "mutation": 48,
        "PAIR": 48,
    }
    run = RunFolder(tmp_path / "league" / "archive" / "seed-0")
    cells = json.loads(run.archive.read_text())
    assert [cell["style"] for cell in cells] == list(STYLES)
    filled = [cell for cell in cells if cell["attack"] is not None]
    assert filled
    page = run.report.read_text()
    assert f"{len(filled)} of {len(cells)} cells have an attack." in page
    assert page.count('<td class="aside">empty</td>') == len(cells) - len(filled)
    assert len(run.archive_table.read_text().splitlines()) == 1 + len(cells)
    assert not RunFolder(tmp_path / "league" / "mutation" / "seed-0").archive.exists()
