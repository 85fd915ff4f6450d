"""Duration of a GRPO step compared with TRL's GRPOTrainer.

    python benchmarks/grpo_against_trl.py [--rounds 3]

Same model, prompts, group size, lengths, micro-batches, learning rate and reward function, full
fine-tuning, on the CPU. TRL is measured with its default dtype (float32) and in
bfloat16, the default of this library; the faster of the two is compared. TRL has no target, so the
target of this library returns empty responses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from collection_and_update import MODEL, prompts
from common import Row, median, save, spread
from grpo_step import Setup, ours, trl

from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.references import resolve_reference

SETUP = Setup()


def in_trl(texts: list[str], dtype: str) -> list[float]:
    tokenizer = load_tokenizer(MODEL)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return trl(SETUP, lambda: _fresh(dtype), tokenizer, texts)


def _fresh(dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_reference(MODEL), dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    load_model(MODEL)  # converts the bundled model before timing
    texts = prompts()[: SETUP.prompts]
    candidates: dict[str, Callable[[], list[float]]] = {
        "astra-rl": lambda: ours(SETUP, MODEL, texts, "auto"),
        "astra-rl float32": lambda: ours(SETUP, MODEL, texts, "float32"),
        "TRL as it comes (float32)": lambda: in_trl(texts, "float32"),
        "TRL bfloat16": lambda: in_trl(texts, "bfloat16"),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].extend(run())
    medians = {name: median(values) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name.startswith("TRL"))
    save(
        "grpo_against_trl",
        [
            Row(
                "GRPO step, against TRL at its fastest", best / medians["astra-rl"], 3,
                detail={name: spread(values) for name, values in times.items()},
            )
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
