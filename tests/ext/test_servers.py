"""A pool of servers: stand-ins of vLLM's API on loopback, which sample with a model in memory."""

import copy
import json
import signal
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from astra_rl.actions.harden_inputs import check as check_hardening
from astra_rl.config.experiment import build
from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import resolve
from astra_rl.core.text import Exchange
from astra_rl.core.weights import weights_of
from astra_rl.errors import ConfigurationError, EndpointError, InterruptedRunError
from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.ext.transformers.problem import HFASTProblem
from astra_rl.ext.transformers.served_target import ServedTarget
from astra_rl.ext.transformers.target_adapters import EngineTarget, LocalTarget
from astra_rl.ext.vllm import ServerPool, server_sampler
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.engines import engine_logprobs
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import load_model
from astra_rl.models.scoring import continuation_logprobs, prompt_logprobs
from astra_rl.models.trainable import LoraOptions
from astra_rl.models.versions import FullWeights
from astra_rl.moderators import FunctionModerator
from astra_rl.moderators.completion import LocalCompleter
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.runner import Display, described_target, run_experiment
from astra_rl.testing import tiny_model
from astra_rl.training.states import load_state

STOP = frozenset({3})
PROMPTS = [[2, 9, 10, 11], [4, 5], [30, 31, 32]]
LOCK = threading.Lock()


class Quiet(ThreadingHTTPServer):
    """Says nothing about clients that no longer wait for their answer."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """One server of vLLM.

    Attributes:
        models: Models by name, with their adapters.
        fails: Status of the answers to completions; None answers.
        adapters: Folders by name.
        requests: Paths and bodies of what came.
        changes: Changes the reply of a completion.
        loads: Whether adapters can be loaded.
        resets: Whether the cache of prefixes can be reset.
        is_open: Whether it runs in development mode, in which weights can be handed over.
        scales_out: Whether it answers at the path for token ids.
        label: What it calls its weights.
        stale: Whether cached prefixes are of other weights than it has.
        paused: Whether it answers no completions.
        fails_at: Path that ends as if the client had gone away.
        then: What happens once after a request of a path.
    """

    def __init__(self, make):
        self.fails, self.fails_at, self.adapters, self.requests = None, None, {}, []
        self.then = {}
        self.changes, self.loads = lambda reply: reply, True
        self.models = {"served": make().model}
        self.is_open, self.label, self.stale, self.paused = False, "default", False, False
        self.resets = self.scales_out = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*server.answer(self.path, body, dict(self.headers)))

            def do_GET(self):
                self.reply(*server.answer(self.path, None, dict(self.headers)))

            def reply(self, status, reply):
                sent = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *arguments):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path, body, headers):
        with LOCK:
            if body is not None:
                self.requests.append((path, body, headers))
            if self.is_open and (found := self.in_development(path, body)) is not None:
                return found
            if path == "/v1/load_lora_adapter" and self.loads:
                self.adapters[body["lora_name"]] = body["lora_path"]
                return 200, "ok"
            if path == "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
                return 200, "ok"
            if path not in ("/v1/completions", "/inference/v1/generate"):
                return 404, {"detail": "Not Found"}
            if self.fails is not None:
                return self.fails, {"error": {"message": "down"}}
            assert not self.paused
            assert not self.stale
            if path == "/inference/v1/generate" and not self.scales_out:
                return 403, {"error": {"message": "Restart with --enable-scale-out"}}
            if path == "/inference/v1/generate":
                return 200, self.changes(self.generate(body))
            if body["model"] not in ("served", *self.adapters):
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return 200, self.changes(self.complete(body))

    def in_development(self, path, body):
        """As vLLM answers with VLLM_SERVER_DEV_MODE=1; None on its other paths."""
        found = self.answer_in_development(path, body)
        self.then.pop(path, lambda: None)()
        return (500, {"error": {"message": "gone"}}) if path == self.fails_at else found

    def answer_in_development(self, path, body):
        if path == "/weight_info":
            return 200, {"weight_version": self.label}
        if path == "/pause?mode=wait":
            self.paused, self.stale = True, False
            return 200, {"status": "paused"}
        if path == "/resume":
            self.paused = False
            return 200, {"status": "resumed"}
        if path == "/update_weight_version":
            self.label = body["new_version"]
            return 200, {"success": True, "new_version": self.label}
        if path == "/reset_prefix_cache":
            self.stale = self.stale and not self.resets
            return 200, {"success": self.resets}
        if path == "/collective_rpc":
            assert (body["method"], list(body["kwargs"])) == ("reload_weights", ["weights_path"])
            folder = Path(body["kwargs"]["weights_path"])
            if not (folder / "model.safetensors").exists():
                return 500, {"error": {"message": "Repo id must be in the form 'repo_name'"}}
            self.models["served"] = load_model(folder, device="cpu", dtype="float32")
            self.kept = sorted(each.name for each in folder.parent.iterdir())
            self.stale = True
            return 200, {"results": [None]}
        return None

    def restart(self):
        """Start again, with the weights that it was started with."""
        self.models, self.adapters = {"served": make().model}, {}
        self.label, self.stale, self.paused = "default", False, False

    def generate(self, body):
        """The reply in the form of the path for token ids, which names the weights."""
        wishes = body["sampling_params"]
        asked = {**wishes, "model": body["model"], "prompt": body["token_ids"]}
        reply = self.complete(asked)
        (choice,) = reply["choices"]
        count = len(choice["token_ids"])
        content = [
            {"token_id": token, "logprob": value, "top_logprobs": []}
            for token, value in zip(
                choice["token_ids"], choice.pop("logprobs")["token_logprobs"], strict=True
            )
        ]
        return {
            "model": body["model"],
            "prompt_token_ids": choice.pop("prompt_token_ids"),
            "prompt_logprobs": choice.pop("prompt_logprobs", None),
            "choices": [
                {
                    **choice,
                    "logprobs": {"content": content},
                    "weight_versions": [{"version": self.label, "start": 0, "end": count}],
                }
            ],
        }

    def model(self, name):
        if name not in self.models:
            self.models[name] = merged(self.models["served"], Path(self.adapters[name]))
        return self.models[name]

    @torch.no_grad()
    def complete(self, body):
        model, ids = self.model(body["model"]), body["prompt"]
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=max(0, body["top_k"]),
            top_p=body["top_p"],
        )
        (sample,) = generate(
            model, [ids], sampling, [body["seed"]], stop_ids=frozenset(body["stop_token_ids"])
        )
        choice = {
            "token_ids": list(sample.token_ids),
            "logprobs": {"token_logprobs": list(sample.logprobs)},
            "prompt_token_ids": ids,
        }
        if body.get("prompt_logprobs") is not None:
            row = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": row[place, token].item()}}
                for place, token in enumerate(ids[1:])
            ]
        return {"model": body["model"], "choices": [choice]}

    @property
    def prompts(self):
        return [
            body["prompt"] if path == "/v1/completions" else body["token_ids"]
            for path, body, _ in self.requests
            if path in ("/v1/completions", "/inference/v1/generate")
        ]

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def merged(base, folder):
    """A model with an adapter added to its weights.

    peft would draw random numbers and change the warnings of the process, in which another thread
    may be learning.
    """
    model, config = copy.deepcopy(base), json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    for name, first in weights.items():
        if ".lora_A." in name:
            second = weights[name.replace(".lora_A.", ".lora_B.")]
            place = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            change = config["lora_alpha"] / config["r"] * second @ first
            model.get_submodule(place).weight.data += change
    return model


def make():
    made = tiny_model(window=2048)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return ModelPair(made.model.requires_grad_(False), made.tokenizer)


@pytest.fixture
def servers():
    started = [Server(make) for _ in range(3)]
    yield started
    for each in started:
        each.close()


def pool_of(servers, **options):
    options = {"first_wait": 0.02, **options}
    return ServerPool([each.url for each in servers], "served", **options)


def sample(pool, prompts=PROMPTS, **options):
    seeds = range(len(prompts))
    return pool.sample(prompts, Sampling(max_new_tokens=6), seeds, stop_ids=STOP, **options)


def assert_sampled_from(model, samples):
    scored = continuation_logprobs(model, PROMPTS, [each.token_ids for each in samples])
    for row, each in enumerate(samples):
        assert each.logprobs == pytest.approx(scored[row, : len(each.token_ids)].tolist(), abs=1e-4)


def test_ids_and_log_probabilities_of_prompt_and_text_come_back(servers):
    model, pool, spans = make().model, pool_of(servers), [(1, 4), (1, 1), (2, 3)]
    samples = sample(pool, score_spans=spans)
    plain = generate(
        model, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP, score_spans=spans
    )
    for each, expected in zip(samples, plain, strict=True):
        assert each.token_ids == expected.token_ids
        assert each.finish_reason == expected.finish_reason
        assert each.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
        assert each.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-5)
    scored = engine_logprobs(pool, [[2, 9], [4]], [[10, 11, 12], [5]])
    exact = prompt_logprobs(model, [[2, 9, 10, 11, 12], [4, 5]], [(2, 5), (1, 2)])
    assert scored[0].tolist() == pytest.approx(exact[0], abs=1e-5)
    assert scored[1].tolist() == pytest.approx([*exact[1], 0, 0], abs=1e-5)
    assert pool.sample([], Sampling(), [], stop_ids=STOP) == []


def test_siblings_go_to_one_server_and_no_server_gets_more_than_its_share(servers):
    # Of fixed names: a server is chosen by a hash of its address.
    urls = ["http://one:8000", "http://two:8000", "http://three:8000"]
    prompts = [[2, place, 5] for place in range(5, 17) for _ in range(4)]
    chosen = ServerPool(urls, "served").assignment(prompts)
    assert all(len(set(chosen[row : row + 4])) == 1 for row in range(0, len(prompts), 4))
    assert max(chosen.count(index) for index in range(3)) <= 4 * 5  # ceil(1.25 * 12 / 3) prompts
    assert set(chosen) == {0, 1, 2}
    assert chosen == ServerPool(urls, "served").assignment(prompts)  # whatever the process
    # With one server less, the prompts of the others mostly stay where they are.
    fewer = ServerPool(urls[:2], "served").assignment(prompts)
    stay = [(a, b) for a, b in zip(chosen, fewer, strict=True) if a < 2]
    assert sum(a == b for a, b in stay) >= 0.7 * len(stay)
    sample(pool_of(servers), prompts[:12])
    served = [set(map(tuple, each.prompts)) for each in servers]
    assert not served[0] & served[1]


def test_a_failed_server_is_drained_and_used_again_when_it_is_back(servers, caplog):
    pool, model = pool_of(servers), make().model
    first = pool.assignment(PROMPTS)[0]
    servers[first].fails = 503
    assert_sampled_from(model, sample(pool))
    assert "its requests go to other servers" in caplog.text
    servers[first].fails = None
    pool._servers[first].not_before = 0.0  # the wait is over
    before = len(servers[first].prompts)
    assert_sampled_from(model, sample(pool))
    assert len(servers[first].prompts) > before
    assert pool._servers[first].failures == 0


def test_a_request_does_not_use_up_its_tries_at_one_server(servers):
    """However soon a server that failed it is back."""
    pool = pool_of(servers, first_wait=1e-6, max_tries=2)
    servers[pool.assignment(PROMPTS)[0]].fails = 500
    assert_sampled_from(make().model, sample(pool))


def test_a_server_that_is_gone_is_replaced(servers):
    pool = pool_of(servers)
    servers[pool.assignment(PROMPTS)[0]].close()
    assert_sampled_from(make().model, sample(pool))


def test_without_any_server_the_run_ends_with_what_failed_last(servers):
    for each in servers:
        each.fails = 500
    with pytest.raises(EndpointError, match=r"no server of served answered .*500.*down"):
        sample(pool_of(servers, max_tries=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reply: reply | {"model": "attacker-v0"}, "another version"),
        (
            lambda reply: (
                reply | {"choices": [reply["choices"][0] | {"prompt_token_ids": [2, 2, 9]}]}
            ),
            "another prompt",
        ),
        (
            lambda reply: {"model": "served", "choices": [{"text": "said"}]},
            "without token ids or log-probabilities",
        ),
    ],
)
def test_a_reply_of_another_version_or_prompt_is_refused(servers, change, message):
    for each in servers:
        each.changes = change
    with pytest.raises(EndpointError, match=message):
        sample(pool_of(servers))


def test_at_another_temperature_raw_log_probabilities_are_missing(servers):
    def logprobs(sampling, **options):
        samples = pool_of(servers, **options).sample(PROMPTS, sampling, range(3), stop_ids=STOP)
        return [value for each in samples for value in each.logprobs]

    cold = Sampling(max_new_tokens=4, temperature=0.5)
    assert all(value != value for value in logprobs(cold))
    known = logprobs(cold, gives_sampled_logprobs=True)
    assert all(value <= 0 for value in known)
    assert set(logprobs(Sampling(max_new_tokens=4, temperature=0))) == {0.0}
    pair = make()
    target = EngineTarget("served", pool_of(servers), pair.renderer("target"), cold)
    (said,) = target.respond(["hello"], generate, None)
    assert said.token_ids
    assert said.logprobs is None  # and so it is in records


def adapted(pair):
    torch.manual_seed(0)
    return HFASTProblem(
        pair, pair, pair, FunctionModerator(lambda texts: [0.5] * len(texts)),
        lora=LoraOptions(rank=4), attacker_sampling=Sampling(max_new_tokens=4),
        target_sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip


@pytest.mark.slow
def test_adapters_are_loaded_by_version_and_old_ones_unloaded(servers):
    problem = adapted(make())
    sampler = server_sampler(pool_of(servers))
    for version in range(3):
        samples = sampler(
            problem.attacker, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP
        )
        assert_sampled_from(problem.attacker, samples)
        used = [each for each in servers if each.prompts]
        assert used
        assert all(len(each.adapters) <= 2 for each in servers)
        assert any(f"attacker-v{version + 1}-" in name for each in used for name in each.adapters)
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))


@pytest.mark.slow
def test_a_server_that_was_restarted_gets_the_adapter_again(servers):
    problem, sampler = adapted(make()), server_sampler(pool_of(servers[:1]))
    for _ in range(2):
        samples = sampler(
            problem.attacker, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP
        )
        assert_sampled_from(problem.attacker, samples)
        servers[0].adapters.clear()


def test_servers_that_may_not_load_adapters_say_how_to_start_them(servers):
    for each in servers:
        each.loads = False
    problem = adapted(make())
    with pytest.raises(EndpointError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        server_sampler(pool_of(servers))(
            problem.attacker, PROMPTS, Sampling(max_new_tokens=2), range(3), stop_ids=STOP
        )


@pytest.fixture
def open_servers(servers):
    """In development mode, in which weights can be handed over."""
    for each in servers:
        each.is_open = True
    return servers


def trained():
    """A model that trains all its weights."""
    model = make().model
    return model.requires_grad_(True)


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


def sample_with(sampler, model):
    return sampler(model, PROMPTS, Sampling(max_new_tokens=6), range(3), stop_ids=STOP)


def loads(server):
    return [
        Path(body["kwargs"]["weights_path"]).name
        for path, body, _ in server.requests
        if path == "/collective_rpc"
    ]


def test_all_weights_are_handed_over_by_version_to_each_server_once(open_servers, tmp_path):
    model = trained()
    sampler = server_sampler(pool_of(open_servers), adapters=tmp_path)
    for version in range(1, 5):
        change(model)
        for _ in range(2):
            assert_sampled_from(model, sample_with(sampler, model))
        assert sampler.mismatch < 1e-4
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == min(version, 2)
    used = [each for each in open_servers if each.prompts]
    assert len(used) >= 2
    for each in used:
        assert loads(each) == ["1", "2", "3", "4"]
        assert each.label.startswith("attacker-v4-")
        assert not each.paused
        changes = [path for path, _, _ in each.requests if path != "/inference/v1/generate"]
        assert changes[:6] == [
            "/update_weight_version", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache",
            "/update_weight_version", "/resume",
        ]  # fmt: skip
        bodies = [body for path, body, _ in each.requests if path == "/update_weight_version"]
        # Were it to fail, no version is claimed.
        assert bodies[0]["new_version"].startswith("loading attacker-v1-")
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_server_that_was_started_again_gets_the_weights_before_it_is_used(open_servers):
    """Whether it was seen to be gone or not."""
    model, pool = trained(), pool_of(open_servers)
    sampler = server_sampler(pool)
    sample_with(sampler, model)
    change(model)
    sample_with(sampler, model)
    first = open_servers[pool.assignment(PROMPTS)[0]]
    first.restart()
    assert_sampled_from(model, sample_with(sampler, model))
    assert loads(first)[-2:] == ["2", "2"]
    assert all(each.failures == 0 for each in pool._servers)  # nothing was sent in vain
    first.fails = 503
    assert_sampled_from(model, sample_with(sampler, model))
    first.restart()
    first.fails = None
    pool._servers[pool.assignment(PROMPTS)[0]].not_before = 0.0
    assert_sampled_from(model, sample_with(sampler, model))
    assert first.label.startswith("attacker-v2-")


def test_a_server_that_starts_again_during_a_call_gets_the_weights_again(open_servers, caplog):
    model, pool = trained(), pool_of(open_servers[:1])
    change(model)
    sampler = server_sampler(pool)
    first = open_servers[0]

    def restarts(reply):
        first.changes = lambda reply: reply
        first.restart()
        span = {"version": "default", "start": 0, "end": 1}
        return reply | {"choices": [reply["choices"][0] | {"weight_versions": [span]}]}

    first.changes = restarts
    assert_sampled_from(model, sample_with(sampler, model))
    assert "another version; its requests go to other servers" in caplog.text
    assert loads(first) == ["1", "1"]


@pytest.mark.parametrize(
    "path", ["/update_weight_version", "/pause?mode=wait", "/collective_rpc", "/resume"]
)
def test_a_server_whose_loading_ends_halfway_is_used_by_nobody_before_it_loads(open_servers, path):
    """As when a run is stopped: the server may stay paused, and would keep others waiting."""
    first, model = open_servers[0], trained()
    change(model)
    sample_with(server_sampler(pool_of([first])), model)  # another run, which thinks it has it
    other = server_sampler(pool_of([first]))
    sample_with(other, model)
    first.fails_at = path
    change(model)
    with pytest.raises(EndpointError):
        sample_with(server_sampler(pool_of([first], max_tries=1)), model)
    first.fails_at = None
    assert first.label != "default"
    with pytest.raises(EndpointError, match="Start it again"):
        sample(pool_of([first]))
    assert_sampled_from(model, sample_with(other, model))


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize(
    "path", ["/update_weight_version", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache"]
)
def test_weights_that_another_run_loads_at_the_same_time_never_get_the_name(
    open_servers, caplog, path, is_done
):
    first, model = open_servers[0], trained()
    change(model)

    def load_those_of_another_run():
        first.models["served"] = make().model
        first.label = "attacker-v1-of-another" if is_done else "loading attacker-v1-of-another"

    first.then[path] = load_those_of_another_run
    assert_sampled_from(model, sample_with(server_sampler(pool_of([first])), model))
    assert "another run gives it weights" in caplog.text


def test_a_server_that_has_the_weights_already_does_not_load_them_again(open_servers, tmp_path):
    """As of another process of the run, which may have stopped before the server went on."""
    first, model = open_servers[0], trained()
    change(model)
    model.save_pretrained(tmp_path)
    version = FullWeights(1, "attacker-v1-12345678", tmp_path)
    for paused in (False, True):
        first.paused = paused
        assert_sampled_from(model, sample(pool_of([first]), version=version))
    assert len(loads(first)) == 1


def test_replies_during_which_a_server_was_given_weights_are_refused(open_servers):
    """Those of a target or of an adapter do not say which weights they are of."""
    first = open_servers[0]

    def given(reply):
        first.label = "attacker-v1-of-another"
        return reply

    first.changes = given
    with pytest.raises(EndpointError, match="was given attacker-v1-of-another"):
        sample(pool_of([first]), PROMPTS[:1])


def test_a_server_that_answers_with_other_weights_is_refused(open_servers):
    """However often it gets those that are asked for."""

    def other(reply):
        span = {"version": "attacker-v1-of-another-run", "start": 0, "end": 1}
        return reply | {"choices": [reply["choices"][0] | {"weight_versions": [span]}]}

    for each in open_servers:
        each.changes = other
    with pytest.raises(EndpointError, match=r"another version \('attacker-v1-of-another-run' for"):
        sample_with(server_sampler(pool_of(open_servers, max_tries=4)), trained())
    for each in open_servers:
        each.changes = lambda reply: reply
        each.resets = False
    with pytest.raises(EndpointError, match="prefix cache not reset"):
        sample_with(server_sampler(pool_of(open_servers, max_tries=4)), trained())


def test_servers_outside_of_development_mode_are_refused_for_all_weights(servers):
    with pytest.raises(EndpointError, match="start it with VLLM_SERVER_DEV_MODE=1"):
        sample_with(server_sampler(pool_of(servers)), trained())
    assert not any(each.prompts for each in servers)
    for each in servers:
        each.is_open, each.scales_out = True, False
    with pytest.raises(EndpointError, match="--enable-scale-out"):
        sample_with(server_sampler(pool_of(servers)), trained())


def test_a_folder_that_a_server_cannot_read_is_named_and_the_server_answers_nothing(open_servers):
    pool = pool_of(open_servers[:1], max_tries=2)
    gone = FullWeights(1, "attacker-v1-12345678", Path("/nowhere"))
    with pytest.raises(EndpointError, match=r"cannot load /nowhere, which it must be able to read"):
        sample(pool, version=gone)
    label, paused = open_servers[0].label, open_servers[0].paused
    assert (label, paused) == ("loading attacker-v1-12345678", True)
    model = trained()  # with weights that are there, it goes on
    assert_sampled_from(model, sample_with(server_sampler(pool_of(open_servers[:1])), model))


def test_given_weights_are_not_taken_for_those_that_a_server_was_started_with(open_servers):
    """A target, a judge, or the adapter of another run at the same servers."""
    pool = pool_of(open_servers)
    assert_sampled_from(make().model, sample(pool))
    model = trained()
    change(model)
    sample_with(server_sampler(pool_of(open_servers)), model)
    with pytest.raises(EndpointError, match=r"was given attacker-v1-.*Start it again"):
        sample(pool)


def test_a_frozen_model_from_elsewhere_is_handed_over(open_servers, tmp_path):
    """An evaluation of what was trained, at the servers that it was trained with."""
    (there := make().model).save_pretrained(tmp_path / "base")
    change(there)
    there.save_pretrained(tmp_path / "trained")
    for name, count in (("base", 0), ("trained", 1), ("base", 2)):
        model = load_model(tmp_path / name, device="cpu", dtype="float32")
        sampler = server_sampler(pool_of(open_servers), started_with=str(tmp_path / "base"))
        assert_sampled_from(model, sample_with(sampler, model))
        assert max(len(loads(each)) for each in open_servers) == count


def test_calls_with_two_versions_at_a_time_wait_for_each_other(open_servers, tmp_path):
    pool, versions = pool_of(open_servers), []
    for number in (1, 2):
        model = trained()
        change(model)
        model.save_pretrained(tmp_path / str(number))
        versions.append((model, FullWeights(number, f"attacker-v{number}", tmp_path / str(number))))
    found = [[] for _ in versions]

    def play(place):
        found[place] += [sample(pool, version=versions[place][1]) for _ in range(3)]

    threads = [threading.Thread(target=play, args=(place,)) for place in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for (model, _), calls in zip(versions, found, strict=True):
        assert len(calls) == 3
        for samples in calls:
            assert_sampled_from(model, samples)


@pytest.mark.slow
def test_a_problem_plays_with_servers_and_another_model_is_refused(servers):
    problem = adapted(make())
    problem.attacker_sampler = server_sampler(pool_of(servers))
    (graph,) = ASTEnvironment(problem, ["hello"], 2, 2).rollouts([0])
    assert len(list(graph.nodes())) == 6
    with pytest.raises(ConfigurationError, match="servers of its own"):
        problem.attacker_sampler(
            make().model, PROMPTS, Sampling(max_new_tokens=2), range(3), stop_ids=STOP
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made, path = make(), tmp_path_factory.mktemp("models") / "model"
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


def configured(folder, server, *settings):
    text = f"""
    attacker: {{model: "{folder}", lora: {{rank: 4}}, max_new_tokens: 4}}
    target: {{model: "{folder}", max_new_tokens: 4}}
    moderator: {{type: keyword, options: {{words: [a]}}}}
    prompts: {{scenario: planted_secrets, test: 2, train: 2}}
    environment: {{type: single_turn, tree_width: 2}}
    dtype: float32
    rollout:
      attacker: {{servers: ["{server.url}"], model: served}}
      target: {{servers: ["{server.url}/v1"], model: served}}
    """
    return parse_config(textwrap.dedent(text), list(settings), source="test")


@pytest.mark.slow
def test_a_configuration_trains_and_attacks_on_servers(servers, folder):
    """The target's weights are not loaded, and its likelihood of attacks is its own."""
    experiment = build(resolve(configured(folder, servers[0])))
    problem = experiment.problem
    assert isinstance(problem.target, ServedTarget)
    assert described_target(problem.target) == {}
    nodes = [node for graph in experiment.environment.rollouts([0, 1]) for node in graph.nodes()]
    assert len(nodes) == 4
    contexts, attacks = [node.context for node in nodes], [node.attack for node in nodes]
    exact = problem.get_attacker_logprobs(contexts, attacks)
    scored = problem.get_target_logprobs(contexts, attacks)
    pair = make()
    local = LocalTarget(pair.model, pair.renderer("target"), Sampling(max_new_tokens=4))
    torch.testing.assert_close(scored, local.attack_logprobs(contexts, attacks), atol=1e-4, rtol=0)
    for row, node in enumerate(nodes):
        known = node.attack.logprobs
        assert exact[row, : len(known)].tolist() == pytest.approx(known, abs=1e-4)
        heard = node.response.heard_logprobs
        assert scored[row, : len(heard)].tolist() == pytest.approx(heard, abs=1e-4)
    responses = [str(node.response) for node in nodes]
    asked = [node.context + node.attack for node in nodes]
    torch.testing.assert_close(
        problem.get_response_logprobs(asked, responses),
        local.response_logprobs(asked, responses),
        atol=1e-4,
        rtol=0,
    )
    with pytest.raises(ConfigurationError, match="no hidden states"):
        problem.embed(["a"], "target")


@pytest.fixture
def judge_server():
    started = Server(lambda: tiny_model(chat=True, window=8192))
    yield started
    started.close()


@pytest.fixture
def judge_folder(tmp_path):
    """Tokenizer and configuration of the judge, no weights."""
    made = tiny_model(chat=True, window=8192)
    made.tokenizer.save_pretrained(tmp_path / "judge")
    made.model.config.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def judged(folder, judge_folder, server, *settings):
    judge = f"{{type: llm_judge, options: {{model_id: '{judge_folder}', max_new_tokens: 5}}}}"
    return configured(
        folder,
        server,
        "rollout.attacker=own",
        "rollout.target=own",
        f"rollout.judge={{servers: ['{server.url}'], model: served}}",
        f"moderator={judge}",
        *settings,
    )


def test_a_judge_on_servers_answers_as_one_whose_weights_are_here(judge_server, judge_folder):
    made = tiny_model(chat=True, window=8192)
    chats = [
        [{"role": "system", "content": "Judge."}, {"role": "user", "content": "hello"}],
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "word " * 3000}],
    ]
    here = LocalCompleter(model=made.model, tokenizer=made.tokenizer, max_new_tokens=5)
    there = LocalCompleter(str(judge_folder), engine=pool_of([judge_server]), max_new_tokens=5)
    assert there.model is None
    found, expected = there(chats), here(chats)
    assert [(str(each), getattr(each, "reason", None)) for each in found] == [
        (str(each), getattr(each, "reason", None)) for each in expected
    ]
    assert weights_of(there) == str(judge_folder)
    assert {body["temperature"] for _, body, _ in judge_server.requests} == {0}


def test_a_configuration_judges_on_servers(folder, judge_server, judge_folder):
    """The moderator, the judge of evaluations and that of a reward share the engine."""
    judge = {"type": "llm_judge", "options": {"model_id": str(judge_folder)}}
    reward = {"harm": {"moderator": judge}}
    plan = resolve(
        judged(
            folder,
            judge_folder,
            judge_server,
            f"reward={json.dumps(reward)}",
            f"evaluation.judge={json.dumps({'type': 'mean', 'of': [judge]})}",
        )
    )
    assert not judge_server.requests  # nothing is loaded or sent before
    for each in (plan.moderator, plan.judge, *plan.deferred):
        judge_server.requests.clear()
        each.load().moderate([Exchange("c", "hello", "hi")])
        ((path, body, _),) = judge_server.requests
        assert (path, body["model"]) == ("/v1/completions", "served")


def test_a_judge_that_the_engine_cannot_run_is_refused(folder, judge_server, judge_folder):
    with pytest.raises(ConfigurationError, match="no moderator has a language model"):
        resolve(judged(folder, judge_folder, judge_server, "moderator={type: secret_leak}"))
    other = "{type: llama_guard, options: {model_id: other/guard}}"
    with pytest.raises(ConfigurationError, match="an engine runs one model"):
        resolve(judged(folder, judge_folder, judge_server, f"evaluation.judge={other}"))


AHEAD = (
    "training={steps: 5, episodes_per_step: 2, batch_size: 2, lr: 0.05, max_staleness: 1}",
    "training.save_every=2",
    "algorithm={type: grpo, options: {old_logprobs: corrected, kl_in_loss: 0.1}}",
    "reward={sum: [{harm: {}}, {attack_nll: {}, weight: -0.1}]}",
    "evaluation.before=false",
)


class StopsAt(Display):
    """Sends SIGTERM while the weights of a step are updated and the next episodes are played."""

    def __init__(self, step):
        self.step = step

    def on_experience(self, trainer, graphs):
        if trainer.completed_steps == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


def check_equal_runs(run, other):
    """Check that two runs played the same and ended with the same adapter, to the last bit."""
    assert played(run) == played(other)
    weights = [
        (each.checkpoints / "last" / "adapter_model.safetensors").read_bytes()
        for each in (run, other)
    ]
    assert weights[0] == weights[1]


def played(folder):
    with AttemptLog(folder.attempts) as log:
        return [
            (each.phase, each.step, [turn.attack + turn.response for turn in each.turns])
            for each in log.attempts()
        ]


@pytest.mark.slow
def test_a_run_that_plays_ahead_is_resumed_after_a_signal_as_if_there_had_been_none(
    servers, folder, tmp_path
):
    """The attacker's base is also the baseline, which the reward scores during the update."""
    config = configured(folder, servers[0], *AHEAD)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    run_experiment(resolve(config), whole)
    names = [
        body["model"]
        for path, body, _ in servers[0].requests
        if path == "/v1/completions" and body["model"] != "served"
    ]
    versions = [int(each.split("-")[1].removeprefix("v")) for each in dict.fromkeys(names)]
    assert versions == [1, 2, 3, 4, 5]  # of steps 0, 0, 1, 2, 3, and of the evaluation
    counts = [names.count(each) for each in dict.fromkeys(names)]
    assert counts == [8, 4, 4, 4, counts[-1]]
    assert len(servers[0].adapters) <= 3
    for step in (1, 4):
        with pytest.raises(InterruptedRunError):
            run_experiment(resolve(config), parts, StopsAt(step))
    run_experiment(resolve(config), parts)
    check_equal_runs(parts, whole)
    metrics = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    assert [each["sampling/staleness"] for each in metrics] == [0, 1, 1, 1, 1]


@pytest.mark.slow
def test_a_run_that_plays_ahead_ends_when_its_servers_do_and_is_resumed(
    servers, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("astra_rl.config.engines._pool", lambda engine, model: pool_of(servers[:1]))
    config = configured(folder, servers[0], *AHEAD)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    run_experiment(resolve(config), whole)

    class Fails(Display):
        def on_experience(self, trainer, graphs):
            servers[0].fails = 503 if trainer.completed_steps == 2 else None

    with pytest.raises(EndpointError):
        run_experiment(resolve(config), parts, Fails())
    servers[0].fails = None
    step, state = load_state(parts.states)
    assert step == 3  # the step during which the servers failed is complete
    assert state["ahead"]["failed"]["number"] == 3
    run_experiment(resolve(config), parts)
    check_equal_runs(parts, whole)


def test_what_reads_hidden_states_or_trains_the_target_is_refused(servers, folder):
    with pytest.raises(ConfigurationError, match="hidden states"):
        resolve(configured(folder, servers[0], "reward={response_likelihood: {text: Sure}}"))
    with pytest.raises(ConfigurationError, match=r"rollout\.target: own"):
        check_hardening(configured(folder, servers[0]))


def test_the_key_is_sent_and_a_bad_address_refused(servers, monkeypatch):
    with pytest.raises(ConfigurationError, match="POOL_KEY"):
        pool_of(servers, api_key_env="POOL_KEY")
    monkeypatch.setenv("POOL_KEY", "sesame-opens")
    sample(pool_of(servers, api_key_env="POOL_KEY"))
    heads = [headers for each in servers for _, _, headers in each.requests]
    assert {each["Authorization"] for each in heads} == {"Bearer sesame-opens"}
    with pytest.raises(ConfigurationError, match="http://"):
        ServerPool(["localhost:8000"], "served")
    with pytest.raises(ConfigurationError, match="empty"):
        ServerPool([], "served")
