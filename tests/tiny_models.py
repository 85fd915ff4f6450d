"""Tiny models and adapters in folders."""

from __future__ import annotations

from pathlib import Path

import torch

from astra_rl.models.adapters import save_model
from astra_rl.models.loading import load_model
from astra_rl.models.trainable import LoraOptions, make_trainable
from astra_rl.testing import tiny_model


def save_tiny_models(folder: Path, **seeds: int) -> None:
    """Write a random model and its tokenizer for each name, in a folder of this name."""
    for name, seed in seeds.items():
        model, tokenizer = tiny_model("llama", seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def save_random_adapter(base: Path, folder: Path, *, seed: int) -> None:
    """Write an adapter on the model in a folder, with random weights."""
    adapted = make_trainable(load_model(base), lora=LoraOptions(rank=2))
    torch.manual_seed(seed)
    with torch.no_grad():
        for each in adapted.parameters():
            if each.requires_grad:
                each.normal_(std=0.3)
    save_model(adapted, folder)
