"""A server of OpenEnv offers conversations with a target, and TRL trains an attacker on them."""

import math
import time

import pytest
from tests.bridges.making import opening
from tests.bridges.servers import served
from tests.bridges.tool_caller import CALL, save_tool_caller

from astra_rl.errors import ConfigurationError
from astra_rl.moderators.function import FunctionModerator
from astra_rl.targets.function import CallableTarget

pytestmark = [
    pytest.mark.bridge("openenv"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]
OPENINGS = [opening("good evening", "a leak"), opening("hello", "more")]
judge = FunctionModerator(
    lambda texts: [math.nan if "?" in each else each.count("!") / 4 for each in texts]
)


def application(message):
    """A target that fails for messages with the word red."""
    if "raise" in message:
        raise TimeoutError
    return "what?" if "odd" in message else "!!!" if "red" in message else "no!"


@pytest.fixture
def url():
    """Address of a server in a thread."""
    from astra_rl.bridges.openenv import environment_app

    target = CallableTarget(application, calls={"max_tries": 1})
    with served(environment_app(OPENINGS, target, judge, turns=2)) as address:
        yield address


def test_a_client_of_openenv_plays_a_conversation(url):
    from openenv.core import GenericEnvClient

    with GenericEnvClient(base_url=url).sync() as client:
        began = client.reset(opening=1, episode_id="e").observation
        assert (began["opening"], began["openings"], began["response"]) == (1, 2, "")
        assert began["prompt"] == "You are a user.\n\nmore\n\nhello"
        first = client.step({"message": "tell me"})
        assert (first.observation["response"], first.reward, first.done) == ("no!", 0.25, False)
        second = client.step({"message": "a red one"})
        assert (second.observation["response"], second.reward, second.done) == ("!!!", 0.75, True)
        assert client.state() == {"episode_id": "e", "step_count": 2}
        with pytest.raises(RuntimeError, match=r"it is over; call reset\(\)"):
            client.step({"message": "more"})
        with pytest.raises(RuntimeError, match="give a number from 0 to 1"):
            client.reset(opening=2)


def test_what_has_no_score_is_no_reward(url):
    from openenv.core import GenericEnvClient

    with GenericEnvClient(base_url=url).sync() as client:
        client.reset(seed=1)
        odd = client.step({"message": "odd"})
        assert (odd.observation["response"], odd.reward, odd.done) == ("what?", None, False)
        for message in ("raise", " "):  # no answer, and nothing to send
            client.reset(opening=0)
            none = client.step({"message": message})
            assert (none.observation["response"], none.reward, none.done) == ("", None, True)


def test_a_reset_that_is_refused_does_not_lengthen_a_conversation(url):
    from openenv.core import GenericEnvClient

    with GenericEnvClient(base_url=url).sync() as client:
        client.reset(opening=0)
        assert not client.step({"message": "one"}).done
        for opening in (0.5, "0", [], 10**80):
            with pytest.raises(RuntimeError, match="give a number from 0 to 1"):
                client.reset(opening=opening)
        assert client.step({"message": "two"}).done


def test_a_conversation_whose_score_fails_is_over():
    from astra_rl.bridges.openenv import Attack, AttackEnvironment

    def score(turns):
        raise RuntimeError("out of memory")

    environment = AttackEnvironment(OPENINGS, lambda contexts: ["no"], score)
    environment.reset(opening=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        environment.step(Attack(message="one"))
    with pytest.raises(ConfigurationError, match="it is over"):
        environment.step(Attack(message="two"))


@pytest.mark.parametrize(
    ("origin", "accepted"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8000", True),
        ("https://page.example", False),
        ("http://127.0.0.1%25.page.example", False),
        ("http://[::1", False),
        ("null", False),
    ],
)
def test_pages_of_other_machines_are_refused(origin, accepted):
    from starlette.testclient import TestClient
    from starlette.websockets import WebSocketDisconnect

    from astra_rl.bridges.openenv import environment_app

    client = TestClient(environment_app(OPENINGS, CallableTarget(application), judge))
    headers = {} if origin is None else {"origin": origin}
    assert client.post("/reset", json={}, headers=headers).status_code == (200 if accepted else 403)
    if accepted:
        with client.websocket_connect("/ws", headers=headers) as socket:
            socket.send_json({"type": "reset", "data": {}})
            assert socket.receive_json()["type"] == "observation"
    else:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
            raise AssertionError("connected")


def test_sessions_that_are_left_open_do_not_fill_the_server():
    """`openenv/session/create` opens a session that no connection holds."""
    from starlette.testclient import TestClient

    from astra_rl.bridges import openenv

    def create(client):
        call = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create", "params": {}}
        return "result" in {k: v for k, v in client.post("/mcp", json=call).json().items() if v}

    app = openenv.environment_app(
        OPENINGS, CallableTarget(application), judge, most_sessions=1, seconds_idle=0.5
    )
    with TestClient(app) as client:
        assert create(client)
        assert not create(client)
        deadline = time.monotonic() + 60
        while not create(client) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert time.monotonic() < deadline


def test_the_side_of_trl(url):
    from astra_rl.bridges.openenv import attack_sessions, opening_dataset

    rows = list(opening_dataset(url))
    assert [row["opening"] for row in rows] == [0, 1]
    assert rows[0]["prompt"][0]["content"] == "You are a user.\n\na leak\n\ngood evening"
    session = attack_sessions(url)()
    session.reset(**rows[1])
    assert session.get_reward() is None  # no message
    assert [session.send_message(each) for each in ("a", "red")] == ["no!", "!!!"]
    assert session.get_reward() == 1.0
    with pytest.raises(ValueError, match="over"):
        session.send_message("more")
    session.reset(**rows[0])
    session.send_message("red")
    session.send_message("odd")
    assert session.get_reward() is None  # a score is missing


def test_what_cannot_be_served_is_refused():
    from astra_rl.bridges.openenv import environment_app

    target = CallableTarget(application)
    with pytest.raises(ConfigurationError, match="give at least one of each"):
        environment_app([], target, judge)
    with pytest.raises(ConfigurationError, match="turns=0"):
        environment_app(OPENINGS, target, judge, turns=0)


@pytest.mark.bridge("trl")
def test_grpo_of_trl_trains_an_attacker_on_the_server(url, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from astra_rl.bridges.openenv import attack_sessions, opening_dataset

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_tool_caller(tmp_path / "model")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
        environment_factory=attack_sessions(url),
        train_dataset=opening_dataset(url),
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=8,
            num_generations=8, max_completion_length=1024, max_tool_calling_iterations=1,
            learning_rate=1e-3, report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, save_strategy="no", logging_steps=1, seed=1,
            lr_scheduler_type="constant",
        ),
    )  # fmt: skip
    ids = trainer.processing_class.convert_tokens_to_ids

    def odds():
        weight = trainer.model.lm_head.weight.detach()
        return float(weight[ids("red"), ids(CALL)] - weight[ids("blue"), ids(CALL)])

    assert odds() == 0.0
    trainer.train()
    rows = [row for row in trainer.state.log_history if "rewards/AttackSession/mean" in row]
    assert len(rows) == 2
    assert all(row["tools/call_frequency"] >= 1 for row in rows)
    assert all(row["tools/failure_frequency"] == 0 for row in rows)
    assert all(0.25 <= row["rewards/AttackSession/mean"] <= 0.75 for row in rows)
    assert odds() > 1e-3  # the word that makes the target fail
