"""Decoding speed relative to the machine's limit, and scaling of an experience with episodes.

    python benchmarks/decoding.py

The machine's limit for one decoding step is the larger of two times: reading all weights once at
the measured bandwidth, and doing all multiplications at the measured rate of a large matrix
product in the same precision. Both are measured in the same run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from collection_and_update import collector_of, prompts
from common import Row, interleaved, median, save, spread

from astra_rl.models.generation import Sampling, generate
from astra_rl.models.loading import load_model, load_tokenizer

MODEL = "bundled:smollm2-135m"
ROWS, STEPS, EPISODES = 64, 32, (4, 8, 16, 32, 64)


def seconds(run: Callable[[], Any], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def bandwidth(size: int) -> float:
    """Bytes per second read and written by a copy of a block as large as the weights."""
    source = torch.empty(size // 4)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def matmul_rate(dtype: torch.dtype) -> float:
    """Multiplications and additions per second of a large matrix product."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2 * 2048**3 / seconds(lambda: a @ b)


def main() -> None:
    torch.set_grad_enabled(False)
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    repeated = itertools.islice(itertools.cycle(prompts()), ROWS)
    texts = [tokenizer(text)["input_ids"] for text in repeated]
    parameters = sum(p.numel() for p in model.parameters())  # the head is the embedding
    weight_bytes = parameters * model.dtype.itemsize
    read = weight_bytes / bandwidth(weight_bytes)
    compute = 2 * parameters * ROWS / matmul_rate(model.dtype)

    def decode(tokens: int) -> Callable[[], Any]:
        sampling = Sampling(max_new_tokens=tokens)
        return lambda: generate(model, texts, sampling, range(ROWS), stop_ids=frozenset())

    times = interleaved({"one": decode(1), "many": decode(STEPS + 1)})
    step = (median(times["many"]) - median(times["one"])) / STEPS
    limit = max(read, compute)
    rows = [
        Row(
            f"decoding at batch {ROWS}, of the machine's limit "
            f"({'bandwidth' if read > compute else 'arithmetic'})",
            100 * limit / step, 50, unit="%",
            detail={
                "step_ms": round(1e3 * step, 1),
                "bandwidth_limit_ms": round(1e3 * read, 1),
                "arithmetic_limit_ms": round(1e3 * compute, 1),
                "seconds": {name: spread(values) for name, values in times.items()},
            },
        )
    ]  # fmt: skip

    # A smaller tree than elsewhere: the largest experience has 64 of them.
    play = collector_of("auto", prompts(), depth=2, new_tokens=16)
    growing = interleaved(
        {str(count): (lambda count=count: play(count)) for count in EPISODES}, repeats=5
    )
    for fewer, more in itertools.pairwise(EPISODES):
        ratio = median(growing[str(more)]) / median(growing[str(fewer)])
        rows.append(
            Row(
                f"time of an experience, {fewer} to {more} episodes", ratio, 2, at_least=False,
                detail={"seconds": {n: spread(growing[str(n)]) for n in (fewer, more)}},
            )
        )  # fmt: skip
    save("decoding", rows)


if __name__ == "__main__":
    main()
