"""What merging a LoRA adapter into the weights while sampling would gain, and what it would change.

    python benchmarks/merged_adapter.py [--rounds 5]

Processor time of a decoding step: with the adapter beside the weights, as training computes it;
with the adapter merged; and of the model alone. Differences, in nats per sampled token, are those
of the sampler's log-probabilities from those of scoring with the adapter beside the weights, with
which training computes ratios. The adapter is random.

Writes ``results/merged_adapter.json``. Not part of `run_all.py`: it measures what was not built.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from collection_and_update import prompts
from common import Row, median, save, spread
from peft.tuners.lora import LoraLayer

from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.testing import tiny_model

MODELS = ("tiny", "bundled:smollm2-135m")
ROWS, STEPS, PROMPT = 8, 12, 16
CHANGES = {"small": 3e-4, "large": 3e-3}
"""Standard deviation of the second matrix of the adapter; an update of AdamW changes each number by
about the learning rate."""


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Context with the adapter added to the weights; they are restored to the last bit."""
    layers = [each for each in model.modules() if isinstance(each, LoraLayer)]
    kept = [each.base_layer.weight.data for each in layers]
    for layer, weight in zip(layers, kept, strict=True):
        change = layer.get_delta_weight("default").float()
        layer.base_layer.weight.data = (weight.float() + change).to(weight.dtype)
        layer.merged_adapters.append("default")
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


def changed_share(model: Any) -> float:
    """Return the share of the adapted weights that merging changes after rounding."""
    layers = [each for each in model.modules() if isinstance(each, LoraLayer)]
    before = [each.base_layer.weight.data for each in layers]
    with merged(model):
        pairs = [(a, b.base_layer.weight.data) for a, b in zip(before, layers, strict=True)]
    changed = sum(int((a != b).sum()) for a, b in pairs)
    return changed / sum(a.numel() for a, _ in pairs)


def adapted(reference: str, dtype: str, size: float) -> Any:
    """Return a model with an adapter of a size."""
    torch.manual_seed(0)
    tiny = reference == "tiny"
    model = tiny_model("llama").model if tiny else load_model(reference, dtype=dtype)
    model = model.to(getattr(torch, dtype)).requires_grad_(False)
    model = make_trainable(model, lora=LoraOptions())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, size)
    return model


def processor_times(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the processor times of runs in turn; the first round is left out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - started)
    return times


def decoding(reference: str, dtype: str, rounds: int, rows: int = ROWS) -> dict[str, Any]:
    """Return milliseconds of a decoding step of each candidate, and of merging and restoring."""
    model, texts = adapted(reference, dtype, CHANGES["small"]), ids(reference, rows)

    def run(tokens: int) -> None:
        generate(model, texts, Sampling(max_new_tokens=tokens), range(rows), stop_ids=frozenset())

    def merging() -> None:
        with merged(model):
            pass

    def beside(tokens: int) -> None:
        run(tokens)

    def added(tokens: int) -> None:
        with merged(model):
            run(tokens)

    def alone(tokens: int) -> None:
        with model.disable_adapter():
            run(tokens)

    candidates = {"beside": beside, "merged": added, "alone": alone}
    lengths = (1, STEPS + 1)
    runs = {
        f"{name} {tokens}": partial(run, tokens)
        for (name, run), tokens in itertools.product(candidates.items(), lengths)
    }
    times = processor_times({**runs, "merging": merging}, rounds)
    steps = {
        name: 1e3 * (median(times[f"{name} {lengths[1]}"]) - median(times[f"{name} 1"])) / STEPS
        for name in candidates
    }
    return {
        **{f"{name}_ms": round(value, 3) for name, value in steps.items()},
        "merging_ms": round(1e3 * median(times["merging"]), 2),
        "gain": round(steps["beside"] / steps["merged"], 2),
        "seconds": {name: spread(values) for name, values in times.items()},
    }


def differences(reference: str, dtype: str, size: float, rows: int = ROWS) -> dict[str, float]:
    """Return mean differences, in nats per token, of sampled from scored log-probabilities.

    And the share of the weights that merging changes.
    """
    model, texts = adapted(reference, dtype, size), ids(reference, rows)
    sampling, none = Sampling(max_new_tokens=STEPS), frozenset[int]()

    def compared(samples: list[Any]) -> float:
        with torch.no_grad():
            scored = continuation_logprobs(model, texts, [list(s.token_ids) for s in samples])
        sampled = torch.tensor([s.logprobs for s in samples])
        return float((scored.float() - sampled).abs().mean())

    found = {"beside": compared(generate(model, texts, sampling, range(rows), stop_ids=none))}
    with merged(model):
        samples = generate(model, texts, sampling, range(rows), stop_ids=none)
    found["merged"] = compared(samples)
    with model.disable_adapter():
        samples = generate(model, texts, sampling, range(rows), stop_ids=none)
    found["without the adapter"] = compared(samples)
    found["share of weights changed"] = changed_share(model)
    return found


def ids(reference: str, rows: int) -> list[list[int]]:
    """Return token ids of prompts."""
    tiny = reference == "tiny"
    tokenizer = tiny_model("llama").tokenizer if tiny else load_tokenizer(reference)
    return [
        list(tokenizer(text)["input_ids"])[:PROMPT]
        for text in itertools.islice(itertools.cycle(prompts()), rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = []
    for reference, dtype in itertools.product(MODELS, ("float32", "bfloat16")):
        detail = decoding(reference, dtype, rounds)
        name = f"{reference}, {dtype}, {ROWS} rows: a decoding step, beside against merged"
        found.append(Row(name, detail["gain"], 1, detail=detail))
        print(name, detail, flush=True)
        for change, size in CHANGES.items():
            nats = differences(reference, dtype, size)
            name = f"{reference}, {dtype}, {change} adapter: difference when merged, nats per token"
            detail = {key: float(f"{value:.3g}") for key, value in nats.items()}
            found.append(Row(name, nats["merged"], nats["beside"], False, "", detail))
            print(name, detail, flush=True)
    save("merged_adapter", found)


if __name__ == "__main__":
    main()
