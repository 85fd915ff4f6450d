"""Servers of vLLM, started as a user starts them, and a training from YAML with both kinds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from astra_rl import GRPO, Trainer, TrainingConfiguration
from astra_rl.core.text import Conversation
from astra_rl.errors import EndpointError
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.vllm import ServerPool, server_sampler
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.scoring import continuation_logprobs, prompt_logprobs
from astra_rl.models.trainable import LoraOptions
from astra_rl.models.versions import FullWeights
from astra_rl.moderators import FunctionModerator
from astra_rl.targets.openai_endpoint import OpenAITarget

from .conftest import Watch

STOP = frozenset({3})
PROMPTS = [[2, *range(5, 30)], [2, 9, 10, 11], [4, 5], [2, *range(30, 5, -1)]]
EXACT = 1e-3


@contextlib.contextmanager
def server(folder: Path, log: Path, *options: str, **variables: str) -> Iterator[str]:
    """A server on loopback, and its URL once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "served"),
        *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", *options),
        *("--distributed-executor-backend", "uni"),
    ]
    environment = {**os.environ, **variables}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 900
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, "the server does not start"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def attacker_server(attacker_folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("servers") / "attacker.log"
    lora = ("--enable-lora", "--max-lora-rank", "32")
    with server(attacker_folder, log, *lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True") as url:
        yield url


@pytest.fixture(scope="session")
def open_server(attacker_folder, tmp_path_factory):
    """One that can be given weights."""
    log = tmp_path_factory.mktemp("servers") / "open.log"
    with server(attacker_folder, log, "--enable-scale-out", VLLM_SERVER_DEV_MODE="1") as url:
        yield url


@pytest.fixture(scope="session")
def target_server(target_folder, tmp_path_factory):
    with server(target_folder, tmp_path_factory.mktemp("servers") / "target.log") as url:
        yield url


def largest(model, prompts, samples):
    ours = continuation_logprobs(model, prompts, [each.token_ids for each in samples]).tolist()
    return max(
        abs(a - b)
        for sample, row in zip(samples, ours, strict=True)
        for a, b in zip(sample.logprobs, row, strict=False)
    )


def test_a_target_on_a_server(target_server, target_pair):
    spans = [(1, 20), (1, 4), (1, 1), (3, 26)]
    pool = ServerPool([target_server], "served")
    samples = pool.sample(
        PROMPTS, Sampling(max_new_tokens=10), range(4), stop_ids=STOP, score_spans=spans
    )
    assert largest(target_pair.model, PROMPTS, samples) < EXACT
    for each, exact in zip(
        samples, prompt_logprobs(target_pair.model, PROMPTS, spans), strict=True
    ):
        assert each.prompt_logprobs == pytest.approx(exact, abs=EXACT)
    print("mismatch of a target on a server:", largest(target_pair.model, PROMPTS, samples))


def test_a_remote_target_of_the_openai_interface(target_server, target_folder):
    """What any other compatible server is called with; the text is that of token ids in and out."""
    remote = OpenAITarget("served", base_url=f"{target_server}/v1", temperature=0, max_tokens=8)
    served = ServedTarget(
        str(target_folder),
        lambda source, window: ServerPool([target_server], "served"),
        sampling=Sampling(max_new_tokens=8, temperature=0),
    )
    conversations = [Conversation("hello"), Conversation("who", system="be kind") + "are you"]
    said = [str(each).strip() for each in remote.respond(conversations)]
    assert said == [str(each).strip() for each in served.respond(conversations)]


RUN = """
attacker: {{model: "{attacker}", lora: {lora}, max_new_tokens: 8}}
target: {{model: "{target}", max_new_tokens: 8}}
moderator: {{type: keyword, options: {{words: [a, e, i]}}}}
prompts: {{file: "{prompts}"}}
reward: {{sum: [{{harm: {{}}}}, {{attack_nll: {{}}, weight: -0.1}}]}}
environment: {{type: single_turn, tree_width: 4}}
algorithm: {{type: grpo, options: {{old_logprobs: corrected, kl_in_loss: 0.01}}}}
training: {{steps: 3, episodes_per_step: 2, batch_size: 8, lr: 0.01}}
dtype: float32
rollout:
  attacker: {rollout}
  target: {{servers: ["{server}"], model: served}}
"""


def train(folder, **parts):
    """Train from YAML in a process of its own, and return what was recorded of each step."""
    (folder / "prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(8)))
    (folder / "run.yaml").write_text(RUN.format(prompts=folder / "prompts.txt", **parts))
    command = [sys.executable, "-m", "astra_rl", "train", "run.yaml", "--output", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (folder / "out" / "metrics.jsonl").read_text().split("\n")
    return [json.loads(line) for line in rows if line]


def check_corrected(rows):
    """Check that attacks of three steps were sampled from what was scored."""
    assert len(rows) == 3
    for row in rows:
        assert row["sampling/sampling_logp_difference/max"] < EXACT
        assert row["sampling/importance_sampling_ratio/ess"] == pytest.approx(1, abs=1e-3)
        assert row["sampling/importance_sampling_ratio/masked"] == 0
    largest_seen = max(row["sampling/sampling_logp_difference/max"] for row in rows)
    print("largest mismatch in training:", largest_seen)


def test_a_training_from_yaml(target_server, attacker_folder, target_folder, tmp_path):
    rows = train(
        tmp_path, lora="{rank: 24}", attacker=attacker_folder, target=target_folder,
        server=target_server, rollout="{vllm: {enforce_eager: true}}",
    )  # fmt: skip
    check_corrected(rows)


def test_a_training_of_all_weights_from_yaml_on_servers_of_both_models(
    open_server, target_server, attacker_folder, target_folder, tmp_path
):
    """And the evaluation of what it has trained, with the same servers."""
    rows = train(
        tmp_path, lora="null", attacker=attacker_folder, target=target_folder, server=target_server,
        rollout=f"{{servers: ['{open_server}'], model: served, adapters: '{tmp_path}/versions'}}",
    )  # fmt: skip
    check_corrected(rows)
    assert list((tmp_path / "versions").iterdir()) == []  # deleted at the end
    command = [sys.executable, "-m", "astra_rl", "evaluate", "out", "--trials", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_training_of_all_weights_samples_each_step_at_a_server_with_its_weights(
    open_server, attacker_folder
):
    """With a learning rate at which the weights of another step would show."""
    trained = HFASTProblem(
        *[str(attacker_folder)] * 3, FunctionModerator(lambda texts: [len(t) % 2 for t in texts]),
        attacker_sampler=server_sampler(ServerPool([open_server], "served")), dtype="float32",
        attacker_sampling=Sampling(max_new_tokens=8),
        target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    watch = Watch(trained)
    config = TrainingConfiguration(
        lr=0.02, batch_size=8, training_steps=4, num_episodes_per_experience=4, seed=0
    )
    environment = ASTEnvironment(trained, ["hello", "what is it?"], 2, 2)
    Trainer(config, environment, GRPO(trained), callbacks=[watch]).train()
    largest_seen = max(watch.difference(step, step) for step in range(4))
    nearest = min(watch.difference(step, step - 1) for step in range(1, 4))
    assert largest_seen < EXACT
    assert nearest > 0.1
    print(f"mismatch of all weights at a server: {largest_seen}; of those before: {nearest}")


def test_all_weights_of_an_attacker_on_a_server(open_server, attacker_folder):
    """The prefix is cached by the server: with the weights of another version it would be stale."""
    model = LlamaForCausalLM.from_pretrained(attacker_folder).eval()
    sampler = server_sampler(pool := ServerPool([open_server], "served"))
    prompts = [[*([2, 5, 6, 7] * 60), tail] for tail in (8, 9, 10)]
    spans = [(1, 20), (200, 241), (3, 3)]
    torch.manual_seed(0)
    worst = 0.0
    for version in range(4):
        samples = sampler(
            model, prompts, Sampling(max_new_tokens=10), range(3), stop_ids=STOP, score_spans=spans
        )
        worst = max(worst, largest(model, prompts, samples))
        assert worst < EXACT
        for each, exact in zip(samples, prompt_logprobs(model, prompts, spans), strict=True):
            assert each.prompt_logprobs == pytest.approx(exact, abs=EXACT)
        with urllib.request.urlopen(f"{open_server}/weight_info") as reply:
            assert json.load(reply)["weight_version"].startswith(f"attacker-v{version + 1}-")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        assert largest(model, prompts, samples) > 0.1  # the change is one that would be noticed
    print("mismatch of all weights on a server:", worst)
    asked = (PROMPTS, Sampling(max_new_tokens=2), range(4))
    with pytest.raises(EndpointError, match=r"was given attacker-v4-"):
        pool.sample(*asked, stop_ids=STOP)
    gone = FullWeights(5, "attacker-v5-gone", Path("/nowhere"))
    with pytest.raises(EndpointError, match="cannot load /nowhere"):
        ServerPool([open_server], "served", max_tries=1).sample(*asked, stop_ids=STOP, version=gone)
    samples = sampler(model, prompts, Sampling(max_new_tokens=10), range(3), stop_ids=STOP)
    assert largest(model, prompts, samples) < EXACT


def test_a_server_outside_of_development_mode_gets_no_weights(target_server, target_folder):
    model = LlamaForCausalLM.from_pretrained(target_folder)
    sampler = server_sampler(ServerPool([target_server], "served"))
    with pytest.raises(EndpointError, match="VLLM_SERVER_DEV_MODE=1"):
        sampler(model, PROMPTS, Sampling(max_new_tokens=2), range(4), stop_ids=STOP)


def test_adapters_of_an_attacker_on_a_server(attacker_server, attacker_folder):
    model = LlamaForCausalLM.from_pretrained(attacker_folder).eval().requires_grad_(False)
    pair = ModelPair(model, AutoTokenizer.from_pretrained(attacker_folder))
    torch.manual_seed(0)
    problem = HFASTProblem(
        pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)),
        lora=LoraOptions(rank=24),
    )  # fmt: skip
    sampler = server_sampler(ServerPool([attacker_server], "served"))
    prompts = [[*([2, 5, 6, 7] * 60), tail] for tail in (8, 9, 10)]
    worst = 0.0
    for version in range(4):
        samples = sampler(
            problem.attacker, prompts, Sampling(max_new_tokens=10), range(3), stop_ids=STOP
        )
        worst = max(worst, largest(problem.attacker, prompts, samples))
        assert worst < EXACT
        with urllib.request.urlopen(f"{attacker_server}/v1/models") as reply:
            names = [each["id"] for each in json.load(reply)["data"]]
        assert len([name for name in names if name.startswith("attacker-v")]) <= 2
        assert any(name.startswith(f"attacker-v{version + 1}-") for name in names)
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    print("mismatch of adapters on a server:", worst)
