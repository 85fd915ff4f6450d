"""The attacker of ordinary use as a small trained model, kept in the cache of the user."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from astra_rl.bench.traffic import Traffic
from astra_rl.errors import ModelError
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.infra.storage import cache_dir

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair

SHARES = (0.5, 2.0)
"""Range that passes, of the probability of a branch under the attacker over that in use."""


def ordinary_attacker(traffic: Traffic, key: str, *, steps: int = 300) -> ModelPair:
    """Return a small Llama that writes messages of ordinary use; it is trained on first use.

    Args:
        traffic: Ordinary use.
        key: Its name in the cache.
        steps: Training steps, of 64 messages each.

    Raises:
        ModelError: A branch is more than twice as likely as in ordinary use, or less than half.
    """
    from astra_rl.bench.organism_models import fit, share_of, small_attacker, traffic_losses

    folder = cache_dir() / "organisms" / f"{key}-{steps}"
    if not (folder / "config.json").is_file():
        random = Random(key)
        pair = small_attacker(traffic.words(), seed=0)
        fit(pair.model, traffic_losses(pair, traffic, random, 64), steps=steps, lr=4e-3, log=key)
        for branch in traffic.branches:
            share = share_of(pair, traffic, branch, messages=64, random=random)
            if not SHARES[0] <= share <= SHARES[1]:
                raise ModelError(
                    f"the attacker writes {branch.name!r} {share:.2f} times as often as ordinary "
                    f"use; it must be {SHARES[0]} to {SHARES[1]} times. Train more than {steps} "
                    "steps."
                )
        with replace_folder(folder) as new:
            pair.model.save_pretrained(new)
            pair.tokenizer.save_pretrained(str(new))
    return loaded(folder)


def loaded(folder: Any) -> ModelPair:
    """Return a model of a folder in float32 on the CPU, and its tokenizer."""
    from astra_rl.ext.transformers.problem import ModelPair
    from astra_rl.models.loading import load_model, load_tokenizer

    return ModelPair(load_model(folder, dtype="float32", device="cpu"), load_tokenizer(folder))
