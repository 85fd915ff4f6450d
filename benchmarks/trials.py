"""Microbenchmarks of candidate optimisations of the decoding step.

    python benchmarks/trials.py

Each candidate is one forward pass of the layers and the head for one new token of 64 rows with 128
tokens behind them. The warm-up is the time before the first step.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, interleaved, median
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from astra_rl.models.kv_cache import preallocated_cache
from astra_rl.models.loading import load_model

MODEL = "bundled:smollm2-135m"
ROWS, PAST, REPEATS = 64, 128, 15
ROOM = PAST + REPEATS + 3


def stepper(
    model: PreTrainedModel, make_cache: Callable[[], Any], forward: Any
) -> Callable[[], Any]:
    """Return a function that does one step; growing caches grow by one token."""
    cache = make_cache()
    ids = torch.randint(10, 1000, (ROWS, PAST))
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = torch.randint(10, 1000, (ROWS, 1))
    position = torch.full((ROWS, 1), PAST)

    def step() -> Tensor:
        logits: Tensor = forward(
            token, past_key_values=cache, use_cache=True, position_ids=position,
            **({"cache_position": position[0]} if isinstance(cache, StaticCache) else {}),
        ).logits  # fmt: skip
        return logits

    return step


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    """int8 weights and activations in the linear layers, the rest in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed: PreTrainedModel = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model).float(), {nn.Linear}, dtype=torch.qint8
        )
    return changed


def main() -> None:
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = load_model(MODEL)
    int8 = quantised(model)
    compiled = torch.compile(model, dynamic=False)
    candidates = {
        "as transformers has it": stepper(model, DynamicCache, model),
        "cache with room": stepper(model, lambda: preallocated_cache(model, ROOM), model),
        "static cache": stepper(
            model, lambda: StaticCache(config=model.config, max_cache_len=2 * PAST), model
        ),
        "static cache, torch.compile": stepper(
            model, lambda: StaticCache(config=model.config, max_cache_len=2 * PAST), compiled
        ),
        "int8, float32 between": stepper(int8, lambda: preallocated_cache(int8, ROOM), int8),
    }
    warm_up = {}
    for name, run in list(candidates.items()):
        started = time.perf_counter()
        try:
            run()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            del candidates[name]
        warm_up[name] = time.perf_counter() - started
    times = interleaved(candidates, repeats=REPEATS)
    rows = {
        name: {"milliseconds": 1000 * median(each), "warm_up_seconds": warm_up[name]}
        for name, each in times.items()
    }
    print("| candidate | ms a step | first step, seconds |\n| --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['milliseconds']:.0f} | {row['warm_up_seconds']:.1f} |")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": "trials", "candidates": rows}, indent=2)
    (RESULTS / "trials.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
