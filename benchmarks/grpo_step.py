"""A GRPO step in this library and in TRL, with the same model, prompts and settings.

Of all weights or of a LoRA adapter, and sampled by each library itself or by vLLM in its process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from astra_rl import Trainer, TrainingConfiguration
from astra_rl.algorithms import GRPO
from astra_rl.core.text import Exchange, Utterance
from astra_rl.ext.transformers import HFASTProblem
from astra_rl.ext.transformers.problem import ModelSource
from astra_rl.methods.ast_problem import ASTEnvironment
from astra_rl.models.generation import Sampler, Sampling, generate
from astra_rl.models.trainable import LoraOptions, adapter_config
from astra_rl.moderators import FunctionModerator
from astra_rl.rewards.base import Reward, RewardModels


@dataclass(frozen=True)
class Setup:
    """Sizes of a step: prompts, attacks per prompt, their tokens, rows per backward pass."""

    prompts: int = 8
    group: int = 8
    new_tokens: int = 32
    micro_batch: int = 16
    steps: int = 4
    lr: float = 1e-6

    @property
    def accumulation(self) -> int:
        return self.prompts * self.group // self.micro_batch


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
        started = _now()
        logs = super().training_step(seed)
        self.seconds.append(_now() - started)
        return logs


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(
    setup: Setup,
    source: ModelSource,
    texts: list[str],
    dtype: str = "auto",
    device: str = "cpu",
    *,
    lora: LoraOptions | None = None,
    sampler: Sampler = generate,
) -> list[float]:
    """Return the seconds of each step but the first, in this library.

    Args:
        setup: Sizes of a step.
        source: The model.
        texts: The prompts.
        dtype: Dtype of a model that is loaded.
        device: The device.
        lora: The adapter that is trained; None trains all weights.
        sampler: Samples the attacks.
    """
    problem = SilentTarget(
        source, source, source, FunctionModerator(lambda texts: [0.0] * len(texts)), device,
        dtype=dtype, reward=Variety(), lora=lora, sampler=sampler,
        attacker_sampling=Sampling(max_new_tokens=setup.new_tokens), attacker_chat=False,
        target_chat=False,
    )  # fmt: skip
    config = TrainingConfiguration(
        lr=setup.lr, batch_size=setup.micro_batch, optimizer="adamw", training_steps=setup.steps,
        num_episodes_per_experience=setup.prompts, max_grad_norm=1.0, seed=0,
        gradient_accumulation_steps=setup.accumulation,
    )  # fmt: skip
    trainer = Timed(config, ASTEnvironment(problem, texts, setup.group, 1), GRPO(problem))
    trainer.seconds = []
    trainer.train()
    return trainer.seconds[1:]


def trl_config(setup: Setup, folder: str, device: str, **more: Any) -> Any:
    """Return a ``trl.GRPOConfig`` of the setup, which sends no statistics and looks nothing up.

    Args:
        setup: Sizes of a step.
        folder: For what it writes.
        device: The device.
        more: Further arguments, for example `use_vllm`.
    """
    import huggingface_hub.constants as hub

    hub.HF_HUB_DISABLE_TELEMETRY = hub.HF_HUB_OFFLINE = True  # before TRL is imported
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder, use_cpu=device == "cpu", bf16=False, max_steps=setup.steps,
        learning_rate=setup.lr, per_device_train_batch_size=setup.micro_batch,
        num_generations=setup.group, gradient_accumulation_steps=setup.accumulation,
        max_completion_length=setup.new_tokens, max_grad_norm=1.0, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, seed=0, **more,
    )  # fmt: skip


def trl(
    setup: Setup,
    model: Callable[[], Any],
    tokenizer: Any,
    texts: list[str],
    device: str = "cpu",
    *,
    lora: LoraOptions | None = None,
    **more: Any,
) -> list[float]:
    """Return the seconds of each step but the first, in TRL.

    Args:
        setup: Sizes of a step.
        model: Returns the model; with vLLM, one that was loaded from a folder.
        tokenizer: Its tokenizer.
        texts: The prompts.
        device: The device.
        lora: The adapter that is trained; None trains all weights.
        more: Further arguments of `trl_config`.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(-_now())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.marks[-1] += _now()

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = trl_config(setup, folder, device, **more)
        from trl import GRPOTrainer

        from datasets import Dataset

        trainer = GRPOTrainer(
            model=model(),
            reward_funcs=lambda completions, **_: [score(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts * setup.steps}),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=None if lora is None else adapter_config(lora),
        )
        trainer.train()
    return clock.marks[1:]
