"""Peak memory of a training run and of one update, each in its own process.

    python benchmarks/memory.py

A training run of the engine (LoRA attacker; target and baseline are the same base) is compared
with the same run with three copies of the model: a fully trained attacker, a target and a baseline.
One update on hidden states is compared with one with full logits. The memory of the process before
a model is loaded (Python, torch, transformers) is subtracted from both.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from common import Row, save

MODEL = "bundled:smollm2-135m"
ROWS, LENGTH, TRAINED = 16, 256, 32


def peak() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_shared() -> None:
    """Train with a LoRA attacker, target and baseline that share one base model."""
    from astra_rl.models.trainable import LoraOptions

    _train(dtype="auto", lora=LoraOptions())


def run_shared_float32() -> None:
    """The same in float32, which `dtype: auto` takes on processors with slow bfloat16."""
    from astra_rl.models.trainable import LoraOptions

    _train(dtype="float32", lora=LoraOptions())


def run_three_copies() -> None:
    """Train with a separate float32 model per role, as in a simple script."""
    from astra_rl.ext.transformers import ModelPair
    from astra_rl.models.loading import load_model, load_tokenizer

    copies = [
        ModelPair(load_model(MODEL, dtype="float32"), load_tokenizer(MODEL)) for _ in range(3)
    ]
    _train(*copies, dtype="float32")


def run_three_copies_half() -> None:
    """The same in the engine's default precision."""
    from astra_rl.ext.transformers import ModelPair
    from astra_rl.models.loading import load_model, load_tokenizer

    copies = [ModelPair(load_model(MODEL), load_tokenizer(MODEL)) for _ in range(3)]
    _train(*copies, dtype="auto")


def _train(*models: object, **options: object) -> None:
    from astra_rl import Trainer, TrainingConfiguration
    from astra_rl.algorithms import GRPO
    from astra_rl.ext.transformers import HFASTProblem
    from astra_rl.methods.ast_problem import ASTEnvironment
    from astra_rl.models.generation import Sampling
    from astra_rl.moderators import FunctionModerator

    problem = HFASTProblem(
        *(models or (MODEL, MODEL, MODEL)),
        FunctionModerator(lambda texts: [min(1.0, len(text) / 1000) for text in texts]),
        attacker_sampling=Sampling(max_new_tokens=32),
        target_sampling=Sampling(max_new_tokens=32),
        **options,
    )
    environment = ASTEnvironment(problem, ["Tell me about gardens.", "Tell me about maps."], 4, 2)
    config = TrainingConfiguration(
        lr=1e-5, batch_size=8, optimizer="adamw", training_steps=2,
        num_episodes_per_experience=2, gradient_accumulation_steps=1,
    )  # fmt: skip
    Trainer(config=config, environment=environment, algorithm=GRPO(problem)).train()


def _texts(vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def update_sliced() -> None:
    """Make one update with logits of the trained positions only."""
    from astra_rl.models.loading import load_model
    from astra_rl.models.scoring import continuation_logprobs
    from astra_rl.models.trainable import make_trainable

    model = make_trainable(load_model(MODEL, dtype="float32"), layers=1)
    ids = _texts(model.config.vocab_size).tolist()
    cut = LENGTH - TRAINED
    logprobs = continuation_logprobs(model, [row[:cut] for row in ids], [row[cut:] for row in ids])
    logprobs.mean().neg().backward()


def update_full() -> None:
    """Make one update with logits of all positions, as with `labels=` in transformers."""
    from astra_rl.models.loading import load_model
    from astra_rl.models.trainable import make_trainable

    model = make_trainable(load_model(MODEL, dtype="float32"), layers=1)
    ids = _texts(model.config.vocab_size)
    logits = model(input_ids=ids).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    logprobs[:, -TRAINED:].mean().neg().backward()


def load_only() -> None:
    """Load the model only: the memory that both updates have in common."""
    from astra_rl.models.loading import load_model
    from astra_rl.models.trainable import make_trainable

    make_trainable(load_model(MODEL, dtype="float32"), layers=1)


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        run_shared, run_shared_float32, run_three_copies, run_three_copies_half,
        update_sliced, update_full, load_only,
    )
}  # fmt: skip


def in_a_process(name: str) -> float:
    """Return the peak memory of one case in MiB, minus that before any model is loaded."""
    done = subprocess.run(
        [sys.executable, __file__, name],
        check=True,
        capture_output=True,
        text=True,
        # Freed memory is returned at once, so that the peak is the memory in use at one time.
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    if len(sys.argv) > 1:
        import astra_rl.ext.transformers  # noqa: F401

        before = peak()
        CASES[sys.argv[1]]()
        print(json.dumps(peak() - before))
        return
    mib = {name: round(in_a_process(name)) for name in CASES}
    update, full = mib["update_sliced"] - mib["load_only"], mib["update_full"] - mib["load_only"]
    save(
        "memory",
        [
            Row(
                "peak memory of a LoRA run, of that with three copies",
                100 * mib["run_shared"] / mib["run_three_copies"], 40, at_least=False, unit="%",
                detail={name: value for name, value in mib.items() if name.startswith("run")},
            ),
            Row(
                "the same with everything in float32",
                100 * mib["run_shared_float32"] / mib["run_three_copies"],
                40, at_least=False, unit="%",
            ),
            Row(
                "peak memory of an update, of that with full logits",
                100 * update / full, 25, at_least=False, unit="%",
                detail={**{n: v for n, v in mib.items() if not n.startswith("run")},
                        "update_above_model": update, "full_above_model": full},
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
