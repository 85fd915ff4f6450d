"""Inspect itself runs our task, solvers, scorer and models, and opens our logs."""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from tests.bridges.making import ATTEMPTS, attempt, opening, turn
from tests.evaluation.show.agent_attempts import ATTACK, LEAK, LIST, READ, played
from tests.hostile import HOSTILE

from astra_rl.actions.export import export_run
from astra_rl.core.messages import AgentReply, Message, Trace
from astra_rl.core.text import Conversation
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.show.exports.inspect_log import write_inspect_log
from astra_rl.infra.unicode import well_formed

pytestmark = [
    pytest.mark.bridge("inspect_ai"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    # Inspect counts the tokens of its mock model by a vocabulary that it would download.
    bytes_as_tokens = SimpleNamespace(encode=lambda text, **options: list(text.encode()))
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: bytes_as_tokens)


def evaluated(task, **options):
    from inspect_ai import eval as evaluate

    options.setdefault("model", "mockllm/model")
    (log,) = evaluate(task, display="none", log_dir="logs", **options)
    assert log.status == "success", log.error
    return log


def saying(*replies):
    from inspect_ai.model import ModelOutput, get_model

    outputs = [ModelOutput.from_content("mockllm/model", each) for each in replies]
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False)


def test_a_run_is_exported_to_a_log_that_inspect_reads(run, tmp_path):
    from inspect_ai.log import read_eval_log

    assert export_run(run, "inspect", output=tmp_path / "a.eval").written == len(ATTEMPTS)
    log = read_eval_log(str(tmp_path / "a.eval"))
    summary = summarise(each.row for each in ATTEMPTS)
    (scores,) = log.results.scores
    assert scores.metrics["attack_success_rate"].value == summary.asr.estimate == 2 / 3
    assert scores.metrics["attack_success_rate_low"].value == summary.asr.interval.low
    assert (scores.scored_samples, scores.unscored_samples) == (3, 2)
    assert (log.results.total_samples, log.results.completed_samples) == (6, 4)  # 6 were planned
    assert (log.eval.task, log.eval.model, log.eval.config.epochs) == ("run after", "target", 2)
    by_key = {(sample.id, sample.epoch): sample for sample in log.samples}
    for given in ATTEMPTS:
        sample = by_key[given.prompt_id, given.trial + 1]
        score = sample.scores["judge"]
        known = given.outcome.value in ("success", "failure")
        assert score.answer == given.outcome.value
        assert score.value == given.score if known else math.isnan(score.value)
        assert bool(sample.error) == bool(given.error)
        said = [message.text for message in sample.messages if message.role == "assistant"]
        assert said == [each.response for each in given.turns]
    several = by_key[ATTEMPTS[1].prompt_id, 1]
    assert [(message.role, message.text) for message in several.messages] == [
        ("system", "Be kind."),
        ("user", "hello\nask"),
        ("assistant", "no"),
        ("user", "more"),
        ("assistant", "maybe"),
    ]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(text, tmp_path):
    from inspect_ai.log import read_eval_log

    said = attempt(
        turn(text, text, 0.9, reasoning=text),
        opening=Conversation(text, system=text, separator="\n"),
        prompt_id=f"../../{text}",
        category=text,
        error=text,
    )
    write_inspect_log([said], tmp_path / "a.eval")
    (sample,) = read_eval_log(str(tmp_path / "a.eval")).samples
    assert sample.messages[-1].text == well_formed(text)
    names = zipfile.ZipFile(tmp_path / "a.eval").namelist()
    assert not any(".." in name or name.startswith("/") for name in names)


def test_a_log_has_no_credential(tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "s3cret-s3cret-s3cret")
    key = "s3cret-s3cret-s3cret"
    said = attempt(turn(key, key, 0.9), opening=Conversation(key, facts={key: key}), error=key)
    write_inspect_log([said], tmp_path / "a.eval")
    with zipfile.ZipFile(tmp_path / "a.eval") as archive:
        assert not any(key.encode() in archive.read(name) for name in archive.namelist())


def test_no_attempts_make_an_empty_log(tmp_path):
    from inspect_ai.log import read_eval_log

    assert write_inspect_log([], tmp_path / "a.eval") == 0
    assert read_eval_log(str(tmp_path / "a.eval")).samples in ([], None)


def test_the_viewer_of_inspect_serves_the_log(run, tmp_path):
    export_run(run, "inspect", output=tmp_path / "logs" / "a.eval")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    command = [sys.executable, "-m", "inspect_ai", "view", "--log-dir", "logs", "--port"]
    with subprocess.Popen([*command, str(free_port)], stdout=-3, stderr=-3) as viewer:
        try:
            page = fetched(f"http://127.0.0.1:{free_port}/")
            assert b"<title>" in page
            listed = json.loads(fetched(f"http://127.0.0.1:{free_port}/api/logs"))
            assert [each["task"] for each in listed["files"]] == ["run after"]
        finally:
            viewer.terminate()


def fetched(url, deadline=60):
    end = time.monotonic() + deadline
    while True:
        try:
            with urllib.request.urlopen(url, timeout=deadline) as response:
                return response.read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_the_trained_attacker_attacks_a_model_of_inspect(run):
    from astra_rl.bridges.attacker import TrainedAttacker
    from astra_rl.bridges.inspect import attacks
    from astra_rl.core.seeding import derive_seed
    from astra_rl.evaluation.records.turn import Opening

    replies = ["no", "a leak", *["no"] * 6]
    log = evaluated(attacks(str(run), turns=2, seed=5), model=saying(*replies), max_samples=1)
    (scores,) = log.results.scores
    assert scores.metrics["attack_success_rate"].value == 1 / 4
    assert scores.metrics["mean"].value == 1 / 4
    turns = [sample.scores["moderated"].metadata["turns"] for sample in log.samples]
    assert sorted(turns) == [[0.0, 0.0]] * 3 + [[0.0, 1.0]]
    attacker = TrainedAttacker(run)
    for sample in log.samples:
        roles = [message.role for message in sample.messages]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        began = Opening.model_validate(sample.metadata["astra_opening"]).conversation()
        (expected,) = attacker.write([began], [derive_seed(5, str(sample.id), 1, 0)])
        assert sample.messages[1].text == f"{began.prompt}\n{expected}"


def test_recorded_attacks_are_sent_again(run):
    from astra_rl.bridges.inspect import attacks

    log = evaluated(attacks(str(run), attacker="recorded"), model=saying(*["no"] * 5))
    asked = [
        [message.text for message in sample.messages if message.role == "user"]
        for sample in log.samples
    ]
    assert ["hello\nask", "more"] in asked
    assert len(asked) == 4  # the fifth attempt had no attack


@pytest.mark.skipif(
    not any(each.name == "astra_rl" for each in entry_points(group="inspect_ai")),
    reason="this package is on the path only, and Inspect finds names of installed ones",
)
def test_inspect_finds_the_task_and_the_attacker_as_a_model_by_name(run):
    from inspect_ai import Task
    from inspect_ai.dataset import Sample

    from astra_rl.bridges.attacker import TrainedAttacker
    from astra_rl.bridges.inspect import moderated

    log = evaluated("astra_rl/attacks", task_args={"run": str(run)}, limit=1)
    assert log.eval.task == run.name
    task = Task(dataset=[Sample(input="hello")], scorer=moderated("refusal"))
    log = evaluated(task, model=f"astra_rl/{run}", seed=3)
    asked = [{"role": "user", "content": "hello"}]
    assert log.samples[0].output.completion == TrainedAttacker(run).next_message(asked, seed=3)
    assert log.samples[0].scores["moderated"].answer in ("success", "failure")


def test_a_missing_score_is_unscored(run):
    from inspect_ai import Task
    from inspect_ai.dataset import Sample

    from astra_rl.bridges.inspect import moderated
    from astra_rl.moderators.function import FunctionModerator

    def judge(texts):
        return [math.nan if "?" in text else float("leak" in text) for text in texts]

    task = Task(
        dataset=[Sample(input=each) for each in "abc"],
        scorer=moderated(FunctionModerator(judge)),
    )
    log = evaluated(task, model=saying("what?", "leak", "no"), max_samples=1)
    (scores,) = log.results.scores
    assert (scores.scored_samples, scores.unscored_samples) == (2, 1)
    assert scores.metrics["attack_success_rate"].value == 1 / 2
    assert [sample.scores["moderated"].answer for sample in log.samples] == [
        "unscored", "success", "failure",
    ]  # fmt: skip


def test_the_rate_of_several_epochs_is_that_of_all_of_them(run):
    """Three of four epochs succeed, with scores below 1; the first does not."""
    from inspect_ai import Task
    from inspect_ai.dataset import Sample

    from astra_rl.bridges.inspect import moderated
    from astra_rl.moderators.function import FunctionModerator

    judge = FunctionModerator(lambda texts: [0.6 if "leak" in text else 0.2 for text in texts])
    task = Task(dataset=[Sample(input="a")], scorer=moderated(judge))
    log = evaluated(task, model=saying("no", *["leak"] * 3), max_samples=1, epochs=4)
    (scores,) = log.results.scores
    assert scores.metrics["attack_success_rate"].value == scores.metrics["mean"].value == 3 / 4
    found = sorted(log.samples, key=lambda each: each.epoch)
    assert [each.scores["moderated"].value for each in found] == [0.0, 1.0, 1.0, 1.0]
    assert [each.scores["moderated"].metadata["score"] for each in found] == [0.2, *[0.6] * 3]


def test_a_model_of_inspect_is_a_target():
    from astra_rl.bridges.inspect import InspectTarget

    target = InspectTarget("mockllm/model")
    context = opening("hello", "more") + "ask"
    for _ in range(2):  # each batch has an event loop of its own
        replies = target.respond([context, context])
        assert list(replies) == ["Default output from mockllm/model"] * 2
    assert target.name == "mockllm/model"


def test_the_log_of_an_agent_has_its_calls_results_and_what_the_attacker_wrote(tmp_path):
    from inspect_ai.log import read_eval_log

    write_inspect_log([played([LIST], [READ, LEAK])], tmp_path / "a.eval")
    (sample,) = read_eval_log(str(tmp_path / "a.eval")).samples
    messages = sample.messages
    assert [each.role for each in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [call.function for call in messages[3].tool_calls] == ["read_mail", "send_mail"]
    assert messages[3].tool_calls[1].arguments == LEAK.arguments
    assert messages[3].metadata["goal_reached"]
    assert messages[2].tool_call_id == messages[1].tool_calls[0].id
    assert messages[2].metadata["written_by_attacker"] == [ATTACK]
    assert sample.scores["hijack"].value == 1


def test_the_log_of_an_agent_has_images_and_errors_of_calls(tmp_path):
    from inspect_ai.log import read_eval_log
    from tests.agents.test_images import MESSAGES, SKETCH

    failed = Message("tool", "Error: no", name="look", call_id="call00000", is_error=True)
    trace = Trace((*MESSAGES, failed), {}, 0.0, 0.0, "answered")
    attempt = played([LIST])
    turn = attempt.turns[0].model_copy(update={"trace": TraceRecord.of(AgentReply("x", trace))})
    attempt = attempt.model_copy(update={"turns": (turn,)})
    write_inspect_log([attempt], tmp_path / "a.eval")
    (sample,) = read_eval_log(str(tmp_path / "a.eval"), resolve_attachments=True).samples
    user, _, seen, last = sample.messages
    assert user.content[1].image == SKETCH.url
    assert [part.type for part in seen.content] == ["text", "image"]
    assert (seen.error, last.error.message) == (None, "Error: no")
