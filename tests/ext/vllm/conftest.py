"""Tests with the real vLLM, which `make vllm` installs and runs; without it they are skipped.

An engine takes most of a minute of a CPU to start, so tests share engines.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from astra_rl.ext.transformers.model_pool import ModelPair
from astra_rl.testing import tiny_model
from astra_rl.training.callbacks import TrainerCallback

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # else it asks another machine
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# In this process: each other one would import torch and vLLM again, half a minute of a CPU.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

OPTIONS = {"enforce_eager": True}
"""Of engines in tests: compiling would take longer than all tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run them only where vLLM is installed, and in one order, because of the shared engines."""
    import importlib.util

    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("default"))  # those of vLLM
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: make vllm"))


def save_model(folder: Path, seed: int) -> Path:
    """Save a tiny chat model of random weights whose heads are as wide as vLLM's kernels need."""
    tokenizer = tiny_model(chat=True).tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                bos_token_id=2,
                eos_token_id=3,
                initializer_range=0.15,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def attacker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "attacker", 0)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "target", 1)


@pytest.fixture(scope="session")
def target_pair(target_folder: Path) -> ModelPair:
    from transformers import AutoTokenizer

    model = LlamaForCausalLM.from_pretrained(target_folder).eval().requires_grad_(False)
    return ModelPair(model, AutoTokenizer.from_pretrained(target_folder))


class Watch(TrainerCallback):
    """Keeps the weights before each step, and what was played for it.

    Args:
        problem: The problem that is trained.
    """

    def __init__(self, problem):
        self.problem, self.weights, self.played = problem, [], []

    def on_step_begin(self, trainer, step):
        self.weights.append([each.detach().clone() for each in self.problem.parameters()])

    def on_experience(self, trainer, graphs):
        self.played.append([node for graph in graphs for node in graph.nodes()])

    @torch.no_grad()
    def difference(self, step, weights):
        """The largest between attacks as they were sampled and with the weights before a step."""
        nodes = self.played[step]
        parameters = list(self.problem.parameters())
        for parameter, then in zip(parameters, self.weights[weights], strict=True):
            parameter.copy_(then)
        scored = self.problem.get_attacker_logprobs(
            [node.context for node in nodes], [node.attack for node in nodes]
        )
        return max(
            abs(a - b)
            for node, row in zip(nodes, scored.tolist(), strict=True)
            for a, b in zip(node.attack.logprobs, row, strict=False)
        )
