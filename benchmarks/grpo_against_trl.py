"""Duration of a GRPO step compared with TRL's GRPOTrainer.

    python benchmarks/grpo_against_trl.py [--rounds 3]

Same model, prompts, group size, lengths, micro-batches, learning rate and reward function, full
fine-tuning, on the CPU. TRL is measured with its default dtype (float32) and in
bfloat16, the default of this library; the faster of the two is compared. TRL has no target, so the
target of this library returns empty responses.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from collection_and_update import MODEL, prompts
from common import Row, median, save, spread

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import GRPO
from astra_rl.core.text import Exchange, Utterance
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.references import resolve_reference
from astra_rl.moderators import FunctionModerator
from astra_rl.rewards.base import Reward, RewardModels

PROMPTS, GROUP, NEW_TOKENS, MICRO_BATCH, LR, STEPS = 8, 8, 32, 16, 1e-6, 4


def score(text: str) -> float:
    return len(set(text.split())) / 40


class Variety(Reward):
    """Score: the share of distinct words, which is fast and not constant."""

    def __call__(
        self, models: RewardModels, exchanges: Sequence[Exchange]
    ) -> tuple[list[float], list[dict[str, float]]]:
        return [score(str(exchange.attack)) for exchange in exchanges], [{} for _ in exchanges]


class SilentTarget(HFASTProblem):
    """A problem with an empty target response, because TRL has no target."""

    def rollout_prompt_with_target(self, contexts: Sequence[str]) -> Sequence[Utterance]:
        return [Utterance("")] * len(contexts)


class Timed(Trainer):  # type: ignore[type-arg]
    """A trainer that records the duration of each step."""

    seconds: list[float]

    def training_step(self, seed: int | None) -> Any:
        started = time.perf_counter()
        logs = super().training_step(seed)
        self.seconds.append(time.perf_counter() - started)
        return logs


def ours(texts: list[str], dtype: str) -> list[float]:
    problem = SilentTarget(
        MODEL, MODEL, MODEL, FunctionModerator(lambda texts: [0.0] * len(texts)),
        dtype=dtype, reward=Variety(),
        attacker_sampling=Sampling(max_new_tokens=NEW_TOKENS), attacker_chat=False,
        target_chat=False,
    )  # fmt: skip
    config = TrainingConfiguration(
        lr=LR, batch_size=MICRO_BATCH, optimizer="adamw", training_steps=STEPS,
        num_episodes_per_experience=PROMPTS, max_grad_norm=1.0, seed=0,
        gradient_accumulation_steps=PROMPTS * GROUP // MICRO_BATCH,
    )  # fmt: skip
    trainer = Timed(config, ASTEnvironment(problem, texts, GROUP, 1), GRPO(problem))
    trainer.seconds = []
    trainer.train()
    return trainer.seconds[1:]


def trl(texts: list[str], dtype: str) -> list[float]:
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from datasets import Dataset

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(-time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.marks[-1] += time.perf_counter()

    clock = Clock()
    tokenizer = load_tokenizer(MODEL)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, max_steps=STEPS, learning_rate=LR,
            per_device_train_batch_size=MICRO_BATCH, num_generations=GROUP,
            gradient_accumulation_steps=PROMPTS * GROUP // MICRO_BATCH,
            max_completion_length=NEW_TOKENS, max_grad_norm=1.0, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=_fresh(dtype),
            reward_funcs=lambda completions, **_: [score(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts[:PROMPTS] * STEPS}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return clock.marks[1:]


def _fresh(dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_reference(MODEL), dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    load_model(MODEL)  # converts the bundled model before timing
    texts = prompts()[:PROMPTS]
    candidates: dict[str, Callable[[], list[float]]] = {
        "astra-rl": lambda: ours(texts, "auto"),
        "astra-rl float32": lambda: ours(texts, "float32"),
        "TRL as it comes (float32)": lambda: trl(texts, "float32"),
        "TRL bfloat16": lambda: trl(texts, "bfloat16"),
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
