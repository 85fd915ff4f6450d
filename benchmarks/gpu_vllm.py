"""What `gpu.py` measures with vLLM, each in a process of its own.

    python benchmarks/gpu_vllm.py MEASUREMENT SHAPE FOLDER [--quick]

vLLM keeps memory of the device until its process ends. FOLDER has the model and its tokenizer, see
`save_random_model`. The last line of the output is the result as JSON; what a step of GRPO takes is
that of a LoRA adapter, because an engine of this library takes adapters only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import median
from gpu_models import SHAPES, random_model, seconds, word_tokenizer
from gpu_sizes import WORDS, Sizes, prompts_of, sizes_of
from grpo_step import ours, trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl.ext.transformers import ModelPair
from astra_rl.ext.vllm import VLLMEngine, VLLMSampler
from astra_rl.models.generation import Sampling
from astra_rl.models.trainable import LoraOptions

LIMITS = {"gpu_memory_utilization": 0.3}
"""Of an engine beside a model that is trained; TRL's default."""


def save_random_model(name: str, device: str, folder: Path) -> None:
    """Save a model with random weights and its tokenizer, so that vLLM can open them."""
    shape = SHAPES[name]
    model = random_model(shape, device)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    word_tokenizer(shape.vocabulary).save_pretrained(folder)


def sampling(name: str, folder: Path, sizes: Sizes, device: str) -> dict[str, Any]:
    """Tokens per second of an engine, by the number of rows."""
    longest = 2 * (sizes.prompt + sizes.new)
    engine = VLLMEngine(str(folder), dtype="bfloat16", max_model_len=longest)
    wanted, found = Sampling(max_new_tokens=sizes.new), {}
    for rows in sizes.rows:
        prompts = prompts_of(SHAPES[name], rows, sizes.prompt)

        def run(prompts: list[list[int]] = prompts) -> None:
            engine.sample(prompts, wanted, range(len(prompts)), stop_ids=frozenset({1}))

        run()
        times = [seconds(run) for _ in range(3)]
        found[f"vllm_tokens_per_s, {rows} rows"] = round(rows * sizes.new / median(times))
    return found


def astra_rl_step(name: str, folder: Path, sizes: Sizes, device: str) -> dict[str, Any]:
    """Seconds of a GRPO step of this library with `VLLMSampler`."""
    pair = ModelPair(_loaded(folder, device), AutoTokenizer.from_pretrained(folder))
    sampler = VLLMSampler(max_model_len=_longest(sizes), **LIMITS)
    times = ours(
        sizes.setup(name), pair, sizes.texts(), device=device, lora=LoraOptions(), sampler=sampler
    )
    return {"astra_rl_s": round(median(times), 3)}


def trl_step(name: str, folder: Path, sizes: Sizes, device: str) -> dict[str, Any]:
    """Seconds of a GRPO step of TRL with its engine in the same process."""
    times = trl(
        sizes.setup(name), lambda: _loaded(folder, device), AutoTokenizer.from_pretrained(folder),
        sizes.texts(), device, lora=LoraOptions(), **trl_options(sizes),
    )  # fmt: skip
    return {"trl_s": round(median(times), 3)}


def trl_options(sizes: Sizes) -> dict[str, Any]:
    """Return the arguments of `trl_config` with which TRL samples in vLLM, in its own process."""
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": LIMITS["gpu_memory_utilization"],
        "vllm_max_model_length": _longest(sizes),
    }


MEASUREMENTS: dict[str, Callable[[str, Path, Sizes, str], dict[str, Any]]] = {
    "sampling": sampling,
    "astra_rl": astra_rl_step,
    "trl": trl_step,
}


def in_own_process(measurement: str, shape: str, folder: Path, *options: str) -> dict[str, Any]:
    """Return what a measurement found, or why it failed."""
    command = [sys.executable, __file__, measurement, shape, str(folder), *options]
    # Read when vLLM is imported: it would send statistics of its use to its authors.
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {f"{measurement} failed": " ".join(last)[:500] or f"status {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def all_measurements(name: str, device: str, folder: Path, *options: str) -> dict[str, Any]:
    """Return all measurements of a size; without vLLM, that it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return {"vllm": "not installed"}
    save_random_model(name, device, folder)
    found: dict[str, Any] = {}
    for each in MEASUREMENTS:
        found |= in_own_process(each, name, folder, *options)
    if {"astra_rl_s", "trl_s"} <= found.keys():
        found["times_trl"] = round(found["trl_s"] / found["astra_rl_s"], 2)
    return found


def _longest(sizes: Sizes) -> int:
    return 2 * (WORDS + sizes.step.new_tokens)


def _loaded(folder: Path, device: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.to(device).requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure = MEASUREMENTS[given.measurement]
    found = measure(given.shape, given.folder, sizes_of(quick=given.quick), device)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
