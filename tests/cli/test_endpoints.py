"""Whole commands against an endpoint: a target that is asked, and a judge too."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.processes import Command
from tests.cli.running import Done, astra_rl
from tests.cli.test_resume import attempts
from tests.endpoint import FAST, Endpoint, completion, error, judging, said
from tests.formats import FORMATS
from tests.hostile import BASE

from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.methods.ast_evaluator import ASTEvaluator
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.recorded import summary_of_phase

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def healthy(endpoint: Endpoint) -> None:
    """Begin each test with an endpoint that answers, and judges where it is asked to."""
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters, they say")


def written(workplace: Path, endpoint: Endpoint, name: str, **changes: Any) -> str:
    """Write a configuration whose target and evaluation judge are endpoints."""
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    asked = {"model": "m", "base_url": endpoint.url, "max_tokens": 8, "calls": FAST}
    config["target"] = {"type": "openai", "options": {**asked, "prices": {"output": 1000.0}}}
    judge = {"type": "openai", "options": {**asked, "model": "judge"}}
    config["evaluation"] = {
        "judge": {"type": "llm_judge", "options": {"complete": judge}},
        "watch": 2,
    }
    config["training"]["save_every"] = 1
    config |= changes
    (workplace / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


@pytest.fixture(scope="module")
def whole(workplace: Path, endpoint: Endpoint) -> Path:
    """A run to which nothing happened."""
    endpoint.reset()
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters, they say")
    done = astra_rl("train", written(workplace, endpoint, "asked"), "-o", "asked", cwd=workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "asked"


def test_a_run_trains_evaluates_and_reports_against_endpoints(
    whole: Path, endpoint: Endpoint
) -> None:
    after = json.loads((whole / "evaluation_after.json").read_text())
    assert after["n"] == after["planned"] == 2
    assert sum(after["outcomes"].values()) == 2
    assert after["judge"] == "LLMJudgeModerator"
    turns = [turn for each in after["conversations"] for turn in each["turns"]]
    assert {turn["score"] for turn in turns} == {0.3}
    assert all("letters, they say" in turn["response"] for turn in turns)
    record = json.loads((whole / "manifest.json").read_text())
    assert record["target"]["likelihood"] == "baseline"
    spent = record["spent"]["accounts"]
    host = f"127.0.0.1:{endpoint.port}"
    assert set(spent) == {f"m at {host}", f"judge at {host}"}
    assert spent[f"m at {host}"]["cost"] == pytest.approx(
        spent[f"m at {host}"]["requests"] * 3 * 1000 / 1e6
    )
    report = (whole / "report.html").read_text("utf-8")
    assert "log-probabilities of attacks are used instead" in report
    assert "Spent on calls" in report
    assert not list(whole.glob("replies*"))


def test_what_fails_is_an_outcome_of_its_attempt_and_trains_nothing(
    workplace: Path, endpoint: Endpoint
) -> None:
    """Every third request of the target is refused: so are the attempts, and only they."""
    count = Counter[str]()

    def refuse(number: int) -> Any:
        model = endpoint.requests[number][2]["model"]
        count[model] += 1
        if model == "m" and count["m"] % 3 == 0:
            return error(400, "no good")
        if model == "m" and count["m"] % 7 == 0:
            return error(400, "filtered", "content_filter")
        return None

    endpoint.fault = refuse
    name = written(workplace, endpoint, "failing")
    done = astra_rl("train", name, "-o", "failing", cwd=workplace)
    assert done.returncode == 0, done.stderr
    with AttemptLog(workplace / "failing" / "attempts.jsonl") as log:
        known = list(log)
    failed = [each for each in known if each.outcome is Outcome.ERROR]
    assert failed
    assert {each.error for each in failed} == {"refused by the endpoint: 400 Bad Request no good"}
    for attempt in failed:
        last = attempt.turns[-1]
        assert (last.response, last.reward, last.reward_terms) == ("", None, {})
        assert last.score(attempt.judge) is None
    assert any(each.outcome is Outcome.BLOCKED for each in known)
    for attempt in known:
        unanswered = [turn.unanswered for turn in attempt.turns]
        assert not any(unanswered[:-1])  # a conversation whose call failed ends there
    report = (workplace / "failing" / "report.html").read_text("utf-8")
    after = json.loads((workplace / "failing" / "evaluation_after.json").read_text())
    assert ("a model call failed" in report) == bool(after["outcomes"]["error"])


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "{run}", "--attacks", "direct"),
        ("replay", "{run}"),
        ("transfer", "{run}", "--target", "gone.yaml"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_of_which_every_conversation_failed_ends_with_an_error(
    command: tuple[str, ...], workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    run = shutil.copytree(whole, workplace / f"all-failed-{command[0]}")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (workplace / "gone.yaml").write_text(yaml.safe_dump(config["target"]))
    endpoint.fault = lambda number: error(400, "no good")
    done = astra_rl(*(each.format(run=run) for each in command), cwd=workplace)
    assert done.returncode == 2, done.stdout
    assert (
        "all 2 conversations failed, so nothing is known about the target: refused" in done.stderr
    )


def test_a_run_of_whose_last_evaluation_nothing_is_known_can_be_resumed(
    workplace: Path, endpoint: Endpoint
) -> None:
    name = written(workplace, endpoint, "nothing", training={"steps": 0})
    command = ("train", name, "-o", "nothing", "--set", "evaluation.before=false")
    endpoint.fault = lambda number: error(400, "no good")
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 2, done.stdout
    assert "all 2 conversations failed" in done.stderr
    assert "Continue with: astra-rl resume nothing" in done.stderr
    endpoint.fault = lambda number: None
    done = astra_rl("resume", "nothing", cwd=workplace)
    assert done.returncode == 0, done.stderr
    after = json.loads((workplace / "nothing" / "evaluation_after.json").read_text())
    assert (after["n"], after["outcomes"]["error"]) == (2, 0)


def test_killed_and_continued_it_asks_nothing_twice_and_ends_alike(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    """The endpoint gives another reply each time it is asked; what was replied is kept."""
    numbers: Counter[str] = Counter()

    def answer(body: Any) -> str:
        numbers[json.dumps(body)] += 1
        return f"{said(body)[:5]} for the {len(endpoint.answered)}th time"

    endpoint.reply = judging(answer)
    endpoint.latency = 0.05
    name = written(
        workplace,
        endpoint,
        "killed",
        training={
            "steps": 3,
            "episodes_per_step": 2,
            "batch_size": 4,
            "lr": 1e-3,
            "save_every": 1,
        },
    )
    for least in (6, 20):
        command = Command("train", name, "-o", "killed", cwd=workplace)
        while len(endpoint.answered) < least and command.is_running():
            time.sleep(0.01)
        command.kill()
    done = astra_rl("train", name, "-o", "killed", cwd=workplace)
    assert done.returncode == 0, done.stderr
    # Paid for twice is at most what was under way when it was killed.
    asked_again = sum(count - 1 for count in numbers.values())
    assert asked_again <= 2 * FAST["start_concurrency"]
    assert max(numbers.values()) <= 3
    run = workplace / "killed"
    ledger = json.loads((run / "manifest.json").read_text())["spent"]["total"]
    assert ledger["cached"]
    ids = [each.id for each in attempts(run)]
    assert len(ids) == len(set(ids))
    with AttemptLog(run / "attempts.jsonl") as log:
        phases = Counter(each.phase for each in log)
    assert (phases["before"], phases["after"]) == (2, 2)
    replies = {}
    for attempt in attempts(run):
        for turn in attempt.turns:
            replies.setdefault(turn.response, set()).add(attempt.prompt_id)
    assert all("for the" in reply for reply in replies)


def test_a_budget_of_requests_ends_a_run_that_then_goes_on_to_the_same_end(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    name = written(workplace, endpoint, "budget")
    done = astra_rl("train", name, "-o", "budget", "--max-requests", "15", cwd=workplace)
    assert done.returncode == 4, done.stderr
    # 8 for the evaluation before training, 7 kept for the one after it: no training step is left.
    assert "max_requests=15, less 7 kept for the final evaluation, is spent (8)" in done.stderr
    assert "astra-rl resume budget --max-requests 30" in done.stderr
    assert "after training" in done.stdout  # a rate, of the conversation that was finished
    page = (workplace / "budget" / "report.html").read_text("utf-8")
    assert "it ended training after step 0 of 2" in page
    # The attacker is untrained, so its evaluation needs no reply that is not kept already.
    assert len(endpoint.requests) == 8
    spent = json.loads((workplace / "budget" / "ledger.json").read_text())
    assert spent["total"]["requests"] == 8
    # The ledger goes on: twelve more may be sent, not twenty.
    done = astra_rl("resume", "budget", "--max-requests", "20", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert 8 < len(endpoint.requests) <= 20
    done = astra_rl("resume", "budget", "--max-requests", "1000", cwd=workplace)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        json.loads((run / "evaluation_after.json").read_text())
        for run in (workplace / "budget", whole)
    )
    assert ours["conversations"] == theirs["conversations"]
    assert attempts(workplace / "budget") == attempts(whole)
    report = (workplace / "budget" / "report.html").read_text("utf-8")
    assert "the budget max_requests=15, less 7 kept for the final evaluation, is spent" in report


def test_an_endpoint_that_is_down_ends_the_run_which_can_be_continued(
    workplace: Path, endpoint: Endpoint
) -> None:
    endpoint.fault = lambda number: error(500) if number >= 12 else None
    name = written(workplace, endpoint, "down")
    config = yaml.safe_load((workplace / name).read_text())
    calls = {**FAST, "max_tries": 2, "give_up_after": 2}
    config["target"]["options"]["calls"] = calls
    config["evaluation"]["judge"]["options"]["complete"]["options"]["calls"] = calls
    (workplace / name).write_text(yaml.safe_dump(config))
    done = astra_rl("train", name, "-o", "down", cwd=workplace)
    assert done.returncode == 2
    assert "2 consecutive calls failed: endpoint error 500" in done.stderr
    assert "astra-rl resume down" in done.stderr
    endpoint.fault = lambda number: None
    assert astra_rl("resume", "down", cwd=workplace).returncode == 0


def test_evaluating_within_a_budget_sums_up_what_was_played_and_goes_on(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    done = astra_rl("evaluate", "asked", "-o", "again", "--max-requests", "3", cwd=workplace)
    assert done.returncode == 4, done.stderr
    kept = len(endpoint.answered)
    assert kept == 3
    done = astra_rl("evaluate", "asked", "-o", "again", cwd=workplace)
    assert done.returncode == 0, done.stderr
    spent = json.loads((workplace / "again" / "evaluation_again.json").read_text())["spent"]
    assert spent["total"]["cached"] >= 3
    assert "replies from the cache" in done.stdout


def test_replies_whose_tokens_all_went_into_reasoning_are_unscored_and_charged(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
    endpoint.reply = judging(lambda body: completion("", finish="length", usage=usage))
    done = astra_rl("evaluate", "asked", "-o", "cut", cwd=workplace)
    assert done.returncode == 2, done.stdout
    assert "all 2 conversations failed, so nothing is known about the target: cut" in done.stderr
    summary = json.loads((workplace / "cut" / "evaluation_again.json").read_text())
    assert {name: n for name, n in summary["outcomes"].items() if n} == {"error": 2}
    with AttemptLog(workplace / "cut" / "attempts_again.jsonl") as log:
        assert all("max_tokens=8" in str(each.error) for each in log)
    total = summary["spent"]["total"]
    assert (total["requests"], total["output_tokens"]) == (2, 16)


def test_saved_attacks_are_sent_to_a_target_of_a_file(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    options = {
        "url": f"{endpoint.url}/ask",
        "body": {"message": "{message}"},
        "reply": "choices[0].message.content",
        "name": "my application",
    }
    (workplace / "application.yaml").write_text(
        yaml.safe_dump({"target": {"type": "http", "options": options}})
    )
    done = astra_rl("replay", "asked", "--target", "application.yaml", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert {path for path, _, _ in endpoint.requests} == {"/v1/ask", "/v1/chat/completions"}
    (path,) = whole.glob("attempts_replay_my-application*.jsonl")
    with AttemptLog(path) as log:
        assert {each.target for each in log} == {"my application"}


@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_the_step_against_a_slow_endpoint_and_saves(
    workplace: Path, endpoint: Endpoint
) -> None:
    endpoint.latency = 0.02
    name = written(
        workplace,
        endpoint,
        "signal",
        training={
            "steps": 500,
            "episodes_per_step": 2,
            "batch_size": 4,
            "lr": 1e-3,
            "save_every": 0,
        },
    )
    command = Command("train", name, "-o", "signal", cwd=workplace)
    command.wait_until_written(workplace / "signal" / "metrics.jsonl")
    command.send_signal(signal.SIGINT)
    code, errors = command.wait()
    assert code == 130, errors
    assert "astra-rl resume signal" in errors
    assert len(list((workplace / "signal" / "states").iterdir())) == 1


def test_a_dry_run_says_what_it_would_cost_and_sends_nothing(
    workplace: Path, endpoint: Endpoint
) -> None:
    name = written(workplace, endpoint, "dry")
    done = astra_rl("train", name, "-o", "dry", "--dry-run", cwd=workplace)
    assert done.returncode == 0, done.stderr
    # 2 steps of 2 episodes of 2 + 4 turns, and 2 evaluations of 2 conversations of 2 turns.
    assert "target" in done.stdout
    assert " 32 " in done.stdout
    assert "no call was made" in done.stdout
    assert endpoint.requests == []
    assert not (workplace / "dry").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"type": "opnai"}}, "Did you mean 'openai'?"),
        ({"target": {"type": "openai", "options": {"modl": "m"}}}, "target.options.modl: unknown"),
        ({"target": {"type": "openai"}}, "target.options.model: missing"),
        ({"target": {"type": "openai", "option": {}}}, "target.option: unknown key"),
        ({"target": {"modl": "m"}}, "target.modl: unknown key"),
        ({"reward": {"response_likelihood": {"text": "Sure"}}}, "hidden states of the target"),
        (
            {"reward": {"embedding_novelty": {"embedder": "target"}}},
            "hidden states of the target",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    workplace: Path, endpoint: Endpoint, changes: dict[str, Any], message: str
) -> None:
    name = written(workplace, endpoint, "wrong", **changes)
    done = astra_rl("train", name, "-o", "wrong", cwd=workplace)
    assert done.returncode == 2
    assert message in done.stderr
    assert endpoint.requests == []


def test_a_budget_of_money_needs_prices(workplace: Path, endpoint: Endpoint) -> None:
    name = written(workplace, endpoint, "free")
    config = yaml.safe_load((workplace / name).read_text())
    del config["target"]["options"]["prices"]
    (workplace / name).write_text(yaml.safe_dump(config))
    done = astra_rl("train", name, "-o", "free", "--max-cost", "1", cwd=workplace)
    assert done.returncode == 2
    assert "no target and no judge has prices" in done.stderr


def test_a_budget_of_time_ends_a_local_run_too_which_goes_on(workplace: Path) -> None:
    done = astra_rl("train", "config.yaml", "-o", "late", "--max-minutes", "0.0001", cwd=workplace)
    assert done.returncode == 4
    assert "max_minutes=0.0001 is spent" in done.stderr
    assert "the evaluation before training was in progress, and is repeated" in done.stderr
    done = astra_rl("resume", "late", "--max-minutes", "100", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "max_minutes=0.0001 is spent" in (workplace / "late" / "report.html").read_text("utf-8")


def test_an_evaluation_that_a_budget_cut_short_keeps_its_replies(
    workplace: Path, whole: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one conversation per batch the first is judged when the budget ends the second."""
    made = ASTEvaluator.__init__

    def small(self: ASTEvaluator, *given: Any, **options: Any) -> None:
        made(self, *given, **{**options, "batch_size": 1})

    monkeypatch.setattr(ASTEvaluator, "__init__", small)
    done = astra_rl("evaluate", "asked", "-o", "partly", "--max-requests", "5", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "1 of 2 conversations were played" in done.stderr
    result = json.loads((workplace / "partly" / "evaluation_again.json").read_text())
    assert (result["n"], result["planned"], result["never_made"]) == (1, 2, 1)
    shutil.copy(workplace / "asked" / "config.yaml", workplace / "partly" / "config.yaml")
    summary = summary_of_phase(workplace / "partly", "again").as_dict()
    written = ("planned", "never_made", "outcomes", "asr", "asr_last_turn")
    assert {name: result[name] for name in written} == {name: summary[name] for name in written}
    assert (workplace / "partly" / "replies_again.sqlite").is_file()
    done = astra_rl("evaluate", "asked", "-o", "partly", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.answered) == 8  # two conversations of two turns, each judged
    assert not (workplace / "partly" / "replies_again.sqlite").exists()


def test_judges_inside_a_reward_and_other_targets_are_in_ledger_and_cache(
    workplace: Path, endpoint: Endpoint
) -> None:
    """A run against two more targets, one loaded and one asked, that a judge of its own judges."""
    asked = {"base_url": endpoint.url, "max_tokens": 8, "calls": FAST}
    config = yaml.safe_load((workplace / "config.yaml").read_text())
    config["reward"] = {
        "several_targets": {
            "others": [
                {"model": "attacker", "max_new_tokens": 4},
                {"type": "openai", "options": {"model": "other", **asked}},
            ],
            "moderator": {
                "type": "llm_judge",
                "options": {"complete": {"type": "openai", "options": {"model": "judge", **asked}}},
            },
        }
    }
    config["evaluation"] = {"before": False}
    (workplace / "several.yaml").write_text(yaml.safe_dump(config))
    command = ("train", "several.yaml", "-o", "several")
    done = astra_rl(*command, "--max-requests", "40", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert len(endpoint.requests) == 40
    assert (workplace / "several" / "replies.sqlite").is_file()
    done = astra_rl(*command, "--max-requests", "4000", cwd=workplace)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((workplace / "several" / "manifest.json").read_text())
    accounts = manifest["spent"]["accounts"]
    host = f"127.0.0.1:{endpoint.port}"
    assert set(accounts) == {f"other at {host}", f"judge at {host}"}
    assert sum(each["cached"] for each in accounts.values()) > 0
    assert sum(each["requests"] for each in accounts.values()) == len(endpoint.requests)
    verdicts = Counter(said(body) for body in endpoint.answered if body["model"] == "judge")
    assert set(verdicts.values()) == {1}  # in both sessions together
    with AttemptLog(workplace / "several" / "attempts.jsonl") as log:
        trained = [turn for each in log if each.phase == "training" for turn in each.turns]
    assert all({"harm_target_2", "harm_target_3"} <= set(turn.reward_terms) for turn in trained)
    assert {turn.reward_terms["harm_target_3"] for turn in trained} == {0.3}


def test_a_replay_that_a_budget_cuts_short_keeps_what_was_paid_for_and_goes_on(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    """Two conversations of two turns, each judged: 8 requests, of which 7 are allowed."""
    run = workplace / "cut_replay"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("*replay*"))
    done = astra_rl("replay", "cut_replay", "--max-requests", "7", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "1 of 2 attacks were replayed, judged and summarized" in done.stderr
    assert "the same command" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(endpoint.requests) == 7
    (path,) = run.glob("attempts_replay_*.jsonl")
    with AttemptLog(path) as log:
        (kept,) = list(log)
    assert {turn.score(kept.judge) for turn in kept.turns} == {0.3}
    # The other conversation is counted: it was planned and not made.
    part = path.stem.removeprefix("attempts_")
    assert json.loads((run / "planned.json").read_text())[part] == 2
    done = astra_rl("replay", "cut_replay", "--max-requests", "7", "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 8
    assert json.loads(done.stdout)["now"]["never_made"] == 0
    with AttemptLog(path) as log:
        assert len(list(log)) == 2
    assert not (run / "replies_replay.sqlite").exists()


def test_given_attacks_that_a_budget_cuts_short_are_recorded_and_go_on(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    """Four attacks of one turn, each judged: 8 requests."""
    lines = [json.dumps({"attack": f"attack number {number}"}) + "\n" for number in range(4)]
    (workplace / "given.jsonl").write_text("".join(lines))
    command = ("evaluate", "asked", "--attacks", "given.jsonl", "-o", "given")
    done = astra_rl(*command, "--max-requests", "6", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "3 of 4 conversations were played" in done.stderr  # asked and judged in turn
    assert len(endpoint.requests) == 6
    (result,) = (workplace / "given").glob("evaluation_*.json")
    found = json.loads(result.read_text())
    assert (found["n"], found["planned"]) == (3, 4)
    (path,) = (workplace / "given").glob("attempts_*.jsonl")
    with AttemptLog(path) as log:
        assert len(list(log)) == 3
    done = astra_rl(*command, "--max-requests", "6", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 8
    assert json.loads(result.read_text())["n"] == 4


def test_a_budget_too_small_for_anything_says_so_and_what_was_replied_is_kept(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    lines = [json.dumps({"attack": f"other attack {number}"}) + "\n" for number in range(4)]
    (workplace / "small.jsonl").write_text("".join(lines))
    command = ("evaluate", "asked", "--attacks", "small.jsonl", "-o", "small")
    for sent in (3, 6):
        done = astra_rl(*command, "--max-requests", "3", cwd=workplace)
        assert done.returncode == 4, done.stderr
        assert len(endpoint.requests) == sent
    done = astra_rl(*command, "--max-requests", "3", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 8


def test_judging_again_within_a_budget_keeps_what_was_judged(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    run = workplace / "judged"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("*replay*"))
    asked = {"model": "another judge", "base_url": endpoint.url, "calls": FAST}
    options = {"complete": {"type": "openai", "options": asked}}
    (workplace / "judge.yaml").write_text(yaml.safe_dump({"type": "llm_judge", "options": options}))
    command = ("score", "judged", "-m", "judge.yaml")
    done = astra_rl(*command, "--max-requests", "3", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "1 of 2 conversations were judged" in done.stderr
    done = astra_rl(*command, "--max-requests", "3", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == 4
    assert "3 replies from the cache" in done.stdout


def test_a_suite_within_a_budget_leaves_the_rest_undecided_and_goes_on(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    shutil.copytree(whole, workplace / "suite", ignore=shutil.ignore_patterns("*replay*"))
    endpoint.reply = judging(lambda body: f"{len(said(body))} letters, they say", verdict=9)
    done = astra_rl("replay", "suite", cwd=workplace)
    assert done.returncode == 0, done.stderr
    (path,) = (workplace / "suite").glob("attempts_replay_*.jsonl")
    phase = path.stem.removeprefix("attempts_")
    done = astra_rl("export", "suite", "-f", "regression", "--phase", phase, cwd=workplace)
    assert done.returncode == 0, done.stderr
    # The target withstands now.
    endpoint.reset()
    endpoint.reply = judging(lambda body: "no")
    (workplace / "target.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((workplace / "asked.yaml").read_text())["target"])
    )
    command = ("regress", "suite/regression.json", "--target", "target.yaml", "--run", "suite")
    done = astra_rl(*command, "--max-requests", "3", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert "of 2 cases were sent" in done.stderr
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 passed" in done.stdout
    asked = Counter(json.dumps(body) for body in endpoint.answered)
    assert set(asked.values()) == {1}


def test_an_estimate_of_failure_in_ordinary_use_within_a_budget_goes_on(
    workplace: Path, whole: Path, endpoint: Endpoint
) -> None:
    command = ("probability", "asked", "-n", "4", "-o", "probable")
    done = astra_rl(*command, "--max-requests", "5", cwd=workplace)
    assert done.returncode == 4, done.stderr
    assert len(endpoint.requests) == 5
    done = astra_rl(*command, "--max-requests", "1000", cwd=workplace)
    assert done.returncode == 0, done.stderr
    spent = json.loads((workplace / "probable" / "probability.json").read_text())["spent"]
    assert spent["total"]["cached"] >= 5


def test_hostile_replies_of_an_endpoint_are_text_in_the_report_and_in_every_export(
    workplace: Path, endpoint: Endpoint
) -> None:
    """NUL, lone surrogates, control characters, and a reply of nearly a megabyte."""
    replies = [*BASE, "y" * 450_000]  # which a reply holds twice
    following = itertools.cycle(replies)
    endpoint.reply = lambda body: next(following)
    prompts = "".join(f"opening number {number}\n" for number in range(len(replies)))
    (workplace / "many.txt").write_text(prompts)
    name = written(
        workplace,
        endpoint,
        "hostile",
        prompts={"file": "train.txt", "test_file": "many.txt"},
        evaluation={"before": False},
        training={"steps": 1, "episodes_per_step": 2, "batch_size": 4, "lr": 1e-3},
    )
    done = astra_rl("train", name, "-o", "hostile", cwd=workplace)
    assert done.returncode == 0, done.stderr
    report = (workplace / "hostile" / "report.html").read_text("utf-8")
    assert "\x00" not in report
    assert "\x1b" not in report + done.stdout + done.stderr
    with AttemptLog(workplace / "hostile" / "attempts.jsonl") as log:
        said_back = {turn.response for each in log for turn in each.turns}
    assert "\ufffd lone \ufffd surrogates" in said_back
    assert "a\x00b" in said_back
    assert max(map(len, said_back)) == 450_000
    for kind in FORMATS:
        out = workplace / "hostile-exports" / kind
        done = astra_rl("export", "hostile", "-f", kind, "-o", str(out), cwd=workplace)
        if kind == "preferences" and done.returncode:  # each prompt was tried once
            assert "no pair of replies to write" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        if kind == "parquet":  # binary
            continue
        assert "\x00" not in out.read_text("utf-8")


# Names that say nothing: the values are known for keys only because they are used as such.
KEYS = {name: f"sentinel-{name.lower()}-0a1b2c3d" for name in ("ALPHA", "BETA", "GAMMA")}


@pytest.mark.parametrize("faulty", [False, True], ids=["replies", "errors"])
def test_a_key_that_an_endpoint_says_back_is_in_no_file_and_in_nothing_that_is_shown(
    workplace: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, faulty: bool
) -> None:
    """All headers that came, in replies and errors of the target, a judge and a moderation."""
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)

    def heard() -> str:
        return " ".join(sorted({str(headers) for _, headers, _ in endpoint.requests[-3:]}))

    def answer(body: Any) -> Any:
        if "input" in body:
            scores = [{"category_scores": {"hate": 0.5, "said": heard()}} for _ in body["input"]]
            return json.dumps({"results": scores}).encode()
        return f"I was told {heard()}"

    endpoint.reply = judging(answer)
    if faulty:
        endpoint.fault = lambda number: error(400 if number % 3 else 500, heard())
    tries = {**FAST, "max_tries": 2, "give_up_after": 5000}
    asked = {"model": "j", "base_url": endpoint.url, "api_key_env": "ALPHA", "calls": tries}
    judge = {"type": "openai", "options": asked}
    http = {
        "url": f"{endpoint.url}/ask",
        "body": {"message": "{message}"},
        "reply": "choices[0].message.content",
        "headers": {"X-Api-Key": "${BETA}"},
        "calls": tries,
    }
    options = {"api_key": KEYS["GAMMA"], "base_url": endpoint.url, "max_retries": 0}
    moderation = {"type": "openai_moderation", "options": options}
    name = written(
        workplace,
        endpoint,
        "echo",
        target={"type": "http", "options": http},
        reward={"sum": ["harm", {"gibberish": {"moderator": moderation}}]},
        evaluation={"judge": {"type": "llm_judge", "options": {"complete": judge}}},
    )
    folder = workplace / f"echo-{faulty}"
    for budget in (9, 2000):
        done = astra_rl(
            "train", name, "-o", folder.name, "--max-requests", f"{budget}", cwd=workplace
        )
        check_no_key(folder, done)
    sent = str([headers for _, headers, _ in endpoint.requests])
    assert KEYS["BETA"] in sent
    if faulty:
        return
    assert all(key in sent for key in KEYS.values())
    assert done.returncode == 0, done.stderr
    assert "(redacted)" in (folder / "attempts.jsonl").read_text("utf-8")
    for kind in FORMATS:
        out = workplace / "echo-exports" / kind
        done = astra_rl("export", folder.name, "-f", kind, "-o", str(out), cwd=workplace)
        check_no_key(workplace / "echo-exports", done)


def check_no_key(folder: Path, done: Done) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for key, value in KEYS.items():
        assert [str(path) for path in files if value.encode() in path.read_bytes()] == [], key
        assert value not in done.stdout + done.stderr, key


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "estimated"),
        ("evaluate", "estimated"),
        ("evaluate", "estimated", "--attacks", "direct", "--trials", "3"),
        ("evaluate", "estimated", "--attacks", "best-of-2"),
    ],
    ids=lambda command: " ".join(command),
)
def test_what_a_dry_run_says_is_enough_and_hardly_too_much(
    workplace: Path, whole: Path, endpoint: Endpoint, command: tuple[str, ...]
) -> None:
    shutil.copytree(whole, workplace / "estimated", dirs_exist_ok=True)
    done = astra_rl(*command, "--dry-run", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert endpoint.requests == []
    rows = re.findall(r"^│ (\S+) +│ +(\d+) │ +(\d+) │ +(\d+) │", done.stdout, re.MULTILINE)
    told = {name: int(requests) for name, requests, _, _ in rows}
    total = told.pop("total")
    assert total == sum(told.values())
    assert set(told) == {"target", "evaluation.judge.options.complete"}
    done = astra_rl(*command, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) <= sum(told.values()) <= 1.5 * len(endpoint.requests)
