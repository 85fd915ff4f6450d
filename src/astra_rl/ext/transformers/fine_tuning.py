"""Fine-tuning of a target on preferred replies, with the trainers of TRL.

Prompts are rendered by the renderer that also renders them when the target is tested, so the model
is trained on exactly the token ids that it reads.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from astra_rl.core.seeding import generator_states, restore_generators
from astra_rl.core.text import Conversation, Utterance
from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.hub import without_telemetry
from astra_rl.models.adapters import is_adapted, quiet_peft
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.models.settings import FineTuning as FineTuning
from astra_rl.models.trainable import adapter_config, name_base
from astra_rl.models.vocabulary import model_end_ids

EXTRA = "harden"
"""Extra of this distribution that installs TRL."""


@dataclass(frozen=True)
class PreferencePair:
    """A preferred and a rejected reply of the target in one context.

    Attributes:
        prompt: The conversation up to and including the last user message.
        chosen: The preferred reply. One that was cut off (`finish_reason` is ``"length"``) is
            trained without an end token.
        rejected: The other reply; supervised training does not use it.
    """

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True)
class FineTuned:
    """A target with a trained adapter.

    Attributes:
        model: The ``peft.PeftModel``, frozen and in evaluation mode.
        history: Metrics of TRL, one mapping per logged step.
    """

    model: Any
    history: Sequence[dict[str, float]]


def require_trl() -> Any:
    """Return the package TRL.

    Raises:
        MissingDependencyError: It is not; the message names the extra.
    """
    return require("trl", extra=EXTRA)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    options: FineTuning,
    *,
    renderer: ConversationRenderer | None = None,
    seed: int = 0,
) -> FineTuned:
    """Train a new LoRA adapter of a model on preferred replies.

    The model keeps its weights; with the adapter disabled it is also the reference of DPO. The
    same arguments give the same adapter on the same machine. No network connection is opened.

    Args:
        model: The target, without an adapter; adapter layers are inserted into it.
        tokenizer: Its tokenizer.
        pairs: The training data.
        options: Method and hyperparameters.
        renderer: Renders prompts for the target; None uses the chat template, if there is one.
        seed: Seed of the adapter's initial weights and of the order of the pairs.

    Raises:
        ConfigurationError: There are no pairs, or the model has an adapter already.
        MissingDependencyError: TRL is not installed.
    """
    require_trl()
    if not pairs:
        raise ConfigurationError("no preference pairs given; fine-tuning needs at least one.")
    if is_adapted(model):
        raise ConfigurationError(
            "this model has an adapter already. Merge it first: "
            "astra_rl.models.adapters.merge_adapter."
        )
    renderer = renderer or ConversationRenderer(
        tokenizer, "target", model_end_ids=model_end_ids(model)
    )
    rows = [_row(pair, renderer) for pair in pairs]
    before = generator_states()
    with tempfile.TemporaryDirectory() as folder, _quiet_trl():
        trainer = _trainer(model, tokenizer, rows, options, Path(folder), seed)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    restore_generators(before)
    trained = trainer.model
    name_base(trained)
    history = [
        {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return FineTuned(trained.requires_grad_(False).eval(), history)


def _row(pair: PreferencePair, renderer: ConversationRenderer) -> dict[str, list[int]]:
    chosen, rejected = (_reply_ids(reply, renderer) for reply in (pair.chosen, pair.rejected))
    longest = max(len(chosen), len(rejected))
    prompt = renderer.render(pair.prompt, reserve=longest)
    if not prompt.ids:
        raise ConfigurationError(
            f"a reply of {longest} tokens leaves no space for its prompt in the context window of "
            f"{renderer.window} tokens. Use shorter safe replies."
        )
    return {"prompt_ids": list(prompt.ids), "chosen_ids": chosen, "rejected_ids": rejected}


def _reply_ids(reply: str, renderer: ConversationRenderer) -> list[int]:
    ids = list(renderer.utterance_ids(reply))
    if Utterance.of(reply).finish_reason == "length":
        while ids and ids[-1] in renderer.end_ids:
            ids.pop()
    elif not ids or ids[-1] not in renderer.end_ids:
        ids += sorted(renderer.end_ids)[:1]
    return ids


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    options: FineTuning,
    folder: Path,
    seed: int,
) -> Any:
    from datasets import Dataset

    trl = require_trl()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": options.lr,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": min(options.batch_size, len(rows)),
        "seed": seed % 2**32,  # NumPy's range
        "use_cpu": model.device.type == "cpu",
        "bf16": False,  # the weights have the dtype that they are tested in
        "gradient_checkpointing": False,
        "max_length": None,  # the renderer has truncated them
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    common = {"processing_class": tokenizer, "peft_config": adapter_config(options.lora)}
    if options.method == "sft":
        supervised = [
            {
                "input_ids": row["prompt_ids"] + row["chosen_ids"],
                "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
            }
            for row in rows
        ]
        return trl.SFTTrainer(
            model,
            args=trl.SFTConfig(**settings),
            train_dataset=Dataset.from_list(supervised),
            **common,
        )

    base: Any = trl.DPOTrainer

    class RenderedDPO(base):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # `_row` has rendered and tokenized it

    return RenderedDPO(
        model,
        args=trl.DPOConfig(
            **settings, beta=options.beta, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]
        ),
        train_dataset=Dataset.from_list(list(rows)),
        **common,
    )


@contextlib.contextmanager
def _quiet_trl() -> Iterator[None]:
    """Context in which TRL sends no telemetry and prints no progress."""
    from datasets.utils import logging as datasets_logging

    shown = datasets_logging.is_progress_bar_enabled()
    datasets_logging.disable_progress_bar()
    try:
        with quiet_peft(), without_telemetry():
            # TRL passes the old name of an argument to transformers.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            yield
    finally:
        if shown:
            datasets_logging.enable_progress_bar()
