"""Speed and exactness on a GPU: sampling, scoring, updates, and a GRPO step beside TRL's.

    python benchmarks/gpu.py [--sizes 135M 1.5B 8B] [--seconds 1800] [--quick]

Models have the shapes of real ones, random weights and bfloat16. Sampling is compared with
``generate`` of transformers, scoring and updates with a forward pass over whole rows with logits of
the continuation, in the same process, alternately. Rows are groups of eight with the same prompt.
A GRPO step is that of a LoRA adapter, and of all weights below a billion; each library samples it
itself, and, where vLLM is installed, in vLLM (`gpu_vllm.py`). A part that fails, or for which no
time is left, is named in the result and the others go on.
``--quick`` runs all parts on tiny models, on any device.

Writes ``results/gpu.json``, anew after each part.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_vllm
import torch
from common import RESULTS, median
from gpu_models import (
    SHAPES,
    Limits,
    Shape,
    peak_gib,
    random_model,
    seconds,
    word_tokenizer,
)
from gpu_sizes import Sizes, prompts_of, sizes_of
from grpo_step import ours, trl
from torch.optim import AdamW

from astra_rl.core.out_of_memory import release_memory
from astra_rl.ext.transformers import ModelPair
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.segments import unwrap_peft
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.training.precision import build_optimizer

SMALL = ("tiny", "135M")
"""Shapes of which all weights are trained, too."""
LONG = 8.0
"""Seconds above which a candidate is not repeated."""


@dataclass
class Results:
    """Collects what each part measured, and writes it to a file."""

    path: Path
    deadline: float
    parts: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        """Run a part; an error, or that no time is left, becomes its result."""
        started = time.monotonic()
        if started > self.deadline:
            self.parts[name] = {"skipped": "no time left"}
        else:
            try:
                self.parts[name] = part()
            except Exception as error:
                traceback.print_exc()
                self.parts[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            release_memory()
        found = self.parts[name]
        took = time.monotonic() - started
        print(f"{name} ({took:.1f} s): {json.dumps(found)}", flush=True)
        self.save()
        return found

    def save(self) -> None:
        record = {
            "benchmark": "gpu",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "versions": installed("torch", "transformers", "peft", "accelerate", "trl", "vllm"),
            "parts": self.parts,
        }
        self.path.parent.mkdir(exist_ok=True, parents=True)
        self.path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def installed(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def alternately(candidates: dict[str, Callable[[], Any]], repeats: int = 2) -> dict[str, float]:
    """Return the median seconds of each candidate; a long one is run once."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            if not times[name] or times[name][0] < LONG:
                times[name].append(seconds(run))
    return {name: median(values) for name, values in times.items()}


class Measure:
    """Measures one model.

    Args:
        shape: Its shape.
        sizes: How much is measured.
        device: The device.
        limits: Measured limits of the device.
    """

    def __init__(self, shape: Shape, sizes: Sizes, device: str, limits: Limits) -> None:
        self.shape, self.sizes, self.device, self.limits = shape, sizes, device, limits
        self.model: Any = None
        self.weights = 0

    def load(self) -> dict[str, Any]:
        """Make the model."""
        self.model = random_model(self.shape, self.device)
        self.weights = sum(p.numel() for p in self.model.parameters())
        if not self.shape.tied:
            self.weights -= self.shape.vocabulary * self.shape.hidden  # a step reads few of them
        return {"weights": self.weights}

    def _sample(self, rows: int, new: int, *, cuda_graphs: bool = False) -> None:
        texts, sampling = (
            prompts_of(self.shape, rows, self.sizes.prompt),
            Sampling(max_new_tokens=new),
        )
        found = generate(
            self.model, texts, sampling, range(rows), stop_ids=frozenset({1}),
            cuda_graphs=cuda_graphs,
        )  # fmt: skip
        assert len(found) == rows

    def _transformers(self, rows: int, new: int) -> None:
        ids = torch.tensor(prompts_of(self.shape, rows, self.sizes.prompt), device=self.device)
        unwrap_peft(self.model).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=True,
            top_k=None, top_p=None, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip

    def sampling(self, rows: int) -> dict[str, Any]:
        """Tokens per second of both samplers, and share of the limit."""
        candidates = {
            "astra_rl": self._sample,
            "cuda_graphs": partial(self._sample, cuda_graphs=True),
            "transformers": self._transformers,
        }
        for run in candidates.values():
            run(rows, 6)
        new, prompt = self.sizes.new, self.sizes.prompt
        times = alternately({n: (lambda r=r: r(rows, new)) for n, r in candidates.items()})
        least = new * self.limits.decoding(self.shape, self.weights, rows, prompt + new // 2)
        return {
            **{f"{name}_tokens_per_s": round(rows * new / each) for name, each in times.items()},
            "times_transformers": round(times["transformers"] / times["astra_rl"], 2),
            "graphs_times_transformers": round(times["transformers"] / times["cuda_graphs"], 2),
            "ms_per_token": round(1e3 * times["astra_rl"] / new, 2),
            "least_ms_per_token": round(1e3 * least / new, 3),
            "share_of_limit": round(least / times["astra_rl"], 3),
            "peak_gib": _rounded(peak_gib(lambda: self._sample(rows, min(16, new)))),
        }

    def synchronisations(self) -> dict[str, Any]:
        """Synchronisations of host and device per sampled token, and where most of them are."""
        rows, new = self.sizes.rows[0], min(32, self.sizes.new)
        with waits() as found:
            self._sample(rows, new)
        return {"per_token": round(sum(found.values()) / new, 2), "most": found.most_common(8)}

    def scoring(self) -> dict[str, Any]:
        """Tokens per second of log-probabilities without gradients."""
        prompts, texts = self._rows(self.sizes.scored)
        ids = torch.tensor([a + b for a, b in zip(prompts, texts, strict=True)])

        @torch.no_grad()
        def engine() -> None:
            continuation_logprobs(self.model, prompts, texts)

        @torch.no_grad()
        def plain() -> None:
            for part in ids.split(self.sizes.micro_batch):
                self._plain_logprobs(part)

        engine(), plain()
        times = alternately({"astra_rl": engine, "transformers": plain}, repeats=3)
        return _compared(times, ids.numel()) | {
            "peak_gib": _rounded(peak_gib(engine)),
            "transformers_peak_gib": _rounded(peak_gib(plain)),
        }

    def update(self) -> dict[str, Any]:
        """Tokens per second, and peak memory, of forward and backward pass and optimizer step."""
        rows = self.sizes.micro_batch // (2 if self.weights > 4e9 else 1)
        prompts, texts = self._rows(rows)
        ids = torch.tensor([a + b for a, b in zip(prompts, texts, strict=True)])
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = build_optimizer(AdamW, trained, 1e-6)

        def learn(logprobs: Callable[[], torch.Tensor]) -> None:
            logprobs().mean().neg().backward()
            optimizer.step()
            optimizer.zero_grad()

        def engine() -> None:
            learn(lambda: continuation_logprobs(self.model, prompts, texts))

        def plain() -> None:
            learn(lambda: self._plain_logprobs(ids))

        with waits() as found:
            engine()
        plain()
        times = alternately({"astra_rl": engine, "transformers": plain}, repeats=3)
        return _compared(times, ids.numel()) | {
            "rows": rows,
            "synchronisations": sum(found.values()),
            "peak_gib": _rounded(peak_gib(engine)),
            "transformers_peak_gib": _rounded(peak_gib(plain)),
        }

    def _rows(self, rows: int) -> tuple[list[list[int]], list[list[int]]]:
        generator = torch.Generator().manual_seed(1)
        texts = torch.randint(
            2, self.shape.vocabulary, (rows, self.sizes.new), generator=generator
        ).tolist()
        return prompts_of(self.shape, rows, self.sizes.prompt), texts

    def _plain_logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        ids, count = ids.to(self.device), self.sizes.new
        mask = torch.ones_like(ids)
        output = self.model(
            input_ids=ids, attention_mask=mask, logits_to_keep=count + 1, use_cache=False
        )
        logits = output.logits[:, :-1].float()
        chosen = logits.gather(-1, ids[:, -count:, None]).squeeze(-1)
        return chosen - logits.logsumexp(-1)


@contextlib.contextmanager
def waits() -> Iterator[collections.Counter[str]]:
    """Context that counts, by line of code, how often the host waits for the device."""
    found: collections.Counter[str] = collections.Counter()
    if not torch.cuda.is_available():
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found.update(
        f"{Path(each.filename).name}:{each.lineno}"
        for each in caught
        if "synchroniz" in str(each.message)
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _compared(times: dict[str, float], tokens: int) -> dict[str, Any]:
    return {
        **{f"{name}_tokens_per_s": round(tokens / each) for name, each in times.items()},
        "times_transformers": round(times["transformers"] / times["astra_rl"], 2),
    }


def grpo(name: str, sizes: Sizes, device: str, lora: LoraOptions | None) -> dict[str, Any]:
    """Seconds of a whole step beside TRL, where it is installed; each samples itself."""
    shape, setup, texts = SHAPES[name], sizes.setup(name), sizes.texts()
    tokenizer = word_tokenizer(shape.vocabulary)
    source = ModelPair(random_model(shape, device), tokenizer)
    times = ours(setup, source, texts, device=device, lora=lora)
    found: dict[str, Any] = {"astra_rl_s": round(median(times), 3)}
    del source
    release_memory()

    def fresh() -> Any:
        model = random_model(shape, device).requires_grad_(lora is None)
        model.config.eos_token_id = model.generation_config.eos_token_id = 1
        return model

    try:
        found["trl_s"] = round(median(trl(setup, fresh, tokenizer, texts, device, lora=lora)), 3)
    except ImportError as error:
        found["trl"] = f"not installed: {error}"
    except Exception as error:  # what was measured of this library is kept
        traceback.print_exc()
        found["trl failed"] = f"{type(error).__name__}: {error}"[:500]
    else:
        found["times_trl"] = round(found["trl_s"] / found["astra_rl_s"], 2)
    return found


def with_vllm(name: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """Tokens per second of vLLM, and seconds of a step of both libraries with it."""
    options = ("--quick",) if sizes == sizes_of(quick=True) else ()
    with tempfile.TemporaryDirectory() as folder:
        return gpu_vllm.all_measurements(name, device, Path(folder), *options)


def checks(device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the checks of exactness by name."""
    yield "greedy texts that differ", lambda: gpu_checks.greedy_difference(device)
    yield "texts that differ with a cache", lambda: gpu_checks.cache_difference(device)
    yield "texts that depend on the batch", lambda: gpu_checks.batch_difference(device)
    for dtype, lora in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        name = f"{str(dtype).removeprefix('torch.')}{', LoRA' if lora else ''}"
        yield (
            f"nats between sampled and scored, {name}",
            lambda dtype=dtype, lora=lora: gpu_checks.sampled_against_scored(
                device, dtype, lora=lora
            ),
        )
    yield "gradients, against the CPU", lambda: gpu_checks.gradient_difference(device)
    yield "weights of a resumed run", lambda: gpu_checks.resume_difference(device)


def measure_size(name: str, sizes: Sizes, device: str, limits: Limits, results: Results) -> None:
    """Measure one size: GRPO steps, the plain model, then with an adapter, and all if it is small.

    Engines of vLLM come last, when the device is free.
    """
    results.run(f"{name}: GRPO step, LoRA", lambda: grpo(name, sizes, device, LoraOptions()))
    if name in SMALL:
        results.run(f"{name}: GRPO step, all weights", lambda: grpo(name, sizes, device, None))
    measure_model(name, sizes, device, limits, results)
    release_memory()
    results.run(f"{name}: vLLM", lambda: with_vllm(name, sizes, device))


def measure_model(name: str, sizes: Sizes, device: str, limits: Limits, results: Results) -> None:
    """Measure a model: as it is, then with an adapter; updates of all weights if it is small."""
    measure = Measure(SHAPES[name], sizes, device, limits)
    results.run(f"{name}: model", measure.load)
    if measure.model is None:
        return
    for rows in sizes.rows:
        results.run(f"{name}: sampling, {rows} rows", lambda rows=rows: measure.sampling(rows))
    results.run(f"{name}: synchronisations", measure.synchronisations)
    results.run(f"{name}: scoring", measure.scoring)
    if name in SMALL:
        measure.model.requires_grad_(True)
        results.run(f"{name}: update, all weights", measure.update)
        measure.model.requires_grad_(False)
    measure.model = make_trainable(measure.model, lora=LoraOptions())
    rows = sizes.rows[1]
    results.run(f"{name}: sampling with LoRA, {rows} rows", lambda: measure.sampling(rows))
    results.run(f"{name}: update, LoRA", measure.update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["135M", "1.5B", "8B"])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    names = ["tiny"] if options.quick else options.sizes
    sizes = sizes_of(quick=options.quick)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.quick:
        sys.exit("no CUDA device; --quick runs on the CPU.")
    end = time.monotonic() + options.seconds
    results = Results(options.output, end)
    limits = Limits.measure(device)
    results.run("device", lambda: {
        "bytes_per_s": limits.bandwidth, "operations_per_s": limits.operations,
    })  # fmt: skip
    for name, check in checks(device):
        results.run(name, check)
    for index, name in enumerate(names):
        left = end - time.monotonic()
        results.deadline = time.monotonic() + left / (len(names) - index)
        measure_size(name, sizes, device, limits, results)
    results.save()


if __name__ == "__main__":
    main()
