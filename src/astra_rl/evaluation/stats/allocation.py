"""Division of samples among prompts and models, for importance sampling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from random import Random

from astra_rl.core.seeding import derive_seed


def prompts_in_turn(prompts: int, counts: Sequence[int], seed: int) -> list[list[int]]:
    """Return the prompts of the samples of each model, as rows in random order.

    Each model begins where the last one ended, so that the numbers of samples of the prompts differ
    by at most one. Only as many prompts are sampled as the first model, the baseline, and all
    others together can: its samples limit the weights, and theirs find the rare failures.

    Args:
        prompts: Number of prompts.
        counts: Number of samples of each model, those of the baseline first.
        seed: Determines the order.
    """
    order = list(range(prompts))
    Random(derive_seed(seed, "order of prompts")).shuffle(order)
    in_turn = cycle(order[: min(counts[0], sum(counts[1:]))])
    return [list(islice(in_turn, count)) for count in counts]


def divided(count: int, parts: int) -> list[int]:
    """Return `parts` numbers that add up to `count` and differ by at most one."""
    each, more = divmod(count, parts)
    return [each + (index < more) for index in range(parts)]
